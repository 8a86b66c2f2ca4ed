"""Divergences of attention, matching of heads, and the best maps from one layer's scores to another's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import attention_similarity as similar

B, H, T, D = 2, 4, 12, 6


def scores(seed, heads=H, scale=2.0, length=T):
    return scale * jax.random.normal(jax.random.key(seed), (B, heads, length, length))


def causal(length=T, padding=0):
    """Which keys are seen, and which queries count: the first `padding` tokens of the second text are padding."""
    real = np.arange(length)[None] >= np.array([[0], [padding]])
    mask = np.tril(np.ones((length, length), bool))[None] & real[:, :, None] & real[:, None, :]
    return jnp.asarray(mask), jnp.asarray(real)


def log_pair(seed, scale=2.0):
    mask, real = causal()
    return [similar.log_weights(scores(s, scale=scale), mask) for s in (seed, seed + 1)], similar.rows_that_count(
        mask, real
    )


def by_definition(p, q):
    """Half the sum of both divergences from the mean, in float64."""
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (p, q))
    middle = (p + q) / 2
    part = lambda a: np.sum(np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / np.where(middle > 0, middle, 1)), 0), -1)  # noqa: E731
    return (part(p) + part(q)) / 2


@pytest.mark.smoke
def test_divergence_is_the_definition_symmetric_and_bounded():
    (p, q), _ = log_pair(0)
    got = similar.divergence(p, q)
    np.testing.assert_allclose(got, by_definition(p, q), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(got, similar.divergence(q, p), rtol=1e-6)
    assert float(jnp.max(similar.divergence(p, p))) == 0.0
    assert float(jnp.min(got[:, :, 1:])) > 0
    apart = jnp.asarray([[0.0, -200.0, -200.0], [-200.0, -np.log(2), -np.log(2)]])
    np.testing.assert_allclose(similar.divergence(apart[0], apart[1]), np.log(2), rtol=1e-6)
    assert similar.LOG_2 == np.log(2)


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3])
def test_small_divergences_are_exact_in_float32(step):
    """JS of p and p + dp is sum(dp^2 / p) / 8 to first order: a difference of logarithms would lose it."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    d = step * np.array([0.02, -0.01, 0.005, -0.015])
    got = similar.divergence(jnp.log(jnp.asarray(p, jnp.float32)), jnp.log(jnp.asarray(p + d, jnp.float32)))
    np.testing.assert_allclose(got, by_definition(np.log(p), np.log(p + d)), rtol=0.02)
    np.testing.assert_allclose(got, np.sum(d * d / p) / 8, rtol=0.1)


def test_a_constant_in_each_row_changes_nothing():
    mask, _ = causal()
    s = scores(3)
    other = s + 5 * jax.random.normal(jax.random.key(9), (B, H, T, 1))
    p, q = (similar.log_weights(x, mask) for x in (s, other))
    assert float(jnp.max(similar.divergence(p, q))) < 1e-10
    np.testing.assert_allclose(similar.centred(s, mask), similar.centred(other, mask), atol=1e-5)


def test_padding_and_rows_with_one_key_are_left_out():
    """The sums are those of the texts without padding, whatever the padding says."""
    mask, real = causal(padding=5)
    rows = similar.rows_that_count(mask, real)
    assert int(rows.sum()) == (T - 1) + (T - 5 - 1)
    a, b = scores(4), scores(5)
    want = 0.0
    for text, start in ((0, 0), (1, 5)):
        short, alone = causal(T - start)
        parts = [similar.log_weights(x[text : text + 1, :, start:, start:], short[:1]) for x in (a, b)]
        want = want + similar.same_index(*parts, similar.rows_that_count(short[:1], alone[:1]))
    for noise in (0.0, 1e4):
        inside = real[:, None, :, None] & real[:, None, None, :]
        p, q = (similar.log_weights(jnp.where(inside, x, noise * scores(6)), mask) for x in (a, b))
        np.testing.assert_allclose(similar.same_index(p, q, rows), want, rtol=1e-5)


def test_every_pair_of_heads_and_the_best_matching():
    """Permuted heads are far apart by number, and equal once they are matched."""
    (p, q), rows = log_pair(7)
    table = similar.all_heads(p, q, rows)
    np.testing.assert_allclose(np.diag(table), similar.same_index(p, q, rows), rtol=1e-5)
    np.testing.assert_allclose(table, similar.all_heads(q, p, rows).T, rtol=1e-5)
    order = np.array([2, 0, 3, 1])
    mean = np.asarray(similar.all_heads(p, p[:, order], rows)) / float(rows.sum())
    np.testing.assert_array_equal(similar.matching(mean), order)
    assert similar.matched(mean) < 1e-9 < 0.1 < np.diag(mean).mean()


