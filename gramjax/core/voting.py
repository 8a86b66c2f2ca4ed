"""Several drawn verdicts about one pair as one, and one proof out of several. NumPy only, float64 throughout.

N pairs, K draws. A verdict is +1 for the first response in the original order (A), -1 for the second (B), 0 for none (a
reply that could not be read). Probabilities are those of A against B at the answer position, NaN where unknown.
Section 2.6 of GRAM-R2 (arXiv 2509.02492) votes over k draws; equation (5) scores proofs.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramjax.core.statistics import TIE, coin

ORDERS = ("alternate", "random", "fixed")
CODES = {"A": 1, "B": -1, None: 0}
LETTERS = {1: "A", -1: "B", 0: None}


def codes(verdicts: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Letters [N][K] (`A`, `B` or None) as +1, -1, 0: int8 [N, K]. Raises ValueError for rows of different lengths."""
    if len({len(row) for row in verdicts}) > 1:
        raise ValueError("every pair needs the same number of draws; write None for a draw without a verdict")
    return np.array([[CODES[verdict] for verdict in row] for row in verdicts], np.int8).reshape(len(verdicts), -1)


def presentation(identities: Sequence[str], draws: int, order: str = "alternate", seed: int = 0) -> np.ndarray:
    """Which draws show the responses in swapped order: bool [N, K].

    `alternate`: half of the draws each way, a coin of the row deciding which way is first (so that with odd K the odd
    draw favours no order on average); `random`: a coin for every draw; `fixed`: never. Depends on seed and ids only.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    if order == "fixed":
        return np.zeros((len(identities), draws), bool)
    if order == "alternate":
        begin = np.array([coin(seed, f"order/{name}") for name in identities], bool).reshape(-1, 1)
        return begin ^ (np.arange(draws) % 2 == 1)
    rows = [[coin(seed, f"order/{name}/{draw}") for draw in range(draws)] for name in identities]
    return np.array(rows, bool).reshape(len(identities), draws)


def in_original_order(verdicts: Any, swapped: Any) -> np.ndarray:
    """Verdicts [N, K] about what was shown as verdicts about the original order."""
    return np.where(np.asarray(swapped), -np.asarray(verdicts), verdicts).astype(np.int8)


def probability_in_original_order(probability: Any, swapped: Any) -> np.ndarray:
    """Probabilities [N, K] of the response shown first as those of A."""
    probability = np.asarray(probability, np.float64)
    return np.where(np.asarray(swapped), 1 - probability, probability)


@dataclasses.dataclass(frozen=True)
class Votes:
    """What K draws say about each of N pairs. Arrays [N], float64 unless noted."""

    verdict: np.ndarray
    """int8: +1 A, -1 B, 0 if no draw could be read."""
    share: np.ndarray
    """Votes for the verdict over all K draws; a draw that could not be read counts against it. 0 without a verdict."""
    votes_a: np.ndarray
    """int ..."""
    votes_b: np.ndarray
    """... and int. What is missing to K are draws without a verdict."""
    failed: np.ndarray
    """int: draws without a verdict."""
    tied: np.ndarray
    """bool: as many votes for A as for B, so the verdict is a tie-break (self-training discards these)."""
    by_coin: np.ndarray
    """bool: the tie could not be broken by probability either."""
    probability: np.ndarray
    """Mean two-label probability of the verdict over the draws that agree with it (decision R5); NaN if unknown."""
    soft: np.ndarray
    """Share of A among the votes: a soft score in [0, 1]; NaN without votes."""
    soft_probability: np.ndarray
    """Mean probability of A over the readable draws; NaN if unknown."""
    agreement: np.ndarray
    """Probability that two different votes on the pair are the same; NaN with fewer than two votes."""


def vote(verdicts: Any, probability: Any = None, identities: Sequence[str] = (), seed: int = 0) -> Votes:
    """Majority of verdicts [N, K] (original order); draws without a verdict do not vote.

    A tie goes to the side with the higher mean probability (within 1e-6 of one half: neither), then to a coin of seed
    and identity. Raises ValueError for shapes that do not fit.
    """
    verdicts = np.asarray(verdicts, np.int8)
    if verdicts.ndim != 2:
        raise ValueError(f"verdicts must be [pairs, draws], found {verdicts.shape}")
    count, draws = verdicts.shape
    p = np.full(verdicts.shape, np.nan) if probability is None else np.asarray(probability, np.float64)
    if p.shape != verdicts.shape:
        raise ValueError(f"probabilities must be {verdicts.shape} like the verdicts, found {p.shape}")
    names = identities or [str(index) for index in range(count)]
    if len(names) != count:
        raise ValueError(f"{count} pairs but {len(names)} identities")
    votes_a, votes_b = (verdicts == 1).sum(1), (verdicts == -1).sum(1)
    total = votes_a + votes_b
    verdict = np.sign(votes_a - votes_b)
    tied = (votes_a == votes_b) & (total > 0)
    mean_a = _masked_mean(p, verdicts != 0)
    leaning = np.where(np.abs(mean_a - 0.5) > TIE, np.sign(mean_a - 0.5), 0)  # NaN compares false: no leaning
    by_coin = tied & (leaning == 0)
    coins = np.zeros(count)
    for index in np.flatnonzero(by_coin).tolist():
        coins[index] = 1 if coin(seed, f"vote/{names[index]}") else -1
    verdict = np.where(tied, np.where(by_coin, coins, leaning), verdict).astype(np.int8)
    winning = np.where(verdict > 0, votes_a, votes_b) * (verdict != 0)
    sided = np.where(verdict[:, None] > 0, p, 1 - p)
    same = votes_a * (votes_a - 1) + votes_b * (votes_b - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Votes(
            verdict=verdict,
            share=winning / draws if draws else np.zeros(count),
            votes_a=votes_a,
            votes_b=votes_b,
            failed=draws - total,
            tied=tied,
            by_coin=by_coin,
            probability=_masked_mean(sided, (verdicts == verdict[:, None]) & (verdicts != 0)),
            soft=votes_a / total,
            soft_probability=mean_a,
            agreement=np.where(total > 1, same / (total * (total - 1.0)), np.nan),
        )


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the last axis where `mask` holds and the value is known; NaN where there is none."""
    mask = mask & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(mask, values, 0.0).sum(-1) / mask.sum(-1)


