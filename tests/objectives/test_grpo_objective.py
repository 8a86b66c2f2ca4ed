"""The objective on a tiny decoder: what a step may not depend on, temperature, entropy, settings that it refuses."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.core.policy_losses import policy_objective
from gramjax.core.reinforcement import GrpoSection
from gramjax.data import pipeline
from gramjax.generation import experience
from gramjax.models import decoder, heads, model
from gramjax.objectives import grpo
from gramjax.training.loop import mean_metrics
from gramjax.training.step import make_step

VOCAB, COUNT, LENGTH, SLOTS = 29, 12, 24, 4
"""Sequences, tokens of a row, sequences in a row; every batch has COUNT rows, so that one compilation serves all."""
NAMES = ("advantages", "old_logprobs", "sampler_logprobs", "reference_logprobs")
EVERYTHING = {"beta": 0.1, "entropy_coef": 0.05, "correction": "token_truncate"}
VARIANTS = ("grpo", "dapo", "dr_grpo", "luspo", "gspo", "bnpo")


@cache
def setting():
    arch = decoder.Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        heads=("tokens",), init_scale=0.1,
    )  # fmt: skip
    return model.build("decoder", arch), spec.init_params(decoder.specs(arch), jax.random.key(0))


@cache
def drawn():
    """Samples of unequal lengths; two give no gradient, one is not counted either."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(COUNT):
        start, size = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        tokens = rng.integers(0, VOCAB, start + size).astype(np.int32)
        sample = experience.Sample(i, i // 3, i % 3, start, tokens, "", "stop", 0)
        sample.advantages = np.full(size, rng.normal(), np.float32)
        for name in NAMES[1:]:
            setattr(sample, name, rng.normal(-3.3, 0.2, size).astype(np.float32))
        sample.trained, sample.counted = i not in (2, 7), float(i != 7)
        out.append(sample)
    return out


def batch(rows, names=NAMES, **changes):
    """Arrays of rows of samples, filled up with empty rows."""
    made = [[experience.example(sample, names, 8) for sample in row] for row in rows]
    made += [[]] * (COUNT - len(rows))
    return pipeline.collate(made, LENGTH, SLOTS, pad_id=5) | changes


def padded(order=range(COUNT)):
    return batch([[drawn()[i]] for i in order])


def packed():
    """Of the layout of the rollouts."""
    layout = experience.Layout(LENGTH, 1, True, 5, 8)
    plan = layout.plan(drawn())
    assert len(plan) < COUNT / 2 and max(map(len, plan)) <= SLOTS
    return batch([[drawn()[i] for i in row] for row in plan])


def any_loss(network, weights, batch):
    """The loss of the variant that the batch asks for: one compilation, and one pass of the model, for all of them."""
    hidden = network.forward(weights, batch).hidden
    statistics = heads.token_statistics(weights, hidden, batch["labels"], network.logit_chunk, 0.7)
    made = [policy_objective(*statistics, batch, GrpoSection(loss=name, **EVERYTHING)) for name in VARIANTS]
    totals, denominators = (jnp.stack([pair[side] for pair, _ in made]) for side in (0, 1))
    which = batch["which"][0]
    return (totals[which], denominators[which]), made[0][1]


@cache
def compiled(grad_accum):
    network, params = setting()
    labels = dict.fromkeys(tree.flatten(params), tree.TRAIN)
    tx = optax.sgd(1.0)
    step = jax.jit(make_step(network, any_loss, tx, labels, optax.constant_schedule(1.0), grad_accum, True))
    return partial(step, {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)})


def moved(arrays, variant, grad_accum=1):
    """The gradient (of a step with learning rate 1), the loss, and the metrics of a step."""
    which = np.full(COUNT, VARIANTS.index(variant), np.int32)
    state, metrics = compiled(grad_accum)({**arrays, "which": which})
    before = tree.flatten(setting()[1])
    change = {name: before[name] - value for name, value in tree.flatten(state["params"]).items()}
    return change | mean_metrics([metrics])


