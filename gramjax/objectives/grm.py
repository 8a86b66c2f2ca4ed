"""GRM (Yang et al. 2024): a scalar reward whose hidden states must still write the answers.

A Bradley-Terry loss on the scalar head beside a text-generation term on the vocabulary head, whose matrix gets no
gradient from it. With d = r(chosen) - r(rejected), log pi(y) the summed log-probability of an answer and
h = log pi(chosen) - log pi(rejected):

    L = (1 - alpha) (-log sigmoid(d)) + alpha R

    sft        R = -log sigmoid(beta log pi(chosen))
    nll        R = -beta log pi(chosen)                    sft without the log-sigmoid
    dpo        R = -log sigmoid(beta (h - h_reference))
    dpo_noref  R = -log sigmoid(beta h)

The published reward head is one hidden layer of 1024 with ReLU (--config.model.arch.score_hidden=1024) and dropout 0.1,
which is left out. By default it is linear, like that of every scalar model, so that all are exported alike.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.checks import at_least_zero, one_of
from gramjax.core.errors import UserError
from gramjax.core.preference_losses import pairwise_loss
from gramjax.data.text import example
from gramjax.models import sides

ROW_TYPES = ("preference",)
HEADS = ("tokens", "score")
REGULARIZATIONS = ("sft", "nll", "dpo", "dpo_noref")


@dataclasses.dataclass(frozen=True)
class Config:
    """The text-generation term beside the ranking loss."""

    regularization: str = "sft"
    """`sft`, `nll`, `dpo` (against the reference model) or `dpo_noref`."""
    alpha: float = 0.01
    """Share of the text-generation term, from 0 (Bradley-Terry) to 1."""
    beta: float = 0.1
    """Factor of the log-probabilities in that term."""
    train_lm_head: bool = False
    """Let the term change the output matrix too. Where that is the embedding as well, it trains as such anyway."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    one_of(config, "objective", regularization=REGULARIZATIONS)
    at_least_zero(config, "objective", "beta")
    if not 0 <= config.alpha <= 1:
        raise UserError(f"config.objective.alpha={config.alpha} must lie between 0 and 1")
    return config


def needs_reference(config: Config) -> bool:
    """Whether `loss` wants the weights of a reference model."""
    return config.regularization == "dpo"


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Chosen and rejected as one example of two sequences."""
    return example(*renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"]))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics of the ranking, the two terms, and `logps/chosen`, `logps/rejected`."""
    hidden = sides.hidden_states(model, weights, batch)
    rewards = sides.rewards(weights, hidden, batch)
    vocabulary = {name: weights[name] for name in ("embed", "lm_head") if name in weights}
    vocabulary = vocabulary if config.train_lm_head else jax.lax.stop_gradient(vocabulary)
    logps = sides.answer_logprobs(vocabulary, hidden, batch, model.logit_chunk, model.mesh)
    ratios = logps
    if needs_reference(config):
        states = sides.hidden_states(model, reference, batch)
        ratios -= jax.lax.stop_gradient(sides.answer_logprobs(reference, states, batch, model.logit_chunk, model.mesh))
    ranking = pairwise_loss(rewards[:, 0] - rewards[:, 1])
    text = regularizer(ratios[:, 0], ratios[:, 1], config)
    mask = batch["example_mask"]
    count = jnp.sum(mask)
    real = jnp.stack([mask, mask], axis=1) > 0
    mean = lambda x: (jnp.sum(mask * x), count)  # noqa: E731
    return mean((1 - config.alpha) * ranking + config.alpha * text), {
        "accuracy": mean(rewards[:, 0] > rewards[:, 1]),
        "margin": mean(rewards[:, 0] - rewards[:, 1]),
        "mean_reward": mean((rewards[:, 0] + rewards[:, 1]) / 2),
        "min_reward": (jnp.min(jnp.where(real, rewards, jnp.inf)), count),
        "max_reward": (jnp.max(jnp.where(real, rewards, -jnp.inf)), count),
        "ranking_loss": mean(ranking),
        "regularization_loss": mean(text),
        "logps/chosen": mean(logps[:, 0]),
        "logps/rejected": mean(logps[:, 1]),
    }


def regularizer(chosen: jax.Array, rejected: jax.Array, config: Config) -> jax.Array:
    """R of log-probabilities (of ratios to the reference for `dpo`), elementwise."""
    if config.regularization == "nll":
        return -config.beta * chosen
    if config.regularization == "sft":
        return pairwise_loss(config.beta * chosen)
    return pairwise_loss(config.beta * (chosen - rejected))
