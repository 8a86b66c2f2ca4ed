"""Layers chosen to share attention: a layer with permuted heads is found, and what the rules take is what they say."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import spec
from gramjax.core.errors import UserError
from gramjax.models import decoder, model
from gramjax.plots import similarity
from gramjax.selection.layers import attention_similarity

SMALL = decoder.Config(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=4,
    init_scale=0.6,
)  # fmt: skip
ORDER = np.array([3, 2, 1, 0])
LLAMA2_7B = decoder.Config(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32,
                           num_kv_heads=32, head_dim=128, tie_word_embeddings=False)  # fmt: skip


def permuted():
    """Layer 1 passes its input on, and layer 2 has its heads in another order."""
    params = spec.init_params(decoder.specs(SMALL), jax.random.key(0))
    first, second = params["layers"]["001"], params["layers"]["002"]
    first["attn"]["o"], first["mlp"]["down"] = (jnp.zeros_like(x) for x in (first["attn"]["o"], first["mlp"]["down"]))
    second["attn"] |= {"q": first["attn"]["q"][:, ORDER], "k": first["attn"]["k"][:, ::-1]}
    return params


def batches(rows=6):
    rng = np.random.default_rng(0)
    segments = np.ones((rows, 12), np.int32)
    segments[0, :5] = 0
    return [{"tokens": rng.integers(0, 64, (rows, 12)).astype(np.int32), "segment_ids": segments,
             "counted": segments != 0} for _ in range(2)]  # fmt: skip


@pytest.fixture(scope="module")
def found():
    handle = model.Model(decoder, SMALL)
    config = attention_similarity.Config(budget=1, rank=2)
    return attention_similarity.layer_scores(handle, jax.jit(handle.pack)(permuted()), batches(), config)


def test_permuted_heads_are_found_and_cost_nothing_once_calibrated(found, tmp_path):
    scores = found.scores
    assert next(iter(scores)) == "sensitivity_calibrated" and found.layers == (2,) and not found.warnings
    assert all(math.isnan(values[0]) for values in scores.values())
    assert scores["js_matched"][2] < 1e-6 < 0.05 < scores["js_matched"][1]
    assert scores["js_same_index"][2] > 0.05
    assert all(a <= b + 1e-9 for a, b in zip(scores["js_matched"][1:], scores["js_same_index"][1:]))
    assert abs(scores["sensitivity_calibrated"][2]) < 1e-3
    assert abs(scores["sensitivity_share"][1]) < 1e-5 < abs(scores["sensitivity_share"][2])  # layer 1 writes nothing
    matrix = found.tables["matrix"]
    assert np.array_equal(matrix, matrix.T) and not np.diag(matrix).any()
    for layer in (1, 2, 3):
        np.testing.assert_allclose(matrix[layer, layer - 1], scores["js_same_index"][layer], rtol=1e-5)
    assert found.facts["rows"] == 2 * (5 * 11 + 6) and found.facts["share"] == 0.25
    said = {"scores": scores, "layers": [2], "max_js": 0.05, "rule": found.rule}
    (drawn,) = similarity.draw(said, found.tables, tmp_path)
    assert drawn.picture.is_file()
    assert [line[-2:] for line in drawn.numbers.read_text().splitlines()[1:]] == [",0", ",0", ",1", ",0"]


def test_the_loss_is_that_of_the_model_with_the_layer_replaced(found):
    """The sensitivity of layer 2 to direct sharing, by converting the model."""
    from gramjax.models import lisa

    params, handle = permuted(), model.Model(decoder, SMALL)
    new, arch = lisa.convert(params, SMALL, lisa.LisaSection((2,), align="none", rank=0), jax.random.key(0))
    shared = attention_similarity.nll(dataclasses.replace(handle, config=arch), new, batches())
    np.testing.assert_allclose(shared - found.facts["nll"], found.scores["sensitivity_share"][2], atol=2e-5)


JS = {"js_matched": [math.nan, 0.3, 0.01, 0.2, 0.02, 0.03, 0.04, 0.01], "cost": [math.nan, 0, 9, 1, 3, 2, 1, 4]}


def chosen(**settings):
    scores = {"js_matched": JS["js_matched"], "sensitivity_calibrated": JS["cost"], "js_same_index": JS["js_matched"]}
    return attention_similarity.choose(scores, 8, attention_similarity.Config(**settings))


def test_rules():
    assert chosen(budget=2) == ((5, 6), [])
    assert chosen(budget=0.5) == ((4, 5, 6, 7), [])
    assert chosen(budget=2, min_layer=2, order="js_matched") == ((2, 7), [])
    assert chosen(budget=2, keep_last=2) == ((4, 5), [])
    assert chosen(budget=3, rule="deepest") == ((5, 6, 7), [])
    assert chosen(budget=3, rule="deepest", keep_last=1) == ((4, 5, 6), [])
    layers, (warning,) = chosen(budget=3, max_js=0.015)
    assert layers == (2, 7) and "2 of the 3 layers" in warning
    assert chosen(budget=7, max_js=1.0)[0] == tuple(range(1, 8))


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"budget": 7, "min_layer": 2}, "6 may share"), ({"budget": 1.5}, "whole number"), ({"budget": 0}, "budget"),
        ({"order": "luck"}, "not one of"), ({"rule": "luck"}, "not one of"), ({"max_js": -1}, "negative"),
        ({"sensitivity": False}, "sensitivity=True"), ({"low_rank": True, "rank": 0}, "rank above 0"),
        ({"min_layer": -2}, "min_layer"), ({"rank": 0, "delta_kv_heads": "kv"}, "delta_kv_heads='kv' needs"),
        ({"sensitivity": False, "order": "js_matched", "batches": 2}, "batches=2 is for"),
        ({"rule": "deepest", "max_js": 1.0}, "max_js=1.0 is for"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed(settings, said):
    with pytest.raises(UserError, match=said):
        chosen(**settings)


def test_predicted_sizes_are_those_of_the_accounting():
    handle = model.Model(decoder, LLAMA2_7B)
    for count, cache, read in ((17, 0.776, 0.927), (21, 0.723, 0.910), (27, 0.644, 0.884)):
        layers = range(32 - count, 32)
        got = attention_similarity.predicted_sizes(handle, layers, attention_similarity.Config())
        assert round(got["kv_ratio"], 3) == cache and round(got["weight_ratio"], 3) == read
        np.testing.assert_allclose(got["kv_ratio"], 1 - count / 32 * (4096 - 32 * 20) / (2 * 4096))
