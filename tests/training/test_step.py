"""The training step: accumulation, freezing, clipping, donation. One tiny model, few compilations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax.core import spec, tree
from gramjax.core.config import OptimSection
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection
from gramjax.models import decoder, model
from gramjax.objectives import bradley_terry, cross_entropy, dpo, grm, grpo, plackett_luce
from gramjax.objectives import generative_preference as gram
from gramjax.training import optimizer, setup
from gramjax.training.step import extreme, make_step

VOCAB, T = 29, 12
ARCH = decoder.Config(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    heads=("tokens", "score"),
)
DEEP = dataclasses.replace(ARCH, num_layers=4)
ALL = (r".*",)


@pytest.fixture(scope="module")
def params():
    return spec.init_params(decoder.specs(ARCH), jax.random.key(0))


@pytest.fixture(scope="module")
def deep():
    return spec.init_params(decoder.specs(DEEP), jax.random.key(0))


def lm_batch(rows=8, seed=0):
    """Rows whose scored shares differ, so that a mean of means would be wrong."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, T)).astype(np.int32)
    mask = (np.arange(T) < rng.integers(1, T, (rows, 1))).astype(np.float32)
    return {
        "tokens": tokens,
        "labels": np.roll(tokens, -1, 1),
        "loss_mask": mask,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(T, dtype=np.int32), (rows, 1)),
    }


def pair_batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, 2, T)).astype(np.int32)
    return {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(T, dtype=np.int32), (rows, 2, 1)),
        "ends": rng.integers(3, T, (rows, 2, 1)).astype(np.int32),
        "margin": np.zeros((rows, 1), np.float32),
        "example_mask": (np.arange(rows) < rows - 3).astype(np.float32)[:, None],
    }


def verdict_batch(rows=8, seed=0):
    batch = lm_batch(rows, seed)
    rng = np.random.default_rng(seed)
    return batch | {
        "ends": rng.integers(3, T, (rows, 1)).astype(np.int32),
        "verdict": (np.arange(rows) % 2)[:, None].astype(np.int32),
        "example_mask": np.ones((rows, 1), np.float32),
    }


def answers_batch(rows=8, seed=0):
    """Pairs whose answers are scored, besides what `pair_batch` has."""
    batch = pair_batch(rows, seed)
    scored = (np.arange(T) > 2) & (np.arange(T) < batch["ends"])
    return batch | {"labels": np.roll(batch["tokens"], -1, 2), "loss_mask": scored.astype(np.float32)}


