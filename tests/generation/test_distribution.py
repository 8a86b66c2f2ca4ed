"""The sampling distribution: against NumPy, in corner cases, and by the frequencies of what is drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_sampler as reference
from scipy import stats

from gramjax.core.config import GenerationSection
from gramjax.generation import distribution
from gramjax.generation.request import Request, Sampling, Statistics
from gramjax.generation.sample import generate
from gramjax.models import decoder, heads, model

INF = np.inf
V = 40


def knobs(settings: list[Sampling]) -> distribution.Knobs:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    kinds = (np.float32, np.int32, np.float32, np.float32, np.float32)
    return distribution.Knobs(*(np.array([getattr(s, n) for s in settings], k) for n, k in zip(names, kinds)))


@jax.jit
def filtered(logits, knobs, seen, allowed):
    return distribution.truncated(distribution.scaled(logits, knobs, seen, allowed), knobs)


@jax.jit
def chosen(logits, knobs, allowed):
    keys = lambda: jax.random.split(jax.random.key(3), logits.shape[0])  # noqa: E731
    return distribution.choose(logits, knobs, keys, None, allowed)


def test_filters_equal_sorting():
    """512 rows of random logits and settings, each its own; half the rows have masks, a quarter are greedy."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(512):
        pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
        rows.append(
            Sampling(
                temperature=0.0 if i % 4 == 3 else pick(0.3, 0.7, 1.0, 2.0), top_k=pick(0, 0, 1, 3, 39, 40, 41, 1000),
                top_p=pick(1.0, 1.0, 0.01, 0.5, 0.9, 0.99), min_p=pick(0.0, 0.0, 0.02, 0.3, 1.0),
                repetition_penalty=pick(1.0, 1.0, 1.3, 0.7),
            )
        )  # fmt: skip
    logits = (3 * rng.normal(size=(512, V))).astype(np.float32)
    seen, allowed = rng.random((512, V)) < 0.3, rng.random((512, V)) < 0.6
    allowed[:256] = True
    allowed[:, 7] = True
    got = np.asarray(filtered(logits, knobs(rows), seen, allowed), np.float64)
    for i, sampling in enumerate(rows):
        masks = np.flatnonzero(seen[i]).tolist(), np.flatnonzero(allowed[i]).tolist()
        want = reference.log_distribution(logits[i], sampling, *masks)
        np.testing.assert_array_equal(np.isfinite(got[i]), np.isfinite(want), err_msg=str(sampling))
        np.testing.assert_allclose(reference.log_softmax(got[i]), want, atol=1e-5, err_msg=str(sampling))


@pytest.mark.parametrize(
    "scores, sampling, kept",
    [
        ([3, 1, 2, 1, 0], Sampling(top_k=3), [0, 1, 2, 3]),  # ties with the last one stay
        ([3, 3, 3, 1, 0], Sampling(top_k=1), [0, 1, 2]),
        ([0.0, -0.0, -1, -2, -3], Sampling(top_k=1), [0, 1]),  # both zeros are one number
        ([-0.0, 0.0, -1, -2, -3], Sampling(top_p=0.01), [0, 1]),
        ([np.log(0.5), np.log(0.3), np.log(0.15), np.log(0.05), -INF], Sampling(top_p=0.6), [0, 1]),
        ([np.log(0.5), np.log(0.3), np.log(0.15), np.log(0.05), -INF], Sampling(top_p=0.81), [0, 1, 2]),
        ([np.log(0.5), np.log(0.3), np.log(0.15), np.log(0.05), -INF], Sampling(top_k=2, top_p=0.61), [0]),  # of 5/8
        ([np.log(0.5), np.log(0.3), np.log(0.15), np.log(0.05), -INF], Sampling(min_p=0.29), [0, 1, 2]),
        ([1, 1, 0, -INF, -INF], Sampling(min_p=1.0), [0, 1]),
        ([2, 1, -INF, -INF, -INF], Sampling(top_k=4), [0, 1]),
        ([2, 1, 0, -1, -2], Sampling(temperature=0.0, top_k=1, top_p=0.1, min_p=1.0), [0, 1, 2, 3, 4]),  # greedy
        ([-5, -2, -INF, -9, -1], Sampling(top_p=1e-9), [4]),
    ],
)  # fmt: skip
def test_what_is_kept(scores, sampling, kept):
    got = distribution.truncated(jnp.asarray([scores], jnp.float32), knobs([sampling]))[0]
    assert np.flatnonzero(np.isfinite(got)).tolist() == kept


def test_order_of_floats():
    values = np.array([-INF, -1e30, -2.5, -1e-30, 0.0, 1e-30, 1.0, 1.0000001, 3e38, INF], np.float32)
    order = np.asarray(distribution.sortable(jnp.asarray(values))).astype(np.int64)
    assert np.all(np.diff(order) > 0)


