"""Repeated evaluation: what k verdicts on each of n problems say, and how much of it is noise. NumPy only, float64.

A problem q is solved with probability p_q, and avg@k estimates the mean of p_q from n k verdicts. Two things may fall
out differently: the answers that are drawn (shrinks with k) and the problems that the set happens to hold (does not).
Greedy answers are one draw of a third kind: they depend on dtype and batch shape where two tokens are nearly equal.
"""

import collections
import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import statistics

BINS = 10
Z = 1.959963984540054
"""Standard errors to each side of a 95 % interval."""


def verdicts_of(verdicts: Any) -> np.ndarray:
    """Verdicts as bool [problems, repeats]. Raises ValueError without any, or for problems of different repeats."""
    if not isinstance(verdicts, np.ndarray) and len({len(row) for row in verdicts}) > 1:
        raise ValueError("every problem needs the same number of repeats")
    out = np.asarray(verdicts, bool)
    if out.ndim != 2 or not out.size:
        raise ValueError(f"verdicts are [problems, repeats], found {out.shape}")
    return out


# -- the mean and its errors -------------------------------------------------------------------------------------------


def rates(verdicts: Any) -> np.ndarray:
    """The share of right answers of each problem [n]."""
    return verdicts_of(verdicts).mean(1)


def variances(verdicts: Any) -> np.ndarray:
    """Variance of one verdict of each problem [n], estimated without bias; NaN where there is one repeat."""
    given = verdicts_of(verdicts)
    repeats, p = given.shape[1], given.mean(1)
    return p * (1 - p) * (repeats / (repeats - 1) if repeats > 1 else math.nan)


def expected_error(p: Any, repeats: int) -> float:
    """Standard deviation of avg@k over evaluations of the same problems with known rates p: sqrt(sum p(1-p)/k) / n."""
    p = np.asarray(p, np.float64)
    return float(np.sqrt(np.sum(p * (1 - p)) / repeats) / len(p))


@dataclasses.dataclass(frozen=True)
class Average:
    """avg@k and its standard errors; NaN where they cannot be estimated."""

    mean: float
    sampling_error: float
    """Of the answers drawn, the problems being fixed; needs two repeats."""
    question_error: float
    """Of the problems, had each been asked for ever: sqrt(var(p_q) / n); needs two problems and two repeats."""
    total_error: float
    """Of both: its square is the sum of their squares. Needs two problems."""


def average(verdicts: Any) -> Average:
    """avg@k of verdicts [n, k].

    The variance of the observed rates is that of the problems plus that of the draws, so the noise of the draws is
    taken off before the error of the problems is computed (it would shrink with k otherwise).
    """
    given = verdicts_of(verdicts)
    n, k = given.shape
    p, spread = given.mean(1), variances(given)
    drawn = float(np.sum(spread)) / k / n**2
    total = float(np.var(p, ddof=1)) / n if n > 1 else math.nan
    problems = max(total - drawn, 0.0) if not math.isnan(total - drawn) else math.nan
    return Average(float(p.mean()), math.sqrt(drawn), math.sqrt(problems), math.sqrt(total))


# -- several answers as one --------------------------------------------------------------------------------------------


def pass_at(correct: Any, repeats: int, j: int) -> np.ndarray:
    """Unbiased probability that one of j answers is right, from c right ones of k: 1 - C(k-c, j) / C(k, j), for each c.

    As a product of ratios, so that no binomial overflows. Raises ValueError for j outside 1 to k.
    """
    if not 1 <= j <= repeats:
        raise ValueError(f"pass@{j} needs at least {j} repeats and j of at least 1; there are {repeats}")
    wrong = repeats - np.asarray(correct, np.float64)[..., None]
    drawn = np.arange(j, dtype=np.float64)
    return 1 - np.prod(np.clip(wrong - drawn, 0, None) / (repeats - drawn), axis=-1)


def unanimous(correct: Any, repeats: int, group: int) -> np.ndarray:
    """Unbiased probability that a group of answers is all right or all wrong, and teaches GRPO nothing, for each c."""
    correct = np.asarray(correct, np.float64)
    return 2 - pass_at(correct, repeats, group) - pass_at(repeats - correct, repeats, group)


def majority(answers: Sequence[Sequence[Hashable]], verdicts: Any) -> np.ndarray:
    """What the answer that most of the k repeats gave is worth, for each problem: [n], from 0 to 1.

    Answers are equal as they compare (the caller normalises them); None is a reply without an answer and has no vote.
    Answers that share the first place share the worth, as if one of them were drawn: the order of the repeats does not
    matter. Without any answer the worth is 0. Equal answers with different verdicts are worth their mean.
    """
    worth = []
    for given, right in zip(answers, verdicts_of(verdicts), strict=True):
        votes = collections.Counter(answer for answer in given if answer is not None)
        most = max(votes.values(), default=0)
        first = {answer for answer, count in votes.items() if count == most}
        found = [float(verdict) for answer, verdict in zip(given, right, strict=True) if answer in first]
        worth.append(sum(found) / len(found) if found else 0.0)
    return np.array(worth)


