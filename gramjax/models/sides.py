"""Examples of several sequences (chosen and rejected, or a list of answers): one forward pass, numbers per answer.

Shape letters: B batch, S sides (sequences of an example), T length, N examples packed in a row, D embed. Batches are
those of `data.pipeline.collate` with pairs: `tokens` [B, S, T], `ends` [B, S, N].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gramjax.models import heads

Batch = dict[str, jax.Array]


def hidden_states(model: Any, weights: Any, batch: Batch) -> jax.Array:
    """Hidden states [B, S, T, D] of every side, all of them in one pass."""
    B, S, T = batch["tokens"].shape
    flat = {name: batch[name].reshape(B * S, T) for name in ("tokens", "segment_ids", "positions")}
    return model.forward(weights, flat).hidden.reshape(B, S, T, -1)


def rewards(weights: Any, hidden_BSTD: jax.Array, batch: Batch) -> jax.Array:
    """Scalar rewards [B, S, N], read at the last token of prompt and answer."""
    B, S, T, D = hidden_BSTD.shape
    ends = batch["ends"].reshape(B * S, -1)
    return heads.score(weights, heads.take_positions(hidden_BSTD.reshape(B * S, T, D), ends)).reshape(B, S, -1)


def answer_logprobs(
    weights: Any, hidden_BSTD: jax.Array, batch: Batch, chunk: int = 1024, mesh: Mesh | None = None
) -> jax.Array:
    """log p(answer | prompt) [B, S, N]: the sum over the scored tokens (`loss_mask`) of each example."""
    B, S, T, D = hidden_BSTD.shape
    labels, hidden = batch["labels"].reshape(B * S, T), hidden_BSTD.reshape(B * S, T, D)
    logprobs_BST = heads.token_logprobs(weights, hidden, labels, chunk, mesh).reshape(B, S, T)
    return per_example(batch["loss_mask"] * logprobs_BST, batch)


def answer_lengths(batch: Batch) -> jax.Array:
    """Scored tokens [B, S, N] of each answer."""
    return per_example(batch["loss_mask"], batch)


def per_example(values_BST: jax.Array, batch: Batch) -> jax.Array:
    """Sums [B, S, N] of values per token over the tokens of each example of a row."""
    number = jnp.arange(1, batch["ends"].shape[-1] + 1)
    member_BSNT = batch["segment_ids"][:, :, None] == number[:, None]
    return jnp.sum(jnp.where(member_BSNT, values_BST[:, :, None], 0.0), axis=-1)
