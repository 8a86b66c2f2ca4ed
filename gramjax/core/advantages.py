"""From rewards to advantages: what each answer of a group is worth. NumPy, float64 inside, float32 out.

Letters: B answers of a rollout in any order, F reward functions. `groups` [B] holds the number of each answer's prompt.
NaN in rewards means not judged: such an answer is left out of every mean, and its advantage is 0.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection, RewardSection

EQUAL = 1e-8
"""Rewards of a group that differ by less are equal: the group is dead."""

GROUP = ("grpo", "batch", "unscaled", "rloo", "reinforce++_baseline", "opo", "gpg", "passk")
"""Estimators that compare the answers of a group: they need two of them, and give a dead group exactly 0."""

ALONE = ("reinforce++", "remax", "gae")
"""Estimators that need no group."""

ESTIMATORS = ("auto", *GROUP, *ALONE)
AGGREGATES = ("sum_then_normalize", "normalize_then_sum")


@dataclasses.dataclass(frozen=True)
class Advantages:
    """What B answers are worth."""

    values: np.ndarray
    """float32 [B]: the advantage of each answer (the mean over its tokens, where tokens have their own)."""
    per_token: list[np.ndarray]
    """float32, one array per answer: the advantage of each of its generated tokens."""
    rewards: np.ndarray
    """float64 [B]: the rewards of all functions together; NaN: not judged."""
    judged: np.ndarray
    """bool [B]."""
    dead: np.ndarray
    """bool [B]: the answer's group has equal rewards, so that nothing can be learned from it."""
    std: np.ndarray
    """float64 [B]: standard deviation (ddof 1) of the rewards of the answer's group."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Sums over the answers of each prompt that are judged."""

    number: np.ndarray
    """int [B]: 0 .. count - 1."""
    count: int
    use: np.ndarray
    """bool [B]: the answers that statistics are taken over."""

    @classmethod
    def of(cls, groups: Any, use: np.ndarray) -> "Groups":
        """Of any whole numbers."""
        _, number = np.unique(np.asarray(groups), return_inverse=True)
        return cls(number.reshape(-1), int(number.max(initial=-1)) + 1, use)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """float64 [B]: the sum over the answer's group."""
        summed = np.bincount(self.number, np.where(self.use, values, 0.0), self.count)
        return summed[self.number]

    def size(self) -> np.ndarray:
        """float64 [B]: answers of the group that count."""
        return self.sum(np.ones(len(self.number)))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """float64 [B]; 0 for a group without any that counts."""
        return self.sum(values) / np.maximum(self.size(), 1)

    def std(self, values: np.ndarray) -> np.ndarray:
        """float64 [B]: with ddof 1; 0 for a group of one."""
        square = self.sum(np.square(values - self.mean(values)))
        return np.sqrt(square / np.maximum(self.size() - 1, 1))

    def extremes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value [B] of the group (infinities where none counts)."""
        low, high = np.full(self.count, np.inf), np.full(self.count, -np.inf)
        np.minimum.at(low, self.number[self.use], values[self.use])
        np.maximum.at(high, self.number[self.use], values[self.use])
        return low[self.number], high[self.number]

    def equal(self, values: np.ndarray) -> np.ndarray:
        """bool [B]: no two values of the group differ; tested on the values, for a standard deviation is never 0."""
        low, high = self.extremes(values)
        return high - low < EQUAL


def combine(scores: Any, weights: Sequence[float] = (), names: Sequence[str] = ()) -> np.ndarray:
    """The weighted sum [B] of the scores [F, B] of several functions.

    A function that did not judge an answer (NaN) is left out of its sum; an answer that none judged is NaN. Raises
    UserError for an infinite score, naming function and answer, and for a wrong number of weights.
    """
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    factors = _weights(weights, len(scores))
    bad = np.argwhere(np.isinf(scores))
    if len(bad):
        function, answer = (int(i) for i in bad[0])
        name = names[function] if function < len(names) else str(function)
        raise UserError(f"reward {name} of answer {answer} is {scores[function, answer]}; rewards must be finite")
    total = np.nansum(factors[:, None] * scores, axis=0)
    return np.where(np.all(np.isnan(scores), axis=0), np.nan, total)


def _weights(weights: Sequence[float], count: int) -> np.ndarray:
    if len(weights) and len(weights) != count:
        raise UserError(f"config.reward.function_weights: {len(weights)} weights for {count} reward functions")
    return np.asarray(weights, np.float64) if len(weights) else np.ones(count)


def estimator(section: GrpoSection) -> str:
    """`section.advantage` with `auto` resolved."""
    if section.advantage != "auto":
        return section.advantage
    return "unscaled" if section.loss == "dr_grpo" else "grpo"


def any_token(per_token: Sequence[np.ndarray]) -> np.ndarray:
    """bool [B]: the answers of which some token has an advantage."""
    found = np.zeros(len(per_token), bool)
    if len(per_token):
        answer = np.repeat(np.arange(len(per_token)), [len(values) for values in per_token])
        found[answer[np.concatenate(per_token) != 0]] = True
    return found


def estimate(
    scores: Any,
    groups: Any,
    lengths: Any,
    section: GrpoSection,
    weights: Sequence[float] = (),
    names: Sequence[str] = (),
    greedy: Any = None,
    kl: Sequence[np.ndarray] | None = None,
    offline: Any = None,
) -> Advantages:
    """Advantages of B answers by `section.advantage`.

    `scores` [F, B] are those of every reward function, `lengths` [B] the generated tokens of each answer, `greedy` [B]
    the reward of the greedy answer to the same prompt (remax), `kl` the per-token distances from the reference
    (`kl_penalty`; with `section.kl_in` reward), `offline` [B] says which answers were put in. `gae` has a function of
    its own. Raises UserError for a group of one where the estimator compares answers.
    """
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    rewards = combine(scores, weights, names)
    judged = ~np.isnan(rewards)
    lengths = np.asarray(lengths, np.int64)
    name = estimator(section)
    if name not in GROUP + ALONE or name == "gae":
        raise UserError(f"config.grpo.advantage={name!r} is not one of {', '.join(ESTIMATORS)}")
    everyone = Groups.of(groups, np.ones(len(rewards), bool))
    if name in GROUP and len(rewards) and everyone.size().min() < 2:
        raise UserError(
            f"config.grpo.advantage={name} compares the answers of a group, and a group has one answer: "
            f"set config.grpo.group_size to at least 2, or use one of {', '.join(ALONE)}"
        )
    penalty = np.zeros(len(rewards)) if kl is None else section.beta * np.array([np.sum(k) for k in kl])
    used = np.where(judged, rewards, 0.0)
    if kl is not None and section.kl_before_normalisation:
        used, penalty, kl = used - penalty, np.zeros(len(rewards)), None
    table = Groups.of(groups, judged)
    dead = table.equal(used) if name in GROUP else np.zeros(len(rewards), bool)
    if section.aggregate == "normalize_then_sum":
        dead, values = _normalized_sum(scores, groups, section, _weights(weights, len(scores)), judged)
    elif name == "reinforce++":
        return _reinforce(used, rewards, judged, table, lengths, section, kl)
    else:
        on_policy = judged if offline is None else judged & ~np.asarray(offline, bool)
        base = Groups.of(groups, on_policy) if section.offline_baseline == "on_policy" else table
        values = _values(name, used, base, table, lengths, section, greedy)
        if name == "reinforce++_baseline":
            values = whiten(values, np.where(judged, lengths, 0))
    values = np.where(dead | ~judged, 0.0, values)
    # The distance is taken off after everything that divides, about its mean, so that it is never made larger.
    values = np.where(judged, values - (penalty - table.mean(penalty)), 0.0) if kl is not None else values
    tokens = np.split(np.repeat(values.astype(np.float32), lengths), np.cumsum(lengths)[:-1]) if len(lengths) else []
    return Advantages(values.astype(np.float32), tokens, rewards, judged, dead & judged, table.std(used))


def _values(
    name: str,
    rewards: np.ndarray,
    base: Groups,
    table: Groups,
    lengths: np.ndarray,
    section: GrpoSection,
    greedy: Any,
) -> np.ndarray:
    """One number per answer; `base` is what means and deviations are taken over, `table` all that were judged."""
    mean = base.mean(rewards)
    if name == "grpo":
        std = np.where(base.equal(rewards) | (base.size() < 2), 1.0, base.std(rewards))
        return (rewards - mean) / (np.maximum(std, section.std_floor) + section.advantage_epsilon)
    if name == "batch":
        batch = Groups(np.zeros_like(table.number), 1, base.use)
        return (rewards - mean) / (np.maximum(batch.std(rewards), section.std_floor) + section.advantage_epsilon)
    if name == "rloo":
        size = base.size()
        return (rewards - mean) * size / np.maximum(size - 1, 1)
    if name == "opo":
        return rewards - base.sum(lengths * rewards) / np.maximum(base.sum(lengths), 1)
    if name == "gpg":
        nonzero = np.count_nonzero(rewards[table.use])
        return (rewards - mean) * np.sum(table.use) / max(nonzero, 1)
    if name == "passk":
        return _best(rewards, base)
    if name == "remax":
        if greedy is None:
            raise ValueError("remax needs the rewards of greedy answers")
        return rewards - np.nan_to_num(np.asarray(greedy, np.float64))
    return rewards - mean  # unscaled, reinforce++_baseline


def _best(rewards: np.ndarray, table: Groups) -> np.ndarray:
    """The lead of the best answer of a group over the second best; 0 for the others."""
    out = np.zeros(len(rewards))
    for group in range(table.count):
        members = np.flatnonzero((table.number == group) & table.use)
        if len(members) > 1:
            order = members[np.argsort(-rewards[members], kind="stable")]
            out[order[0]] = rewards[order[0]] - rewards[order[1]]
    return out


def _normalized_sum(
    scores: np.ndarray, groups: Any, section: GrpoSection, weights: np.ndarray, judged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """GDPO: every function over its own deviation in the group, then the weighted sum over that of the batch.

    A group is dead when it is dead for every function.
    """
    total, dead = np.zeros(scores.shape[1]), np.ones(scores.shape[1], bool)
    for row, weight in zip(scores, weights, strict=True):
        table = Groups.of(groups, ~np.isnan(row))
        given = np.nan_to_num(row)
        equal = table.equal(given)
        scaled = _values("grpo", given, table, table, np.ones(len(row)), section, None)
        total += weight * np.where(equal | np.isnan(row), 0.0, scaled)
        dead &= equal
    if np.sum(judged) < 2 or np.ptp(total[judged]) < EQUAL:
        return dead, np.zeros_like(total)
    mean, std = np.mean(total[judged]), np.std(total[judged], ddof=1)
    return dead, (total - mean) / (std + section.advantage_epsilon)


def whiten(values: np.ndarray, weights: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    """Values with mean 0 and variance 1 (ddof 1) over the tokens that stand behind them: `weights` tokens each."""
    count = np.sum(weights)
    mean = np.sum(weights * values) / max(count, 1)
    variance = np.sum(weights * np.square(values - mean)) / max(count - 1, 1)
    return (values - mean) / np.sqrt(variance + epsilon)


def _whiten_tokens(tokens: Sequence[np.ndarray], judged: np.ndarray) -> list[np.ndarray]:
    """`whiten` over the tokens of all answers that are judged; 0 for the others."""
    kept = [values for values, use in zip(tokens, judged, strict=True) if use]
    flat = np.concatenate(kept) if kept else np.zeros(0)
    lengths = [len(values) for values in kept]
    parts = iter(np.split(whiten(flat, np.ones(len(flat))), np.cumsum(lengths)[:-1])) if kept else iter(())
    return [next(parts) if use else np.zeros(len(values)) for values, use in zip(tokens, judged, strict=True)]


def token_rewards(
    rewards: Any, lengths: Any, beta: float = 0.0, kl: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Rewards of every generated token, float64: the answer's reward at its last token, less beta times the KL."""
    out = []
    for number, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        tokens = np.zeros(int(length)) if kl is None else -beta * np.asarray(kl[number], np.float64)
        if length and not np.isnan(reward):
            tokens[-1] += reward
        out.append(tokens)
    return out