def flips(greedy: Any, verdicts: Any) -> np.ndarray:
    """Whether the greedy verdict differs from that of most repeats: [n], 1/2 where half of the repeats are right."""
    given = verdicts_of(verdicts)
    twice = 2 * given.sum(1) - given.shape[1]
    return np.where(twice == 0, 0.5, (twice > 0) != np.asarray(greedy, bool))


# -- problems ----------------------------------------------------------------------------------------------------------


def uncertain(verdicts: Any, low: float = 0.25, high: float = 0.75) -> np.ndarray:
    """Problems whose rate lies strictly between two bounds: bool [n]."""
    p = rates(verdicts)
    return (low < p) & (p < high)


def share_of_variance(verdicts: Any, mask: Any) -> float:
    """How much of the noise of the draws comes from some of the problems; NaN where there is no noise."""
    p = rates(verdicts)
    noise = p * (1 - p)
    return float(noise[np.asarray(mask)].sum() / noise.sum()) if noise.any() else math.nan


def histogram(verdicts: Any, bins: int = BINS) -> np.ndarray:
    """Problems by rate, in bins of equal width over [0, 1]; a rate on an edge belongs to the bin above it, 1 to the
    last."""
    given = verdicts_of(verdicts)
    return np.bincount(np.minimum(given.sum(1) * bins // given.shape[1], bins - 1), minlength=bins)


def entropy(verdicts: Any) -> float:
    """Mean entropy of a verdict, in nats: 0 where every problem is always or never solved, log 2 for coins."""
    p = rates(verdicts)
    inside = p[(0 < p) & (p < 1)]
    return float(np.sum(-inside * np.log(inside) - (1 - inside) * np.log1p(-inside)) / len(p))


def answer_entropy(answers: Sequence[Sequence[Hashable]]) -> float:
    """Mean entropy of the answers to a problem, in nats; replies without an answer are one kind of answer."""
    found = []
    for given in answers:
        shares = np.array(list(collections.Counter(given).values())) / len(given)
        found.append(float(np.sum(-shares * np.log(shares))) + 0.0)  # no negative zero
    return float(np.mean(found))


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    return tuple(sorted({2**i for i in range(most.bit_length())} | {most}))


def summarise(
    verdicts: Any,
    answers: Sequence[Sequence[Hashable]],
    greedy: Any = None,
    pass_j: Sequence[int] = (),
    bounds: tuple[float, float] = (0.25, 0.75),
    group_size: int = 0,
) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything above, JSON-able: None for what cannot be estimated, plain numbers first.

    `avg@k` and `maj@k` stand there under these names and with the number of repeats (`avg@16`); `pass_j` (empty: powers
    of two, and k) gives one `pass@j` each. Errors end in `_sampling_error` (drawing), `_question_error` (problems) and
    `_standard_error` (both); intervals (`_low`, `_high`) are of the last.
    """
    given = verdicts_of(verdicts)
    n, k = given.shape
    correct, found = given.sum(1), average(given)
    yield "num_problems", n
    yield "k", k
    yield from named("avg@k", given.mean(1))
    yield "avg@k_sampling_error", known(found.sampling_error)
    yield "avg@k_question_error", known(found.question_error)
    most = majority(answers, given)
    yield from named("maj@k", most)
    yield f"avg@{k}", found.mean
    yield f"maj@{k}", float(most.mean())
    for j in pass_j or powers_of_two(k):
        yield from named(f"pass@{j}", pass_at(correct, k, j))
    if greedy is not None:
        differ = flips(greedy, given)
        yield from named("greedy_accuracy", np.asarray(greedy, np.float64))
        yield from named("greedy_flip_rate", differ)
        yield "greedy_flip_ties", int(np.sum(differ == 0.5))
    mask = uncertain(given, *bounds)
    yield "uncertain_share", float(mask.mean())
    yield "uncertain_variance_share", known(share_of_variance(given, mask))
    yield "never_solved_share", float(np.mean(correct == 0))
    yield "always_solved_share", float(np.mean(correct == k))
    yield "verdict_entropy", entropy(given)
    yield "answer_entropy", answer_entropy(answers)
    if 0 < group_size <= k:
        yield f"zero_advantage@{group_size}", float(unanimous(correct, k, group_size).mean())
    counts = histogram(given)
    yield "histogram", [{"from": i / BINS, "to": (i + 1) / BINS, "num_problems": int(c)} for i, c in enumerate(counts)]


def named(name: str, values: np.ndarray) -> Iterator[tuple[str, float | None]]:
    """The mean of one number from 0 to 1 per problem, with its standard error and 95 % interval."""
    mean, error = float(values.mean()), error_of(values)
    yield name, mean
    yield f"{name}_standard_error", known(error)
    yield f"{name}_low", interval(mean, error, len(values))[0]
    yield f"{name}_high", interval(mean, error, len(values))[1]


def interval(mean: float, error: float, problems: int) -> tuple[float, float]:
    """Wilson's interval at the number of coins whose mean would have this error; that of the problems where it is 0 or
    unknown, so that five problems never solved do not look like a certainty."""
    effective = mean * (1 - mean) / error**2 if error > 0 else 0.0
    number = max(effective, float(problems))
    return statistics.wilson(mean * number, number)


def error_of(values: np.ndarray) -> float:
    """Standard error of the mean of one number per problem; NaN for one problem."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def known(value: float) -> float | None:
    """None for NaN, which is no JSON."""
    return None if math.isnan(value) else float(value)


# -- two runs ----------------------------------------------------------------------------------------------------------

CLEAR, THESE, NOISE = "clear", "these problems", "noise"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """avg@k of one run less that of another, on the same problems."""

    difference: statistics.Difference
    """Over the problems, paired; its interval says what other problems like these might show."""
    repeats: tuple[int, int]
    error: float
    """Standard error of the difference by the answers drawn, the problems being fixed; NaN if a run has one repeat."""
    left_out: tuple[str, ...] = ()
    """What was not compared, in words."""

    @property
    def z(self) -> float:
        """The difference in standard errors of the draws; NaN where that is unknown."""
        if math.isnan(self.error) or self.error > 0:
            return self.difference.mean / self.error
        return math.copysign(math.inf, self.difference.mean) if self.difference.mean else 0.0

    @property
    def p_value(self) -> float:
        """Two-sided, that draws alone make such a difference; NaN where that is unknown."""
        return math.erfc(abs(self.z) / math.sqrt(2))

    @property
    def verdict(self) -> str:
        """`clear`; `these problems` (more than luck in drawing, but other problems may say otherwise); `noise`."""
        beyond = self.difference.low > 0 or self.difference.high < 0
        if math.isnan(self.error):
            return CLEAR if beyond else NOISE
        return NOISE if abs(self.z) <= Z else CLEAR if beyond else THESE

    def said(self, first: str, second: str) -> str:
        """The comparison in words."""
        found, (one, two) = self.difference, self.repeats
        repeats = f"{one} repeats" if one == two else f"{one} and {two} repeats"
        drawn = f"{100 * self.error:.1f} points (z = {self.z:+.1f}, p = {self.p_value:.2g})"
        if math.isnan(self.error):
            drawn = "unknown with one repeat"
        verdict = {
            CLEAR: "clear difference",
            THESE: "more than luck in drawing, on these problems; other problems may say otherwise",
            NOISE: "no clear difference: it may be noise",
        }[self.verdict]
        left = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"on {found.num_pairs:,} problems that both answered ({repeats}), avg@k of {first} minus that of {second} "
            f"is {100 * found.mean:+.1f} points; standard error of the draws {drawn}; 95 % interval over problems "
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f} (paired bootstrap, p = {found.p_value:.3g}): "
            f"{verdict}{left}"
        )