def apart(one, two):
    """Largest difference of gradients and of losses, beside the largest gradient."""
    names = ["loss", *tree.flatten(setting()[1])]
    size = max(float(np.abs(one[name]).max()) for name in names)
    return max(float(np.abs(one[name] - two[name]).max()) for name in names) / size


@pytest.mark.parametrize("variant", VARIANTS)
def test_microbatches_packing_and_order_change_no_step(variant):
    """... of 1, 2 or 4 unequal microbatches; only the mean over a microbatch's own tokens depends on them."""
    want = moved(padded(), variant)
    assert apart(want, moved(packed(), variant)) < 2e-6
    assert apart(want, moved(padded([5, 0, 11, 7, 2, 9, 1, 10, 3, 8, 4, 6]), variant)) < 2e-6
    for count in (2, 4):
        if variant == "bnpo":
            assert apart(want, moved(padded(), variant, count)) > 1e-3
        else:
            assert apart(want, moved(padded(), variant, count)) < 2e-6
            assert apart(want, moved(packed(), variant, count)) < 2e-6


def test_metrics_of_microbatches_are_those_of_the_whole():
    want, got = moved(padded(), "dapo"), moved(packed(), "dapo", 4)
    for name in ("entropy", "kl", "ratio_mean", "clip_ratio/region_mean", "sampling/logp_diff_mean"):
        assert float(got[name]) == pytest.approx(float(want[name]), rel=1e-5), name
    for name in ("sampling/logp_diff_max", "sampling/is_ratio_min", "sampling/is_ratio_max", "clip_ratio/high_max"):
        assert float(got[name]) == pytest.approx(float(want[name]), rel=1e-5), name


def test_a_step_without_anything_to_learn_changes_nothing():
    arrays = padded() | {name: np.zeros((COUNT, SLOTS), np.float32) for name in ("trained", "counted")}
    change = moved(arrays, "dapo")
    assert not any(np.any(change[name]) for name in ["loss", *tree.flatten(setting()[1])])


def value_and_slope(config, arrays):
    """Loss and gradient of the settings, and of a function of all logits that shares nothing with the objective."""
    network, params = setting()

    def loss(params):
        (total, weight), metrics = grpo.loss(network, network.pack(params), arrays, config)
        return total / weight, metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def distribution(params, arrays, temperature):
    network, _ = setting()
    weights = network.pack(params)
    return jax.nn.log_softmax(heads.logits(weights, network.forward(weights, arrays).hidden) / temperature)


def same(one, two, tolerance=1e-6):
    two = tree.flatten(two)
    for name, value in tree.flatten(one).items():
        np.testing.assert_allclose(value, two[name], atol=tolerance, err_msg=name)
    assert any(np.any(value) for value in two.values())


def test_the_policy_is_the_tempered_one():
    """On fresh answers the gradient is that of -A log p of the tempered distribution, averaged over tokens."""
    rows = [[sample] for sample in drawn()]
    arrays = batch(rows, ("advantages",))
    arrays["trained"], arrays["counted"] = arrays["example_mask"], arrays["example_mask"]
    arrays = {name: jnp.asarray(value) for name, value in arrays.items()}

    def want(params):
        logp = jnp.take_along_axis(distribution(params, arrays, 0.6), arrays["labels"][..., None], axis=-1)[..., 0]
        return -jnp.sum(arrays["loss_mask"] * arrays["advantages"] * logp) / jnp.sum(arrays["loss_mask"])

    (value, metrics), slope = value_and_slope(GrpoSection(temperature=0.6), arrays)
    same(slope, jax.jit(jax.grad(want))(setting()[1]))
    mean = jnp.sum(arrays["loss_mask"] * arrays["advantages"]) / jnp.sum(arrays["loss_mask"])
    assert float(value) == pytest.approx(-float(mean), abs=1e-6)
    logp = distribution(setting()[1], arrays, 0.6)
    entropy = jnp.sum(-arrays["loss_mask"] * jnp.sum(jnp.exp(logp) * logp, axis=-1)) / jnp.sum(arrays["loss_mask"])
    total, weight = metrics["entropy"]
    assert float(total / weight) == pytest.approx(float(entropy), rel=1e-5)


