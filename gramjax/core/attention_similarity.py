"""How alike the attention of two layers is, and the best map from the one to the other: no model, no files.

Divergences, centred scores and sums are jnp and run inside a pass; what is solved once (matching, maps of heads,
low-rank pairs) is NumPy in float64.

Shape letters: B batch, T query length, S key length, D embed, H heads, G heads of the other layer, R rank. A row is a
query of one head; `visible_BTS` says which keys it sees. Rows that see a single key are alike in all layers and tell
nothing, so nothing counts them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

LOG_2 = 0.6931471805599453
"""The largest Jensen-Shannon divergence, in nats: of distributions that have nothing in common."""

HIDDEN = -1e30
"""Log-weight of a key that a row does not see."""

PRECISE = jax.lax.Precision.HIGHEST


def rows_that_count(visible_BTS: jax.Array, counted_BT: jax.Array) -> jax.Array:
    """Queries [B, T] that see two keys at least, among those that are to count (no padding)."""
    return counted_BT & (jnp.sum(visible_BTS, axis=-1) > 1)


def log_weights(scores_BHTS: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Logarithms of the attention weights, float32."""
    visible = visible_BTS[:, None]
    scores = jnp.where(visible, scores_BHTS.astype(jnp.float32), HIDDEN)
    return jnp.where(visible, jax.nn.log_softmax(scores, axis=-1), HIDDEN)