def test_matching_is_the_least_of_all_permutations():
    import itertools

    table = np.random.default_rng(0).random((4, 4))
    least = min(sum(table[p[j], j] for j in range(4)) for p in itertools.permutations(range(4))) / 4
    np.testing.assert_allclose(similar.matched(table), least)


def weights_of(y, mask, rows, uniform):
    return similar.pair_weights(similar.log_weights(y, mask), mask, rows, uniform)


@pytest.mark.parametrize("uniform", [0.1, 1.0])
def test_permuted_heads_are_recovered(uniform):
    """A6.5: direct sharing is off, the fitted map is the permutation and leaves nothing."""
    mask, real = causal(padding=3)
    rows, order = similar.rows_that_count(mask, real), np.array([3, 2, 0, 1])
    first = scores(11)
    second = first[:, order] + 2.0 * jax.random.normal(jax.random.key(1), (B, H, T, 1))
    sums = similar.moments(first, second, mask, weights_of(second, mask, rows, uniform))
    mixing = similar.head_map(sums, 1e-6)
    np.testing.assert_array_equal(np.argmax(mixing, axis=1), order)
    p, q = similar.log_weights(second, mask), similar.log_weights(jnp.einsum("GH,BHTS->BGTS", mixing, first), mask)
    count = float(rows.sum()) * H
    assert float(similar.same_index(p, q, rows).sum()) / count < 1e-6
    assert float(similar.same_index(p, similar.log_weights(first, mask), rows).sum()) / count > 0.05
    assert similar.unexplained(sums, mixing).max() < 1e-6
    np.testing.assert_allclose(similar.unexplained(sums, np.zeros((H, H))), 1.0)


def test_weights_of_pairs():
    """Each row that counts weighs 1; from attention weights to equal ones."""
    mask, real = causal(padding=4)
    rows, y = similar.rows_that_count(mask, real), scores(3)
    for uniform in (0.0, 0.3, 1.0):
        got = np.asarray(weights_of(y, mask, rows, uniform))
        np.testing.assert_allclose(got.sum(-1), np.broadcast_to(rows[:, None], (B, H, T)), atol=1e-5)
        assert not got[np.broadcast_to(~mask[:, None], got.shape)].any()
    np.testing.assert_allclose(got[0, 0, 7, :8], 1 / 8, rtol=1e-6)
    attention = np.asarray(jax.nn.softmax(y[0, 1, 7, :8]))
    np.testing.assert_allclose(weights_of(y, mask, rows, 0.0)[0, 1, 7, :8], attention, rtol=1e-5)


def test_the_map_is_a_weighted_ridge_over_visible_pairs():
    mask, real = causal(padding=4)
    rows = similar.rows_that_count(mask, real)
    x, y = scores(20), scores(21)
    weights = weights_of(y, mask, rows, 0.3)
    got = similar.moments(x, y, mask, weights)
    mixing = similar.head_map(got, 0.1)
    for g in range(H):
        w = np.asarray(weights[:, g], np.float64)
        mean = lambda a: np.sum(w * a, -1, keepdims=True) / np.maximum(w.sum(-1, keepdims=True), 1e-9)  # noqa: B023, E731
        columns = [np.asarray(x[:, h], np.float64) for h in range(H)]
        flat = np.stack([np.sqrt(w) * (c - mean(c)) for c in columns]).reshape(H, -1)
        target = np.asarray(y[:, g], np.float64)
        target = (np.sqrt(w) * (target - mean(target))).ravel()
        square = flat @ flat.T
        np.testing.assert_allclose(got.xx_GHH[g], square, rtol=1e-4, atol=1e-4)
        want = np.linalg.solve(square + 0.1 * np.trace(square) / H * np.eye(H), flat @ target)
        np.testing.assert_allclose(mixing[g], want, rtol=1e-3, atol=1e-4)
        left = np.sum((target - mixing[g] @ flat) ** 2) / np.sum(target**2)
        np.testing.assert_allclose(similar.unexplained(got, mixing)[g], left, rtol=1e-3)


def bilinear(x, matrices_HDD):
    return jnp.einsum("BTD,HDE,BSE->BHTS", x, matrices_HDD, x)


