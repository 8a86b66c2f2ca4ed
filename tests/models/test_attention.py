"""The fast forms of attention against the plain one: values, gradients, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core.errors import UserError
from gramjax.data import branches
from gramjax.models import attention as module
from gramjax.models import splash
from gramjax.models.attention import SHARED, attention, visible

B, T, H, K, E = 2, 37, 4, 2, 8


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of a few queries, so that short sequences have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALLEST_BLOCK", 4)
        yield


def inputs(seed=0, length=T):
    keys = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(keys[0], (B, length, H, E))
    k, v = (jax.random.normal(key, (B, length, K, E)) for key in keys[1:3])
    return q, k, v, jax.random.normal(keys[3], (B, length, H, E))


compiled = jax.jit(attention, static_argnames=("window", "implementation"))


def by_hand(q, k, v, mask_BTS):
    """Softmax over the visible keys, one query and one head at a time."""
    q, k, v = (np.asarray(x) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask_BTS[b, t])
        scores = k[b, seen, h // (H // K)] @ q[b, t, h] / np.sqrt(E)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, seen, h // (H // K)] / weights.sum()
    return out


SEGMENTS = {
    "one": np.ones((B, T), np.int32),
    "packed": np.repeat([[1] * 10 + [2] * 20 + [3] * 7], B, axis=0).astype(np.int32),
    "padded": np.stack([[1] * 20 + [0] * 17, [0] * 9 + [1] * 28]).astype(np.int32),
}


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("kind", list(SEGMENTS))
def test_every_form_equals_softmax_by_hand(kind, window):
    q, k, v, _ = inputs()
    segments = jnp.asarray(SEGMENTS[kind])
    mask = np.asarray(visible(segments, segments, None, window))
    want = by_hand(q, k, v, mask)
    real = SEGMENTS[kind] != 0
    for form in ("xla", "blocked"):
        got = compiled(q, k, v, segments, segments, window=window, implementation=form)
        np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=1e-5)
        assert np.isfinite(got).all()


def test_mask_by_definition():
    segments = np.array([[1, 1, 2, 2, 0]])
    mask = np.asarray(visible(jnp.asarray(segments), jnp.asarray(segments), None, 0))[0]
    want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert mask.astype(int).tolist() == want


@pytest.mark.parametrize("window", [0, 5])
def test_gradients_of_the_blocked_form(window):
    """The hand-written backward pass against the derivative of the plain form."""
    q, k, v, weight = inputs(1)
    segments = jnp.asarray(SEGMENTS["packed"])

    def loss(form):
        return lambda q, k, v: jnp.sum(weight * attention(q, k, v, segments, segments, None, window, form))

    want = jax.jit(jax.grad(loss("xla"), (0, 1, 2)))(q, k, v)
    got = jax.jit(jax.grad(loss("blocked"), (0, 1, 2)))(q, k, v)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("length", "window"), [(256, 0), (200, 50)])
def test_splash_interpreted(monkeypatch, length, window):
    """Values and gradients of several blocks: packed segments, padding on either side, a length that fills no block."""
    monkeypatch.setattr(splash, "BLOCKS", (128,))
    q, k, v, weight = inputs(4, length)
    packed = np.repeat([[1, 2, 3]], [90, 30, length - 120], axis=1)
    padded = np.repeat([[0, 1, 0]], [9, length - 29, 20], axis=1)
    segments = jnp.asarray(np.concatenate([packed, padded]), jnp.int32)
    weight *= (segments != 0)[..., None, None]

    def loss(form):
        return lambda q, k, v: jnp.sum(weight * attention(q, k, v, segments, segments, None, window, form))

    want = jax.jit(jax.value_and_grad(loss("xla"), (0, 1, 2)))(q, k, v)
    got = jax.jit(jax.value_and_grad(loss("splash"), (0, 1, 2)))(q, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_splash_is_not_used_where_it_would_be_wrong():
    """A shared beginning is seen by every segment: splash stands aside when it is told, for blocks that know it."""
    q, k, v, _ = inputs(5)
    segments = jnp.asarray([[SHARED] * 10 + [1] * 10 + [2] * 17] * B)

    def run(form, **more):
        return jax.jit(lambda q, k, v: attention(q, k, v, segments, segments, None, 0, form, **more))(q, k, v)

    want = run("xla")
    np.testing.assert_allclose(run("splash", shared=True), want, atol=1e-5)
    assert np.abs(run("splash") - want).max() > 0.1
    sequences = [branches.Tokens(np.arange(40, dtype=np.int32) + n * (np.arange(40) > 30)) for n in range(2)]
    laid = branches.rows(sequences, [[0, 1]])
    batch = branches.lay_out(sequences, laid, 64, 1, 2)
    assert SHARED in batch["segment_ids"] and batch["shared"].tolist() == [laid[0].shared]


def test_what_auto_means():
    """The kernel where it takes the rows, a form that takes any where it does not."""
    on_tpu = {"length": 1024, "head_dim": 128, "backend": "tpu"}
    assert module.choose("auto", **on_tpu) == "splash"
    for other in ({"length": 1000}, {"plain": False}, {"backend": "cpu"}):
        assert module.choose("auto", **{**on_tpu, **other}) == "blocked"
    assert module.choose("auto", **{**on_tpu, "backend": "gpu"}) == "xla"
    with pytest.raises(UserError, match="attention='splash'.*gpu"):
        module.choose("splash", backend="gpu")


@pytest.mark.parametrize("length", [1, 7, 16, 65])
def test_lengths_that_do_not_fill_the_blocks(length):
    q, k, v, _ = inputs(2, length)
    segments = jnp.ones((B, length), jnp.int32)
    got = compiled(q, k, v, segments, segments, implementation="blocked")
    np.testing.assert_allclose(got, compiled(q, k, v, segments, segments, implementation="xla"), atol=1e-5)
    starts = [start for start, _ in module._blocks(length)]
    assert starts[0] == 0 and module._blocks(length)[-1][1] == length and starts == sorted(starts)


def test_one_query_against_a_cache_equals_the_last_row():
    """Rows at different depths of the cache; slots beyond a row's depth hold garbage."""
    q, k, v, _ = inputs(3)
    segments = jnp.ones((B, T), jnp.int32)
    full = compiled(q, k, v, segments, segments, implementation="xla")
    depths = np.array([T - 1, 20])
    keys, values, key_segments = (np.array(x) for x in (k, v, segments))
    for b, depth in enumerate(depths):
        keys[b, depth + 1 :], values[b, depth + 1 :], key_segments[b, depth + 1 :] = 1e3, 1e3, 1
    query = jnp.stack([q[b, depth][None] for b, depth in enumerate(depths)])
    got = attention(
        query, jnp.asarray(keys), jnp.asarray(values), segments[:, :1], jnp.asarray(key_segments), jnp.asarray(depths)
    )
    for b, depth in enumerate(depths):
        np.testing.assert_allclose(got[b, 0], full[b, depth], atol=1e-5)


def test_unknown_implementation_is_named():
    with pytest.raises(UserError, match="flash9"):
        module.choose("flash9")
