"""Numbers about pairwise judgements: both-order scores, calibration, intervals. NumPy only, float64 throughout.

The two strings of a pair show the same two answers in both orders. A margin is the logit of the verdict "the first
answer shown" minus that of "the second". `first` marks the string that shows the chosen answer first, `second` the
swapped one, so a judge that is right has a positive first margin and a negative second margin.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

TIE = 1e-6
"""A probability this close to one half is a tie: neither right nor a preference."""


def sigmoid(x: Any) -> np.ndarray:
    """The logistic function without overflow."""
    x = np.asarray(x, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def log_sigmoid(x: Any) -> np.ndarray:
    """log of `sigmoid`, exact far into both tails."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return -np.logaddexp(0.0, -np.asarray(x, np.float64))


@dataclasses.dataclass(frozen=True)
class PairScores:
    """What two verdicts, one per order, say about each of N pairs. All arrays are float64 [N] unless noted."""

    score: np.ndarray
    """Probability that the chosen answer is the better one; that of the rejected answer is 1 - score."""
    log_score: np.ndarray
    """log(score), computed from the logits: finite where `score` rounds to 0."""
    margin: np.ndarray
    """Logit that the chosen answer is better with the position effect removed: (margin_first - margin_second) / 2."""
    margin_first: np.ndarray
    margin_second: np.ndarray
    p_first: np.ndarray
    """Probability of the verdict "first answer" when the chosen answer stands first ..."""
    p_second: np.ndarray
    """... and when it stands second."""
    consistent: np.ndarray
    """bool: both orders prefer the same answer (or both neither)."""
    bias: np.ndarray
    """Position effect on the logit, (margin_first + margin_second) / 2; positive favours the first answer."""