def list_batch(rows=8, seed=0):
    """Lists of three answers, some without the third, some with two that are tied."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, 3, T)).astype(np.int32)
    return {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(T, dtype=np.int32), (rows, 3, 1)),
        "ends": rng.integers(3, T, (rows, 3, 1)).astype(np.int32),
        "count": (2 + np.arange(rows) % 2)[:, None].astype(np.int32),
        "ties": (4 * (np.arange(rows) % 4 == 3))[:, None].astype(np.int32),
        "example_mask": (np.arange(rows) < rows - 3).astype(np.float32)[:, None],
    }


def rollout_batch(rows=8, seed=0):
    """Two answers in a row, one of them sometimes of no weight, with the log-probabilities of others."""
    rng = np.random.default_rng(seed)
    batch, half = lm_batch(rows, seed), T // 2
    batch["segment_ids"] = np.tile(np.repeat([1, 2], half), (rows, 1)).astype(np.int32)
    batch["positions"] = np.tile(np.arange(half, dtype=np.int32), (rows, 2))
    batch["loss_mask"] = (np.tile(np.arange(half), 2) < rng.integers(1, half, (rows, 1))).astype(np.float32)
    batch["advantages"] = np.repeat(rng.normal(size=(rows, 2)), half, axis=1).astype(np.float32)
    for name in ("old_logprobs", "reference_logprobs"):
        batch[name] = rng.normal(-3.4, 0.2, (rows, T)).astype(np.float32)
    trained = np.stack([np.ones(rows), np.arange(rows) % 3 > 0], axis=1).astype(np.float32)
    return batch | {"trained": trained, "counted": np.ones_like(trained), "limit": np.full_like(trained, half)}


OBJECTIVES = {
    "cross_entropy": (cross_entropy, cross_entropy.Config(), lm_batch),
    "bradley_terry": (bradley_terry, bradley_terry.Config(), pair_batch),
    "verdict": (gram, gram.Config(verdict_ids=(3, 5)), verdict_batch),
    "grm": (grm, grm.Config(regularization="dpo", alpha=0.5, train_lm_head=True), answers_batch),
    "dpo": (dpo, dpo.Config(beta=0.5), answers_batch),
    "plackett_luce": (plackett_luce, plackett_luce.Config(), list_batch),
    "grpo": (grpo, GrpoSection(beta=0.1, entropy_coef=0.05), rollout_batch),
}


def loss_of(objective):
    """The loss of one of `OBJECTIVES` as the step wants it."""
    module, config, _ = OBJECTIVES[objective]
    return lambda m, w, b, reference=None: module.loss(m, w, b, config, reference)


def second(objective, draw):
    """The arguments of a step beside state and batch: the reference, made by `draw(seed)`, where the loss has one."""
    module, config, _ = OBJECTIVES[objective]
    return (draw(1),) if setup.needs_reference(module, config) and module is not grpo else ()


def build(params, objective="cross_entropy", trainable=ALL, accum=1, optim=None, remat="full"):
    make_batch = OBJECTIVES[objective][2]
    arch = dataclasses.replace(ARCH, num_layers=len(params["layers"]))
    handle = model.build("decoder", arch, compute_dtype="float32", remat=remat)
    labels = tree.labels(list(tree.flatten(params)), trainable)
    optim = optim or OptimSection(lr=1e-2, warmup_ratio=0.0, schedule="constant")
    tx = optimizer.build(optim, labels, 10)
    step = make_step(handle, loss_of(objective), tx, labels, optimizer.schedule(optim, 10), accum)
    state = {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)}
    return step, state, make_batch()


def assert_trees_close(a, b, atol):
    for (path, x), (_, y) in zip(tree.flatten(a).items(), tree.flatten(b).items(), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, err_msg=path)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_accumulation_equals_one_large_batch(params, objective):
    """V11: four microbatches with unequal weights give the update and the metrics of one batch."""
    optim = OptimSection(lr=1e-2, warmup_ratio=0.0, eps=1e-3)  # or Adam would blow up the rounding of tiny gradients
    remat = "full" if objective == "cross_entropy" else "none"  # compiles in two thirds of the time
    whole, state, batch = build(params, objective, optim=optim, remat=remat)
    parts, _, _ = build(params, objective, accum=4, optim=optim, remat=remat)
    reference = second(objective, lambda seed: spec.init_params(decoder.specs(ARCH), jax.random.key(seed)))
    want, want_metrics = jax.jit(whole)(state, batch, *reference)
    got, metrics = jax.jit(parts)(state, batch, *reference)
    assert_trees_close(got["params"], want["params"], 1e-6)
    for name, (total, weight) in want_metrics.items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-4, atol=1e-5, err_msg=name)
        if not extreme(name):
            np.testing.assert_allclose(metrics[name][1], weight, rtol=1e-6, err_msg=name)


def test_frozen_parameters_keep_their_bits_and_have_no_state(deep):
    trainable = (r"layers/00[12]/mlp/(up|down)",)
    step, state, batch = build(deep, trainable=trainable, optim=OptimSection(lr=1e-2, weight_decay=0.5))
    moments = [x for x in jax.tree.leaves(state["opt_state"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * 4 * 16 * 24
    jitted = jax.jit(step)
    new = state
    for _ in range(3):
        new, _ = jitted(new, batch)
    for path, leaf in tree.flatten(new["params"]).items():
        same = np.array_equal(leaf, tree.flatten(deep)[path])
        trained = path in {f"layers/00{i}/mlp/{name}" for i in (1, 2) for name in ("up", "down")}
        assert same != trained, path


def test_nothing_below_the_lowest_trained_layer_has_a_backward_pass(deep):
    """The compiled step of a run that trains the last layer has fewer operations than one that trains the first."""

    def flops(trainable):
        step, state, batch = build(deep, trainable=trainable, remat="none")
        return jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]

    assert flops((r"layers/003/mlp/.*",)) < 0.8 * flops((r"layers/000/mlp/.*",)) < flops(ALL)


def test_clip_and_logged_norm_see_trained_gradients_only(deep):
    trainable = (r"layers/003/mlp/down",)
    optim = OptimSection(lr=1.0, warmup_ratio=0.0, schedule="constant", clip_norm=1e-3)
    step, state, batch = build(deep, trainable=trainable, optim=optim)
    _, metrics = jax.jit(step)(state, batch)
    whole, state_all, _ = build(deep)
    _, metrics_all = jax.jit(whole)(state_all, batch)
    assert 0 < metrics["grad_norm"][0] < metrics_all["grad_norm"][0]


def test_first_adam_step_has_the_size_of_the_learning_rate(params):
    """Adam's first update is lr * sign(gradient): schedule, clip and decay sit where they should."""
    optim = OptimSection(lr=1e-3, warmup_ratio=0.0, schedule="constant", clip_norm=1.0, eps=1e-12)
    step, state, batch = build(params, optim=optim)
    new, metrics = jax.jit(step)(state, batch)
    move = np.abs(np.asarray(new["params"]["layers"]["000"]["mlp"]["up"] - params["layers"]["000"]["mlp"]["up"]))
    np.testing.assert_allclose(np.median(move), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(metrics["learning_rate"][0], 1e-3, rtol=1e-6)


def test_weight_decay_spares_norms(params):
    optim = OptimSection(lr=1e-2, warmup_ratio=0.0, schedule="constant", weight_decay=10.0, clip_norm=0.0)
    labels = tree.labels(list(tree.flatten(params)), ALL)
    tx = optimizer.build(optim, labels, 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    flat = tree.flatten(updates)
    assert not np.any(flat["layers/000/attn_norm"]) and not np.any(flat["norm"])
    np.testing.assert_allclose(flat["embed"], -1e-1 * params["embed"], rtol=1e-5)


def test_schedules_by_hand():
    section = OptimSection(lr=1.0, warmup_ratio=0.2, end_lr_ratio=0.1)
    cosine = optimizer.schedule(section, 10)
    np.testing.assert_allclose([cosine(0), cosine(1), cosine(2)], [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(cosine(6), 0.1 + 0.9 * 0.5, atol=1e-6)
    np.testing.assert_allclose(cosine(10), 0.1, atol=1e-6)
    linear = optimizer.schedule(OptimSection(lr=1.0, warmup_ratio=0.0, schedule="linear"), 4)
    np.testing.assert_allclose([linear(i) for i in range(5)], [1, 0.75, 0.5, 0.25, 0], atol=1e-6)
    with pytest.raises(UserError, match="staircase"):
        optimizer.schedule(OptimSection(schedule="staircase"), 4)


def test_state_is_donated(params):
    """The step reuses the buffers of the state: no second copy of parameters or moments exists."""
    step, state, batch = build(params)
    memory = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size


def test_a_pattern_that_matches_nothing_is_refused(params):
    with pytest.raises(UserError, match="atn.*matches no parameter"):
        tree.labels(list(tree.flatten(params)), (r"layers/.*/atn/.*",))


def test_all_masked_batch_is_no_nan(params):
    """B21: the mean over nothing is 0, and the parameters stay finite."""
    step, state, batch = build(params)
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    new, metrics = jax.jit(step)(state, batch)
    assert float(metrics["loss"][0]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new["params"]))


def test_optax_masked_alone_is_not_what_we_use(params):
    """Trap 2 of the design, kept as a reminder: `optax.masked` adds raw gradients to what it does not select."""
    mask = {"a": True, "b": False}
    tx = optax.masked(optax.sgd(0.1), mask)
    grads = {"a": jnp.ones(()), "b": jnp.ones(())}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    assert float(updates["b"]) == 1.0
    labels = {"a": tree.TRAIN, "b": tree.FREEZE}
    ours = optimizer.build(OptimSection(lr=0.1), labels, 10)
    updates, _ = ours.update(grads, ours.init(grads), grads)
    assert float(updates["b"]) == 0.0
