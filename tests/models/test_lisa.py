"""Layers that share attention: what must be equal to what, cached or not, padded or not, scanned or not."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.models import decoder, heads, lisa, model, stack
from tests import simulated

PLAIN = decoder.Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=6, num_heads=4, num_kv_heads=4, head_dim=8,
    init_scale=0.2,
)  # fmt: skip
GROUPED = dataclasses.replace(PLAIN, num_kv_heads=2)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12), dtype=np.int32)


def with_lisa(config, **settings):
    return dataclasses.replace(config, lisa=lisa.LisaSection(**{"layers": (2, 3, 5), "rank": 4} | settings))


def params_of(config, seed=0):
    """Random parameters, the low-rank keys and all biases included."""
    params = tree.flatten(spec.init_params(decoder.specs(config), jax.random.key(seed)))
    noise = {p: 0.3 * jax.random.normal(jax.random.key(i), x.shape) for i, (p, x) in enumerate(params.items())}
    return tree.unflatten({p: x + noise[p] if "low" in p or "align" in p else x for p, x in params.items()})


def hidden(params, config, batch, cache=None, scan=True):
    weights = stack.pack(params, config.layer_kinds(), jnp.float32, scan=scan)
    return decoder.forward(weights, config, batch, cache)


def as_shared(params, layers, leaves):
    """The parameters with `leaves(layer)` in place of q and k of the layers."""
    out = dict(params, layers={name: dict(layer) for name, layer in params["layers"].items()})
    for i in layers:
        attn = dict(out["layers"][f"{i:03d}"]["attn"])
        q, k = attn.pop("q"), attn.pop("k")
        out["layers"][f"{i:03d}"]["attn"] = attn | leaves(q, k)
    return out


def test_kinds_say_who_hands_on_and_who_shares():
    kinds = with_lisa(dataclasses.replace(PLAIN, sliding_window=4, full_layers=(1,))).layer_kinds()
    assert kinds == ("window", "full+source", "window+shared", "window+shared", "window+source", "window+shared")
    assert PLAIN.layer_kinds() == ("full",) * 6


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"layers": (0, 1)}, "layer 0"), ({"layers": (6,)}, "1 to 5"), ({"layers": (3, 2)}, "ascend"),
        ({"layers": (2, 2)}, "once"), ({"align": "off", "rank": 0}, "no attention"), ({"rank": 5}, "even"),
        ({"align": "mlp"}, "ffn"), ({"share_point": "mid"}, "pre, post"),
        ({"align": "linear", "align_act": "silu"}, "align_act='silu' does nothing with align='linear': leave it out"),
        ({"align": "none", "align_residual": True}, "align_residual=True does nothing with align='none'"),
        ({"align": "off", "source": "anchor"}, "source='anchor' does nothing with align='off'"),
        ({"rank": 0, "delta_scale": "head"}, "delta_scale='head' does nothing with rank=0"),
        ({"shares": "keys"}, "rank=4 does nothing with shares='keys'"),
        ({"layers": ()}, "rank=4 does nothing with no layers"),
    ],
)  # fmt: skip
def test_layers_and_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        decoder.specs(with_lisa(PLAIN, **settings))


@pytest.mark.parametrize("config,kv_heads", [(PLAIN, "query"), (GROUPED, "kv")])
def test_copied_projections_without_sharing_are_the_plain_decoder(config, kv_heads):
    """A = 0 and a low-rank pair as wide as a head, with the same rotation and scale."""
    params = params_of(config)
    want = hidden(params, config, {"tokens": TOKENS}).hidden
    copied = with_lisa(config, align="off", rank=8, delta_kv_heads=kv_heads)
    got = hidden(
        as_shared(params, copied.lisa.layers, lambda q, k: {"q_low": q, "k_low": k}), copied, {"tokens": TOKENS}
    ).hidden
    np.testing.assert_allclose(got, want, atol=2e-6)


def network(mixing):
    """The alignment that computes `mixing` applied to the heads."""
    one = jnp.eye(len(mixing))
    return {"align_in": jnp.concatenate([one, -one], 1), "align_out": jnp.concatenate([mixing.T, -mixing.T])}


def observed_scores(params, config, tokens=TOKENS):
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    watch = stack.Observer(lambda seen, memory: (memory, seen.scores_BHTS))
    return decoder.forward(weights, config, {"tokens": tokens}, observer=watch).observed


def test_identity_alignment_without_difference_is_direct_sharing():
    """Bit for bit: every layer of a chain has the scores of the layer before it."""
    params = params_of(GROUPED)
    aligned, direct = with_lisa(GROUPED, rank=0), with_lisa(GROUPED, rank=0, align="none")
    one = as_shared(params, aligned.lisa.layers, lambda q, k: network(jnp.eye(4)))
    other = as_shared(params, direct.lisa.layers, lambda q, k: {})
    scores = observed_scores(one, aligned)
    np.testing.assert_array_equal(scores, observed_scores(other, direct))
    for layer in direct.lisa.layers:
        np.testing.assert_array_equal(scores[layer], scores[layer - 1])
    assert not np.array_equal(scores[1], scores[0])


def test_difference_is_added_to_shared_scores():
    """S_k = S_(k-1) + q' k' / sqrt(r), from the hidden states that the layer itself reads."""
    config = with_lisa(GROUPED, align="none", delta_rope=False, delta_kv_heads="kv")
    params = params_of(config)
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    watch = stack.Observer(lambda seen, memory: (memory, (seen.scores_BHTS, seen.hidden_BTD)))
    scores, inputs = decoder.forward(weights, config, {"tokens": TOKENS}, observer=watch).observed
    attn = params["layers"]["003"]["attn"]
    q = jnp.einsum("BTD,DHR->BTHR", inputs[3], attn["q_low"])
    k = jnp.repeat(jnp.einsum("BTD,DKR->BTKR", inputs[3], attn["k_low"]), 2, axis=2)
    want = scores[2] + jnp.einsum("BTHR,BSHR->BHTS", q, k) / 2.0
    np.testing.assert_allclose(scores[3], want, atol=1e-5)


def test_linear_maps_of_heads_fit_into_the_network():
    mixing = jax.random.normal(jax.random.key(1), (4, 4))
    scores = jax.random.normal(jax.random.key(2), (2, 4, 5, 5))
    got = lisa.align(network(mixing), scores, lisa.LisaSection())
    np.testing.assert_allclose(got, jnp.einsum("GH,BHTS->BGTS", mixing, scores), atol=1e-5)


VARIANTS = {
    "ffn with bias": {"align_bias": True, "align_act": "gelu"},
    "linear, residual, anchor": {"align": "linear", "align_residual": True, "source": "anchor"},
    "post": {"share_point": "post"},
    "no rotation, kv heads": {"delta_rope": False, "delta_kv_heads": "kv", "delta_scale": "head"},
    "keys": {"shares": "keys", "rank": 20},
    "direct": {"align": "none", "rank": 0},
}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_the_future_and_padding_change_nothing(settings):
    config = with_lisa(GROUPED, **settings)
    params = params_of(config)
    want = hidden(params, config, {"tokens": TOKENS}).hidden
    later = TOKENS.copy()
    later[:, 7] = (later[:, 7] + 1) % 64
    changed = hidden(params, config, {"tokens": later}).hidden
    np.testing.assert_allclose(changed[:, :7], want[:, :7], atol=1e-6)
    assert np.abs(changed[:, 7:] - want[:, 7:]).max() > 1e-3
    padded = np.pad(TOKENS, ((0, 0), (3, 2)), constant_values=9)
    segments = np.pad(np.ones_like(TOKENS), ((0, 0), (3, 2)))
    got = hidden(params, config, {"tokens": padded, "segment_ids": segments}).hidden
    np.testing.assert_allclose(got[:, 3:-2], want, atol=1e-5)


@every_variant
def test_decoding_with_a_cache_equals_the_whole_pass(settings):
    """Two chunks, then token by token; layers stacked, on their own, and in the layout of decoding."""
    config = dataclasses.replace(with_lisa(GROUPED, **settings), sliding_window=6, full_layers=(1, 3))
    params = params_of(config)
    want = hidden(params, config, {"tokens": TOKENS}).hidden
    np.testing.assert_allclose(hidden(params, config, {"tokens": TOKENS}, scan=False).hidden, want, atol=1e-6)
    handle = model.Model(decoder, config)
    for weights in (handle.pack(params), decoder.for_decoding(handle.pack(params, scan=False), rows=True)):
        cache, parts = handle.init_cache(weights, 2, 16), []
        step = jax.jit(lambda tokens, cache, weights=weights: handle.forward(weights, {"tokens": tokens}, cache))
        for start, stop in [(0, 4), (4, 8), *((i, i + 1) for i in range(8, 12))]:
            out = step(TOKENS[:, start:stop], cache)
            cache = out.cache
            parts.append(out.hidden)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), want, atol=1e-5)


def test_remat_and_scan_change_no_gradient():
    config = dataclasses.replace(with_lisa(GROUPED), num_layers=6)
    params = params_of(config)

    def loss(params, scan, remat):
        handle = model.Model(decoder, config, scan_layers=scan, remat=remat)
        weights = handle.pack(params)
        out = handle.forward(weights, {"tokens": TOKENS}).hidden
        return heads.cross_entropy(weights, out, jnp.roll(TOKENS, -1, 1), jnp.ones(TOKENS.shape), 8)

    gradients = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    want, got = gradients(params, False, "none"), gradients(params, True, "full")
    for path, leaf in tree.flatten(want).items():
        np.testing.assert_allclose(tree.flatten(got)[path], leaf, rtol=1e-3, atol=2e-4, err_msg=path)
        assert np.abs(leaf).max() > 0, path


def test_weights_after_sharing_are_a_distribution_over_visible_keys():
    config = with_lisa(GROUPED, share_point="post")
    params = params_of(config)
    segments = np.array([[0, 0, *[1] * 10], [1] * 12])
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    watch = stack.Observer(lambda seen, memory: (memory, (jnp.exp(seen.scores_BHTS), seen.visible_BTS)))
    batch = {"tokens": TOKENS, "segment_ids": segments}
    shares, visible = decoder.forward(weights, config, batch, observer=watch).observed
    for layer in config.lisa.layers:
        seen = np.where(visible[layer][:, None], shares[layer], 0.0)
        np.testing.assert_allclose(seen.sum(-1)[:, :, 2:], 1.0, atol=1e-5)
        assert np.asarray(shares[layer])[~np.broadcast_to(visible[layer][:, None], shares[layer].shape)].max() < 1e-20


LLAMA2_7B = decoder.Config(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32,
                           num_kv_heads=32, head_dim=128, tie_word_embeddings=False)  # fmt: skip
LLAMA2_13B = dataclasses.replace(LLAMA2_7B, hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40,
                                 num_kv_heads=40)  # fmt: skip
LLAMA3_8B = dataclasses.replace(LLAMA2_7B, vocab_size=128256, intermediate_size=14336, num_kv_heads=8)


def deepest(config, count, **settings):
    layers = tuple(range(config.num_layers - count, config.num_layers))
    return dataclasses.replace(config, lisa=lisa.LisaSection(layers, **settings))


def abstract_weights(config):
    params = spec.abstract(decoder.specs(config), jnp.bfloat16)
    return jax.eval_shape(lambda p: stack.pack(p, config.layer_kinds(), jnp.bfloat16), params)


@pytest.mark.parametrize(
    "config,count,settings,want",
    [
        (LLAMA2_7B, 0, {}, 524_288), (LLAMA2_7B, 17, {}, 406_784), (LLAMA2_7B, 21, {}, 379_136),
        (LLAMA2_7B, 27, {}, 337_664), (LLAMA2_13B, 26, {}, 594_560), (LLAMA3_8B, 17, {}, 118_016),
        (LLAMA3_8B, 17, {"delta_kv_heads": "kv"}, 101_696), (LLAMA3_8B, 27, {"delta_kv_heads": "kv"}, 84_416),
    ],
)  # fmt: skip
def test_bytes_of_the_cache_are_those_of_the_formula(config, count, settings, want):
    config = deepest(config, count, **settings) if count else config
    weights = abstract_weights(config)
    cache = jax.eval_shape(lambda: decoder.init_cache(weights, config, 1, 1, jnp.bfloat16))
    assert sum(leaf.size * 2 for leaf in jax.tree.leaves(cache.layers)) == want


@pytest.mark.parametrize("config,count,share", [(LLAMA3_8B, 17, 1.11), (LLAMA2_7B, 21, 1.63), (LLAMA2_13B, 26, 1.64)])
def test_share_of_new_parameters_is_the_published_one(config, count, share):
    """Counted against the model before it is converted; the 7B figure is 1.64 with the alignment networks."""
    declared = tree.flatten(decoder.specs(deepest(config, count)), is_leaf=spec.is_spec)
    new = sum(leaf.size for path, leaf in declared.items() if "low" in path)
    align = sum(leaf.size for path, leaf in declared.items() if "align" in path)
    assert align < 1e-4 * spec.count(decoder.specs(config))
    assert round(100 * new / spec.count(decoder.specs(config)), 2) == pytest.approx(share, abs=0.011)


def test_without_shared_layers_the_program_is_that_of_the_plain_decoder():
    params = params_of(PLAIN)
    changed = dataclasses.replace(PLAIN, lisa=lisa.LisaSection((), rank=8, align="linear"))
    programs = [jax.jit(lambda p, c=c: hidden(p, c, {"tokens": TOKENS}).hidden).lower(params) for c in (PLAIN, changed)]
    assert programs[0].as_text() == programs[1].as_text()


def test_a_run_of_shared_layers_is_one_loop():
    """Ten layers: full, the one that hands on, and seven that share make two loops."""
    config = dataclasses.replace(PLAIN, num_layers=10, lisa=lisa.LisaSection(tuple(range(4, 10)), rank=4))
    weights = stack.pack(params_of(config), config.layer_kinds(), jnp.float32)
    assert [(r.start, r.stop) for r in weights["layers"].runs] == [(0, 3), (3, 4), (4, 10)]
    program = jax.make_jaxpr(lambda w: decoder.forward(w, config, {"tokens": TOKENS}).hidden)(weights)
    assert str(program).count("scan[") == 2


def test_conversion_drops_what_is_not_used_and_keeps_the_rest():
    params = params_of(GROUPED)
    section = lisa.LisaSection((2, 4), rank=4, align_bias=True)
    new, config = lisa.convert(params, GROUPED, section, jax.random.key(0))
    assert tree.flatten(new).keys() == tree.flatten(decoder.specs(config), is_leaf=spec.is_spec).keys()
    before, after = tree.flatten(params), tree.flatten(new)
    assert {path for path in before if path not in after} == {f"layers/{i:03d}/attn/{x}" for i in (2, 4) for x in "qk"}
    assert {path for path in after if path not in before} == {path for path in after if re.fullmatch(lisa.NEW, path)}
    assert all(after[path] is before[path] for path in before if path in after)
    scores = observed_scores(new, config)
    np.testing.assert_allclose(scores[2], scores[1], atol=1e-5)
    with pytest.raises(UserError, match="already"):
        lisa.convert(new, config, lisa.LisaSection((3,)), jax.random.key(0))


@pytest.mark.parametrize(
    "settings", [{}, {"align": "linear"}, {"align_act": "gelu", "align_hidden": 11}, {"align": "off"}]
)
def test_copied_layers_are_the_same_model(settings):
    params = params_of(GROUPED)
    section = lisa.LisaSection((1, 2, 5), rank=8, **settings)
    new, config = lisa.convert(params, GROUPED, section, jax.random.key(0), "copy")
    want = hidden(params, GROUPED, {"tokens": TOKENS}).hidden
    np.testing.assert_allclose(hidden(new, config, {"tokens": TOKENS}).hidden, want, atol=5e-6)
    with pytest.raises(UserError, match="rank=8"):
        lisa.convert(params, GROUPED, lisa.LisaSection((1,), rank=4), jax.random.key(0), "copy")


@pytest.mark.parametrize("act", sorted(lisa.ACTIVATIONS))
@pytest.mark.parametrize("residual", [False, True])
def test_a_head_map_is_placed_exactly(act, residual):
    section = lisa.LisaSection(align_act=act, align_residual=residual, align_bias=True)
    mixing, scores = jax.random.normal(jax.random.key(3), (4, 4)), jax.random.normal(jax.random.key(4), (1, 4, 3, 3))
    got = lisa.align(lisa.head_map(section, mixing, 10, jax.random.key(0)), scores, section)
    np.testing.assert_allclose(got, jnp.einsum("GH,BHTS->BGTS", mixing, scores), atol=1e-5)
    with pytest.raises(UserError, match="takes 8"):
        lisa.head_map(section, mixing, 7, jax.random.key(0))


def test_truncation_at_full_rank_changes_nothing_and_below_it_loses_the_least():
    params = params_of(PLAIN)
    whole = lisa.truncated(params, (3,), 8)["layers"]["003"]["attn"]["q"]
    cut = lisa.truncated(params, (3,), 5)["layers"]["003"]["attn"]["q"]
    old = np.asarray(params["layers"]["003"]["attn"]["q"])
    np.testing.assert_allclose(whole, old, atol=1e-5)
    for head in range(4):
        lost = np.sum((np.asarray(cut)[:, head] - old[:, head]) ** 2)
        np.testing.assert_allclose(lost, np.sum(np.linalg.svd(old[:, head])[1][5:] ** 2), rtol=1e-4)


def test_four_devices_give_the_gradients_of_one():
    """Spread over fsdp, over fsdp and tensor (the alignment mixes heads of different devices), and over the length."""
    worker = Path(__file__).parent / "lisa_worker.py"
    command = [sys.executable, str(worker)]
    out = subprocess.run(command, env=simulated.environment(4), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    assert "nvoluntary" not in out.stderr
    found = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["mesh"] for line in found] == [[1, 4, 1], [1, 2, 2], [1, 2, 1, 2]]
    for line in found:
        np.testing.assert_allclose(*line["loss"], rtol=1e-5)
        assert line["gap"] < 1e-4 and line["axes"] == 4


def test_scores_of_one_layer_are_alive_at_a_time():
    """A pass through eleven shared layers needs no more temporary memory than one through three."""
    def temporaries(count):
        section = lisa.LisaSection(tuple(range(1, count + 1)), rank=4)
        config = dataclasses.replace(PLAIN, num_layers=count + 1, lisa=section)
        weights = stack.pack(params_of(config), config.layer_kinds(), jnp.float32)
        batch = {"tokens": np.zeros((1, 256), np.int32)}
        run = jax.jit(lambda w: decoder.forward(w, config, batch).hidden)
        return run.lower(weights).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 256 * 256 * 4
    few, many = temporaries(3), temporaries(11)
    assert many - few < scores / 2 and many < 12 * scores