def compare(one: Any, two: Any, samples: int = 10000, seed: int = 0, left_out: Sequence[str] = ()) -> Comparison:
    """Two runs' verdicts [n, k1] and [n, k2] on the same n problems, in the same order."""
    one, two = verdicts_of(one), verdicts_of(two)
    difference = statistics.paired_bootstrap(rates(one), rates(two), samples, seed)
    drawn = (variances(one) / one.shape[1] + variances(two) / two.shape[1]).sum() / len(one) ** 2
    return Comparison(difference, (one.shape[1], two.shape[1]), math.sqrt(drawn), tuple(left_out))


def compare_rows(
    one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]], samples: int = 10000, seed: int = 0
) -> Comparison | None:
    """`compare` of rows with `id`, `gold` and `verdicts`, matched by id; None where no problem is in both.

    Rows of one id with another gold answer are not the same problem, and are left out with a count.
    """
    first, second = ({str(row["id"]): row for row in rows} for rows in (one, two))
    shared = [name for name in first if name in second]
    both = [name for name in shared if first[name].get("gold") == second[name].get("gold")]
    if not both:
        return None
    counts = {
        "only in the first": len(first) - len(shared),
        "only in the second": len(second) - len(shared),
        "with another gold answer": len(shared) - len(both),
    }
    left = [f"{count:,} {what}" for what, count in counts.items() if count]
    given = [[rows[name]["verdicts"] for name in both] for rows in (first, second)]
    return compare(given[0], given[1], samples, seed, left)
