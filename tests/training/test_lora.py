"""Adapters in the forward pass and in the training step: identities against the explicit sum W + scale * a @ b."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import DEEP, lm_batch, pair_batch

from gramjax.core import checks, config, spec, tree
from gramjax.core.config import LoraSection, OptimSection
from gramjax.core.errors import UserError
from gramjax.models import decoder, heads, lora, model, stack
from gramjax.objectives import bradley_terry, cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

RANK = 3
ADAPTED = dataclasses.replace(DEEP, lora=LoraSection(rank=RANK, alpha=5.0))
SOME = LoraSection(rank=RANK, targets=(r"layers/00[12]/attn/[qo]", r"layers/003/mlp/.*"))


def paths(arch=ADAPTED):
    return list(tree.flatten(decoder.specs(arch), is_leaf=spec.is_spec))


@pytest.fixture(scope="module")
def fresh():
    """Parameters as a run begins with them: every b is zero."""
    return spec.init_params(decoder.specs(ADAPTED), jax.random.key(0))


@pytest.fixture(scope="module")
def params(fresh):
    return stirred(fresh)


def stirred(params, seed=1):
    """The same with rank leaves that matter."""
    rng = np.random.default_rng(seed)
    return tree.unflatten({
        path: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32) if lora.is_rank_leaf(path) else x
        for path, x in tree.flatten(params).items()
    })  # fmt: skip


def logits(params, arch, scan=True, remat="none"):
    handle = model.build("decoder", arch, compute_dtype="float32", remat=remat, scan_layers=scan)

    @jax.jit
    def compute(params, batch):
        weights = handle.pack(params)
        return heads.logits(weights, handle.forward(weights, batch).hidden)

    return np.asarray(compute(params, {"tokens": lm_batch(3)["tokens"]}))


def base_of(params):
    return tree.unflatten({path: x for path, x in tree.flatten(params).items() if not lora.is_rank_leaf(path)})


def explicit(params, arch):
    """W + scale * a @ b written out, by numpy's einsum in double precision."""
    flat = tree.flatten(params)
    section = arch.lora
    factor = section.alpha / (math.sqrt(section.rank) if section.rslora else section.rank)
    out = {}
    for path, x in flat.items():
        if lora.is_rank_leaf(path):
            continue
        out[path] = x
        if f"{path}_lora/a" in flat:
            a, b = (np.asarray(flat[f"{path}_lora/{half}"], np.float64) for half in "ab")
            change = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)
            out[path] = jnp.asarray(np.asarray(x, np.float64) + factor * change.reshape(x.shape), jnp.float32)
    return tree.unflatten(out)


def test_rank_leaves_are_declared_beside_their_matrix():
    found = tree.flatten(decoder.specs(ADAPTED), is_leaf=spec.is_spec)
    assert len([path for path in found if lora.is_rank_leaf(path)]) == 4 * 7 * 2
    a, b = found["layers/003/attn/q_lora/a"], found["layers/003/attn/q_lora/b"]
    assert (a.shape, a.axes) == ((16, RANK), ("embed", "rank"))
    assert (b.shape, b.axes, b.init) == ((RANK, 2, 8), ("rank", "heads", "head_dim"), "zeros")
    o = found["layers/000/attn/o_lora/a"]
    assert (o.shape, o.axes) == ((2, 8, RANK), ("heads", "head_dim", "rank"))
    # the standard deviation of PEFT's default, uniform within 1 / sqrt(inputs)
    np.testing.assert_allclose(found["layers/000/mlp/down_lora/a"].scale, 1 / math.sqrt(24) / math.sqrt(3))


def test_a_run_begins_with_the_outputs_of_its_base(fresh):
    np.testing.assert_array_equal(logits(fresh, ADAPTED), logits(base_of(fresh), DEEP))


@pytest.mark.parametrize("rslora", [False, True])
def test_forward_and_merge_equal_the_explicit_sum(params, rslora):
    arch = dataclasses.replace(ADAPTED, lora=dataclasses.replace(ADAPTED.lora, rslora=rslora))
    want = logits(explicit(params, arch), DEEP)
    assert np.abs(want - logits(base_of(params), DEEP)).max() > 0.1
    np.testing.assert_allclose(logits(params, arch), want, atol=1e-5)
    merged = lora.merge(params, arch)
    assert list(tree.flatten(merged)) == paths(DEEP)
    for path, x in tree.flatten(explicit(params, arch)).items():
        np.testing.assert_allclose(tree.flatten(merged)[path], x, atol=1e-6, err_msg=path)


