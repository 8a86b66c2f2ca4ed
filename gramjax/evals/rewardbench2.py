"""RewardBench 2: is the best of four answers right, and are many right answers above the wrong ones (its subset Ties)?

A model with a reward per answer gives every answer that. A judge of pairs has none: an answer scores the mean
probability with which it beats each of the others, both orders averaged (round robin; n (n - 1) / 2 comparisons for n
answers). The leaderboard asks its generative judges for one letter of four, and for ratings in Ties, which is another
task: numbers of a judge of pairs are not on its scale. The rules are in `core.rewardbench2`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gramjax.core import rewardbench2, statistics, trivial_judges
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Tally, text_length
from gramjax.scoring import reward_model
from gramjax.scoring.reading import Layout, Reader
from gramjax.scoring.reward_model import RewardModel, settings_of

ROW_TYPES = ("responses",)
REFERENCE = True
LISTS_AT_ONCE = 64
"""Lists whose answers share batches."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the answers of a list are scored."""

    method: str = "auto"
    """`judge`, `score`, `implicit` or `auto`, as in config.evals.preference."""
    agg: str = "prob"
    """Average of the two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "shorten_responses"
    """What happens to texts longer than config.data.max_length (see config.data.overlong; empty: the same as there)."""
    batch_size: int = 32
    """Sequences per batch over all devices."""
    share: bool = True
    """Compute what texts have in common at the start once; scores change by rounding only."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: chosen by the data."""
    limit: int = 0
    """Score only the first lists; 0: all."""
    seed: int = 0
    """Of the intervals by bootstrap."""


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Reader:
    """The compiled function from weights and a padded batch to rewards or verdict logits (`scoring.reading`)."""
    model = model if mesh is None else dataclasses.replace(model, mesh=mesh)
    return reward_model.make_reader(model, renderer, settings_of(config))


def evaluate(
    model: Any,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
    scorer: Reader | None = None,
    reference: Any = None,
) -> Iterator[tuple[str, Any]]:
    """Score lists of answers; yield (name, value), plain numbers first, then the tables.

    `rows` have `responses`, the correct ones first, `num_correct` and `subset`. `write_row` receives one dict per list
    with its `scores`. A list with an answer that cannot be scored is left out and counted. Raises DataError when none
    is left or a row is none of the benchmark's, UserError for contradictory settings.
    """
    if config.limit < 0:
        raise UserError("config.evals.rewardbench2.limit must not be negative")
    scorer = scorer or make_scorer(model, renderer, config, mesh)
    layout = Layout(config.batch_size, config.buckets, config.share)
    judge = reward_model.build(model, weights, renderer, settings_of(config), layout, scorer, reference)
    kept = list(rows)[: config.limit or None]
    for row in kept:
        _check(row)
    skipped, records = Tally(), []
    for start in range(0, len(kept), LISTS_AT_ONCE):
        chunk = kept[start : start + LISTS_AT_ONCE]
        for row, (scores, asked, reason) in zip(chunk, _scores(judge, chunk), strict=True):
            if reason:
                skipped.add(reason, str(row["id"]))
                continue
            records.append(_record(row, scores, asked, judge.kind))
            if write_row is not None:
                write_row(records[-1])
    if not records:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(kept)} lists can be scored: {reasons or 'there are no rows'}")
    yield from summarise(records, config.seed)
    yield "kind", judge.kind
    yield "num_skipped", skipped.total
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


def _check(row: Mapping[str, Any]) -> None:
    """Raise DataError for a row that is no list of the benchmark."""
    count, right = len(row["responses"]), row.get("num_correct")
    if not isinstance(right, int) or isinstance(right, bool) or not 0 < right < count:
        raise DataError(
            f"row {row['id']!r}: 'num_correct' is {right!r} beside {count} responses; RewardBench 2 has rows with the "
            "lists 'chosen' and 'rejected', or 'responses' of which the first num_correct are right"
        )


def _scores(judge: RewardModel, rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[float], int, str]]:
    """(scores of the answers, comparisons made, why there are none) of every row."""
    lists = [list(row["responses"]) for row in rows]
    if judge.kind != "judge":
        found = iter(judge.rewards([(row["prompt"], text) for row, texts in zip(rows, lists) for text in texts]))
        rewards = [[next(found) for _ in texts] for texts in lists]
        return [([r.value for r in part], 0, next((r.reason for r in part if r.reason), "")) for part in rewards]
    pairs = [(n, i, j) for n, texts in enumerate(lists) for i, j in itertools.combinations(range(len(texts)), 2)
             if texts[i] != texts[j]]  # fmt: skip
    said = judge.compare([(rows[n]["prompt"], lists[n][i], lists[n][j]) for n, i, j in pairs])
    wins = [np.full((len(texts), len(texts)), 0.5) for texts in lists]
    reasons, asked = [""] * len(rows), [0] * len(rows)
    for (n, i, j), comparison in zip(pairs, said, strict=True):
        reasons[n] = reasons[n] or comparison.reason
        asked[n] += 1
        if np.isfinite(comparison.score):  # no verdict is an even one
            wins[n][i, j], wins[n][j, i] = comparison.score, 1 - comparison.score
    means = [(won.sum(1) - 0.5) / (len(won) - 1) for won in wins]
    return [(mean.tolist(), count, reason) for mean, count, reason in zip(means, asked, reasons, strict=True)]


def _record(row: Mapping[str, Any], scores: Sequence[float], asked: int, kind: str) -> dict[str, Any]:
    values = [float(score) if np.isfinite(score) else None for score in scores]
    record = {
        "id": str(row["id"]),
        "subset": str(row.get("subset") or ""),
        "num_correct": row["num_correct"],
        "scores": values,
        "lengths": [text_length(text) for text in row["responses"]],
        "order": "both" if kind == "judge" else "none",
        "num_comparisons": asked,
    }
    return record | {"results": None if rewardbench2.is_ties(record) else rewardbench2.best_of(values)}


def summarise(records: Sequence[Mapping[str, Any]], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """The metrics of scored lists as (name, value). `accuracy` is over all lists that are not of Ties."""
    values = [record["results"] for record in records if record["results"] is not None]
    low, high = statistics.wilson(sum(values), len(values)) if values else (None, None)
    table = rewardbench2.rewardbench2(records, seed)
    ties = table["subsets"].get(rewardbench2.TIES, {})
    yield "accuracy", float(np.mean(values)) if values else None
    yield "accuracy_low", low
    yield "accuracy_high", high
    yield "rewardbench2_overall", table["overall"]
    yield "rewardbench2_ties", ties.get("score")
    yield "rewardbench2_ties_low", ties.get("low")
    yield "rewardbench2_ties_high", ties.get("high")
    yield "num_lists", len(records)
    yield "num_comparisons", sum(record["num_comparisons"] for record in records)
    yield "rewardbench2", table
    yield "trivial_judges", trivial_judges.summarise_lists(records, seed)