def test_greedy_takes_the_first_of_the_best_and_only_allowed_tokens():
    logits = np.zeros((3, V), np.float32)
    logits[0, [5, 9]] = 2.0
    logits[1, 5] = 2.0
    allowed = np.ones((3, V), bool)
    allowed[1:] = False
    allowed[1, [8, 30]] = True
    allowed[2, 39] = True
    choice = chosen(logits, knobs([Sampling(temperature=0.0)] * 3), allowed)
    assert choice.token.tolist() == [5, 8, 39]
    want = [2 - np.log(2 * np.e**2 + 38), np.log(0.5), 0.0]
    np.testing.assert_allclose(choice.logprob, want, atol=1e-6)
    np.testing.assert_allclose(choice.model_logprob[1], -np.log(np.e**2 + 39), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-37])
def test_low_temperatures_are_nearly_greedy(temperature):
    """Scores are shifted before they are divided: nothing overflows, and no precision is lost."""
    rng = np.random.default_rng(1)
    logits = (50 + 10 * rng.normal(size=(16, V))).astype(np.float32)
    choice = chosen(logits, knobs([Sampling(temperature=temperature)] * 16), np.ones((16, V), bool))
    assert choice.token.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(choice.logprob, 0.0, atol=1e-6)


def test_drawn_rows_take_only_allowed_tokens():
    rng = np.random.default_rng(2)
    allowed = rng.random((64, V)) < 0.1
    allowed[:, 3] = True
    tokens = chosen(rng.normal(size=(64, V)).astype(np.float32), knobs([Sampling(temperature=5.0)] * 64), allowed).token
    assert allowed[np.arange(64), np.asarray(tokens)].all() and len(set(tokens.tolist())) > 5


# -- frequencies -------------------------------------------------------------------------------------------------------

SLOTS, TOKENS, SAMPLES = 32, 128, 160
DRAWS = TOKENS * SAMPLES


@pytest.fixture(scope="module")
def constant():
    """A model whose next-token logits are the same everywhere: every token has the same embedding."""
    config = decoder.Config(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
        max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    network = model.build("decoder", config, None, "float32")
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(0.35 * rng.normal(size=s.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(draw, network.specs(), is_leaf=lambda x: hasattr(x, "axes"))
    params["embed"] = jnp.broadcast_to(params["embed"][:1], params["embed"].shape)
    hidden = network.forward(params, {"tokens": np.arange(6).reshape(2, 3)}).hidden
    wanted = np.random.default_rng(1).permutation(np.linspace(-1.2, 1.6, 12)).astype(np.float32)
    params["lm_head"] = jnp.outer(hidden[0, 0], wanted) / jnp.sum(hidden[0, 0] ** 2)
    logits = np.asarray(heads.logits(params, hidden), np.float64).reshape(-1, 12)
    np.testing.assert_allclose(logits, np.tile(wanted, (6, 1)), atol=1e-5)
    return network, network.pack_for_decoding(params), logits[0]


DRAWN = {
    "temperature 1": Sampling(),
    "temperature 0.6": Sampling(temperature=0.6),
    "temperature 2": Sampling(temperature=2.0),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.8),
    "min-p": Sampling(min_p=0.15),
    "all": Sampling(temperature=1.3, top_k=9, top_p=0.95, min_p=0.05),
}


@pytest.mark.parametrize("name", DRAWN)
def test_frequencies_are_the_distribution(constant, name):
    """Chi-square over 20,480 tokens of 160 answers; the same counts refute a slightly different temperature."""
    network, weights, logits = constant
    sampling = dataclasses.replace(DRAWN[name], max_tokens=TOKENS, n=SAMPLES)
    settings = GenerationSection(slots=SLOTS, steps_per_call=32)
    statistics = Statistics()
    found = list(generate(network, weights, [Request([1], name, sampling, seed=5)], settings, statistics=statistics))
    tokens = np.array([c.token_ids for c in sorted(found, key=lambda c: c.sample)])
    assert tokens.shape == (SAMPLES, TOKENS) and statistics.prefills == 1
    want = reference.log_distribution(logits, sampling)
    np.testing.assert_allclose([c.logprobs for c in found], [want[c.token_ids] for c in found], atol=1e-5)

    support = np.isfinite(want)
    counts = np.bincount(tokens.ravel(), minlength=12)
    assert not counts[~support].any()
    p = np.exp(want[support])
    assert stats.chisquare(counts[support], DRAWS * p / p.sum()).pvalue > 1e-3
    wrong = p**1.15 / (p**1.15).sum()
    assert stats.chisquare(counts[support], DRAWS * wrong).pvalue < 1e-3

    # Neighbours in an answer, and the same place in two answers, have nothing to do with each other.
    for left, right in ((tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])):
        pairs = np.zeros((12, 12))
        np.add.at(pairs, (left.ravel(), right.ravel()), 1)
        table = pairs[np.ix_(support, support)]
        assert stats.chi2_contingency(table).pvalue > 1e-3
