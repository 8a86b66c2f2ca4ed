"""Group-relative policy optimisation and its relatives (GRPO, Dr. GRPO, DAPO, GSPO, CISPO, ...) on rollouts.

The settings are `config.grpo` (`core.reinforcement.GrpoSection`), the formulas those of `core.policy_losses`; what an
answer is worth was decided on the host (`core.advantages`). Batches hold rows of packed prompts with their answers:

    tokens, labels, segment_ids, positions, loss_mask [R, T]; advantages [R, T]
    old_logprobs, sampler_logprobs, reference_logprobs, entropy_coef [R, T], each only where the settings need it
    example_mask, trained, counted, offline, limit [R, N]

Without `old_logprobs` the weights at hand are those that answered: the one update that a rollout gets.
"""

from typing import Any

import jax

from gramjax.core.policy_losses import policy_objective
from gramjax.core.reinforcement import GrpoSection
from gramjax.core.reinforcement_checks import check
from gramjax.data.text import example
from gramjax.generation.sampler import prompt_tokens
from gramjax.models import heads

SECTION = "grpo"
"""Where the settings stand in a config."""

ROW_TYPES = ("prompt_only",)
HEADS = ("tokens",)
Config = GrpoSection


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    check(config)
    return config


def needs_reference(config: Config) -> bool:
    """Whether the rollouts ask a reference model for log-probabilities."""
    return config.beta != 0


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The prompt alone, of which nothing is scored: answers are drawn by the rollouts."""
    ids = prompt_tokens(row, renderer)
    return example((ids, [0.0] * len(ids)))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """The policy loss with its distance and entropy terms; metrics `kl`, `entropy`, `clip_ratio/…`, `sampling/…`."""
    hidden = model.forward(weights, batch).hidden
    logprobs, entropies = heads.token_statistics(
        weights, hidden, batch["labels"], model.logit_chunk, config.temperature, config.entropy_bonus, model.mesh
    )
    return policy_objective(logprobs, entropies, batch, config)