def _reinforce(
    used: np.ndarray,
    rewards: np.ndarray,
    judged: np.ndarray,
    table: Groups,
    lengths: np.ndarray,
    section: GrpoSection,
    kl: Sequence[np.ndarray] | None,
) -> Advantages:
    """REINFORCE++: the return of every token (what is still to come), whitened over all tokens of the batch."""
    per_token = token_rewards(used, lengths, section.beta, kl)
    returns = [np.cumsum(tokens[::-1])[::-1] for tokens in per_token]
    tokens = [t.astype(np.float32) for t in _whiten_tokens(returns, judged)]
    values = np.array([t.mean() if len(t) else 0.0 for t in tokens], np.float32)
    return Advantages(values, tokens, rewards, judged, np.zeros(len(rewards), bool), table.std(used))


def generalised(
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    judged: Any = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Generalised advantage estimation (arXiv 1506.02438): whitened advantages and returns of every token, float32.

    `rewards` and `values` hold one array per answer: the reward that follows each generated token, and the value
    before it. After the last token nothing is worth anything.
    """
    use = np.ones(len(rewards), bool) if judged is None else np.asarray(judged, bool)
    advantages, returns = [], []
    for reward, value in zip(rewards, values, strict=True):
        value = np.asarray(value, np.float64)
        delta = np.asarray(reward, np.float64) + gamma * np.append(value[1:], 0.0)[: len(value)] - value
        advantage, carried = np.zeros(len(value)), 0.0
        for t in range(len(value) - 1, -1, -1):
            carried = delta[t] + gamma * gae_lambda * carried
            advantage[t] = carried
        advantages.append(advantage)
        returns.append((advantage + value).astype(np.float32))
    return [a.astype(np.float32) for a in _whiten_tokens(advantages, use)], returns


def kl_penalty(logprobs: Any, reference: Any, kind: str = "k1") -> np.ndarray:
    """Distance of every token from the reference, float64: the value of one of `config.grpo.kl_estimator`."""
    difference = np.asarray(logprobs, np.float64) - np.asarray(reference, np.float64)
    if kind == "k1":
        return difference
    if kind == "k2":
        return np.square(difference) / 2
    return np.expm1(-np.clip(difference, -20, 20)) + difference


@dataclasses.dataclass(frozen=True)
class LengthReward:
    """What the relative length reward adds."""

    bonus: np.ndarray
    """float64 [B]: to be added to the reward of the answer; 0 where the group is not solved or the answer is wrong."""
    active: np.ndarray
    """bool [B]: the answer's group is one that the reward works on."""
    clipped: np.ndarray
    """bool [B]: the bonus is at one of its bounds."""


def relative_length(correct: Any, lengths: Any, groups: Any, section: RewardSection) -> LengthReward:
    """Correct answers of mostly solved groups gain when they are shorter than the other correct ones.

    `correct` [B] is 1, 0 or NaN (not judged), `lengths` [B] counts the generated tokens. The bonus of a correct answer
    is (mean length of the correct ones - its own) / budget, between the two bounds.
    """
    correct, lengths = np.asarray(correct, np.float64), np.asarray(lengths, np.float64)
    judged = ~np.isnan(correct)
    right = judged & (np.nan_to_num(correct) > 0)
    solved = Groups.of(groups, judged).mean(np.where(right, 1.0, 0.0)) >= section.relative_length_threshold
    table = Groups.of(groups, right)
    low, high = table.extremes(lengths)
    active = solved & (table.size() > 0) & (high - low >= section.relative_length_min_spread)
    raw = (table.mean(lengths) - lengths) / section.relative_length_budget
    bonus = np.clip(raw, section.relative_length_lower, section.relative_length_upper)
    gains = active & right
    return LengthReward(np.where(gains, bonus, 0.0), active, gains & (bonus != raw))


def dead_probability(p: Any, group_size: int) -> np.ndarray:
    """Probability p^G + (1-p)^G that a group is all right or all wrong, for prompts that are solved with p."""
    p = np.asarray(p, np.float64)
    return p**group_size + (1 - p) ** group_size


def dead_statistics(made: Advantages, groups: Any, lengths: Any, correct: Any) -> dict[str, tuple[float, float]]:
    """Shares of groups with equal rewards, of their answers and tokens where these have no advantage (with estimators
    that compare no groups they may have one), and of easy, hard and mixed groups.

    `correct` [B] is 1, 0 or NaN. A group is easy when all of its judged answers are right, hard when none is.
    """
    rewards = np.nan_to_num(made.rewards)
    table = Groups.of(groups, made.judged)
    dead = (table.equal(rewards) | (table.size() == 0)) if len(rewards) else np.zeros(0, bool)
    idle = dead & ~any_token(made.per_token)
    lengths = np.asarray(lengths, np.float64)
    known = ~np.isnan(np.asarray(correct, np.float64))
    share = Groups.of(groups, known)
    rate = share.mean(np.nan_to_num(np.asarray(correct, np.float64)))
    _, first = np.unique(table.number, return_index=True)
    rates, some = rate[first], share.size()[first] > 0
    count = float(np.sum(some))
    easy, hard = float(np.sum(rates[some] == 1)), float(np.sum(rates[some] == 0))
    return {
        "frac_reward_zero_std": (float(np.sum(dead[first])), float(len(first))),
        "zero_adv/samples": (float(np.sum(idle)), float(len(idle))),
        "zero_adv/tokens": (float(np.sum(lengths[idle])), float(np.sum(lengths))),
        "groups/easy": (easy, count),
        "groups/hard": (hard, count),
        "groups/mixed": (count - easy - hard, count),
        "adv_abs_mean": (math.fsum(np.abs(made.values)), float(len(made.values))),
    }
