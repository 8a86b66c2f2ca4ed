"""Tuning parts of some layers (SLAM): what the compiled step holds and does, and what an update leaves alone."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax.core import config as configs
from gramjax.core import flops, layer_selection, sharding, spec, tree
from gramjax.models import decoder, model
from gramjax.models.attention import compiler_options
from gramjax.objectives import cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

ARCH = decoder.Config(
    vocab_size=64, hidden_size=32, intermediate_size=96, num_layers=8, num_heads=2, num_kv_heads=2, head_dim=16,
    tie_word_embeddings=False,
)  # fmt: skip
SHALLOW = dataclasses.replace(ARCH, num_layers=4)
ROWS, T = 2, 16
LOWER = configs.SelectSection(layers=(0, 1, 2))
EVERYTHING = configs.SelectSection()


def labels_of(select, arch=ARCH):
    paths = list(tree.flatten(decoder.specs(arch), is_leaf=spec.is_spec))
    return setup.trained(paths, (r".*",), None, layer_selection.patterns(select, arch))


def loss(model, weights, batch):
    return cross_entropy.loss(model, weights, batch, cross_entropy.Config())


def build(select, dtype="float32", remat="none", scan=False, arch=ARCH):
    """Model, labels, optimiser and step."""
    handle = model.build("decoder", arch, None, dtype, remat=remat, scan_layers=scan, attention="xla")
    labels, optim = labels_of(select, arch), configs.OptimSection(lr=1e-2, warmup_ratio=0.0, weight_decay=0.5)
    tx = optimizer.build(optim, labels, 100)
    return handle, labels, tx, make_step(handle, loss, tx, labels, optimizer.schedule(optim, 100))


def batch(seed=0, rows=ROWS, length=T):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, ARCH.vocab_size, (rows, length)).astype(np.int32)
    return {
        "tokens": tokens,
        "labels": np.roll(tokens, -1, 1),
        "loss_mask": (rng.random((rows, length)) < 0.7).astype(np.float32),
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }


def params_of(handle, labels):
    """Parameters as a run begins with them: frozen matrices in the compute dtype."""
    return spec.init_params(handle.specs(), jax.random.key(0), setup.param_dtypes(handle, labels))


@pytest.mark.parametrize(
    "sizes,total,layer,shares",
    [
        ((32, 4096, 11008, 32), 6_738_415_616, 90_177_536, {5: 6.691, 6: 8.030, "gate": 12.044}),
        ((40, 5120, 13824, 40), 13_015_864_320, 141_557_760, {5: 5.438, 6: 6.525, "gate": 9.788}),
    ],
)
def test_share_of_parameters_in_llama_2(sizes, total, layer, shares):
    """S-1: up and down of six layers are the 6.5 to 8 % of the paper; nothing else is."""
    depth, width, inner, heads = sizes
    arch = decoder.Config(vocab_size=32000, hidden_size=width, intermediate_size=inner, num_layers=depth,
                          num_heads=heads, num_kv_heads=heads, head_dim=128, tie_word_embeddings=False)  # fmt: skip
    size = {path: leaf.size for path, leaf in tree.flatten(decoder.specs(arch), is_leaf=spec.is_spec).items()}

    def trained(count, targets=("mlp/up", "mlp/down")):
        found = labels_of(configs.SelectSection(layers=tuple(range(count)), targets=targets), arch)
        return sum(size[path] for path, label in found.items() if label == tree.TRAIN)

    assert sum(size.values()) == total and trained(1) == layer
    got = {5: trained(5), 6: trained(6), "gate": trained(6, ("mlp",))}
    assert {name: round(100 * count / total, 3) for name, count in got.items()} == shares


def test_five_steps_leave_everything_else_bit_for_bit():
    """S-2, with decay, frozen matrices in bfloat16 and layers scanned: what a run on an accelerator does."""
    handle, labels, tx, step = build(LOWER, "bfloat16", "full", scan=True)
    params = params_of(handle, labels)
    state = {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)}
    chosen = {f"layers/00{i}/mlp/{name}" for i in (0, 1, 2) for name in ("up", "down")}
    moments = [x.shape for x in jax.tree.leaves(state["opt_state"]) if x.ndim]
    assert sorted(moments) == sorted(2 * [tree.flatten(params)[path].shape for path in chosen])
    jitted = jax.jit(step)
    for seed in range(5):
        state, _ = jitted(state, batch(seed))
    before, after = tree.flatten(params), tree.flatten(state["params"])
    for path, leaf in before.items():
        assert leaf.dtype == (jnp.bfloat16 if leaf.ndim > 1 and path not in chosen else jnp.float32), path
        assert after[path].dtype == leaf.dtype, path
        if path in chosen:
            assert np.mean(np.asarray(leaf) != np.asarray(after[path])) > 0.99, path
        else:
            np.testing.assert_array_equal(leaf, after[path], err_msg=path)


@pytest.fixture(scope="module")
def whole_gradient():
    """Gradients of everything: layers on their own, no labels, no remat."""
    handle, labels, _, _ = build(EVERYTHING)
    params = params_of(handle, labels)
    return params, tree.flatten(jax.jit(jax.grad(lambda p: loss(handle, handle.pack(p), batch())[0][0]))(params))


@pytest.mark.parametrize("targets,layers", [(("mlp/up", "mlp/down"), (0, 1, 2)), (("attn", "mlp/gate"), (3, 4, 7))])
def test_gradients_are_those_of_the_whole_model(whole_gradient, targets, layers):
    """S-3: stacks cut where training begins and ends, and what is frozen, change no gradient."""
    params, want = whole_gradient
    handle, labels, _, _ = build(configs.SelectSection(layers=layers, targets=targets), remat="full", scan=True)
    trained, frozen = tree.split(params, labels)
    weights = lambda t: handle.pack(tree.merge(t, frozen), labels)  # noqa: E731
    assert len(weights(trained)["layers"].runs) > 1
    got = jax.jit(jax.grad(lambda t: loss(handle, weights(t), batch())[0][0]))(trained)
    assert set(got) == {path for path, label in labels.items() if label == tree.TRAIN}
    for path, leaf in got.items():
        assert np.abs(want[path]).max() > 1e-3, path
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=1e-6, err_msg=path)


def test_clipping_and_decay_see_only_what_trains(whole_gradient):
    """The update is that of the trained leaves alone under a plain clip and AdamW, whatever the frozen ones hold."""
    params, gradient = whole_gradient
    optim = configs.OptimSection(lr=1e-2, warmup_ratio=0.0, schedule="constant", weight_decay=0.1, clip_norm=1e-3,
                                 eps=1e-4)  # fmt: skip
    labels = labels_of(LOWER)
    tx = optimizer.build(optim, labels, 10)
    updates, _ = tx.update(tree.unflatten(gradient), tx.init(params), params)
    ours, rest = tree.split(updates, labels)
    trained, _ = tree.split(params, labels)
    grads = {path: gradient[path] for path in trained}
    plain = optax.chain(optax.clip_by_global_norm(1e-3), optax.adamw(1e-2, b1=0.9, b2=optim.betas[1], eps=1e-4,
                                                                     weight_decay=0.1))  # fmt: skip
    want, _ = plain.update(grads, plain.init(trained), trained)
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-5, atol=1e-9, err_msg=path)
    assert not any(np.any(leaf) for leaf in rest.values())


# Products of the step by hand. A layer has 7 with weights (q, k, v, o, gate, up, down) and 2 of the attention, each of
# which has two gradients: 11 products take the gradient of a layer's output to its input. The head has 1, and 1 or 2.
FORWARD, BACKWARD = 4 * 9 + 1, 7 + 4
STEPS = {
    "everything": (EVERYTHING, FORWARD + 2 + 4 * (BACKWARD + 7)),
    # of the lowest layer only `down` passes a gradient on, to `up`
    "lower": (configs.SelectSection(layers=(0, 1)), FORWARD + 1 + 3 * BACKWARD + 1 + 2 * 2),
    "upper": (configs.SelectSection(layers=(2, 3)), FORWARD + 1 + 1 * BACKWARD + 1 + 2 * 2),
    # through the MLP, o and the attention, to q, k and v
    "attention": (configs.SelectSection(layers=(2,), targets=("attn",)), FORWARD + 1 + BACKWARD + 3 + 1 + 4 + 4),
}


@functools.lru_cache
def compiled(name, remat="none", rows=ROWS, length=T):
    """The compiled step, layers on their own, the FLOPs of its products and its abstract state."""
    select, _ = STEPS[name]
    handle, labels, tx, step = build(select, remat=remat, arch=SHALLOW)
    state = setup.abstract_state(handle, labels, tx, sharding.make_mesh(configs.MeshSection(), jax.devices()[:1]))
    rows_of_tokens = batch(0, rows, length)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    program = jitted.lower(state, rows_of_tokens).compile()
    return program, flops.of_products(step, state, rows_of_tokens), state


@pytest.mark.parametrize("name", list(STEPS))
def test_products_of_the_compiled_step(name):
    """No weight gradient of a frozen matrix, and no backward pass below the lowest layer that trains."""
    program, _, _ = compiled(name)
    assert len(re.findall(r"= \S+ dot\(", program.as_text())) == STEPS[name][1]


def test_flops_of_the_compiled_step():
    """The count of products agrees with the compiler's, whose rest is elementwise work."""
    token, matrix, attention = ROWS * T, 32 * 32, 2 * ROWS * 2 * T * T * 16  # FLOPs of one attention product
    per_layer = {"weights": 2 * token * (4 * matrix + 3 * 32 * 96), "attention": 2 * attention}
    head = 2 * token * 32 * 64
    everything = 4 * 3 * sum(per_layer.values()) + 3 * head
    assert compiled("everything")[1] == everything
    mlp = 2 * token * 32 * 96
    upper = 4 * sum(per_layer.values()) + per_layer["weights"] + 2 * per_layer["attention"] + 5 * mlp + 2 * head
    assert compiled("upper")[1] == upper
    for name in ("everything", "lower", "upper"):
        program, products, _ = compiled(name)
        assert products < program.cost_analysis()["flops"] < 1.3 * products


