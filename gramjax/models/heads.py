"""From hidden states to numbers: vocabulary logits, exact chunked cross-entropy, verdicts, rewards, values.

Everything here is float32. Shape letters: B batch, T length, N positions read per row, D embed, V vocab.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.errors import UserError
from gramjax.models.stack import FEW_ROWS, Rows, rows_product


def output_matrix(weights: Any) -> tuple[jax.Array, bool]:
    """The output projection and whether it is stored as rows per token ([V, D], tied) or columns ([D, V])."""
    if "lm_head" in weights:
        head = weights["lm_head"]
        return (head.matrix, True) if isinstance(head, Rows) else (head, False)
    return weights["embed"], True


def logits(weights: Any, hidden: jax.Array) -> jax.Array:
    """Vocabulary logits [..., V] of hidden states [..., D]. For whole sequences prefer `cross_entropy`."""
    matrix, tied = output_matrix(weights)
    if tied and hidden.size <= FEW_ROWS * hidden.shape[-1] and jax.default_backend() == "cpu":
        return rows_product(hidden.reshape(-1, hidden.shape[-1]), matrix).reshape(*hidden.shape[:-1], -1)
    return _matmul(hidden, matrix, tied)


def _matmul(hidden: jax.Array, matrix: jax.Array, tied: bool) -> jax.Array:
    contract = (((hidden.ndim - 1,), (1 if tied else 0,)), ((), ()))
    return jax.lax.dot_general(hidden, matrix, contract, preferred_element_type=jnp.float32)


def verdict_logits(weights: Any, hidden_BND: jax.Array, verdict_ids: tuple[int, int]) -> jax.Array:
    """Logits of the two verdict tokens [B, N, 2]: two columns of the output matrix, never the whole vocabulary."""
    matrix, tied = output_matrix(weights)
    ids = jnp.asarray(verdict_ids)
    columns_2D = matrix[ids] if tied else matrix[:, ids].T
    return jnp.einsum("...D,CD->...C", hidden_BND, columns_2D, preferred_element_type=jnp.float32)


def score(weights: Any, hidden_BND: jax.Array) -> jax.Array:
    """Scalar rewards [B, N] of the hidden states at the last token of each answer."""
    if "score" not in weights:
        raise UserError("this model has no scalar reward head; train with config.objective.name=bradley_terry first")
    return jnp.einsum("...D,DO->...O", hidden_BND.astype(jnp.float32), weights["score"].astype(jnp.float32))[..., 0]


def value(weights: Any, hidden_BTD: jax.Array) -> jax.Array:
    """Values [B, T] of every token."""
    head = weights["value"]
    out = jnp.einsum("...D,DO->...O", hidden_BTD.astype(jnp.float32), head["weight"].astype(jnp.float32))
    return out[..., 0] + head["bias"].astype(jnp.float32)


def learned_mask(ends_BN: jax.Array, mask_BN: jax.Array, length: int) -> jax.Array:
    """Where the learned vector of preference representations stands, bool [B, T]: at the last token of each example."""
    hit_BNT = ends_BN[..., None] == jnp.arange(length)
    return jnp.any(hit_BNT & (mask_BN[..., None] > 0), axis=-2)


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
    weights: Any, hidden_BTD: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array, chunk: int = 1024
) -> jax.Array:
    """Sum over tokens of mask * -log softmax(logits)[label], without ever holding all logits.

    Only `chunk` tokens have logits at a time. The gradient of a chunk is taken while its logits are at hand, so
    chunking costs no second product (forward and backward have the three products of the plain loss).
    """
    matrix, tied = output_matrix(weights)
    return _cross_entropy(hidden_BTD, matrix, labels_BT, mask_BT.astype(jnp.float32), tied, chunk)


def token_logprobs(weights: Any, hidden_BTD: jax.Array, labels_BT: jax.Array, chunk: int = 1024) -> jax.Array:
    """log softmax(logits)[label] of every token, float32 [B, T], without ever holding all logits.

    Only `chunk` tokens have logits at a time. Since each token has a gradient of its own, the backward pass makes the
    logits again: one product more than `cross_entropy`, which is for sums.
    """
    matrix, tied = output_matrix(weights)
    return _token_statistics(hidden_BTD, matrix, labels_BT, tied, chunk, 1.0, "off")[0]


def predictions(
    weights: Any, hidden_BTD: jax.Array, labels_BT: jax.Array, chunk: int = 1024
) -> tuple[jax.Array, jax.Array]:
    """log softmax(logits)[label] of every token, and whether the label is the likeliest token: float32 [B, T] each.

    Only `chunk` tokens have logits at a time; not to be differentiated.
    """
    matrix, tied = output_matrix(weights)
    B, T = labels_BT.shape
    count, size = _chunks(B, T, chunk)

    def step(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        hidden, labels = part
        out = _matmul(hidden, matrix, tied)
        picked = jnp.take_along_axis(out, labels[:, None], axis=-1, mode="clip")[:, 0]
        hit = jnp.argmax(out, axis=-1) == labels
        return None, (picked - jax.nn.logsumexp(out, axis=-1), hit.astype(jnp.float32))

    _, found = jax.lax.scan(step, None, (_split(hidden_BTD, count, size), _split(labels_BT, count, size)))
    logprobs, hits = (_join(x, B) for x in found)
    return logprobs, hits


def divergence(
    weights: Any,
    hidden_BTD: jax.Array,
    reference: Any,
    reference_BTD: jax.Array,
    mask_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> jax.Array:
    """Sum over tokens of mask * t^2 KL(reference || model) of the next token, both softmaxes at the temperature t.

    t^2 keeps the size of the gradient. Only `chunk` tokens have logits at a time, which the backward pass makes again.
    """
    matrices = output_matrix(weights), output_matrix(reference)
    B, T = mask_BT.shape
    count, size = _chunks(B, T, chunk)

    @jax.checkpoint
    def step(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
        *states, mask = part
        ours, theirs = (jax.nn.log_softmax(_matmul(h, *matrix) / temperature) for h, matrix in zip(states, matrices))
        return total + jnp.sum(mask * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)), None

    parts = tuple(_split(x, count, size) for x in (hidden_BTD, reference_BTD, mask_BT.astype(jnp.float32)))
    total, _ = jax.lax.scan(step, jnp.zeros((), jnp.float32), parts)
    return temperature**2 * total


def token_statistics(
    weights: Any,
    hidden_BTD: jax.Array,
    labels_BT: jax.Array,
    chunk: int = 1024,
    temperature: float = 1.0,
    entropy_gradient: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs` of logits / temperature, and the entropies [B, T] of the same distributions.

    Value and gradient of both are exact, of one pass and a second for the gradient. Without `entropy_gradient` the
    entropies are constants, which saves their part of the backward pass.
    """
    matrix, tied = output_matrix(weights)
    entropy = "gradient" if entropy_gradient else "value"
    return _token_statistics(hidden_BTD, matrix, labels_BT, tied, chunk, float(temperature), entropy)


