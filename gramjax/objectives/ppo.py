"""Proximal policy optimisation (arXiv 1707.06347) on rollouts: `grpo` with a value of every token beside the policy.

A head on the same trunk says what is still to be gained before each token. Advantages are those of generalised
advantage estimation (arXiv 1506.02438), whitened over the tokens of a rollout; the values learn the returns:

    L = policy loss + value_coef / 2 * max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2)

averaged alike. Groups are not needed (`group_size` may be 1). A config is that of GRPO made for another method: replace
`configs.defaults("grpo", ...)` by

    config = configs.defaults("ppo", rewards=("verifiable",))
    config.grpo.group_size, config.grpo.iterations, config.grpo.gae_lambda = 4, 2, 0.95

in a copy of configs/grpo_modadd.py; its settings stand in `config.grpo` with the others. Batches are those of `grpo`
with `old_logprobs`, `old_values` and `returns` [R, T].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.policy_losses import policy_objective, value_loss
from gramjax.core.reinforcement import GrpoSection
from gramjax.core.reinforcement_checks import check
from gramjax.data.text import example
from gramjax.generation.sampler import prompt_tokens
from gramjax.models import heads

SECTION = "grpo"
"""Where the settings stand in a config."""

ROW_TYPES = ("prompt_only",)
HEADS = ("tokens", "value")


@dataclasses.dataclass(frozen=True)
class Config(GrpoSection):
    """The settings of `config.grpo`, with those of the values."""

    advantage: str = "gae"
    """Generalised advantage estimation, the only one."""
    value_coef: float = 0.1
    """Weight of the loss of the values (TRL vf_coef)."""
    value_clip: float = 0.2
    """Furthest move of a value in a rollout that lowers its loss (TRL cliprange_value); 0: any."""
    gae_lambda: float = 0.95
    """How far rewards reach back past the values, 0 to 1: 1 takes what was gained, 0 what the next value says."""
    gamma: float = 1.0
    """Discount of each later token, above 0 to 1."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    check(config, critic=True)
    return config


def needs_reference(config: Config) -> bool:
    """Whether the rollouts ask a reference model for log-probabilities."""
    return config.beta != 0


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The prompt alone, of which nothing is scored: answers are drawn by the rollouts."""
    ids = prompt_tokens(row, renderer)
    return example((ids, [0.0] * len(ids)))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """The losses of policy and values; metrics of `grpo`, and `value/…`."""
    hidden = model.forward(weights, batch).hidden
    logprobs, entropies = heads.token_statistics(
        weights, hidden, batch["labels"], model.logit_chunk, config.temperature, config.entropy_bonus, model.mesh
    )
    values = heads.value(weights, hidden)
    errors, bounded = value_loss(values, batch["old_values"], batch["returns"], config.value_clip)
    made, metrics = policy_objective(logprobs, entropies, batch, config, extra=config.value_coef * errors)
    return made, metrics | _metrics(values, errors, bounded, batch)


def _metrics(
    values: jax.Array, errors: jax.Array, bounded: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Means over generated tokens, and the share of the variance of returns that the values do not explain."""
    mask = batch["loss_mask"] > 0
    total = lambda x: jnp.sum(jnp.where(mask, x, 0))  # noqa: E731
    count = total(jnp.ones_like(values))
    returns = batch["returns"]
    spread = jnp.square(returns - total(returns) / jnp.maximum(count, 1))
    return {
        "value/loss": (total(errors), count),
        "value/mean": (total(values), count),
        "value/returns": (total(returns), count),
        "value/clipped": (total(bounded.astype(values.dtype)), count),
        "value/unexplained": (total(jnp.square(values - returns)), total(spread)),
    }
