"""From hidden states to numbers: vocabulary logits, exact chunked cross-entropy, verdicts, rewards, values.

Everything here is float32. Shape letters: B batch, T length, N positions read per row, D embed, V vocab.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gramjax.core.errors import UserError
from gramjax.core.sharding import platform
from gramjax.models import vocabulary
from gramjax.models.stack import FEW_ROWS, Rows, rows_product


def output_matrix(weights: Any) -> tuple[jax.Array, bool]:
    """The output projection and whether it is stored as rows per token ([V, D], tied) or columns ([D, V])."""
    if "lm_head" in weights:
        head = weights["lm_head"]
        return (head.matrix, True) if isinstance(head, Rows) else (head, False)
    return weights["embed"], True


def logits(weights: Any, hidden: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Vocabulary logits [..., V] of hidden states [..., D]. For whole sequences prefer `cross_entropy`."""
    matrix, tied = output_matrix(weights)
    if tied and hidden.size <= FEW_ROWS * hidden.shape[-1] and platform(mesh) == "cpu":
        return rows_product(hidden.reshape(-1, hidden.shape[-1]), matrix).reshape(*hidden.shape[:-1], -1)
    return vocabulary.product(hidden, matrix, tied)


def verdict_logits(weights: Any, hidden_BND: jax.Array, verdict_ids: tuple[int, ...]) -> jax.Array:
    """Logits of the verdict tokens [B, N, C] (two of a judge): their columns of the output matrix, never all of it."""
    matrix, tied = output_matrix(weights)
    ids = jnp.asarray(verdict_ids)
    columns_2D = matrix[ids] if tied else matrix[:, ids].T
    return jnp.einsum("...D,CD->...C", hidden_BND, columns_2D, preferred_element_type=jnp.float32)


def score(weights: Any, hidden_BND: jax.Array) -> jax.Array:
    """Scalar rewards [B, N] of the hidden states at the last token of each answer."""
    if "score" not in weights:
        raise UserError("this model has no scalar reward head; train with config.objective.name=bradley_terry first")
    hidden = hidden_BND.astype(jnp.float32)
    if "score_hidden" in weights:
        inner = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights["score_hidden"])
        hidden = jax.nn.relu(jnp.einsum("...D,DF->...F", hidden, inner["weight"]) + inner["bias"])
    return jnp.einsum("...D,DO->...O", hidden, weights["score"].astype(jnp.float32))[..., 0]


def value(weights: Any, hidden_BTD: jax.Array) -> jax.Array:
    """Values [B, T] of every token."""
    head = weights["value"]
    out = jnp.einsum("...D,DO->...O", hidden_BTD.astype(jnp.float32), head["weight"].astype(jnp.float32))
    return out[..., 0] + head["bias"].astype(jnp.float32)


def learned_mask(ends_BN: jax.Array, mask_BN: jax.Array, length: int) -> jax.Array:
    """Where the learned vector of preference representations stands, bool [B, T]: at the last token of each example."""
    hit_BNT = ends_BN[..., None] == jnp.arange(length)
    return jnp.any(hit_BNT & (mask_BN[..., None] > 0), axis=-2)


POOLS = ("token", "mean_responses")
"""What a preference representation is made of."""


def pooled(hidden_BTD: jax.Array, batch: Any, response_BT: jax.Array, pool: str) -> jax.Array:
    """States [B, N, D] that pairs are represented by: at the learned token, the last of each example, or the mean over
    its response tokens (`response_BT` is 1 there)."""
    if pool == "token":
        return take_positions(hidden_BTD, batch["ends"])
    slots = 1 + jnp.arange(batch["ends"].shape[-1])
    inside_BNT = (batch["segment_ids"][:, None, :] == slots[:, None]) * response_BT[:, None, :].astype(jnp.float32)
    total_BND = jnp.einsum("BNT,BTD->BND", inside_BNT, hidden_BTD.astype(jnp.float32))
    return total_BND / jnp.maximum(jnp.sum(inside_BNT, axis=-1, keepdims=True), 1.0)


def responses(batch: Any) -> jax.Array:
    """Where response tokens stand [B, T], from the mask of a training batch, which is aligned with the labels."""
    mask_BT = batch["loss_mask"]
    return jnp.pad(mask_BT[:, :-1], ((0, 0), (1, 0)))