def _chunks(B: int, T: int, chunk: int) -> tuple[int, int]:
    """Number of chunks along the length and their size: the largest divisor of T within the budget."""
    budget = max(chunk // B, 1)
    size = max(d for d in range(1, min(T, budget) + 1) if T % d == 0)
    return T // size, size


def _split(x: jax.Array, count: int, size: int) -> jax.Array:
    """[B, T, ...] to [count, B * size, ...], cutting along the length so that the batch stays sharded."""
    B = x.shape[0]
    parts = x.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)
    return parts.reshape(count, B * size, *x.shape[2:])


def _join(parts: jax.Array, B: int) -> jax.Array:
    """Inverse of `_split`."""
    count, rows = parts.shape[:2]
    size = rows // B
    return parts.reshape(count, B, size, *parts.shape[2:]).swapaxes(0, 1).reshape(B, count * size, *parts.shape[2:])


def _chunk_loss(
    hidden: jax.Array, matrix: jax.Array, labels: jax.Array, mask: jax.Array, tied: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss sum of one chunk, its logits and their log-normalisers."""
    out = _matmul(hidden, matrix, tied)
    normaliser = jax.nn.logsumexp(out, axis=-1)
    picked = jnp.take_along_axis(out, labels[:, None], axis=-1, mode="clip")[:, 0]
    return jnp.sum(mask * (normaliser - picked)), out, normaliser


def _matmul_gradients(
    d_out: jax.Array, hidden: jax.Array, matrix: jax.Array, tied: bool
) -> tuple[jax.Array, jax.Array]:
    """Gradients of one chunk's logits with regard to its hidden states and to the output matrix (float32)."""
    d_hidden = jax.lax.dot_general(
        d_out, matrix, (((1,), (0 if tied else 1,)), ((), ())), preferred_element_type=jnp.float32
    ).astype(hidden.dtype)
    left, right = (d_out, hidden) if tied else (hidden, d_out)
    return d_hidden, jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(
    hidden_BTD: jax.Array, matrix: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array, tied: bool, chunk: int
) -> jax.Array:
    count, size = _chunks(labels_BT.shape[0], labels_BT.shape[1], chunk)
    parts = (_split(hidden_BTD, count, size), _split(labels_BT, count, size), _split(mask_BT, count, size))
    step = lambda total, part: (total + _chunk_loss(part[0], matrix, part[1], part[2], tied)[0], None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros((), jnp.float32), parts)[0]


def _cross_entropy_forward(hidden_BTD, matrix, labels_BT, mask_BT, tied, chunk):
    B, T, _ = hidden_BTD.shape
    count, size = _chunks(B, T, chunk)

    def step(carry, part):
        total, d_matrix = carry
        hidden, labels, mask = part
        loss, out, normaliser = _chunk_loss(hidden, matrix, labels, mask, tied)
        hit = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1) == labels[:, None]
        d_out = ((jnp.exp(out - normaliser[:, None]) - hit) * mask[:, None]).astype(hidden.dtype)
        d_hidden, d_part = _matmul_gradients(d_out, hidden, matrix, tied)
        return (total + loss, d_matrix + d_part), d_hidden

    parts = (_split(hidden_BTD, count, size), _split(labels_BT, count, size), _split(mask_BT, count, size))
    start = (jnp.zeros((), jnp.float32), jnp.zeros(matrix.shape, jnp.float32))
    (total, d_matrix), d_hidden = jax.lax.scan(step, start, parts)
    return total, (_join(d_hidden, B), d_matrix.astype(matrix.dtype))


