"""Direct preference optimisation (DPO, arXiv 2305.18290): a language model trained on pairs as its own reward model.

With log pi(y) the summed log-probability of an answer, the implicit reward r(y) = beta (log pi(y) - log pi_ref(y)) and
d = r(chosen) - r(rejected) - margin_weight * margin:

    sigmoid  L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d)
    hinge    L = max(0, 1 - d)
    ipo      L = (d / beta - 1 / (2 beta))^2, with means over the tokens of each answer (arXiv 2310.12036)

The margin of a pair is the row's column `margin`: a rating difference, or one that a reward model predicted.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.checks import at_least_zero, one_of
from gramjax.core.errors import UserError
from gramjax.core.preference_losses import flip_probability, pairwise_loss
from gramjax.data.rows import margin_for
from gramjax.data.text import example
from gramjax.models import sides

ROW_TYPES = ("preference",)
HEADS = ("tokens",)
LOSSES = ("sigmoid", "hinge", "ipo")


@dataclasses.dataclass(frozen=True)
class Config:
    """The loss on the difference of implicit rewards."""

    beta: float = 0.1
    """How strongly the model is held to the reference: implicit rewards are beta times log-probability ratios."""
    loss: str = "sigmoid"
    """`sigmoid`, `hinge` or `ipo`."""
    label_smoothing: float = 0.0
    """Probability eps that a label is flipped, below 0.5 (`sigmoid` only)."""
    margin_weight: float = 0.0
    """Factor of the column `margin` of the rows, which is subtracted from the difference; 0: not read."""
    reference_free: bool = False
    """Leave the reference out: its log-probabilities count as 0."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    one_of(config, "objective", loss=LOSSES)
    at_least_zero(config, "objective", "margin_weight")
    if config.beta <= 0:
        raise UserError(f"config.objective.beta={config.beta} must be above 0")
    if flip_probability(config.label_smoothing) and config.loss != "sigmoid":
        raise UserError(f"config.objective.label_smoothing is for loss=sigmoid, not {config.loss}")
    if config.margin_weight and config.loss == "ipo":
        raise UserError("config.objective.margin_weight: the ipo loss has a margin of its own, 1 / (2 beta)")
    return config


def needs_reference(config: Config) -> bool:
    """Whether `loss` wants the weights of a reference model."""
    return not config.reference_free


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Chosen and rejected as one example of two sequences."""
    margin = margin_for(row, "config.objective.margin_weight") if config.margin_weight else 0.0
    return example(*renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"]), margin=margin)


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics under TRL's names: `rewards/chosen`, `rewards/accuracies`, `logps/chosen`, …"""
    logps = answer_logprobs(model, weights, batch)
    ratios = logps
    if needs_reference(config):
        ratios = logps - jax.lax.stop_gradient(answer_logprobs(model, reference, batch))
    if config.loss == "ipo":
        ratios /= jnp.maximum(sides.answer_lengths(batch), 1.0)
    rewards = config.beta * ratios
    chosen, rejected, mask = rewards[:, 0], rewards[:, 1], batch["example_mask"]
    losses = pair_loss(chosen - rejected - config.margin_weight * batch["margin"], config)
    count = jnp.sum(mask)
    mean = lambda x: (jnp.sum(mask * x), count)  # noqa: E731
    return mean(losses), {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/accuracies": mean(chosen > rejected),
        "rewards/margins": mean(chosen - rejected),
        "logps/chosen": mean(logps[:, 0]),
        "logps/rejected": mean(logps[:, 1]),
    }


def answer_logprobs(model: Any, weights: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """log p(answer | prompt) [B, 2, N] under a model."""
    hidden = sides.hidden_states(model, weights, batch)
    return sides.answer_logprobs(weights, hidden, batch, model.logit_chunk, model.mesh)


def pair_loss(difference: jax.Array, config: Config) -> jax.Array:
    """The loss of a difference of implicit rewards, less the margin; elementwise."""
    if config.loss == "hinge":
        return jax.nn.relu(1 - difference)
    if config.loss == "ipo":
        return jnp.square(difference / config.beta - 1 / (2 * config.beta))
    return pairwise_loss(difference, config.label_smoothing)
