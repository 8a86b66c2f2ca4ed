"""What the samples of a rollout are worth: from rewards to advantages, and which samples a step learns from.

The arithmetic is `core.advantages` and `core.samples`; here it meets the samples.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramjax.core import advantages, samples
from gramjax.core.errors import UserError
from gramjax.core.policy_losses import AGGREGATION
from gramjax.core.reinforcement import GrpoSection, RewardSection
from gramjax.data.rows import digest
from gramjax.generation.experience import Sample

Pairs = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Valuer:
    """The settings of a training that say what a sample is worth."""

    grpo: GrpoSection
    reward: RewardSection
    names: Sequence[str]
    """The reward functions."""
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if self.reward.correct and self.reward.correct not in self.names:
            raise UserError(
                f"config.reward.correct={self.reward.correct!r} is none of the rewards: {', '.join(self.names)}"
            )

    @property
    def judge(self) -> int:
        """Number of the reward that says what is correct."""
        return list(self.names).index(self.reward.correct) if self.reward.correct else 0

    def is_correct(self, rewards: Sequence[float]) -> bool:
        """Whether an answer with these rewards is right (one that was not judged is not)."""
        return bool(rewards[self.judge] >= self.reward.correct_at)

    def total(self, sample: Sample) -> float:
        """All rewards of one answer together; 0 when none was given."""
        scores = np.array(sample.rewards, np.float64)[:, None]
        return float(np.nan_to_num(advantages.combine(scores, self.weights, self.names)[0]))

    def alive(self, groups: Sequence[list[Sample]]) -> list[list[Sample]]:
        """The groups whose rewards are not all equal."""
        flat = [sample for group in groups for sample in group]
        total = advantages.combine(self._scores(flat)[0], self.weights, self.names)
        table = advantages.Groups.of([s.group for s in flat], ~np.isnan(total))
        dead = table.equal(np.nan_to_num(total)) | (table.size() == 0)
        size = len(groups[0]) if groups else 0
        return [group for number, group in enumerate(groups) if not dead[number * size]]

    def replaced(self, group: Sequence[Sample], lengths: Sequence[int]) -> list[samples.Injection]:
        """Which samples of a group are replaced by which of its offline solutions of these lengths."""
        correct = [_truth(sample, self.judge, self.reward.correct_at) for sample in group]
        return samples.inject(correct, [0] * len(group), [lengths], self.grpo)

    def settle(self, drawn: Sequence[Sample], seed: int, step: int) -> Pairs:
        """Give every sample its reward, its advantages, and its part in the step; the metrics of that."""
        scores, bonus = self._scores(drawn)
        correct = [_truth(sample, self.judge, self.reward.correct_at) for sample in drawn]
        groups, lengths = [s.group for s in drawn], [s.length for s in drawn]
        made, returns = self._estimate(drawn, scores, groups, lengths)
        rng = np.random.default_rng(digest(seed, "samples", step))
        word = samples.samples_at(self.grpo, step)
        looping = [s.truncated and samples.repeats(s.tokens[s.start :].tolist()) for s in drawn]
        chosen = samples.select(made, self.grpo, word, correct, [s.truncated for s in drawn], looping, rng)
        for i, sample in enumerate(drawn):
            sample.reward = float(made.rewards[i]) if made.judged[i] else 0.0
            sample.advantages = made.per_token[i]
            sample.returns = returns[i] if returns is not None else None
            sample.trained, sample.counted = bool(chosen.trained[i]), float(chosen.counted[i])
        metrics = advantages.dead_statistics(made, groups, lengths, correct)
        judged = made.rewards[made.judged]
        metrics |= {
            "reward": (float(judged.sum()), float(max(len(judged), 1))),
            "reward_std": (float(made.std.sum()), float(len(drawn))),
            "samples/trained": (float(chosen.trained.sum()), float(len(drawn))),
            "samples/correct": (float(np.nansum(correct)), float(max(np.sum(~np.isnan(correct)), 1))),
        }
        if self.reward.relative_length:
            active = bonus.active.astype(float)
            gained = bonus.bonus[bonus.active] if bonus.active.any() else np.zeros(1)
            metrics |= {
                "rlr/active_samples": (float(active.sum()), float(len(drawn))),
                "rlr/mean_bonus": (float(gained.sum()), float(len(gained))),
                "rlr/clipped": (float(bonus.clipped.sum()), float(max(active.sum(), 1))),
            }
        if self.grpo.offline_fraction:
            metrics["offline/injected"] = (float(sum(s.offline for s in drawn)), float(len(drawn)))
        return metrics

    def weigh(self, part: Sequence[Sample]) -> None:
        """Let the samples that a step learns from stand for those that only count in its denominator.

        Samples that give no gradient need not be computed: they get weight 0 (and are not in the batch), and the
        others the weight that keeps the denominator of the loss what it was.
        """
        kind = AGGREGATION[self.grpo.loss] if self.grpo.aggregation == "auto" else self.grpo.aggregation
        if kind == "batch_token":  # the mean over a microbatch is over what lies in it
            return
        size = lambda sample: sample.length if kind == "token" else 1  # noqa: E731
        whole = sum(sample.counted * size(sample) for sample in part)
        learned = sum(size(sample) for sample in part if sample.trained)
        for sample in part:
            sample.counted = whole / learned if sample.trained else 0.0

    def _scores(self, drawn: Sequence[Sample]) -> tuple[np.ndarray, advantages.LengthReward]:
        """The rewards [F, B] with the relative length reward in that of the judge, and what that reward did."""
        scores = np.array([sample.rewards for sample in drawn], np.float64).reshape(-1, len(self.names)).T
        none = np.zeros(len(drawn))
        if not self.reward.relative_length:
            return scores, advantages.LengthReward(none, none.astype(bool), none.astype(bool))
        correct = [_truth(sample, self.judge, self.reward.correct_at) for sample in drawn]
        groups, lengths = [s.group for s in drawn], [s.length for s in drawn]
        bonus = advantages.relative_length(correct, lengths, groups, self.reward)
        scores[self.judge] += bonus.bonus
        return scores, bonus

    def _estimate(
        self, drawn: Sequence[Sample], scores: np.ndarray, groups: Sequence[int], lengths: Sequence[int]
    ) -> tuple[advantages.Advantages, list[np.ndarray] | None]:
        """Advantages, and the returns that values are to learn (PPO)."""
        kl = None
        if self.grpo.beta and self.grpo.kl_in == "reward":
            own = [s.sampler_logprobs if s.old_logprobs is None else s.old_logprobs for s in drawn]
            kl = [
                advantages.kl_penalty(logprobs, s.reference_logprobs, self.grpo.kl_estimator)
                for logprobs, s in zip(own, drawn, strict=True)
            ]
        if advantages.estimator(self.grpo) != "gae":
            greedy = [s.greedy for s in drawn]
            offline = [s.offline for s in drawn]
            made = advantages.estimate(
                scores, groups, lengths, self.grpo, self.weights, self.names, greedy, kl, offline
            )
            return made, None
        section: Any = self.grpo
        total = advantages.combine(scores, self.weights, self.names)
        judged = ~np.isnan(total)
        rewards = advantages.token_rewards(total, lengths, section.beta, kl)
        values = [np.asarray(s.old_values, np.float64) for s in drawn]
        tokens, returns = advantages.generalised(rewards, values, section.gamma, section.gae_lambda, judged)
        means = np.array([t.mean() if len(t) else 0.0 for t in tokens], np.float32)
        std = advantages.Groups.of(groups, judged).std(np.nan_to_num(total))
        dead = np.zeros(len(drawn), bool)
        return advantages.Advantages(means, tokens, total, judged, dead, std), returns


def _truth(sample: Sample, judge: int, least: float) -> float:
    """1 for a right answer, 0 for a wrong one, NaN for one that was not judged."""
    value = sample.rewards[judge]
    return float("nan") if np.isnan(value) else float(value >= least)


def describe(drawn: Sequence[Sample], names: Sequence[str]) -> Pairs:
    """Metrics of what was drawn, under TRL's names: lengths, each reward, and how often a group repeats itself."""
    own = [sample for sample in drawn if not sample.offline]
    lengths = np.array([sample.length for sample in own], np.float64)
    ended = np.array([not sample.truncated for sample in own], bool)
    out: Pairs = {}
    for prefix, chosen in (("", np.ones(len(own), bool)), ("terminated_", ended)):
        some = lengths[chosen] if chosen.any() else np.zeros(1)
        out[f"completions/mean_{prefix}length"] = (float(some.sum()), float(len(some)))
        out[f"completions/min_{prefix}length"] = (float(some.min()), 1.0)
        out[f"completions/max_{prefix}length"] = (float(some.max()), 1.0)
    out["completions/clipped_ratio"] = (float(np.sum(~ended)), float(max(len(own), 1)))
    for k, name in enumerate(names):
        values = np.array([sample.rewards[k] for sample in own], np.float64)
        judged = values[~np.isnan(values)]
        out[f"rewards/{name}/mean"] = (float(judged.sum()), float(max(len(judged), 1)))
        out[f"rewards/{name}/std"] = (float(judged.std(ddof=1)) if len(judged) > 1 else 0.0, 1.0)
        out[f"rewards/{name}/not_judged"] = (float(len(values) - len(judged)), float(max(len(values), 1)))
    texts = collections.Counter((sample.group, sample.tokens[sample.start :].tobytes()) for sample in own)
    out["sampling/duplicates"] = (float(len(own) - len(texts)), float(max(len(own), 1)))
    return out