def columns(votes: Votes) -> list[dict[str, Any]]:
    """One dict per pair, as rows carry it: `label` (None without a verdict), `vote_share`, `label_probability`, `tied`,
    `votes_a`, `votes_b`, `failed`, `agreement`; what is unknown is None."""
    names = {"vote_share": votes.share, "label_probability": votes.probability, "agreement": votes.agreement}
    numbers = {name: [None if np.isnan(x) else float(x) for x in values] for name, values in names.items()}
    counts = {"votes_a": votes.votes_a.tolist(), "votes_b": votes.votes_b.tolist(), "failed": votes.failed.tolist()}
    found = numbers | counts | {"tied": votes.tied.tolist()}
    labels = [LETTERS[verdict] for verdict in votes.verdict.tolist()]
    return [{"label": label} | {name: values[i] for name, values in found.items()} for i, label in enumerate(labels)]


def majority_accuracy(p: float, draws: int) -> float:
    """Probability that the majority of independent verdicts, each right with probability p, is right; ties count 1/2.

    The binomial sum of section 2.6. An even number of draws does exactly as well as one fewer.
    """
    if not 0 <= p <= 1 or draws < 1:
        raise ValueError(f"a probability and at least one draw are needed, found {p} and {draws}")
    terms = [math.comb(draws, right) * p**right * (1 - p) ** (draws - right) for right in range(draws + 1)]
    half = terms[draws // 2] / 2 if draws % 2 == 0 else 0.0
    return math.fsum(terms[draws // 2 + 1 :]) + half


@functools.lru_cache(maxsize=4096)
def subset_accuracy(counts: tuple[tuple[int, int, int], ...], votes: int) -> float:
    """Probability that the majority of `votes` of the draws made about one pair is right, by the draws that were made.

    `counts` holds (right, wrong, unreadable) of each order of presentation: as many are taken of both as there can be,
    an odd one of either. One entry: of all draws alike. Ties count 1/2, no vote at all 0; exact, over all subsets.
    """
    sizes = [sum(group) for group in counts]
    if not 1 <= votes <= sum(sizes) or len(sizes) > 2:
        raise ValueError(f"{votes} votes of {sizes} draws; one or two orders and at least one vote are needed")
    if len(sizes) == 1:
        return _subset_accuracy(counts, (votes,))
    firsts = range(max(0, votes - sizes[1]), min(votes, sizes[0]) + 1)
    nearest = min(abs(2 * first - votes) for first in firsts)
    splits = [(first, votes - first) for first in firsts if abs(2 * first - votes) == nearest]
    return math.fsum(_subset_accuracy(counts, split) for split in splits) / len(splits)


def _subset_accuracy(counts: Sequence[tuple[int, int, int]], split: Sequence[int]) -> float:
    """`subset_accuracy` with the number of draws to take of each order."""
    reach: dict[tuple[int, int], float] = {(0, 0): 1.0}
    for (right, wrong, rest), take in zip(counts, split, strict=True):
        total = math.comb(right + wrong + rest, take)
        grown: dict[tuple[int, int], float] = {}
        for a in range(min(right, take) + 1):
            for b in range(min(wrong, take - a) + 1):
                ways = math.comb(right, a) * math.comb(wrong, b) * math.comb(rest, take - a - b) / total
                for (x, y), weight in reach.items() if ways else ():
                    grown[x + a, y + b] = grown.get((x + a, y + b), 0.0) + weight * ways
        reach = grown
    return math.fsum(p if x > y else p / 2 if x == y > 0 else 0.0 for (x, y), p in reach.items())


def proof_score(conditional: Any, unconditional: Any, mask: Any = None) -> np.ndarray:
    """Equation (5), -log p(proof | s, label) / log p(proof): at most 0, higher is better.

    -1: the context did not help; towards 0: specific to this context; below -1: less likely in context than alone.
    With `mask` the log-probabilities are those of tokens and are summed over the last axis where it holds; without one
    they are already sums. Where the unconditional one is 0 the score is -inf.
    """
    conditional, unconditional = np.asarray(conditional, np.float64), np.asarray(unconditional, np.float64)
    if mask is not None:
        keep = np.asarray(mask) > 0
        conditional, unconditional = (np.where(keep, x, 0.0).sum(-1) for x in (conditional, unconditional))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(unconditional == 0, -np.inf, -(conditional / unconditional))


FLAT, UNHELPFUL = "proof certain without context", "proof less likely in context"


@dataclasses.dataclass(frozen=True)
class Selection:
    """The proof chosen among K candidates of one pair."""

    index: int | None
    """The best candidate; None if all are rejected."""
    scores: np.ndarray
    """Equation (5) [K]."""
    reasons: tuple[str, ...]
    """Why each candidate is rejected; empty for those that may be chosen."""


def select_proof(
    conditional: Any,
    unconditional: Any,
    tokens: Any,
    reasons: Sequence[str] = (),
    min_score: float = -1.0,
    min_surprise: float = 1e-3,
) -> Selection:
    """The candidate with the highest score (the first of equals) among those that are not rejected.

    Log-probabilities [K] are sums over `tokens` [K] tokens each; `reasons` [K] says which candidates failed other rules
    (empty: passed). Rejected too: a score below `min_score`, and an unconditional log-probability nearer to 0
    than `min_surprise` per token, where the ratio says nothing.
    """
    scores = proof_score(conditional, unconditional)
    per_token = np.abs(np.asarray(unconditional, np.float64)) / np.maximum(np.asarray(tokens, np.float64), 1)
    found = list(reasons) or [""] * len(scores)
    if len(found) != len(scores):
        raise ValueError(f"{len(scores)} candidates but {len(found)} reasons")
    for index, score in enumerate(scores):
        if not found[index] and not per_token[index] >= min_surprise:
            found[index] = FLAT
        elif not found[index] and not score >= min_score:
            found[index] = UNHELPFUL
    usable = [index for index, reason in enumerate(found) if not reason]
    best = max(usable, key=lambda index: scores[index], default=None)
    return Selection(best, scores, tuple(found))
