"""What a set of judged pairs amounts to: accuracy, calibration, order effects, tables by subset and length, and what
judges achieve that look at the length only (`core.trivial_judges`).

A judged pair is a plain dict, one line of `eval/preference.rows.jsonl`: `id`, `subset`, `chosen_length`,
`rejected_length` (characters), `order` (`both`, `chosen_first`, `rejected_first`, or `none` for a scalar reward),
`score_chosen`, `score_rejected`, `margin`, `margin_first`, `margin_second`, `p_first`, `p_second` (None where there
is none), `probability` and `log_probability` (of the chosen answer), `consistent`, `correct`, `tie`.
"""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import statistics, trivial_judges
from gramjax.core.errors import DataError

HEADLINES = ("accuracy", "swap_consistency", "position_bias", "ece", "num_pairs")
"""What comes first: a progress line shows the first few."""


def decide(record: dict[str, Any]) -> dict[str, Any]:
    """Add `correct` and `tie` to a judged pair, and turn NumPy numbers into plain ones (None where not finite)."""
    verdict = int(statistics.verdicts(record["probability"])) if np.isfinite(record["probability"]) else -1
    record["correct"], record["tie"] = verdict > 0, verdict == 0
    for name, value in record.items():
        if isinstance(value, float | np.floating | np.ndarray):
            record[name] = float(value) if np.isfinite(value) else None
    return record


def summarise(
    records: Sequence[Mapping[str, Any]],
    bins: int = 10,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    length_edges: Sequence[float] = (-0.5, -0.2, -0.05, 0.05, 0.2, 0.5),
    length_difference: str = "relative",
) -> Iterator[tuple[str, Any]]:
    """The metrics of judged pairs as (name, value): plain numbers first, then tables that JSON can hold.

    Accuracy counts a tie as wrong and a non-finite score as wrong; calibration and margins are over the finite ones.
    A number without meaning here (the swap consistency of a scalar reward) is None and "notes" says why.
    Raises DataError without records.
    """
    if not records:
        raise DataError("there are no judged pairs to count")
    found = dict(_all(records, bins, bootstrap_samples, seed, length_edges, length_difference))
    yield from ((name, found.pop(name)) for name in HEADLINES)
    yield from found.items()


def _all(
    records: Sequence[Mapping[str, Any]],
    bins: int,
    bootstrap_samples: int,
    seed: int,
    length_edges: Sequence[float],
    length_difference: str,
) -> Iterator[tuple[str, Any]]:
    """Everything that `summarise` yields."""
    correct = np.array([r["correct"] for r in records])
    low, high = statistics.wilson(int(correct.sum()), len(records))
    boot_low, boot_high = statistics.bootstrap(correct, bootstrap_samples, seed)
    subsets = _grouped(records, [r["subset"] for r in records])
    yield "accuracy", float(correct.mean())
    yield "accuracy_low", low
    yield "accuracy_high", high
    yield "accuracy_bootstrap_low", _number(boot_low)
    yield "accuracy_bootstrap_high", _number(boot_high)
    yield "accuracy_micro", float(correct.mean())
    yield "accuracy_macro", float(np.mean([group["accuracy"] for group in subsets.values()]))
    yield "num_pairs", len(records)
    yield "num_correct", int(correct.sum())
    yield "ties", sum(bool(r["tie"]) for r in records)

    finite = [r for r in records if r["probability"] is not None]
    yield "num_nonfinite", len(records) - len(finite)
    probability = np.array([r["probability"] for r in finite], np.float64)
    margin = np.array([r["margin"] for r in finite], np.float64)
    calibration = statistics.reliability(probability, bins)
    yield "ece", _number(calibration.ece)
    yield "brier", _number(statistics.brier(probability))
    yield "nll", _mean([-r["log_probability"] for r in finite])
    yield "margin", _mean(margin)
    yield "margin_abs_median", _number(np.median(np.abs(margin)) if len(margin) else math.nan)

    orders = {r["order"] for r in records}
    tables: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if orders == {"none"}:
        yield from _reward_metrics(finite)
        notes["position"] = (
            "a scalar reward scores each answer alone: swap consistency and position bias have no meaning"
        )
    else:
        yield from _order_metrics(finite, bins, tables)
        if orders != {"both"}:
            notes["position"] = "each pair was judged in one order: swap consistency and position bias need both"
    masses = [r["verdict_mass"] for r in finite if "verdict_mass" in r]
    if masses:
        yield "verdict_mass", _mean(masses)
    if notes:
        yield "notes", notes
    yield "trivial_judges", trivial_judges.summarise(records, seed)
    yield "subsets", subsets
    yield "length_buckets", _length_table(records, length_edges, length_difference)
    yield "reliability", {"both_orders" if orders == {"both"} else "scores": _reliability_table(calibration)} | tables