def divergence(p_log: jax.Array, q_log: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence in nats of distributions over the last axis, given by their logarithms.

    With t half the distance of two logarithms, each key adds (p + q) / 2 * (t tanh t - log cosh t): terms that are
    never negative and nothing that cancels, so that small divergences are as exact as large ones.
    """
    t = 0.5 * jnp.abs(p_log - q_log)
    far = -jnp.expm1(-2 * t)
    gain = -jnp.log1p(-0.5 * far) - 2 * t * (1 - far) / (2 - far)
    return jnp.sum(0.5 * (jnp.exp(p_log) + jnp.exp(q_log)) * jnp.maximum(gain, 0.0), axis=-1)


def same_index(p_BHTS: jax.Array, q_BHTS: jax.Array, rows_BT: jax.Array) -> jax.Array:
    """Sums over rows [H] of the divergence of heads with the same number, given by logarithms of their weights."""
    return jnp.sum(jnp.where(rows_BT[:, None], divergence(p_BHTS, q_BHTS), 0.0), axis=(0, 2))


def all_heads(p_BHTS: jax.Array, q_BGTS: jax.Array, rows_BT: jax.Array) -> jax.Array:
    """Sums over rows [H, G] of the divergence of every head of the one with every head of the other.

    One head of the first is compared at a time, so that nothing larger than the weights of a layer exists.
    """

    def against_all(p_BTS: jax.Array) -> jax.Array:
        return same_index(p_BTS[:, None], q_BGTS, rows_BT)

    return jax.lax.map(against_all, p_BHTS.swapaxes(0, 1))


def matching(mean_HG: np.ndarray) -> np.ndarray:
    """For each head of the second layer the head of the first that it is paired with: one to one, least sum."""
    from scipy.optimize import linear_sum_assignment

    first, second = linear_sum_assignment(np.asarray(mean_HG, np.float64))
    out = np.empty(len(second), np.int64)
    out[second] = first
    return out


def matched(mean_HG: np.ndarray) -> float:
    """Mean divergence of heads that are paired best."""
    mean = np.asarray(mean_HG, np.float64)
    return float(mean[matching(mean), np.arange(mean.shape[1])].mean())


def centred(scores_BHTS: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Scores less the mean of a row over the keys it sees, which the softmax ignores; 0 at other keys. float32."""
    visible = visible_BTS[:, None]
    scores = jnp.where(visible, scores_BHTS.astype(jnp.float32), 0.0)
    count = jnp.maximum(jnp.sum(visible, axis=-1, keepdims=True), 1)
    return jnp.where(visible, scores - jnp.sum(scores, axis=-1, keepdims=True) / count, 0.0)


@struct.dataclass
class Moments:
    """Sums over pairs of a query and a key that it sees, of what two layers say about them: x and y."""

    xx_HH: jax.Array
    yx_HH: jax.Array
    """Heads of y, then heads of x."""
    yy_H: jax.Array
    count: jax.Array
    """Pairs."""


def moments(x_BHTS: jax.Array, y_BHTS: jax.Array, visible_BTS: jax.Array, rows_BT: jax.Array) -> Moments:
    """The sums of two layers, whose entries at keys that a query does not see are 0."""
    use = rows_BT[:, None, :, None]
    x, y = jnp.where(use, x_BHTS, 0.0), jnp.where(use, y_BHTS, 0.0)
    product = lambda a, b: jnp.einsum("BHTS,BGTS->HG", a, b, precision=PRECISE)  # noqa: E731
    pairs = jnp.sum(jnp.where(rows_BT[..., None], visible_BTS, False), dtype=jnp.float32)
    return Moments(product(x, x), product(y, x), jnp.sum(y * y, axis=(0, 2, 3)), pairs)


def head_map(sums: Moments, ridge: float = 1e-4) -> np.ndarray:
    """The map of heads M [H, H] for which M x is closest to y: y x^T (x x^T + ridge * s I)^-1.

    s is the mean of the diagonal of x x^T, so that the ridge does not depend on the scale of the scores.
    """
    xx, yx = np.asarray(sums.xx_HH, np.float64), np.asarray(sums.yx_HH, np.float64)
    scale = max(float(np.trace(xx)) / len(xx), np.finfo(np.float64).tiny)
    return np.linalg.solve(xx + ridge * scale * np.eye(len(xx)), yx.T).T


def unexplained(sums: Moments, map_HH: np.ndarray) -> np.ndarray:
    """Share [H] of the squares of y that M x leaves."""
    xx, yx, yy = (np.asarray(x, np.float64) for x in (sums.xx_HH, sums.yx_HH, sums.yy_H))
    left = yy - 2 * np.sum(map_HH * yx, axis=1) + np.einsum("ij,jk,ik->i", map_HH, xx, map_HH)
    return np.maximum(left, 0.0) / np.maximum(yy, np.finfo(np.float64).tiny)


@struct.dataclass
class PairMoments:
    """Sums over visible pairs of query i and key j, for fitting x_i^T B z_ij to a target R_ij of mean 0 in each row.

    z_ij is x_j less its mean over the keys that i sees: what B makes of that mean is the same for all keys of a row.
    """

    target_HDD: jax.Array
    """R_ij x_i x_j^T (the mean of x_j falls out)."""
    queries_DD: jax.Array
    """x_i x_i^T, once for each key."""
    keys_DD: jax.Array
    """z_ij z_ij^T."""
    count: jax.Array


def pair_moments(target_BHTS: jax.Array, x_BTD: jax.Array, visible_BTS: jax.Array, rows_BT: jax.Array) -> PairMoments:
    """The sums of one batch, a head at a time; the target is 0 at keys that a query does not see."""
    x = x_BTD.astype(jnp.float32)
    use_BTS = (visible_BTS & rows_BT[..., None]).astype(jnp.float32)
    keys_BT, times_BS = jnp.sum(use_BTS, axis=2), jnp.sum(use_BTS, axis=1)
    outer = lambda a, b: jnp.einsum("BTD,BTE->DE", a, b, precision=PRECISE)  # noqa: E731

    def of_head(target_BTS: jax.Array) -> jax.Array:
        return outer(x, jnp.einsum("BTS,BSE->BTE", target_BTS * use_BTS, x, precision=PRECISE))

    mean_BTD = jnp.einsum("BTS,BSD->BTD", use_BTS, x, precision=PRECISE) / jnp.maximum(keys_BT, 1.0)[..., None]
    keys_DD = outer(x * times_BS[..., None], x) - outer(mean_BTD * keys_BT[..., None], mean_BTD)
    target_HDD = jax.lax.map(of_head, target_BHTS.swapaxes(0, 1))
    return PairMoments(target_HDD, outer(x * keys_BT[..., None], x), keys_DD, jnp.sum(use_BTS))


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Low-rank query and key projections, [D, H, R] and [D, K, R]."""

    query: np.ndarray
    key: np.ndarray


def low_rank(sums: PairMoments, rank: int, key_heads: int, factor: float = 1.0, ridge: float = 1e-6) -> LowRank:
    """The pair of rank R whose scores, times `factor`, are closest to the target.

    With C_q and C_k the second moments of queries and keys, B = C_q^-1/2 trunc(C_q^-1/2 E[R x x^T] C_k^-1/2) C_k^-1/2
    cut at the rank, the least squares where queries and keys are independent (every query sees every key); singular
    values are split evenly between the two. The query heads that share a key head are fitted together. `ridge` (a
    share of the mean variance) keeps directions out that the inputs do not have.
    """
    count = max(float(sums.count), 1.0)
    left, right = (_inverse_root(np.asarray(x, np.float64) / count, ridge) for x in (sums.queries_DD, sums.keys_DD))
    target_HDD = np.asarray(sums.target_HDD, np.float64) / count
    heads, width, _ = target_HDD.shape
    query, key = np.zeros((width, heads, rank)), np.zeros((width, key_heads, rank))
    group = heads // key_heads
    kept = min(rank, width)
    for head in range(key_heads):
        own = slice(head * group, (head + 1) * group)
        stacked = np.concatenate([left @ target @ right for target in target_HDD[own]])
        u, s, v = np.linalg.svd(stacked, full_matrices=False)
        root = np.sqrt(s[:kept] / factor)
        parts = (u[:, :kept] * root).reshape(group, width, kept)
        query[:, own, :kept] = (left @ parts).transpose(1, 0, 2)
        key[:, head, :kept] = right @ (v[:kept].T * root)
    return LowRank(query, key)


def _inverse_root(matrix: np.ndarray, ridge: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    values = values + ridge * max(float(values.mean()), np.finfo(np.float64).tiny)
    return (vectors / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))) @ vectors.T
