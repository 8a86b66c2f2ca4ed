"""Preference rows judged by drawn rationales: what the draws decide together, how far they agree, what more would buy.

The judge of GRAM-R2 (arXiv 2509.02492, section 2.6 of the specification here) writes a rationale with a verdict in each
of k draws, half of them in each order of the responses, and the majority counts. A reply without a readable verdict is
counted and never guessed. Which response of a pair is called A is drawn by seed and id.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import judgements, leaderboards, statistics, voting
from gramjax.core.config import GenerationSection, SamplingSection
from gramjax.core.errors import DataError, UserError
from gramjax.data.judge_prompts import in_random_order
from gramjax.data.rows import Tally, text_length
from gramjax.generation.judging import Draw, Judged, Judging, judge
from gramjax.generation.request import LENGTH
from gramjax.generation.sampler import Sampler

ROW_TYPES = ("preference",)
SAMPLES = True
"""`evaluate` is given a sampler, made with `config.generation`."""

SMALLEST = 1e-12
"""Probabilities below this count as this in logarithms."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How preference rows are judged by drawn rationales."""

    judging: Judging = Judging(sampling=SamplingSection(max_tokens=1024, temperature=0.75, n=2))
    """`sampling.n` draws vote: 1 is one verdict, 2 one in each order; odd numbers leave no ties."""
    generation: GenerationSection = GenerationSection()
    benchmark: str = ""
    """`rm_bench`, `judgebench`, `rewardbench` or `hhh`: also count by its rules; empty: what the rows say; `none`."""
    limit: int = 0
    """Judge only the first rows; 0: all."""
    length_difference: str = "relative"
    """`relative`: (chosen - rejected) / longer, in characters; `characters`: chosen - rejected."""
    length_edges: tuple[float, ...] = (-0.5, -0.2, -0.05, 0.05, 0.2, 0.5)
    """Edges between the buckets of length difference."""
    bins: int = 10
    """Bins of confidence in the calibration error."""
    bootstrap_samples: int = 1000
    seed: int = 0
    """Of the draws and of every order."""