def test_scales_by_hand():
    assert lora.scale(LoraSection(rank=8, alpha=16.0)) == 2.0
    assert lora.scale(LoraSection(rank=16, alpha=16.0, rslora=True)) == 4.0
    assert lora.scale(LoraSection(rank=5)) == 2.0


def test_a_full_rank_adapter_is_any_change_of_its_matrix(params):
    """With as many ranks as the smaller side, the singular vectors of a change give that change."""
    target = "layers/002/mlp/up"
    arch = dataclasses.replace(DEEP, lora=LoraSection(rank=16, alpha=16.0, targets=(target,)))
    change = np.random.default_rng(3).normal(size=(16, 24))
    u, s, v = np.linalg.svd(change, full_matrices=False)
    flat = tree.flatten(base_of(params))
    changed = flat | {target: flat[target] + change.astype(np.float32)}
    pair = {f"{target}_lora/a": jnp.asarray(u * s, jnp.float32), f"{target}_lora/b": jnp.asarray(v, jnp.float32)}
    got = logits(tree.unflatten(dict(sorted((flat | pair).items()))), arch)
    np.testing.assert_allclose(got, logits(tree.unflatten(changed), DEEP), atol=2e-5)


def test_layers_with_different_targets_are_different_runs_and_scanning_changes_nothing():
    arch = dataclasses.replace(DEEP, lora=SOME)
    params = stirred(spec.init_params(decoder.specs(arch), jax.random.key(0)))
    assert {path.split("_lora")[0] for path in paths(arch) if lora.is_rank_leaf(path)} == {
        *(f"layers/00{i}/attn/{name}" for i in (1, 2) for name in "qo"),
        *(f"layers/003/mlp/{name}" for name in ("gate", "up", "down")),
    }
    packed = stack.pack(params, arch.layer_kinds(), jnp.float32)
    assert [(run.start, run.stop) for run in packed["layers"].runs] == [(0, 1), (1, 3), (3, 4)]
    want = logits(params, arch, scan=False)
    np.testing.assert_allclose(logits(params, arch), want, atol=1e-6)
    plain = lora.merge(params, arch)
    np.testing.assert_allclose(logits(plain, DEEP), want, atol=1e-5)


def test_decoding_with_merged_and_unmerged_weights(params):
    """Prefill and decoding see what a whole pass sees: adapters in the weights, or merged by `pack_for_decoding`."""
    arch = dataclasses.replace(ADAPTED, num_layers=2)
    params = {**params, "layers": {name: params["layers"][name] for name in ("000", "001")}}
    handle = model.build("decoder", arch, compute_dtype="float32", scan_layers=False)
    tokens = lm_batch(2)["tokens"]
    want = logits(params, arch)[:2]
    merged = handle.pack_for_decoding(params)
    assert not any("_lora" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged))

    @jax.jit
    def compute(weights):
        cache, parts = handle.init_cache(weights, 2, 12), []
        for start, stop in ((0, 11), (11, 12)):
            out = handle.forward(weights, {"tokens": tokens[:, start:stop]}, cache)
            cache = out.cache
            parts.append(heads.logits(weights, out.hidden))
        return jnp.concatenate(parts, axis=1)

    for weights in (merged, decoder.for_decoding(handle.pack(params), rows=True)):
        np.testing.assert_allclose(compute(weights), want, atol=1e-5)


