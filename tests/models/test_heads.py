"""Chunked cross-entropy against the plain formula, in value and gradient; reading positions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.checkpoint import hf_config
from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.models import decoder, heads
from gramjax.training import setup

B, T, D, V = 3, 10, 8, 23


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    table = jax.random.normal(keys[1], (V, D))
    labels = jax.random.randint(keys[2], (B, T), 0, V)
    mask = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) > 2)
    return hidden, table, labels, mask


def plain(weights, hidden, labels, mask):
    logp = jax.nn.log_softmax(heads.logits(weights, hidden))
    return -jnp.sum(mask * jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 6, 1000])
def test_chunks_change_neither_value_nor_gradient(case, tied, chunk):
    hidden, table, labels, mask = case
    weights = {"embed": table} if tied else {"embed": table, "lm_head": table.T[:, ::-1]}
    want, (want_w, want_h) = jax.value_and_grad(plain, (0, 1))(weights, hidden, labels, mask)
    got, (got_w, got_h) = jax.value_and_grad(heads.cross_entropy, (0, 1))(weights, hidden, labels, mask, chunk)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(got_h, want_h, atol=1e-5)
    for name in weights:
        np.testing.assert_allclose(got_w[name], want_w[name], atol=1e-5)
    undifferentiated = heads.cross_entropy(weights, hidden, labels, mask, chunk)
    np.testing.assert_allclose(undifferentiated, want, rtol=1e-6)


def test_a_reward_head_with_a_hidden_layer(case):
    hidden, draw = case[0], np.random.default_rng(0)
    inner = {"weight": jnp.asarray(draw.normal(size=(D, 5))), "bias": jnp.asarray(draw.normal(size=5))}
    out = jnp.asarray(draw.normal(size=(5, 1)))
    want = np.maximum(np.asarray(hidden) @ inner["weight"] + inner["bias"], 0) @ out
    np.testing.assert_allclose(heads.score({"score": out, "score_hidden": inner}, hidden), want[..., 0], rtol=1e-5)


def test_where_a_hidden_layer_of_the_reward_head_comes_from():
    """It may be asked for where the weights have no reward head; otherwise it is theirs. It is not exported."""
    plain = decoder.Config(vocab_size=64)
    deep = dataclasses.replace(plain, heads=("score",), score_hidden=16)
    flat = tree.flatten(decoder.specs(deep), is_leaf=spec.is_spec)
    assert flat["score_hidden/weight"].shape == (plain.hidden_size, 16) and flat["score"].shape == (16, 1)
    source = lambda config: types.SimpleNamespace(config=config)  # noqa: E731
    asked = {"score_hidden": 16}
    assert setup.architecture(decoder, asked, source(plain), 64).score_hidden == 16
    assert all(setup.architecture(decoder, given, source(deep), 64) == deep for given in ({}, asked))
    linear = dataclasses.replace(plain, heads=("score",))
    with pytest.raises(UserError, match="score_hidden is 16 but the score head of config.model.path has 0"):
        setup.architecture(decoder, asked, source(linear), 64)
    with pytest.raises(UserError, match="no class for a reward head with a hidden layer"):
        hf_config.exported_head(deep)


def test_gradient_scales_with_what_the_loss_is_multiplied_by(case):
    hidden, table, labels, mask = case
    loss = lambda h, s: s * heads.cross_entropy({"embed": table}, h, labels, mask, 6)  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(hidden, 0.25), 0.25 * jax.grad(loss)(hidden, 1.0), rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [6, 1000])
def test_log_probabilities_of_tokens_and_their_own_gradients(case, tied, chunk):
    """Each token's value, and the gradient of a sum that weighs every token differently, as the plain formula gives."""
    hidden, table, labels, weight = case
    weights = {"embed": table} if tied else {"embed": table, "lm_head": table.T[:, ::-1]}

    def direct(weights, hidden):
        logp = jax.nn.log_softmax(heads.logits(weights, hidden))
        logp = jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.sin(weight * logp)), logp

    def chunked(weights, hidden):
        logp = heads.token_logprobs(weights, hidden, labels, chunk)
        return jnp.sum(jnp.sin(weight * logp)), logp

    (_, want), (want_w, want_h) = jax.value_and_grad(direct, (0, 1), has_aux=True)(weights, hidden)
    (_, got), (got_w, got_h) = jax.value_and_grad(chunked, (0, 1), has_aux=True)(weights, hidden)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got_h, want_h, atol=1e-5)
    for name in weights:
        np.testing.assert_allclose(got_w[name], want_w[name], atol=1e-5)


