"""The weight of the entropy bonus, led by the entropy of what was drawn (Skywork-OR1, 2505.22312; the names are TRL's).

The entropy of the policy is estimated from the samples themselves: the mean of -log p over their tokens, whose
expectation it is where tokens are drawn from the whole distribution. So it is known before the first optimiser step on
a rollout, is the same in every process, and no number has to come back from the devices.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gramjax.core.reinforcement import GrpoSection
from gramjax.generation.experience import Sample


@dataclasses.dataclass
class Leader:
    """Leads the weight; `coef` is all that a checkpoint has to keep."""

    section: GrpoSection
    coef: float

    def lead(self, samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
        """Give the samples of a rollout the weight of their bonus and move it for the next; the metrics of both.

        The weight counts where the entropy is at most `entropy_target`, else the samples get 0. It rises by
        `entropy_coef_delta` where the entropy is below the target and falls otherwise, within its bounds. Samples that
        were not drawn say nothing about the policy; without any drawn token the weight stays.
        """
        drawn = [s.sampler_logprobs for s in samples if not s.offline and s.sampler_logprobs is not None]
        surprisals = -np.concatenate([np.zeros(0), *drawn])
        section, applied = self.section, 0.0
        metrics = {"entropy_coef": (self.coef, 1.0)}
        if len(surprisals):
            entropy = float(np.mean(surprisals, dtype=np.float64))
            applied = self.coef if entropy <= section.entropy_target else 0.0
            step = section.entropy_coef_delta * (1 if entropy < section.entropy_target else -1)
            self.coef = min(max(self.coef + step, section.entropy_coef_min), section.entropy_coef_max)
            metrics["sampling/entropy"] = (float(np.sum(surprisals, dtype=np.float64)), float(len(surprisals)))
        for sample in samples:
            sample.entropy_coef = np.full(sample.length, applied, np.float32)
        return metrics | {"entropy_coef_applied": (applied, 1.0)}
