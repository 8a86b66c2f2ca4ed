"""Bradley-Terry reward models: a scalar head at the last token of prompt and answer.

With d = r(chosen) - r(rejected) - margin:

    L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d) + center * (r(chosen) + r(rejected))^2

eps = 0, no margin and center = 0 give the plain pairwise ranking loss. The last term keeps rewards near zero
(Eisenstein et al. 2023), which the ranking loss leaves free.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.errors import UserError
from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("preference",)
HEADS = ("score",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants of the pairwise ranking loss."""

    label_smoothing: float = 0.0
    """Probability eps that a label is flipped; below 0.5."""
    use_margin: bool = False
    """Subtract the column `margin` of the rows (rating difference) from the difference of rewards."""
    center_rewards_coefficient: float = 0.0


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Chosen and rejected as one example of two sequences; a missing margin counts as 0 unless `use_margin` asks."""
    margin = row.get("margin")
    if config.use_margin and margin is None:
        raise UserError(f"row {row.get('id')}: config.objective.use_margin needs a column 'margin' (a number)")
    margin = float(margin or 0.0) if config.use_margin else 0.0
    return example(*renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"]), margin=margin)


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics `accuracy` (strict), `margin`, `mean_reward`, `min_reward`, `max_reward`."""
    B, _, T = batch["tokens"].shape
    flat = {name: batch[name].reshape(2 * B, T) for name in ("tokens", "segment_ids", "positions")}
    hidden = model.forward(weights, flat).hidden
    ends = batch["ends"].reshape(2 * B, -1)
    rewards = heads.score(weights, heads.take_positions(hidden, ends)).reshape(B, 2, -1)
    chosen, rejected, mask = rewards[:, 0], rewards[:, 1], batch["example_mask"]
    losses = pairwise_loss(chosen - rejected - batch["margin"], config.label_smoothing)
    losses += config.center_rewards_coefficient * jnp.square(chosen + rejected)
    count = jnp.sum(mask)
    real = jnp.stack([mask, mask], axis=1) > 0
    return (jnp.sum(mask * losses), count), {
        "accuracy": (jnp.sum(mask * (chosen > rejected)), count),
        "margin": (jnp.sum(mask * (chosen - rejected)), count),
        "mean_reward": (jnp.sum(mask * (chosen + rejected)), 2 * count),
        "min_reward": (jnp.min(jnp.where(real, rewards, jnp.inf)), count),
        "max_reward": (jnp.max(jnp.where(real, rewards, -jnp.inf)), count),
    }


def pairwise_loss(difference: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - eps) log sigmoid(d) - eps log sigmoid(-d), elementwise; equals -log sigmoid(d) + eps d."""
    return -jax.nn.log_sigmoid(difference) + label_smoothing * difference