def pair_score(first: Any, second: Any, agg: str = "prob") -> PairScores:
    """Combine the verdict logits [N, 2] (first answer shown, second answer shown) of both orders.

    `prob`: r = (P(first | chosen first) + P(second | chosen second)) / 2, equation (4) of GRAM (arXiv 2506.14175);
    r(y|y') + r(y'|y) = 1. `logit`: the logistic of the averaged margin. With a position effect that is additive on
    the logit both prefer the same answer, whatever the effect. The softmax runs over the two verdicts (last axis) of
    one order; over the order axis it would compare orders instead of answers.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] != 2:
        raise ValueError(f"verdict logits must be two arrays [pairs, 2], found {first.shape} and {second.shape}")
    return margin_score(first[:, 0] - first[:, 1], second[:, 0] - second[:, 1], agg)


def margin_score(margin_first: Any, margin_second: Any, agg: str = "prob", log_mass: Any = None) -> PairScores:
    """`pair_score` from the two margins [N].

    `log_mass` [2, N] weighs the orders by the log-probability that their verdict is one of the two tokens at all (the
    full-vocabulary variant of `prob`, where a verdict that the judge would hardly utter counts little).
    """
    one, two = np.asarray(margin_first, np.float64), np.asarray(margin_second, np.float64)
    margin = (one - two) / 2
    if agg == "prob":
        mass = np.zeros((2, *one.shape)) if log_mass is None else np.asarray(log_mass, np.float64)
        right = np.logaddexp(mass[0] + log_sigmoid(one), mass[1] + log_sigmoid(-two))
        wrong = np.logaddexp(mass[0] + log_sigmoid(-one), mass[1] + log_sigmoid(two))
        score, log_score = sigmoid(right - wrong), right - np.logaddexp(mass[0], mass[1])
    elif agg == "logit":
        score, log_score = sigmoid(margin), log_sigmoid(margin)
    else:
        raise ValueError(f"agg is {agg!r}; it must be prob or logit")
    return PairScores(
        score=score,
        log_score=log_score,
        margin=margin,
        margin_first=one,
        margin_second=two,
        p_first=sigmoid(one),
        p_second=sigmoid(two),
        consistent=np.sign(one) == -np.sign(two),
        bias=(one + two) / 2,
    )


def coin(seed: int, identity: str) -> bool:
    """A fair coin that belongs to a row (its id), not to its place in a file or batch."""
    return bool(hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=1).digest()[0] & 1)


def verdicts(score: Any) -> np.ndarray:
    """+1 where the chosen answer is preferred, -1 where the rejected one is, 0 for a tie (within 1e-6 of one half)."""
    centred = np.asarray(score, np.float64) - 0.5
    return np.where(np.abs(centred) <= TIE, 0, np.sign(centred)).astype(np.int64)


def dual_order_correct(first: Any, second: Any) -> np.ndarray:
    """JudgeBench's rule for two verdicts per pair (+1 right, -1 wrong, 0 tie or none): their sum must be positive."""
    return np.asarray(first) + np.asarray(second) > 0


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin of confidence the mean confidence, the share right, and how many."""

    edges: np.ndarray
    confidence: np.ndarray
    """[bins], NaN where empty."""
    accuracy: np.ndarray
    """[bins], NaN where empty."""
    count: np.ndarray
    ece: float
    """Expected calibration error: mean |accuracy - confidence|, weighted by count."""


def reliability(score: Any, bins: int = 10) -> Reliability:
    """Calibration of probabilities given to the chosen answer.

    The confidence of a prediction is max(score, 1 - score), in `bins` bins of equal width over [0.5, 1]; a tie counts
    as half right (here only). ECE is NaN without predictions.
    """
    score = np.asarray(score, np.float64)
    confidence = np.maximum(score, 1 - score)
    right = (verdicts(score) + 1) / 2
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.clip(np.ceil((confidence - 0.5) * 2 * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, bins) / count
        accuracy = np.bincount(index, right, bins) / count
    gaps = np.abs(accuracy - mean_confidence)[count > 0]
    ece = float(np.sum(gaps * count[count > 0]) / len(score)) if len(score) else math.nan
    return Reliability(edges, mean_confidence, accuracy, count, ece)


def ece(score: Any, bins: int = 10) -> float:
    """Expected calibration error of probabilities given to the chosen answer; see `reliability`."""
    return reliability(score, bins).ece


def brier(score: Any) -> float:
    """Mean squared distance from the probability of the chosen answer to 1 (0.25 for a judge that knows nothing)."""
    score = np.asarray(score, np.float64)
    return float(np.mean((1 - score) ** 2)) if len(score) else math.nan


def wilson(successes: float, total: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval of a proportion (95 % by default); (0, 1) when nothing was counted."""
    if total <= 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(values: Any, samples: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [N] over `samples` resamples; (NaN, NaN) without values."""
    values = np.asarray(values, np.float64)
    if not len(values) or samples <= 0:
        return math.nan, math.nan
    means = _resampled_means(values, samples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_of_means(
    groups: Sequence[Any], samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of the means of groups, each resampled by itself; (NaN, NaN) for an empty one."""
    values = [np.asarray(group, np.float64) for group in groups]
    if not values or not all(len(group) for group in values) or samples <= 0:
        return math.nan, math.nan
    means = np.mean([_resampled_means(group, samples, (seed, number)) for number, group in enumerate(values)], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratio(
    totals: Any, weights: Any, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of sum(totals) / sum(weights), resampling the N examples that both belong to."""
    totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    if not len(totals) or samples <= 0:
        return math.nan, math.nan
    order = np.lexsort((weights, totals))
    totals, weights = totals[order], weights[order]
    generator = np.random.default_rng(seed)
    ratios = []
    for _ in range(samples):
        drawn = generator.integers(0, len(totals), len(totals))
        ratios.append(totals[drawn].sum() / max(weights[drawn].sum(), 1e-300))
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of a paired difference, its bootstrap interval, and a two-sided bootstrap p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float
    num_pairs: int


def paired_bootstrap(one: Any, two: Any, samples: int = 10000, seed: int = 0, level: float = 0.95) -> Difference:
    """mean(one - two) over the same N examples, resampling examples. Raises ValueError when lengths differ."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if one.shape != two.shape:
        raise ValueError(f"paired values differ in number: {one.shape} and {two.shape}")
    if not len(one):
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    means = _resampled_means(one - two, samples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(np.mean(means <= 0), np.mean(means >= 0))
    p_value = min(1.0, 2 * max(float(tail), 1 / samples))
    return Difference(float(np.mean(one - two)), float(low), float(high), p_value, len(one))


def _resampled_means(values: np.ndarray, samples: int, seed: int | tuple[int, int]) -> np.ndarray:
    """Means of `samples` draws with replacement, in slices so that memory stays near a million indices.

    Values are sorted first: the interval must not depend on the order of the rows.
    """
    values = np.sort(values)
    generator = np.random.default_rng(seed)
    step = max(1, 1_000_000 // len(values))
    means = [
        values[generator.integers(0, len(values), (min(step, samples - start), len(values)))].mean(axis=1)
        for start in range(0, samples, step)
    ]
    return np.concatenate(means)