@pytest.mark.parametrize("scan,remat", [(True, "projections"), (False, "full")])
def test_gradients_of_rank_leaves_are_those_of_the_explicit_sum(params, scan, remat):
    batch = lm_batch(3)

    def loss(handle, params):
        return cross_entropy.loss(handle, handle.pack(params), batch, cross_entropy.Config())[0][0]

    def summed(ranks, rest):
        flat = dict(rest)
        for path in {path.rpartition("_lora")[0] for path in ranks}:
            a, b = ranks[f"{path}_lora/a"], ranks[f"{path}_lora/b"]
            change = a.reshape(-1, RANK) @ b.reshape(RANK, -1)
            flat[path] = flat[path] + 5.0 / RANK * change.reshape(flat[path].shape)
        return loss(model.build("decoder", DEEP, compute_dtype="float32"), tree.unflatten(flat))

    def adapted(ranks, rest):
        handle = model.build("decoder", ADAPTED, compute_dtype="float32", remat=remat, scan_layers=scan)
        return loss(handle, tree.merge(ranks, rest))

    flat = tree.flatten(params)
    ranks = {path: x for path, x in flat.items() if lora.is_rank_leaf(path)}
    rest = {path: x for path, x in flat.items() if path not in ranks}
    want, got = (jax.jit(jax.grad(f))(ranks, rest) for f in (summed, adapted))
    for path in ranks:
        assert np.abs(want[path]).max() > 1e-5, path
        np.testing.assert_allclose(got[path], want[path], atol=2e-4 * np.abs(want[path]).max(), err_msg=path)


def built(arch, objective, settings, labels, dtype="float32"):
    handle = model.build("decoder", arch, compute_dtype=dtype)
    optim = OptimSection(lr=1e-2, warmup_ratio=0.0, schedule="constant", weight_decay=0.1)
    tx = optimizer.build(optim, labels, 10)
    loss = functools.partial(lambda m, w, b, c: objective.loss(m, w, b, c), c=settings)
    step = make_step(handle, lambda m, w, b: loss(m, w, b), tx, labels, optimizer.schedule(optim, 10))
    return handle, tx, jax.jit(step)


def test_training_moves_rank_leaves_and_the_reward_head_alone():
    """The others keep their bits, in the compute dtype, and have no optimiser state: its bytes are counted."""
    arch = dataclasses.replace(ADAPTED, heads=("score",))
    labels = setup.trained(paths(arch), config.TrainSection.trainable, None)
    handle, tx, step = built(arch, bradley_terry, bradley_terry.Config(), labels, "bfloat16")
    dtypes = setup.param_dtypes(handle, labels)
    flat_dtypes = tree.flatten(dtypes)
    assert flat_dtypes["layers/000/attn/q"] == flat_dtypes["embed"] == jnp.bfloat16
    assert flat_dtypes["layers/000/attn/q_lora/a"] == flat_dtypes["norm"] == flat_dtypes["score"] == jnp.float32
    start = spec.init_params(handle.specs(), jax.random.key(0), dtypes)
    state = {"params": start, "opt_state": tx.init(start), "step": jnp.zeros((), jnp.int32)}
    sizes = {path: leaf.size for path, leaf in tree.flatten(handle.specs(), is_leaf=spec.is_spec).items()}
    thin = sum(size for path, size in sizes.items() if lora.is_rank_leaf(path))
    moments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["opt_state"]) if x.ndim)
    assert moments == 2 * 4 * (thin + sizes["score"]) < 2 * 4 * sum(sizes.values()) / 2
    for seed in range(3):
        state, metrics = step(state, pair_batch(4, seed))
    before, after = tree.flatten(start), tree.flatten(state["params"])
    for path in before:
        same = before[path].dtype == after[path].dtype and np.array_equal(before[path], after[path])
        assert same != (lora.is_rank_leaf(path) or path == "score"), path


def test_dropout_takes_a_share_of_what_a_pair_reads_and_keeps_the_mean():
    draw = np.random.default_rng(0)
    rows, pair = jnp.asarray(draw.normal(size=(6, 16)), jnp.float32), {
        "a": jnp.eye(16, dtype=jnp.float32), "b": jnp.eye(16, dtype=jnp.float32)}  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 4000)
    found = jax.vmap(lambda key: lora.product(rows, {**pair, lora.DROP: key}, 1.0, 0.25))(keys)
    assert abs(float(jnp.mean(found == 0)) - 0.25) < 0.005
    kept = jnp.where(found == 0, rows / 0.75, found)
    np.testing.assert_allclose(kept, jnp.broadcast_to(rows / 0.75, kept.shape), rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=0), rows, atol=0.15)
    np.testing.assert_array_equal(lora.product(rows, pair, 1.0, 0.25), lora.product(rows, pair, 1.0))


