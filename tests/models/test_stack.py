"""Runs, packing and remat: layouts of one stack that must not change a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.models import decoder, heads, model, stack

CONFIG = decoder.Config(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_layers=5, num_heads=2, num_kv_heads=1, head_dim=8,
    sliding_window=4, full_layers=(2,), heads=("tokens", "score"),
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return spec.init_params(decoder.specs(CONFIG), jax.random.key(0))


def test_runs_are_cut_at_kinds_and_labels():
    kinds = ("full", "full", "window", "window", "full")
    bounds = [(r.start, r.stop, r.kind) for r in stack.plan_runs(kinds, [0] * 5)]
    assert bounds == [(0, 2, "full"), (2, 4, "window"), (4, 5, "full")]
    assert [r.start for r in stack.plan_runs(("full",) * 5, [0, 0, 1, 1, 0])] == [0, 2, 4]
    assert len(stack.plan_runs(kinds, [0] * 5, scan=False)) == 5


def test_packed_layers_are_those_at_rest(params):
    labels = dict.fromkeys(tree.flatten(params), "freeze") | {"layers/001/mlp/up": "train"}
    packed = stack.pack(params, CONFIG.layer_kinds(), jnp.float32, labels)["layers"]
    assert [(r.start, r.stop) for r in packed.runs] == [(0, 1), (1, 2), (2, 3), (3, 5)]
    for run, weights in zip(packed.runs, packed.trees):
        for offset in range(run.stop - run.start):
            for path, leaf in tree.flatten(weights).items():
                want = tree.flatten(params)[f"layers/{run.start + offset:03d}/{path}"]
                np.testing.assert_array_equal(leaf[offset] if run.stacked else leaf, want)


def test_norms_and_scalar_heads_keep_float32(params):
    weights = stack.pack(params, CONFIG.layer_kinds(), jnp.bfloat16)
    assert weights["norm"].dtype == weights["score"].dtype == jnp.float32
    assert weights["embed"].dtype == weights["layers"].trees[0]["mlp"]["up"].dtype == jnp.bfloat16


def test_layout_and_remat_change_no_number(params):
    """Scanned or not, computed again or not: same loss and gradients."""
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 31)

    def loss(params, scan, remat):
        handle = model.build("decoder", CONFIG, compute_dtype="float32", remat=remat, scan_layers=scan)
        weights = handle.pack(params)
        hidden = handle.forward(weights, {"tokens": tokens}).hidden
        return heads.cross_entropy(weights, hidden, jnp.roll(tokens, -1, 1), jnp.ones((2, 12)), 8)

    value, want = jax.value_and_grad(loss)(params, False, "none")
    for scan, remat in ((True, "full"), (True, "projections"), (False, "projections")):
        other, got = jax.value_and_grad(loss)(params, scan, remat)
        np.testing.assert_allclose(other, value, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_unknown_remat_policy_is_named(params):
    handle = model.build("decoder", CONFIG, remat="some")
    with pytest.raises(UserError, match="some"):
        handle.forward(params, {"tokens": jnp.zeros((1, 3), jnp.int32)})


def test_contradictory_sizes_are_refused_with_both_values():
    with pytest.raises(UserError, match="num_heads 6 .*num_kv_heads 4"):
        decoder.specs(decoder.Config(vocab_size=9, num_heads=6, num_kv_heads=4))
    with pytest.raises(UserError, match="heads"):
        decoder.specs(decoder.Config(vocab_size=9, heads=("tokens", "words")))


def test_initial_values_of_a_layer_do_not_depend_on_the_others(params):
    import dataclasses

    shallow = spec.init_params(decoder.specs(dataclasses.replace(CONFIG, num_layers=2)), jax.random.key(0))
    np.testing.assert_array_equal(shallow["layers"]["001"]["attn"]["q"], params["layers"]["001"]["attn"]["q"])
    assert not np.array_equal(params["layers"]["000"]["attn"]["q"], params["layers"]["001"]["attn"]["q"])


@pytest.mark.parametrize("length", [1, 40])
def test_both_layouts_for_decoding_give_one_result(length):
    """Rows per output (Intel's processors) and the layout of training, for one token of few rows and for a prompt."""
    config = decoder.Config(
        vocab_size=32, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, intermediate_size=24,
        tie_word_embeddings=False, init_scale=0.3,
    )  # fmt: skip
    network = model.build("decoder", config, compute_dtype="float32")
    packed = network.pack(spec.init_params(network.specs(), jax.random.key(0)), scan=False)
    batch = {"tokens": jax.random.randint(jax.random.key(1), (3, length), 0, 32)}
    out = [
        heads.logits(weights, network.forward(weights, batch, network.init_cache(weights, 3, 64)).hidden)
        for weights in (decoder.for_decoding(packed, rows=True), decoder.for_decoding(packed, rows=False))
    ]
    assert isinstance(decoder.for_decoding(packed, rows=True)["lm_head"], stack.Rows)
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)