def test_scans_are_counted_as_often_as_they_run():
    def run(x, w):
        step = lambda x, w: (jnp.tanh(x @ w), x @ jnp.ones((4, 7)))  # noqa: E731
        return jax.lax.scan(step, x, w)[0]  # what it puts out besides is not looked at

    assert flops.of_products(run, jnp.ones((3, 4)), jnp.ones((5, 4, 4))) == 5 * 2 * 3 * 4 * 4
    again = jax.value_and_grad(lambda x, w: jnp.sum(jax.checkpoint(run)(x, w)))
    assert flops.of_products(again, jnp.ones((3, 4)), jnp.ones((5, 4, 4))) == (5 + 5 + 5) * 2 * 3 * 4 * 4


def test_no_gradient_buffer_of_frozen_parameters():
    """The step holds nothing of the size of what is frozen, but that; tuning everything holds a gradient of it."""
    program, _, state = compiled("lower", "full", 1, 8)
    trained, frozen = tree.split(state["params"], labels_of(STEPS["lower"][0], SHALLOW))
    frozen_bytes = sum(x.size * x.dtype.itemsize for x in frozen.values())
    trained_bytes = sum(x.size * x.dtype.itemsize for x in trained.values())
    memory = program.memory_analysis()
    everything = compiled("everything", "full", 1, 8)[0].memory_analysis()
    # gradients and updates of what trains, and a row of 8 tokens
    assert memory.temp_size_in_bytes - 2 * trained_bytes < 0.25 * frozen_bytes
    assert everything.temp_size_in_bytes > frozen_bytes + trained_bytes
    assert memory.argument_size_in_bytes - frozen_bytes - 3 * trained_bytes < 4096  # moments, and the batch