def test_dropout_in_a_step_follows_from_step_and_batch():
    """The same step and batch: the same numbers, another step: others. Outside of the step there is none."""
    arch = dataclasses.replace(ADAPTED, num_layers=2, lora=dataclasses.replace(ADAPTED.lora, dropout=0.3))
    handle, batch = model.build("decoder", arch), lm_batch()
    params = spec.init_params(handle.specs(), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), params)  # thin matrices that start at zero say nothing

    @jax.jit
    def loss(number):
        weights = lora.with_dropout(handle.pack(params), number, batch["tokens"])
        return cross_entropy.loss(handle, weights, batch, cross_entropy.Config())[0][0]

    assert float(loss(0)) == float(loss(0)) != float(loss(1))
    weights = lora.with_dropout(handle.pack(params), jnp.int32(0), batch["tokens"])
    keys = [jax.random.key_data(leaf).reshape(-1, 2) for leaf in jax.tree.leaves(weights)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]  # fmt: skip
    assert len({tuple(key) for key in np.concatenate(keys)}) == 2 * 7, "every matrix of every layer has its own mask"
    labels = setup.trained(paths(arch), config.TrainSection.trainable, None)
    for model_config, draws in ((arch, True), (dataclasses.replace(ADAPTED, num_layers=2), False)):
        _, tx, step = built(model_config, cross_entropy, cross_entropy.Config(), labels)
        state = {"params": params, "opt_state": tx.init(params), "step": jnp.int32(0)}
        assert ("random_bits" in str(jax.make_jaxpr(step)(state, batch))) == draws


def test_what_trains():
    both = paths(dataclasses.replace(ADAPTED, tie_word_embeddings=False))
    thin = {path for path in both if lora.is_rank_leaf(path)}

    def trained(trainable, source=None):
        return {path for path, label in setup.trained(both, trainable, source).items() if label == tree.TRAIN}

    assert trained((r".*",)) == thin | {"score"}
    assert trained((r".*_norm", "norm")) == thin | {"score", "norm"} | {p for p in both if p.endswith("_norm")}
    reward_model = type("Source", (), {"config": dataclasses.replace(DEEP, heads=("score",))})
    assert trained((r".*",), reward_model) == thin | {"score", "lm_head"}
    assert {label for label in setup.trained(paths(DEEP), (r".*",), None).values()} == {tree.TRAIN}
    with pytest.raises(UserError, match="'nrom' matches no parameter"):
        trained(("nrom",))


def test_a_step_on_adapters_costs_less_than_one_on_everything():
    def flops(arch):
        labels = setup.trained(paths(arch), config.TrainSection.trainable, None)
        _, tx, step = built(arch, cross_entropy, cross_entropy.Config(), labels)
        params = spec.abstract(decoder.specs(arch))
        state = {"params": params, "opt_state": jax.eval_shape(tx.init, params), "step": jnp.zeros((), jnp.int32)}
        return step.lower(state, lm_batch()).cost_analysis()["flops"]

    wide = dataclasses.replace(DEEP, hidden_size=64, intermediate_size=192, num_layers=2, heads=("tokens",))
    assert flops(dataclasses.replace(wide, lora=LoraSection(rank=1))) < 0.85 * flops(wide)


def test_settings_that_do_nothing_or_mean_nothing_are_refused():
    plain = config.defaults()
    assert checks.problems(plain) == []
    plain.lora.alpha = 16.0
    assert "config.lora.rank is 0: there are no adapters" in checks.problems(plain)[0]
    plain.lora.rank = -1
    assert "config.lora.rank is -1" in checks.problems(plain)[0]
    plain.lora.rank = 4
    assert checks.problems(plain) == []
    plain.model.adapter = "somewhere"
    assert "no weights to belong to" in checks.problems(plain)[0]
    with pytest.raises(UserError, match=r"config.lora.targets.*'layers/./attn/w'.*matches no parameter"):
        decoder.specs(dataclasses.replace(DEEP, lora=LoraSection(rank=2, targets=("layers/./attn/w",))))
    with pytest.raises(UserError, match="config.lora.targets is empty"):
        decoder.specs(dataclasses.replace(DEEP, lora=LoraSection(rank=2, targets=())))