def representation(weights: Any, hidden_BND: jax.Array) -> jax.Array:
    """Preference representations [B, N, P] of the hidden states at the learned token."""
    hidden = hidden_BND.astype(jnp.float32)
    projection = weights["preference"].get("projection")
    return hidden if projection is None else jnp.einsum("...D,DP->...P", hidden, projection.astype(jnp.float32))


def order(weights: Any, represented_BNP: jax.Array) -> jax.Array:
    """Order logits u [B, N] of preference representations: positive where the first response is preferred."""
    return jnp.einsum("...P,PO->...O", represented_BNP, weights["preference"]["order"].astype(jnp.float32))[..., 0]


def margin(weights: Any, represented_BNP: jax.Array) -> jax.Array:
    """Margins [B, N], in standard deviations, of preference representations."""
    head = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights["margin"])
    inner = jax.nn.gelu(jnp.einsum("...P,PF->...F", represented_BNP, head["hidden"]) + head["hidden_bias"])
    return jnp.einsum("...F,FO->...O", inner, head["out"])[..., 0] + head["bias"]


def take_positions(hidden_BTD: jax.Array, positions_BN: jax.Array) -> jax.Array:
    """Hidden states [B, N, D] at the given positions of each row."""
    return jnp.take_along_axis(hidden_BTD, positions_BN[..., None], axis=1, mode="clip")


def cross_entropy(
    weights: Any,
    hidden_BTD: jax.Array,
    labels_BT: jax.Array,
    mask_BT: jax.Array,
    chunk: int = 1024,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Sum over tokens of mask * -log softmax(logits)[label], without ever holding all logits.

    Only `chunk` tokens of a device have logits at a time. The gradient of a chunk is taken while its logits are at
    hand, so chunking costs no second product (forward and backward have the three products of the plain loss). With a
    mesh every device does its own tokens, and the gradient of the matrix is summed over devices once.
    """
    matrix, tied = output_matrix(weights)
    return vocabulary.cross_entropy(hidden_BTD, matrix, labels_BT, mask_BT.astype(jnp.float32), tied, chunk, mesh)


def token_logprobs(
    weights: Any, hidden_BTD: jax.Array, labels_BT: jax.Array, chunk: int = 1024, mesh: Mesh | None = None
) -> jax.Array:
    """log softmax(logits)[label] of every token, float32 [B, T], without ever holding all logits.

    Only `chunk` tokens of a device have logits at a time. Since each token has a gradient of its own, the backward pass
    makes the logits again: one product more than `cross_entropy`, which is for sums.
    """
    matrix, tied = output_matrix(weights)
    return vocabulary.token_statistics(hidden_BTD, matrix, labels_BT, tied, chunk, 1.0, "off", mesh)[0]


def predictions(
    weights: Any, hidden_BTD: jax.Array, labels_BT: jax.Array, chunk: int = 1024, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """log softmax(logits)[label] of every token, and whether the label is the likeliest token: float32 [B, T] each.

    Only `chunk` tokens of a device have logits at a time; not to be differentiated.
    """
    return vocabulary.predictions(hidden_BTD, *output_matrix(weights), labels_BT, chunk, mesh)


def divergence(
    weights: Any,
    hidden_BTD: jax.Array,
    reference: Any,
    reference_BTD: jax.Array,
    mask_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int = 1024,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Sum over tokens of mask * t^2 KL(reference || model) of the next token, both softmaxes at the temperature t.

    t^2 keeps the size of the gradient. Only `chunk` tokens of a device have logits at a time, which the backward pass
    makes again.
    """
    states, matrices = (hidden_BTD, reference_BTD), (output_matrix(weights), output_matrix(reference))
    return vocabulary.divergence(states, matrices, mask_BT.astype(jnp.float32), temperature, chunk, mesh)


def token_statistics(
    weights: Any,
    hidden_BTD: jax.Array,
    labels_BT: jax.Array,
    chunk: int = 1024,
    temperature: float = 1.0,
    entropy_gradient: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs` of logits / temperature, and the entropies [B, T] of the same distributions.

    Value and gradient of both are exact, of one pass and a second for the gradient. Without `entropy_gradient` the
    entropies are constants, which saves their part of the backward pass.
    """
    matrix, tied = output_matrix(weights)
    entropy = "gradient" if entropy_gradient else "value"
    return vocabulary.token_statistics(
        hidden_BTD, matrix, labels_BT, tied, chunk, float(temperature), entropy, mesh
    )
