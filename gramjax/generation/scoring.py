"""How likely given completions are: sums of log-probabilities, one forward pass per sequence and no sampling."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import progress, sharding
from gramjax.data import buckets
from gramjax.generation.sampler import Sampler
from gramjax.models import heads
from gramjax.models.model import Model

BATCH = 16


@functools.partial(jax.jit, static_argnames="model")
def _sums(weights: Any, batch: dict[str, jax.Array], *, model: Model) -> jax.Array:
    """Summed log-probabilities [B] of the labels where the mask is 1."""
    hidden_BTD = model.forward(weights, batch).hidden
    chunk = max(model.logit_chunk // batch["tokens"].shape[0], 1)

    def one(hidden_TD: jax.Array, labels_T: jax.Array, mask_T: jax.Array) -> jax.Array:
        return -heads.cross_entropy(weights, hidden_TD[None], labels_T[None], mask_T[None], chunk)

    return jax.vmap(one)(hidden_BTD, batch["labels"], batch["loss_mask"])


def completion_logprobs(
    sampler: Sampler, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], batch_size: int = BATCH
) -> np.ndarray:
    """log p(completion | prompt) of each pair of token sequences, float64 [N]; every prompt has at least one token.

    Weights are those of the sampler (packed for decoding), temperature 1. What a sum is does not depend on the batch.
    """
    sequences = [np.asarray([*p, *c], np.int32) for p, c in zip(prompts, completions, strict=True)]
    mesh = sampler.model.mesh
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    wanted = min(batch_size, 1 << max(len(sequences) - 1, 0).bit_length())
    out = np.zeros(len(sequences))
    for indices, batch in buckets.batches(sequences, -(-wanted // shards) * shards):
        progress.stop_point("a batch of scoring")
        batch["labels"] = np.zeros_like(batch["tokens"])
        batch["loss_mask"] = np.zeros(batch["tokens"].shape, np.float32)
        for place, i in enumerate(indices):
            start, stop = len(prompts[i]) - 1, len(sequences[i]) - 1
            batch["labels"][place, start:stop] = sequences[i][start + 1 :]
            batch["loss_mask"][place, start:stop] = 1.0
        found = _sums(sampler.weights, sharding.place(batch, mesh), model=sampler.model)
        out[indices] = np.asarray(jnp.asarray(found))[: len(indices)]
    return out