def test_logits_never_exist_whole(case):
    """The largest array of the compiled loss holds one chunk of logits, not B * T of them."""
    big_T, big_V = 64, 4096
    hidden, table = jnp.ones((2, big_T, D)), jnp.ones((big_V, D))
    labels, mask = jnp.zeros((2, big_T), jnp.int32), jnp.ones((2, big_T))

    def temporaries(chunk):
        loss = lambda h, w: heads.cross_entropy({"embed": w}, h, labels, mask, chunk)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1))).lower(hidden, table).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(128) / 4


def test_logits_of_token_logprobs_never_exist_whole():
    big_T, big_V = 64, 4096
    hidden, table = jnp.ones((2, big_T, D)), jnp.ones((big_V, D))
    labels = jnp.zeros((2, big_T), jnp.int32)

    def temporaries(chunk):
        loss = lambda h, w: jnp.sum(jnp.square(heads.token_logprobs({"embed": w}, h, labels, chunk)))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1))).lower(hidden, table).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(128) / 4


def test_positions_pick_their_rows():
    hidden = jnp.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    got = heads.take_positions(hidden, jnp.array([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(got, np.stack([hidden[0, [3, 0]], hidden[1, [1, 1]]]))


def test_a_missing_reward_head_is_named():
    with pytest.raises(UserError, match="no scalar reward head"):
        heads.score({"embed": jnp.zeros((2, 2))}, jnp.zeros((1, 1, 2)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_statistics_are_those_of_all_logits(case, tied, chunk, temperature):
    """Log-probability and entropy of every token, and the gradient of a sum that weighs each token differently."""
    hidden, table, labels, weight = case
    weights = {"embed": table} if tied else {"embed": table, "lm_head": table.T[:, ::-1]}

    def direct(weights, hidden):
        logp = jax.nn.log_softmax(heads.logits(weights, hidden) / temperature)
        entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
        return jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0], entropy

    def chunked(weights, hidden):
        return heads.token_statistics(weights, hidden, labels, chunk, temperature)

    def total(function):
        def loss(weights, hidden):
            logp, entropy = function(weights, hidden)
            return jnp.sum(jnp.sin(weight * logp) + jnp.cos(weight + entropy)), (logp, entropy)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, hidden)

    (_, want), (want_w, want_h) = total(direct)
    (_, got), (got_w, got_h) = total(chunked)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got_h, want_h, atol=1e-5)
    for name in weights:
        np.testing.assert_allclose(got_w[name], want_w[name], atol=1e-5)


def test_an_entropy_without_gradient_is_a_constant(case):
    hidden, table, labels, _ = case

    def entropy(hidden, gradient):
        return jnp.sum(heads.token_statistics({"embed": table}, hidden, labels, 6, 1.0, gradient)[1])

    value, slope = jax.value_and_grad(entropy)(hidden, False)
    want, moves = jax.value_and_grad(entropy)(hidden, True)
    np.testing.assert_array_equal(value, want)
    assert not np.any(slope) and np.any(moves)


def test_predictions_say_how_likely_and_whether_likeliest():
    """Half the labels are the likeliest token; numbers do not depend on the chunk."""
    keys = jax.random.split(jax.random.key(5), 3)
    hidden, matrix = jax.random.normal(keys[0], (2, 6, 8)), jax.random.normal(keys[1], (8, 17))
    plain = jax.nn.log_softmax(hidden @ matrix)
    best = jnp.argmax(plain, axis=-1)
    labels = jnp.where(jnp.arange(6) % 2 == 0, best, (best + 3) % 17)
    for chunk in (1, 4, 100):
        logprobs, hits = heads.predictions({"lm_head": matrix}, hidden, labels, chunk)
        np.testing.assert_allclose(logprobs, jnp.take_along_axis(plain, labels[..., None], -1)[..., 0], atol=1e-5)
        np.testing.assert_array_equal(hits, [[1, 0, 1, 0, 1, 0]] * 2)