@pytest.mark.parametrize("key_heads,wide", [(H, 512), (2, 4)], ids=["all singular values", "shared keys, by iteration"])
def test_low_rank_pair_is_exact_at_the_rank_of_the_difference(key_heads, wide, monkeypatch):
    """A6.6: the difference of two score maps of rank e has rank 2 e; where all keys are seen the fit is exact there."""
    monkeypatch.setattr(similar, "WIDE", wide)
    e, everything = 1, jnp.ones((B, T, T), bool)
    weights = jnp.full((B, H, T, T), 1 / T)
    x = jax.random.normal(jax.random.key(0), (1, T, D)).repeat(B, axis=0)  # one mean of the keys for all rows
    q, k = (jax.random.normal(jax.random.key(s), (2, H if s == 1 else key_heads, D, e)) for s in (1, 2))
    k = jnp.repeat(k, H // key_heads, axis=1)
    matrices = jnp.einsum("nHDe,nHEe->nHDE", q, k)
    target = similar.centred(bilinear(x, matrices[0] - matrices[1]), everything)
    sums = jax.jit(similar.pair_moments)(target, x, everything, weights)
    errors = []
    for rank in range(4):
        pair = similar.low_rank(sums, rank, key_heads, 0.5, 1e-9)
        key = np.repeat(pair.key, H // key_heads, axis=1)
        made = 0.5 * np.einsum("BTD,DHR,BSE,EHR->BHTS", x, pair.query, x, key, optimize=True)
        gap = target - similar.centred(made, everything)
        errors.append(float(jnp.sum(gap**2) / jnp.sum(target**2)))
    assert errors[0] == 1.0 and all(b <= a + 1e-6 for a, b in zip(errors, errors[1:]))
    assert errors[1] > 0.01 and errors[2] < 1e-6


def test_pair_moments_are_sums_over_visible_pairs():
    mask, real = causal(padding=4)
    rows = similar.rows_that_count(mask, real)
    x = np.asarray(jax.random.normal(jax.random.key(0), (B, T, D)))
    weights = weights_of(scores(31), mask, rows, 0.3)
    got = jax.jit(similar.pair_moments)(scores(30), x, mask, weights)
    target, w = np.asarray(similar.centred(scores(30), mask, weights)), np.asarray(weights)
    outer, keys, queries = np.zeros((H, D, D)), np.zeros((H, D, D)), np.zeros((D, D))
    for b, i in np.argwhere(np.asarray(rows)):
        queries += np.outer(x[b, i], x[b, i])
        for h in range(H):
            z = x[b] - w[b, h, i] @ x[b]
            keys[h] += np.einsum("s,sd,se->de", w[b, h, i], z, z)
            outer[h] += np.outer(x[b, i], (w[b, h, i] * target[b, h, i]) @ z)
    for leaf, want in ((got.target_HDD, outer), (got.keys_HDD, keys), (got.queries_DD, queries)):
        np.testing.assert_allclose(leaf, want, rtol=1e-3, atol=1e-3)
    assert float(got.count) == pytest.approx(float(rows.sum()), rel=1e-5)


def test_synthetic_layers_with_a_private_part():
    """Eight permuted heads and a small part of their own: sharing, a map of heads, then corrections of growing rank."""
    heads, length, width = 8, 48, 16
    mask, real = causal(length)
    rows, order = similar.rows_that_count(mask, real), np.random.default_rng(3).permutation(heads)
    x = jax.random.normal(jax.random.key(0), (B, length, width))
    weight = lambda seed, scale: scale * jax.random.normal(jax.random.key(seed), (heads, width, width)) / width  # noqa: E731
    first = bilinear(x, weight(1, 1.6))
    second = first[:, order] + bilinear(x, weight(2, 0.35))
    weights = weights_of(second, mask, rows, 0.1)
    mixing = similar.head_map(jax.jit(similar.moments)(first, second, mask, weights))
    np.testing.assert_array_equal(np.argmax(mixing, axis=1), order)
    aligned = jnp.einsum("GH,BHTS->BGTS", mixing, first)
    sums = jax.jit(similar.pair_moments)(second - aligned, x, mask, weights)

    @jax.jit
    def js(made):
        p, q = similar.log_weights(made, mask), similar.log_weights(second, mask)
        return jnp.sum(similar.same_index(p, q, rows)) / (jnp.sum(rows) * heads)

    found = [float(js(first)), float(js(aligned))]
    for rank in (1, 2, 4, 8):
        pair = similar.low_rank(sums, rank, heads)
        made = np.einsum("BTD,DHR,BSE,EHR->BHTS", x, pair.query, x, pair.key, optimize=True)
        found.append(float(js(aligned + made)))
    assert found[0] > 5 * found[1]
    assert all(later < earlier for earlier, later in zip(found, found[1:])), found
    assert found[-1] < 0.6 * found[1]
