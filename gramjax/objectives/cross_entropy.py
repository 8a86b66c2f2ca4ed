"""Next-token cross-entropy over the scored tokens of each example (supervised fine-tuning, language modelling)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("language_modeling", "prompt_completion")
HEADS = ("tokens",)


@dataclasses.dataclass(frozen=True)
class Config:
    """No settings: what is scored is decided by the row type (whole text, or the completion)."""


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """One sequence; the text, the assistant's turns or the completion are scored."""
    extra = row.get("chat_template_kwargs") or {}
    if "completion" in row:
        return example(renderer.completion(row["prompt"], row["completion"], **extra))
    if "messages" in row:
        return example(renderer.conversation(row["messages"], **extra))
    return example(renderer.text(row["text"]))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Token mean of the negative log-likelihood: ((sum, tokens), metrics)."""
    hidden = model.forward(weights, batch).hidden
    total = heads.cross_entropy(weights, hidden, batch["labels"], batch["loss_mask"], model.logit_chunk, model.mesh)
    tokens = jnp.sum(batch["loss_mask"])
    return (total, tokens), {"nll": (total, tokens)}