def test_the_entropy_bonus_has_the_gradient_of_the_mean_entropy():
    rows = [[sample] for sample in drawn()]
    arrays = batch(rows, ("advantages",))
    arrays["trained"], arrays["counted"] = arrays["example_mask"], arrays["example_mask"]
    arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
    arrays["advantages"] = jnp.zeros_like(arrays["advantages"])

    def want(params):
        logp = distribution(params, arrays, 0.6)
        return (
            0.3 * jnp.sum(arrays["loss_mask"] * jnp.sum(jnp.exp(logp) * logp, axis=-1)) / jnp.sum(arrays["loss_mask"])
        )

    (value, _), slope = value_and_slope(GrpoSection(temperature=0.6, entropy_coef=0.3), arrays)
    expected, direct = jax.jit(jax.value_and_grad(want))(setting()[1])
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    same(slope, direct)


REFUSED = [
    ({"loss": "ppo"}, "loss"),
    ({"advantage": "gae"}, "advantage"),
    ({"group_size": 1}, "group_size"),
    ({"advantage": "reinforce++", "zero_variance": "drop"}, "zero_variance"),
    ({"std_floor": 0.1, "loss": "dr_grpo"}, "std_floor"),
    ({"aggregate": "normalize_then_sum", "advantage": "rloo"}, "aggregate"),
    ({"filter_keep_prob": 0.5}, "filter_keep_prob"),
    ({"filter_denominator": "kept"}, "filter_denominator"),
    ({"offline_per_prompt": 2}, "offline_per_prompt"),
    ({"delta": 4.0, "loss": "cispo"}, "delta"),
    ({"delta": 1.1}, "delta"),
    ({"dual_clip": 0.9}, "dual_clip"),
    ({"sapo_temperatures": (0.0, 1.0)}, "sapo_temperatures"),
    ({"beta": 0.1, "kl_estimator": "k1"}, "kl_estimator"),
    ({"kl_in": "reward"}, "kl_in"),
    ({"beta": 0.1, "kl_before_normalisation": True}, "kl_before_normalisation"),
    ({"correction": "token_mask", "old_logprobs": "sampler"}, "correction"),
    ({"correction": "token_mask", "correction_floor": 3.0}, "correction_floor"),
    ({"samples_schedule": ("soon:all",)}, "samples_schedule"),
    ({"entropy_target": 1.0}, "entropy_target"),
    ({"use_adaptive_entropy": True, "entropy_coef": 0.5, "entropy_coef_max": 0.1}, "entropy_coef"),
]


@pytest.mark.parametrize(("settings", "field"), REFUSED)
def test_settings_that_do_not_go_together_are_refused_by_name(settings, field):
    with pytest.raises(UserError, match=rf"config\.grpo\.{field}\b"):
        grpo.resolve(GrpoSection(**settings), None)


@pytest.mark.smoke
def test_settings_that_go_together():
    assert not grpo.needs_reference(grpo.resolve(GrpoSection(), None))
    for settings in (
        {"beta": 0.1, "kl_estimator": "k1", "allow_k1_loss": True},
        {"beta": 0.1, "kl_estimator": "k1", "kl_in": "reward", "kl_before_normalisation": True},
    ):
        assert grpo.needs_reference(grpo.resolve(GrpoSection(**settings), None))
    grpo.resolve(GrpoSection(samples="negative", filter_denominator="kept", filter_keep_prob=0.1), None)
    grpo.resolve(GrpoSection(group_size=1, advantage="reinforce++"), None)