def evaluate(
    sampler: Sampler,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Judge preference rows; yield (name, value), plain numbers first, then tables (dicts and lists, JSON-able).

    `accuracy` is that of the majority; a pair without any readable draw is wrong. `write_row` receives one dict per
    pair, in the order of the rows, with all its draws in `judgements`. Raises DataError when no pair can be judged,
    UserError for contradictory settings.
    """
    if "tokens" not in sampler.model.config.heads:
        raise UserError(f"rationales need the head 'tokens'; the model has {', '.join(sampler.model.config.heads)}")
    rows = list(rows)[: config.limit or None]
    benchmark = leaderboards.resolve(config.benchmark, rows)
    skipped, records = Tally(), []
    shown = (in_random_order(row, config.seed) for row in rows)

    def refuse(row: Mapping[str, Any], reason: str) -> None:
        skipped.add(reason, str(row["id"]))

    for row, judged in judge(shown, sampler, config.judging, config.seed, refuse):
        records.append(record(row, judged, config.seed))
        if write_row is not None:
            write_row(records[-1])
    if not records:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(rows)} preference pairs can be judged: {reasons or 'there are no rows'}")
    found = dict(
        judgements.summarise(
            records, config.bins, config.bootstrap_samples, config.seed, config.length_edges, config.length_difference
        )
    )
    tables = {name: value for name, value in found.items() if isinstance(value, dict | list)}
    yield from ((name, value) for name, value in found.items() if name not in tables)
    yield from draws_together(records)
    curve = votes_curve(records, config.judging.order == "alternate")
    yield "accuracy_one_draw", curve[0]["accuracy"]
    yield "num_skipped", skipped.total
    yield "num_shortened", sum(r["shortened"] for r in records)
    yield from leaderboards.summarise(records, benchmark, config.seed)
    yield "votes_curve", curve
    yield "votes_for_chosen", votes_histogram(records)
    yield from tables.items()
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


# -- one pair ----------------------------------------------------------------------------------------------------------


def record(row: Mapping[str, Any], judged: Judged, seed: int = 0) -> dict[str, Any]:
    """A judged pair (see `core.judgements`) with its draws. `row` has `responses` and `label`, the better one's letter.

    The columns of the votes (`label` is the majority, `gold` the better one, `judgements` the draws) name the responses
    by letters, A may be either; all other numbers are about the chosen one. `probability` is the mean over the draws of
    the two-letter softmax, or the share of the votes where no letter is a token; None where no draw could be read.
    """
    identity, gold = str(row["id"]), row["label"]
    votes, draws = judged.votes(identity, seed), judged.draws
    known = "probability" if np.isfinite(votes.soft_probability[0]) else "votes"
    values, shares = (x if gold == "A" else 1 - x for x in (judged.values(known), judged.values("votes")))
    first_shown = np.array([draw.swapped == (gold == "B") for draw in draws])
    probability, share = _mean(values), _mean(shares)
    first, second = _mean(values[first_shown]), _mean(values[~first_shown])
    games = [_verdict(draws, gold, first_shown == shown) for shown in (True, False)]
    chosen, rejected = row["responses"] if gold == "A" else row["responses"][::-1]
    return {
        "id": identity,
        "subset": str(row.get("subset") or ""),
        **leaderboards.columns(row),
        "prompt_length": text_length(row["prompt"]),
        "chosen_length": text_length(chosen),
        "rejected_length": text_length(rejected),
        "shortened": judged.shortened,
        "order": _order(first, second, first_shown),
        "score_chosen": share,
        "score_rejected": None if share is None else 1 - share,
        "margin": _logit(probability),
        "margin_first": _logit(first),
        "margin_second": None if second is None else -float(_logit(second) or 0.0),
        "p_first": first,
        "p_second": None if second is None else 1 - second,
        "probability": probability,
        "log_probability": None if probability is None else math.log(max(probability, SMALLEST)),
        "correct": voting.LETTERS[int(votes.verdict[0])] == gold,
        "tie": False,
        "games": games,
        "consistent": None if None in games else games[0] == games[1],
        **judged.columns(identity, seed),
        "by_coin": bool(votes.by_coin[0]),
        "gold": gold,
    }


def _verdict(draws: Sequence[Draw], gold: str, mask: np.ndarray) -> int | None:
    """What some of the draws decide: 1 for the chosen response, -1 for the other, 0 undecided, None unreadable."""
    some = [draw for draw, kept in zip(draws, mask, strict=True) if kept]
    found = Judged(tuple(some)).votes("")
    if not some or not found.verdict[0]:
        return None
    return 0 if found.by_coin[0] else int(found.verdict[0]) * (1 if gold == "A" else -1)


def _order(first: float | None, second: float | None, first_shown: np.ndarray) -> str:
    """In which orders the pair was judged, as far as replies could be read."""
    both = (first is None) == (second is None) and 0 < first_shown.sum() < len(first_shown)
    return "both" if both else "chosen_first" if second is None and first_shown.any() else "rejected_first"


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _logit(probability: float | None) -> float | None:
    """log(p / (1 - p)), finite also where p is 0 or 1."""
    if probability is None:
        return None
    return math.log(max(probability, SMALLEST)) - math.log(max(1 - probability, SMALLEST))


# -- all pairs ---------------------------------------------------------------------------------------------------------


def draws_together(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Numbers about the draws of all pairs: unreadable ones, ties and how they were broken, agreement, soft scores.

    `agreement` is the probability that two votes on the same pair are the same, averaged over the pairs.
    """
    draws = [draw for r in records for draw in r["judgements"]]
    unreadable = sum(draw["verdict"] is None for draw in draws)
    agreement = [r["agreement"] for r in records if r["agreement"] is not None]
    tied, by_coin = (sum(r[name] for r in records) for name in ("tied", "by_coin"))
    yield "agreement", float(np.mean(agreement)) if agreement else None
    yield "num_draws", len(draws)
    yield "num_unreadable", unreadable
    yield "unreadable_share", unreadable / len(draws)
    yield "num_unfinished", sum(draw["finish_reason"] == LENGTH for draw in draws)
    yield "num_undecided", sum(r["label"] is None for r in records)
    yield "num_tied", tied
    yield "num_tied_by_probability", tied - by_coin
    yield "num_tied_by_coin", by_coin
    for name, column in (("accuracy_vote_share", "score_chosen"), ("accuracy_probability", "probability")):
        values = [0.0 if r[column] is None else r[column] for r in records]
        yield name, float(np.mean(statistics.verdicts(values) > 0))
    yield "mean_tokens", float(np.mean([draw["tokens"] for draw in draws]))


def votes_curve(records: Sequence[Mapping[str, Any]], alternate: bool) -> list[dict[str, Any]]:
    """Accuracy with 1 to k votes: the mean over all subsets of the k draws, and what independent draws would give.

    With alternating orders the subsets hold both orders as evenly as they can. A tie counts 1/2 here, whatever would
    break it.
    """
    counted: collections.Counter[tuple[tuple[int, int, int], ...]] = collections.Counter()
    for r in records:
        orders = [[d for d in r["judgements"] if d["swapped"] == turned] for turned in (False, True)]
        groups = [group for group in orders if group] if alternate else [r["judgements"]]
        counted[tuple(_outcomes(group, r["gold"]) for group in groups)] += 1
    curve: list[dict[str, Any]] = []
    for votes in range(1, len(records[0]["judgements"]) + 1):
        right = sum(count * voting.subset_accuracy(groups, votes) for groups, count in counted.items()) / len(records)
        alone = curve[0]["accuracy"] if curve else right
        curve.append({"votes": votes, "accuracy": right, "binomial": voting.majority_accuracy(alone, votes)})
    return curve


def _outcomes(draws: Sequence[Mapping[str, Any]], gold: str) -> tuple[int, int, int]:
    """How many draws are right, wrong, unreadable."""
    right, unreadable = (sum(draw["verdict"] == verdict for draw in draws) for verdict in (gold, None))
    return right, len(draws) - right - unreadable, unreadable


def votes_histogram(records: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Pairs by the number of draws that voted for the chosen response."""
    found = collections.Counter(_outcomes(r["judgements"], r["gold"])[0] for r in records)
    return [{"votes": votes, "num_pairs": found[votes]} for votes in range(len(records[0]["judgements"]) + 1)]
