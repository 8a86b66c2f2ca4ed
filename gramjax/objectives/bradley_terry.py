"""Bradley-Terry reward models: a scalar head at the last token of prompt and answer.

With r(c), r(r) the rewards of chosen and rejected and d = r(c) - r(r) - margin:

    L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d) + center (r(c) + r(r))^2
        - posreg log sigmoid(r(c)) + l2 (r(c)^2 + r(r)^2) / 2

The first two terms are the pairwise ranking loss, plain with eps = 0 and no margin. It leaves free where the rewards
lie: `center` keeps them near zero (Eisenstein et al. 2023), `posreg` those of chosen answers above zero, `l2` all
small. Published code of `posreg` takes the logarithm after the mean over the devices' own pairs; here it is taken for
each pair (never smaller, by convexity), so that the loss does not depend on how a batch is cut.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.checks import at_least_zero
from gramjax.core.preference_losses import flip_probability, pairwise_loss
from gramjax.data.rows import margin_for
from gramjax.data.text import example
from gramjax.models import sides

ROW_TYPES = ("preference",)
HEADS = ("score",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants of the pairwise ranking loss."""

    label_smoothing: float = 0.0
    """How much; what the number means is said by `smoothing_convention`."""
    smoothing_convention: str = "flip"
    """`flip`: eps, the probability that a label is flipped, below 0.5. `uniform`: spread over both, eps is half."""
    use_margin: bool = False
    """Subtract the column `margin` of the rows (rating difference) from the difference of rewards."""
    center_rewards_coefficient: float = 0.0
    """Factor of (r(chosen) + r(rejected))^2."""
    posreg: float = 0.0
    """Factor of -log sigmoid(r(chosen))."""
    l2: float = 0.0
    """Factor of (r(chosen)^2 + r(rejected)^2) / 2; published: 0.001."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    flip_probability(config.label_smoothing, config.smoothing_convention)
    at_least_zero(config, "objective", "center_rewards_coefficient", "posreg", "l2")
    return config


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Chosen and rejected as one example of two sequences; the margin is 0 unless `use_margin` asks for the column."""
    margin = margin_for(row, "config.objective.use_margin") if config.use_margin else 0.0
    return example(*renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"]), margin=margin)


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics `accuracy` (strict), `margin`, `mean_reward`, `min_reward`, `max_reward`."""
    rewards = sides.rewards(weights, sides.hidden_states(model, weights, batch), batch)
    chosen, rejected, mask = rewards[:, 0], rewards[:, 1], batch["example_mask"]
    eps = flip_probability(config.label_smoothing, config.smoothing_convention)
    losses = pairwise_loss(chosen - rejected - batch["margin"], eps)
    losses += config.center_rewards_coefficient * jnp.square(chosen + rejected)
    losses += config.posreg * pairwise_loss(chosen)
    losses += config.l2 / 2 * (jnp.square(chosen) + jnp.square(rejected))
    count = jnp.sum(mask)
    real = jnp.stack([mask, mask], axis=1) > 0
    return (jnp.sum(mask * losses), count), {
        "accuracy": (jnp.sum(mask * (chosen > rejected)), count),
        "margin": (jnp.sum(mask * (chosen - rejected)), count),
        "mean_reward": (jnp.sum(mask * (chosen + rejected)), 2 * count),
        "min_reward": (jnp.min(jnp.where(real, rewards, jnp.inf)), count),
        "max_reward": (jnp.max(jnp.where(real, rewards, -jnp.inf)), count),
    }