def _reward_metrics(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    rewards = [r[name] for r in records for name in ("score_chosen", "score_rejected")]
    for name in ("swap_consistency", "position_bias", "logit_bias"):
        yield name, None
    yield "mean_reward", _mean(rewards)
    yield "min_reward", min(rewards, default=None)
    yield "max_reward", max(rewards, default=None)


def _order_metrics(
    records: Sequence[Mapping[str, Any]], bins: int, tables: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """What the order of the two answers does. `position_bias`: mean probability that an answer wins when it stands
    first minus the same when it stands second (0: none, 1: always the first, -1: always the second)."""
    first = np.array([r["p_first"] for r in records if r["p_first"] is not None])
    second = np.array([r["p_second"] for r in records if r["p_second"] is not None])
    one_order = np.concatenate([first, 1 - second])
    calibration = statistics.reliability(one_order, bins)
    both = [r for r in records if r["order"] == "both"]
    yield "swap_consistency", _mean([r["consistent"] for r in both])
    yield "position_bias", _mean([r["p_first"] + r["p_second"] - 1 for r in both])
    yield "logit_bias", _mean([(r["margin_first"] + r["margin_second"]) / 2 for r in both])
    yield "p_a_first", _mean(first)
    yield "p_a_second", _mean(second)
    yield "accuracy_first", _mean(statistics.verdicts(first) > 0)
    yield "accuracy_second", _mean(statistics.verdicts(second) < 0)
    yield "accuracy_one_order", _mean(statistics.verdicts(one_order) > 0)
    yield "ece_one_order", _number(calibration.ece)
    if both:
        verdict_one = statistics.verdicts([r["p_first"] for r in both])
        verdict_two = -statistics.verdicts([r["p_second"] for r in both])
        yield "accuracy_dual_order", _mean(statistics.dual_order_correct(verdict_one, verdict_two))
        tables["one_order"] = _reliability_table(calibration)


def _grouped(records: Sequence[Mapping[str, Any]], keys: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """Per key, in order of the keys: pairs, right ones, ties, accuracy and its Wilson interval."""
    groups: dict[Any, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for key, record in zip(keys, records):
        groups[key].append(record)
    out = {}
    for key in sorted(groups):
        right = sum(bool(r["correct"]) for r in groups[key])
        low, high = statistics.wilson(right, len(groups[key]))
        out[key] = {
            "accuracy": right / len(groups[key]),
            "low": low,
            "high": high,
            "num_pairs": len(groups[key]),
            "num_correct": right,
            "ties": sum(bool(r["tie"]) for r in groups[key]),
        }
    return out


def _length_table(records: Sequence[Mapping[str, Any]], inner: Sequence[float], unit: str) -> list[dict[str, Any]]:
    """Accuracy by how much longer the chosen answer is: one entry per bucket that holds pairs, `from` <= x < `to`."""
    edges = [-math.inf, *inner, math.inf]
    keys = []
    for record in records:
        difference = float(record["chosen_length"] - record["rejected_length"])
        if unit == "relative":
            difference /= max(record["chosen_length"], record["rejected_length"], 1)
        keys.append(int(np.searchsorted(edges, difference, side="right")) - 1)
    return [
        {"from": _number(edges[k]), "to": _number(edges[k + 1]), "unit": unit} | group
        for k, group in _grouped(records, keys).items()
    ]


def _reliability_table(result: statistics.Reliability) -> dict[str, Any]:
    bins = zip(result.edges[:-1], result.edges[1:], result.confidence, result.accuracy, result.count)
    return {
        "ece": _number(result.ece),
        "bins": [
            {"from": float(a), "to": float(b), "confidence": _number(c), "accuracy": _number(d), "count": int(n)}
            for a, b, c, d, n in bins
        ],
    }


def _number(value: Any) -> float | None:
    """A plain float, None where JSON has no number for it."""
    return float(value) if np.isfinite(value) else None


def _mean(values: Any) -> float | None:
    values = np.asarray(values, np.float64)
    return _number(values.mean()) if values.size else None
