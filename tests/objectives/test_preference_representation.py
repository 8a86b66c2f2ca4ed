"""LRHP's encoder: the order loss is GRAM's, the optional terms are what they say, and the learned token is read."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.annotators import predict_margins
from gramjax.core import spec, tree
from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.core.margins import Standardisation
from gramjax.data import pipeline
from gramjax.data.recipes import hidden_criteria
from gramjax.data.text import Renderer
from gramjax.models import decoder, heads, model
from gramjax.objectives import bradley_terry, generative_preference, preference_margin
from gramjax.objectives import preference_representation as lrhp
from gramjax.scoring.representations import Encoder, both_orders

ARCH = decoder.Config(
    vocab_size=384, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    heads=("preference", "margin"), preference_width=6, init_scale=0.3,
)  # fmt: skip
PLAIN = lrhp.Config(label_smoothing=0.1, antisymmetry=0.0)
COUNT = 6
SIDES = ("prompt", "chosen", "rejected")


@cache
def params():
    return spec.init_params(decoder.specs(ARCH), jax.random.key(1))


@cache
def rows():
    return tuple(hidden_criteria.rows("train", COUNT))


def batch(config, rendering=0, objective=lrhp):
    renderer = Renderer(hidden_criteria.tokenizer(), DataSection(max_length=32))
    made = [objective.encode(row, renderer, config) for row in rows()]
    examples = [item[rendering] if isinstance(item, tuple) else item for item in made]
    return {name: jnp.asarray(x) for name, x in pipeline.collate([[e] for e in examples], 32).items()}


@cache
def compiled(config, objective):
    network = model.build("decoder", ARCH)

    def value(params, data):
        (total, weight), metrics = objective.loss(network, network.pack(params), data, config)
        return total / weight, {name: t / w for name, (t, w) in metrics.items()}

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def loss(config, data, objective=lrhp):
    return compiled(config, objective)(params(), data)[0]


def gradient(config, data, objective=lrhp):
    return tree.flatten(compiled(config, objective)(params(), data)[1])


@pytest.mark.smoke
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.1])
def test_the_order_loss_is_that_of_verdicts_and_of_smoothed_rewards(eps):
    x = jnp.linspace(-6, 6, 41)
    np.testing.assert_allclose(lrhp.order_loss(x, eps), generative_preference.verdict_loss(x, eps), atol=1e-6)
    np.testing.assert_allclose(lrhp.order_loss(x, eps), bradley_terry.pairwise_loss(x, eps), atol=1e-6)
    slope = jax.vmap(jax.grad(lambda u: lrhp.order_loss(u, eps)))(x)
    np.testing.assert_allclose(slope, jax.nn.sigmoid(x) - (1 - eps), atol=1e-6)


def test_both_orders_in_one_example_cost_the_mean_of_the_two_renderings():
    """And the antisymmetric term is the square of the sum of the two logits, which the metrics show."""
    single = [loss(PLAIN, batch(PLAIN, order)) for order in (0, 1)]
    pair = lrhp.Config(label_smoothing=0.1, antisymmetry=0.7)
    value, metrics = loss(pair, batch(pair))
    mean = (single[0][0] + single[1][0]) / 2
    np.testing.assert_allclose(value, mean + 0.7 * metrics["swap_error"], rtol=1e-5)
    margins = [metric["margin"] for _, metric in single]
    np.testing.assert_allclose(metrics["margin"], np.mean(margins), rtol=1e-4)
    assert metrics["swap_error"] > 1e-4 and batch(pair)["tokens"].shape == (COUNT, 2, 32)


def test_the_last_place_is_the_learned_vector_whatever_token_stands_there():
    data = batch(PLAIN)
    last = jnp.arange(32) == data["ends"]
    other = {**data, "tokens": jnp.where(last, 5, data["tokens"])}
    value = loss(PLAIN, data)[0]
    assert float(loss(PLAIN, other)[0]) == float(value)
    before = {**data, "tokens": jnp.where(jnp.arange(32) == data["ends"] - 4, 5, data["tokens"])}
    assert abs(float(loss(PLAIN, before)[0] - value)) > 1e-5
    flat = gradient(PLAIN, data)
    for path in ("preference/token", "preference/order", "preference/projection", "embed"):
        assert float(jnp.abs(flat[path]).max()) > 1e-6, path
    pad = int(data["tokens"][0, data["ends"][0, 0]])
    assert float(jnp.abs(flat["embed"][pad]).max()) == 0, "the row of the token that stands there does not train"


def test_the_learned_vector_is_an_embedding_like_any_other():
    """Put into the vocabulary as a row of its own, it gives the same hidden states: any weights can be used."""
    data = batch(PLAIN)
    marked = decoder.forward(params(), ARCH, {**data, "learned_mask": jnp.arange(32) == data["ends"]}).hidden
    grown = {**params(), "embed": params()["embed"].at[5].set(params()["preference"]["token"])}
    tokens = jnp.where(jnp.arange(32) == data["ends"], 5, data["tokens"])
    plain = decoder.forward(grown, ARCH, {**data, "tokens": tokens}).hidden
    assert not (data["tokens"] == 5).any() and np.array_equal(marked, plain)


def test_contrastive_loss_is_the_mean_over_positives_of_the_log_share():
    rng = np.random.default_rng(0)
    h, source = rng.normal(size=(9, 5)), np.array([3, 3, 4, 4, 4, lrhp.NO_SOURCE, lrhp.NO_SOURCE, 9, 3])
    mask = np.array([1.0] * 8 + [0.0])
    found = lrhp.contrastive_loss(jnp.asarray(h, jnp.float32), jnp.asarray(source), jnp.asarray(mask), 0.5)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    used = [i for i in range(9) if mask[i] and source[i] != lrhp.NO_SOURCE]
    for i in range(9):
        others = [j for j in used if j != i]
        same = [j for j in others if source[j] == source[i] and i in used]
        total = sum(np.exp(unit[i] @ unit[j] / 0.5) for j in others)
        wanted = np.mean([-np.log(np.exp(unit[i] @ unit[j] / 0.5) / total) for j in same]) if same else 0.0
        np.testing.assert_allclose(found[i], wanted, rtol=1e-4, atol=1e-6)
    assert float(found[7]) == 0 and float(found[0]) > 0
    grad = jax.grad(lambda x: jnp.sum(lrhp.contrastive_loss(x, jnp.asarray(source), jnp.asarray(mask), 0.1)))(
        jnp.asarray(h, jnp.float32)
    )
    assert np.isfinite(grad).all()


def test_the_contrastive_term_is_added_over_the_chosen_first_order_only():
    config = lrhp.Config(label_smoothing=0.1, antisymmetry=0.0, contrastive=0.5)
    value, metrics = loss(config, batch(config))
    plain = np.mean([loss(PLAIN, batch(PLAIN, order))[0] for order in (0, 1)])
    np.testing.assert_allclose(value, plain + 0.5 * metrics["contrastive"], rtol=1e-5)
    assert metrics["contrastive"] > 0.1
    names = {lrhp.source_of(row, "subset") for row in rows()}
    assert len(names) == len({row["subset"] for row in rows()}) > 1
    assert lrhp.source_of({}, "subset") == lrhp.source_of({"subset": ""}, "subset") == lrhp.NO_SOURCE


def test_gaussian_dropout_has_the_mean_and_variance_of_dropout_and_is_repeatable():
    h = jnp.ones((400, 100)) * 2
    seen = lrhp.noisy(h, 0.2) / 2
    np.testing.assert_allclose([seen.mean(), seen.var()], [1.0, 0.25], atol=0.01)
    assert np.array_equal(lrhp.noisy(h, 0.2), lrhp.noisy(h, 0.2)), "a resumed run draws the same"
    assert not np.allclose(lrhp.noisy(h, 0.2) / 2, lrhp.noisy(h * 1.001, 0.2) / 2.002, atol=0.1), "other steps, others"
    noisy = lrhp.Config(label_smoothing=0.1, antisymmetry=0.0, gaussian_dropout=0.1)
    assert abs(float(loss(noisy, batch(PLAIN))[0] - loss(PLAIN, batch(PLAIN))[0])) > 1e-5


@pytest.mark.parametrize(
    "setting,words",
    [({"label_smoothing": 0.5}, "label_smoothing is 0.5"), ({"antisymmetry": -1.0}, "antisymmetry"),
     ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"), ({"gaussian_dropout": 1.0}, "gaussian_dropout"),
     ({"contrastive": -0.1}, "contrastive")],
)  # fmt: skip
def test_wrong_settings_are_named(setting, words):
    with pytest.raises(UserError, match=words):
        lrhp.resolve(lrhp.Config(**setting), None)
    assert lrhp.resolve(lrhp.Config(), None) == lrhp.Config()


def test_a_representation_may_be_the_mean_over_the_tokens_of_both_responses():
    """Training reads them from its mask, the encoder from the renderings: the same tokens, and the same mean."""
    data, renderer, row = batch(PLAIN), Renderer(hidden_criteria.tokenizer(), DataSection(max_length=32)), rows()[0]
    ids, mask = renderer.preference(row["prompt"], row["chosen"], row["rejected"])
    at = np.flatnonzero(mask)
    said = renderer.tokenizer.decode([ids[i] for i in at])
    assert said.replace(" ", "") == (row["chosen"] + row["rejected"]).replace(" ", "")
    np.testing.assert_array_equal(np.flatnonzero(heads.responses(data)[0]), at)
    arch = dataclasses.replace(ARCH, preference_pool="mean_responses", preference_width=0, heads=("preference",))
    network = model.build("decoder", arch)
    weights = network.pack(spec.init_params(decoder.specs(arch), jax.random.key(3)))
    found = Encoder(network, weights, renderer).read("pair", list(both_orders(renderer, *map(row.get, SIDES))))
    tokens = jnp.array([ids])

    @jax.jit
    def mean(weights):
        learned = jnp.arange(len(ids))[None] == len(ids) - 1
        hidden = network.forward(weights, {"tokens": tokens, "learned_mask": learned}).hidden
        return hidden[0, at].mean(axis=0)

    h = mean(weights)
    np.testing.assert_allclose(found[0, 1:], h, atol=1e-5)
    assert found[0, 0] == pytest.approx(float(h @ weights["preference"]["order"][:, 0]), abs=1e-5)
    hidden = jnp.arange(10.0).reshape(1, 5, 2)
    packed = {"segment_ids": jnp.array([[1, 1, 2, 2, 0]]), "ends": jnp.array([[1, 3]])}
    states = heads.pooled(hidden, packed, jnp.array([[1, 1, 0, 1, 1.0]]), "mean_responses")
    np.testing.assert_array_equal(states, [[[1, 2], [6, 7]]])
    with pytest.raises(UserError, match="preference_pool is 'last'"):
        decoder.specs(dataclasses.replace(arch, preference_pool="last"))


# -- margins -----------------------------------------------------------------------------------------------------------


def test_margins_are_standardised_per_data_set_and_learned_by_huber():
    config = preference_margin.fit_rows(preference_margin.Config(), rows())
    data = batch(config, objective=preference_margin)
    for name in {row["subset"] for row in rows()}:
        margins = np.array([row["margin"] for row in rows() if row["subset"] == name])
        mine = np.array(data["margin"])[[row["subset"] == name for row in rows()], 0]
        np.testing.assert_allclose(mine, (margins - margins.mean()) / (margins.std() or 1.0), atol=1e-5)
    value, metrics = loss(config, data, objective=preference_margin)
    assert 0 < value <= metrics["mse"] / 2 + 1e-6
    flat = gradient(config, data, preference_margin)
    for path in ("margin/hidden", "margin/out", "margin/bias", "preference/token", "preference/projection"):
        assert float(jnp.abs(flat[path]).max()) > 1e-7, path
    assert float(jnp.abs(flat["preference/order"]).max()) == 0
    errors = jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(preference_margin.huber(errors, 1.0), [2.5, 0.125, 0, 0.125, 2.5])


def test_ordinal_bins_ask_on_which_side_of_each_edge_the_margin_lies():
    config = preference_margin.fit_rows(preference_margin.Config(bins=3), rows())
    standard = sorted(config.standardisation.standard(row) for row in rows())
    assert config.edges == pytest.approx(np.quantile(standard, [1 / 3, 2 / 3]))
    predicted, margin = np.array([0.3, -1.0]), np.array([2.0, 0.1])
    by_hand = [np.mean([np.log1p(np.exp(-4 * (0.3 + 0.5))), np.log1p(np.exp(-4 * (0.3 - 0.5)))]),
               np.mean([np.log1p(np.exp(-4 * (-1.0 + 0.5))), np.log1p(np.exp(4 * (-1.0 - 0.5)))])]  # fmt: skip
    found = preference_margin.ordinal(jnp.array(predicted), jnp.array(margin), (-0.5, 0.5))
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    value, metrics = loss(config, batch(config, objective=preference_margin), objective=preference_margin)
    assert value > 0 and metrics["mse"] > 0
    grid = jnp.linspace(-3, 3, 601)
    best = grid[np.argmin(np.mean([preference_margin.ordinal(grid, jnp.full(601, m), config.edges)
                                   for m in standard], axis=0))]  # fmt: skip
    assert abs(best - np.median(standard)) < 0.5, "without knowing the row, the best prediction is near the middle"
    for wrong, words in (({"bins": 1}, "bins is 1"), ({"bins": 3, "huber_delta": 2.0}, "not for bins"),
                         ({"bins": 3, "edges": (1.0,)}, "edges must be 2")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            preference_margin.fit_rows(preference_margin.Config(**wrong), rows())


def test_a_language_model_is_asked_for_the_strength_in_both_orders():
    """The mean digit under its softmax over the five digits at the end of the question, over both orders."""
    arch = decoder.Config(vocab_size=384, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
                          num_kv_heads=1, head_dim=8, init_scale=0.5)  # fmt: skip
    network = model.build("decoder", arch)
    weights = network.pack(spec.init_params(decoder.specs(arch), jax.random.key(2)))
    renderer = Renderer(hidden_criteria.tokenizer(), DataSection(max_length=512))
    encoder = Encoder(network, weights, renderer)
    config = predict_margins.Config(method="judge_strength", signed=True)
    found = list(predict_margins.annotate(rows()[:2], encoder, config))
    ids = predict_margins.digits(renderer)
    assert [renderer.tokenizer.decode([i]) for i in ids] == list("12345")
    row = rows()[0]
    orders = (("A", (row["chosen"], row["rejected"])), ("B", (row["rejected"], row["chosen"])))
    both = [predict_margins._asked(renderer, row["prompt"], shown, better, config) for better, shown in orders]
    for better, asked in zip("AB", both, strict=True):
        assert renderer.tokenizer.decode(asked.tolist()).endswith(f"#Better: {better}\n#Strength (1-5):")
    tokens = jnp.array(both)

    @jax.jit
    def mean_digit(weights):
        data = {"tokens": tokens, "segment_ids": jnp.ones_like(tokens),
                "positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)}  # fmt: skip
        logits = heads.logits(weights, network.forward(weights, data).hidden[:, -1])[:, jnp.array(ids)]
        return jnp.mean(jax.nn.softmax(logits) @ jnp.arange(1, 6))

    assert found[0]["margin"] == pytest.approx(float(mean_digit(weights)), abs=1e-4) and 1 < found[1]["margin"] < 5
    with pytest.raises(UserError, match="instruction is for judge_strength"):
        predict_margins.Config(instruction="How much?")


def test_margins_that_are_missing_and_numbers_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="row r3: margins are learned from a column 'margin'"):
        preference_margin.fit_rows(preference_margin.Config(), [{"id": "r3", "margin": None}])
    given = preference_margin.Config(standardisation=Standardisation(("a",), (1.0,), (2.0,)))
    assert preference_margin.fit_rows(given, rows()) is given
    for wrong in (Standardisation(("a",), (1.0,), ()), Standardisation(("a",), (1.0,), (0.0,))):
        with pytest.raises(UserError, match="config.objective.standardisation"):
            preference_margin.fit_rows(preference_margin.Config(standardisation=wrong), rows())
    with pytest.raises(UserError, match="huber_delta"):
        preference_margin.fit_rows(preference_margin.Config(huber_delta=0.0), rows())