def _cross_entropy_backward(tied, chunk, saved, cotangent):
    d_hidden, d_matrix = saved
    scale = lambda x: (x * cotangent).astype(x.dtype)  # noqa: E731
    return scale(d_hidden), scale(d_matrix), None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _token_statistics(
    hidden_BTD: jax.Array,
    matrix: jax.Array,
    labels_BT: jax.Array,
    tied: bool,
    chunk: int,
    temperature: float,
    entropy: str,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies; `entropy` is `off` (zeros), `value` (a constant) or `gradient`."""
    return _token_statistics_forward(hidden_BTD, matrix, labels_BT, tied, chunk, temperature, entropy)[0]


def _token_statistics_forward(hidden_BTD, matrix, labels_BT, tied, chunk, temperature, entropy):
    B, T = labels_BT.shape
    count, size = _chunks(B, T, chunk)

    def step(_, part):
        hidden, labels = part
        out = _matmul(hidden, matrix, tied) / temperature
        normaliser = jax.nn.logsumexp(out, axis=-1)
        picked = jnp.take_along_axis(out, labels[:, None], axis=-1, mode="clip")[:, 0]
        if entropy == "off":
            return None, (picked - normaliser, jnp.zeros_like(normaliser), normaliser)
        logp = out - normaliser[:, None]
        return None, (picked - normaliser, -jnp.sum(jnp.exp(logp) * logp, axis=-1), normaliser)

    parts = (_split(hidden_BTD, count, size), _split(labels_BT, count, size))
    _, found = jax.lax.scan(step, None, parts)
    logprobs, entropies, normalisers = (_join(x, B) for x in found)
    return (logprobs, entropies), (hidden_BTD, matrix, labels_BT, normalisers, entropies)


def _token_statistics_backward(tied, chunk, temperature, entropy, saved, cotangents):
    hidden_BTD, matrix, labels_BT, normaliser_BT, entropy_BT = saved
    B, T = labels_BT.shape
    count, size = _chunks(B, T, chunk)

    def step(d_matrix, part):
        hidden, labels, normaliser, d_logprob, entropies, d_entropy = part
        logp = _matmul(hidden, matrix, tied) / temperature - normaliser[:, None]
        hit = jax.lax.broadcasted_iota(jnp.int32, logp.shape, 1) == labels[:, None]
        p = jnp.exp(logp)
        d_out = (hit - p) * d_logprob[:, None]
        if entropy == "gradient":
            d_out -= p * (logp + entropies[:, None]) * d_entropy[:, None]
        d_out = (d_out / temperature).astype(hidden.dtype)
        d_hidden, d_part = _matmul_gradients(d_out, hidden, matrix, tied)
        return d_matrix + d_part, d_hidden

    arrays = (hidden_BTD, labels_BT, normaliser_BT, cotangents[0], entropy_BT, cotangents[1])
    parts = tuple(_split(x, count, size) for x in arrays)
    d_matrix, d_hidden = jax.lax.scan(step, jnp.zeros(matrix.shape, jnp.float32), parts)
    return _join(d_hidden, B), d_matrix.astype(matrix.dtype), None


_token_statistics.defvjp(_token_statistics_forward, _token_statistics_backward)
