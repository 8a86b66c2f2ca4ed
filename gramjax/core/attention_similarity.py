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

TINY = float(np.finfo(np.float64).tiny)

WIDE = 512
"""Width above which not all singular values are computed where the largest are wanted."""

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


def centred(scores_BHTS: jax.Array, visible_BTS: jax.Array, weights_BHTS: jax.Array | None = None) -> jax.Array:
    """Scores less the mean of a row over the keys it sees, which the softmax ignores; 0 at other keys. float32.

    With weights, which are 0 at other keys, the mean is a weighted one.
    """
    visible = visible_BTS[:, None]
    weights = visible.astype(jnp.float32) if weights_BHTS is None else weights_BHTS
    scores = jnp.where(visible, scores_BHTS.astype(jnp.float32), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mean = jnp.sum(weights * scores, axis=-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    return jnp.where(visible, scores - mean, 0.0)


def pair_weights(p_BHTS: jax.Array, visible_BTS: jax.Array, rows_BT: jax.Array, uniform: float) -> jax.Array:
    """How much each pair of a query and a key counts when scores are fitted: 1 for every row that counts, of which
    `uniform` is spread over the keys that the row sees and the rest lies where the attention lies (`p`: logarithms).

    To second order the divergence of two softmaxes is the variance of the difference of their scores under the
    attention: a fit that weighs all keys alike spends itself on keys that nobody looks at. Some weight must stay on
    those, or the fitted scores could rise there.
    """
    spread = visible_BTS / jnp.maximum(jnp.sum(visible_BTS, axis=-1, keepdims=True), 1)
    weights = (1 - uniform) * jnp.exp(p_BHTS) + uniform * spread[:, None]
    return jnp.where(rows_BT[:, None, :, None] & visible_BTS[:, None], weights, 0.0)


@struct.dataclass
class Moments:
    """Weighted sums over pairs of a query and a key that it sees, of what two layers say: x, and each head of y."""

    xx_GHH: jax.Array
    """By head of y, whose weights count."""
    yx_GH: jax.Array
    yy_G: jax.Array


def moments(
    x_BHTS: jax.Array, y_BGTS: jax.Array, visible_BTS: jax.Array, weights_BGTS: jax.Array, centre: bool = True
) -> Moments:
    """The sums of two layers, one head of y at a time; `centre`: of what is left of the means of the rows."""

    def of_head(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, w = (a[:, None] for a in part)
        x = x_BHTS
        if centre:
            x, y = centred(x, visible_BTS, w), centred(y, visible_BTS, w)
        product = lambda a, b: jnp.einsum("BHTS,BKTS->HK", w * a, b, precision=PRECISE)  # noqa: E731
        return product(x, x), product(x, y)[:, 0], product(y, y)[0, 0]

    return Moments(*jax.lax.map(of_head, (y_BGTS.swapaxes(0, 1), weights_BGTS.swapaxes(0, 1))))


def head_map(sums: Moments, ridge: float = 1e-4) -> np.ndarray:
    """The map of heads M [G, H] for which M x is closest to y: by head of y, y x^T (x x^T + ridge * s I)^-1.

    s is the mean of the diagonal of x x^T, so that the ridge does not depend on the scale of the scores.
    """
    xx, yx = np.asarray(sums.xx_GHH, np.float64), np.asarray(sums.yx_GH, np.float64)
    scale = np.maximum(np.trace(xx, axis1=1, axis2=2) / xx.shape[-1], TINY)
    return np.linalg.solve(xx + ridge * scale[:, None, None] * np.eye(xx.shape[-1]), yx[..., None])[..., 0]


def unexplained(sums: Moments, map_GH: np.ndarray) -> np.ndarray:
    """Share [G] of the squares of y that M x leaves."""
    xx, yx, yy = (np.asarray(x, np.float64) for x in (sums.xx_GHH, sums.yx_GH, sums.yy_G))
    left = yy - 2 * np.sum(map_GH * yx, axis=1) + np.einsum("gi,gij,gj->g", map_GH, xx, map_GH)
    return np.maximum(left, 0.0) / np.maximum(yy, TINY)


@struct.dataclass
class PairMoments:
    """Weighted sums over visible pairs of query i and key j, for fitting x_i^T B z_ij to a target R_ij, head by head.

    z_ij is x_j less its weighted mean over the keys that i sees: what B makes of that mean is the same for all keys.
    """

    target_HDD: jax.Array
    """R_ij x_i x_j^T (the target has mean 0 in each row, so that the mean of x_j falls out)."""
    queries_DD: jax.Array
    """x_i x_i^T over the rows that count."""
    keys_HDD: jax.Array
    """z_ij z_ij^T."""
    count: jax.Array
    """Rows that count, the sum of all weights of a head."""


def pair_moments(target_BHTS: jax.Array, x_BTD: jax.Array, visible_BTS: jax.Array, weights: jax.Array) -> PairMoments:
    """The sums of one batch, a head at a time. `weights` [B, H, T, S] are `pair_weights`, 1 in all for a row."""
    x = x_BTD.astype(jnp.float32)
    outer = lambda a, b: jnp.einsum("BTD,BTE->DE", a, b, precision=PRECISE)  # noqa: E731
    rows_BT = jnp.sum(weights[:, 0], axis=-1)

    def of_head(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        target, w = part
        target = centred(target[:, None], visible_BTS, w[:, None])[:, 0]
        mean_BTD = jnp.einsum("BTS,BSD->BTD", w, x, precision=PRECISE)
        keys_DD = outer(x * jnp.sum(w, axis=1)[..., None], x) - outer(mean_BTD, mean_BTD)
        return outer(x, jnp.einsum("BTS,BSE->BTE", w * target, x, precision=PRECISE)), keys_DD

    target_HDD, keys_HDD = jax.lax.map(of_head, (target_BHTS.swapaxes(0, 1), weights.swapaxes(0, 1)))
    return PairMoments(target_HDD, outer(x * rows_BT[..., None], x), keys_HDD, jnp.sum(rows_BT))


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Low-rank query and key projections, [D, H, R] and [D, K, R]."""

    query: np.ndarray
    key: np.ndarray


def low_rank(sums: PairMoments, rank: int, key_heads: int, factor: float = 1.0, ridge: float = 1e-3) -> LowRank:
    """The pair of rank R whose scores, times `factor`, are closest to the target.

    With C_q and C_k the second moments of queries and keys, B = C_q^-1/2 trunc(C_q^-1/2 E[R x x^T] C_k^-1/2) C_k^-1/2
    cut at the rank, the least squares where queries and keys are independent (every query sees every key); singular
    values are split evenly between the two. The query heads that share a key head are fitted together. `ridge` (a
    share of the mean variance) keeps directions out that the inputs do not have.
    """
    from scipy.linalg import solve_triangular

    count = max(float(sums.count), 1.0)
    target_HDD, keys_HDD = (np.asarray(x, np.float64) / count for x in (sums.target_HDD, sums.keys_HDD))
    heads, width, _ = target_HDD.shape
    query, key = np.zeros((width, heads, rank)), np.zeros((width, key_heads, rank))
    group, kept = heads // key_heads, min(rank, width)
    left = _root(np.asarray(sums.queries_DD, np.float64) / count, ridge)
    whiten = lambda root, matrix, trans=0: solve_triangular(root, matrix, trans=trans, lower=True)  # noqa: E731
    for head in range(key_heads):
        own = slice(head * group, (head + 1) * group)
        right = _root(keys_HDD[own].mean(axis=0), ridge)
        u, s, v = _largest(np.concatenate([whiten(right, whiten(left, x).T).T for x in target_HDD[own]]), kept)
        root = np.sqrt(s / factor)
        for number, part in enumerate(np.split(u * root, group)):
            query[:, head * group + number, :kept] = whiten(left, part, 1)
        key[:, head, :kept] = whiten(right, v.T * root, 1)
    return LowRank(query, key)


def _root(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """A lower triangular root of a second moment: any root serves, and this one is the cheapest."""
    scale = max(float(np.trace(matrix)) / len(matrix), TINY)
    return np.linalg.cholesky(0.5 * (matrix + matrix.T) + ridge * scale * np.eye(len(matrix)))


def _largest(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values and their vectors; those of a wide matrix by iterating on a subspace."""
    if matrix.shape[1] > WIDE:
        basis = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + 16))
        for _ in range(6):
            basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]
        u, s, v = np.linalg.svd(matrix @ basis, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank] @ basis.T
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], v[:rank]
