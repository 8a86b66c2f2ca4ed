"""Policy losses: known numbers, scalar loops in float64, gradients, masks, and what the variants promise."""

import dataclasses
import itertools

import golden_rollout as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import advantages as worth
from gramjax.core.policy_losses import (
    AGGREGATION,
    LOSSES,
    Rows,
    correction_weights,
    kl_tokens,
    policy_loss,
    policy_objective,
)
from gramjax.core.reinforcement import GrpoSection

TERMS = ("old_logprobs", "reference_logprobs", "sampler_logprobs")


def section(**settings):
    return GrpoSection(**({"loss": "grpo"} | settings))


def objective(batch, settings, **without):
    """Loss (total over weight) and metrics of a packed batch."""
    given = {name: jnp.asarray(value) for name, value in batch.items() if name not in without}
    (total, weight), metrics = policy_objective(given.pop("logprobs"), given.pop("entropies"), given, settings)
    return total / weight, {name: t / w for name, (t, w) in metrics.items()}


def advantages(**settings):
    made = worth.estimate(golden.REWARDS, golden.GROUPS, golden.LENGTHS, section(**settings))
    return made.values


SCALED = golden.scaled()
GOLDEN = [
    ({"loss": "grpo"}, 0.024924),
    ({"loss": "grpo", "epsilon_high": 0.28}, 0.015943),
    ({"loss": "dapo"}, 0.028901),
    ({"loss": "dapo", "epsilon_high": 0.28}, 0.020868),
    ({"loss": "bnpo"}, 0.028901),
    ({"loss": "dapo", "aggregation": "sequence_sum"}, 0.073858),
    ({"loss": "dapo", "aggregation": "sequence_sum", "epsilon_high": 0.28}, 0.053330),
    ({"loss": "dapo", "aggregation": "constant"}, 0.018464),
    ({"loss": "dapo", "aggregation": "constant", "epsilon_high": 0.28}, 0.013332),
    ({"loss": "dr_grpo"}, 0.010660),
    ({"loss": "sapo"}, -0.024557),
    ({"loss": "dapo", "dual_clip": 1.3}, 0.020147),
    ({"loss": "dapo", "dual_clip": 3.0}, 0.028901),
    ({"loss": "gspo"}, 0.003362),
    ({"loss": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4}, 0.023020),
    ({"loss": "gspo_token"}, 0.003362),
    ({"loss": "gmpo"}, 0.026995),
    ({"loss": "luspo"}, 0.006436),
    ({"loss": "cispo"}, -0.030140),
    ({"loss": "cispo", "ratio_cap": 1.28}, -0.032836),
    ({"loss": "grpo", "beta": 0.04}, 0.025052),
    ({"loss": "dapo", "epsilon_high": 0.28, "beta": 0.04}, 0.020999),
    ({"loss": "dapo", "correction": "token_truncate"}, 0.166748),
    ({"loss": "dapo", "correction": "token_mask"}, 0.096963),
    ({"loss": "dapo", "correction": "sequence_truncate", "correction_cap": 1.5}, 0.246739),
    ({"loss": "dapo", "correction": "sequence_mask", "correction_cap": 1.5}, -0.110997),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("settings", "want"), GOLDEN)
def test_known_numbers(settings, want):
    """The table of golden values, six decimals, from rewards to the loss."""
    got, _ = objective(golden.packed(advantages(**settings)), section(**settings))
    assert float(got) == pytest.approx(want, abs=1.5e-6)


@pytest.mark.parametrize(("kind", "token", "sequence"), [("k1", -0.004348, 0.002778), ("k2", 0.003261, 0.003194),
                                                         ("k3", 0.003271, 0.003192)])  # fmt: skip
def test_known_distances(kind, token, sequence):
    """With advantages of 0 the loss is the distance alone; the metric is its token mean."""
    batch = golden.packed(np.zeros(9))
    for name, want in (("token", token), ("sequence", sequence)):
        got, metrics = objective(batch, section(aggregation=name, beta=1.0, kl_estimator=kind))
        assert float(got) == pytest.approx(want, abs=1e-6)
        assert float(metrics["kl"]) == pytest.approx(token, abs=1e-6)


def test_known_shares_and_weights():
    _, metrics = objective(golden.packed(SCALED), section())
    assert float(metrics["clip_ratio/low_mean"]) == pytest.approx(0.130435, abs=1e-6)
    assert float(metrics["clip_ratio/high_mean"]) == pytest.approx(0.130435, abs=1e-6)
    assert float(metrics["clip_ratio/region_mean"]) == pytest.approx(0.260870, abs=1e-6)
    assert float(metrics["sampling/is_ratio_mean"]) == pytest.approx(1.193078, abs=1e-6)
    gaps = [golden.numbers(i, t) for i in range(9) for t in range(golden.LENGTHS[i])]
    assert float(metrics["sampling/logp_diff_max"]) == pytest.approx(max(abs(o - s) for _, o, _, s in gaps), abs=1e-6)
    assert float(metrics["sampling/is_ratio_min"]) == pytest.approx(np.exp(min(o - s for _, o, _, s in gaps)), abs=1e-6)
    entropies = [golden.entropy(i, t) for i in range(9) for t in range(golden.LENGTHS[i])]
    assert float(metrics["entropy"]) == pytest.approx(np.mean(entropies), abs=1e-6)


FILTERS = [
    (golden.REWARDS == 1, None, -0.234692),
    (golden.REWARDS == 1, golden.REWARDS == 1, -0.337369),
    (golden.REWARDS == 0, None, 0.263593),
    (golden.REWARDS == 0, golden.REWARDS == 0, 0.866090),
    (np.abs(SCALED) > 0, np.abs(SCALED) > 0, 0.044315),
]


def with_flags(batch, **flags):
    """A batch whose sequences (three in a row, in order) have these flags."""
    return batch | {name: golden.slots(flag) for name, flag in flags.items()}


@pytest.mark.parametrize(("trained", "counted", "want"), FILTERS)
def test_known_numbers_of_filters(trained, counted, want):
    batch = with_flags(golden.packed(SCALED), trained=trained, counted=np.ones(9) if counted is None else counted)
    assert float(objective(batch, section(loss="dapo"))[0]) == pytest.approx(want, abs=1.5e-6)


def test_dead_groups_leave_the_mean_over_sequences():
    alive = np.abs(SCALED) > 0
    batch = with_flags(golden.packed(SCALED), trained=alive, counted=alive)
    assert float(objective(batch, section())[0]) == pytest.approx(0.037387, abs=1e-6)


@pytest.mark.parametrize("name", ["sequence", "token", "sequence_sum", "constant", "batch_token"])
def test_positive_and_negative_samples_make_up_the_whole(name):
    """With the full denominator the two filtered losses add up to the loss without a filter."""
    whole = golden.packed(SCALED)
    right = golden.REWARDS == 1
    both = [objective(with_flags(whole, trained=flag), section(aggregation=name))[0] for flag in (right, ~right)]
    assert float(sum(both)) == pytest.approx(float(objective(whole, section(aggregation=name))[0]), abs=1e-7)


VARIANTS = [
    *({"loss": name} for name in LOSSES),
    {"loss": "grpo", "epsilon": 0.1, "epsilon_high": 0.4, "delta": 1.45},
    {"loss": "dapo", "dual_clip": 1.3},
    {"loss": "gmpo", "epsilon": 0.1, "epsilon_high": 0.3},
    {"loss": "cispo", "ratio_cap": 1.28},
    {"loss": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"loss": "luspo", "delta": 1.2, "epsilon": 0.05},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_losses_are_those_of_scalar_loops(settings):
    """Every loss with the denominator that belongs to it: 1e-5 in float32, 1e-9 in float64."""
    name = settings["loss"]
    worths = golden.centred() if name == "dr_grpo" else SCALED
    names = {"epsilon": "epsilon", "epsilon_high": "epsilon_high", "delta": "delta", "dual_clip": "dual",
             "ratio_cap": "cap"}  # fmt: skip
    losses = [
        golden.token_losses(name, i, worths[i], **{names[k]: v for k, v in settings.items() if k != "loss"})
        for i in range(9)
    ]
    how = {"batch_token": "token"}.get(AGGREGATION[name], AGGREGATION[name])
    want = golden.divided(losses, how)
    assert float(objective(golden.packed(worths), section(**settings))[0]) == pytest.approx(want, abs=1e-5)
    with jax.enable_x64(True):
        got, _ = objective(golden.packed(worths, np.float64), section(**settings))
        assert got.dtype == jnp.float64
        assert float(got) == pytest.approx(want, abs=1e-9)


def loss_of(batch, settings):
    """The loss as a function of the log-probabilities [R, T], in the precision at hand."""
    given = {name: jnp.asarray(value) for name, value in batch.items()}
    entropies = given.pop("entropies")
    del given["logprobs"]

    def loss(logprobs):
        (total, weight), _ = policy_objective(logprobs, entropies, given, settings)
        return total / weight

    return loss


DIFFERENTIABLE = [
    *({"loss": name} for name in LOSSES if name not in ("cispo", "vespo", "gspo_token", "reinforce")),
    {"loss": "reinforce"},
    {"loss": "grpo", "delta": 1.45},
    {"loss": "dapo", "dual_clip": 1.3},
    {"loss": "dapo", "beta": 0.5},
    {"loss": "dapo", "beta": 0.5, "kl_estimator": "k2"},
    {"loss": "dapo", "beta": 0.5, "kl_estimator": "k3_is"},
    {"loss": "dapo", "correction": "token_truncate"},
    *(
        {"loss": "dapo", "offline_fraction": 0.5, "offline_shaping": s}
        for s in ("p_div", "none", "pow", "sqrt", "logp")
    ),
]


@pytest.mark.parametrize("settings", DIFFERENTIABLE)
def test_gradients_are_finite_differences(settings):
    """Away from the corners of minima; a token at a time, in float64."""
    with jax.enable_x64(True):
        batch = golden.packed(SCALED, np.float64)
        if "offline_fraction" in settings:
            batch["offline"] = golden.slots([1, 0, 0, 0, 0, 1, 0, 1, 0])
        loss = jax.jit(loss_of(batch, section(**settings)))
        at = jnp.asarray(batch["logprobs"])
        slope = np.asarray(jax.grad(loss)(at))
        step = 1e-5
        for row, t in np.argwhere(batch["loss_mask"] > 0):
            want = (loss(at.at[row, t].add(step)) - loss(at.at[row, t].add(-step))) / (2 * step)
            assert slope[row, t] == pytest.approx(float(want), rel=1e-3, abs=1e-9)
        assert np.all(slope[batch["loss_mask"] == 0] == 0)
        assert np.any(slope)


@pytest.mark.parametrize("name", ["cispo", "vespo"])
def test_weights_that_are_constants_multiply_the_gradient_of_the_logarithm(name):
    """d loss / d lp = -weight A: the loss over lp itself is that weight, since it is -weight A lp."""
    batch = golden.packed(SCALED, filler=0.5)
    rows = Rows(jnp.asarray(batch["loss_mask"] > 0), jnp.asarray(batch["segment_ids"]), 3)
    old, worths = jnp.asarray(batch["old_logprobs"]), jnp.asarray(batch["advantages"])
    made = lambda lp: policy_loss(lp, old, worths, rows, section(loss=name)).loss  # noqa: E731
    lp = jnp.asarray(batch["logprobs"])
    slope = jax.grad(lambda x: jnp.sum(rows.clean(made(x))))(lp)
    np.testing.assert_allclose(slope, np.where(rows.mask, made(lp) / lp, 0), rtol=1e-5, atol=1e-7)


def test_gspo_by_token_has_the_gradient_of_gspo():
    """... where the advantage is the same over a sequence; its value is that of the sequence's ratio."""
    batch = golden.packed(SCALED)
    at = jnp.asarray(batch["logprobs"])
    one, two = (jax.value_and_grad(loss_of(batch, section(loss=name)))(at) for name in ("gspo", "gspo_token"))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], two[1], atol=1e-7)
    uneven = golden.packed(SCALED)
    uneven["advantages"] = uneven["advantages"] * (1 + uneven["index"] % 2)
    one, two = (jax.grad(loss_of(uneven, section(loss=name)))(at) for name in ("gspo", "gspo_token"))
    assert np.max(np.abs(one - two)) > 1e-3


def test_correction_weights_have_no_gradient_and_scale_that_of_each_token():
    batch = golden.packed(SCALED)
    at = jnp.asarray(batch["logprobs"])
    for kind in ("token_truncate", "sequence_mask"):
        settings = section(loss="dapo", correction=kind)
        rows = Rows(jnp.asarray(batch["loss_mask"] > 0), jnp.asarray(batch["segment_ids"]), 3)
        old, sampler = (jnp.asarray(batch[name]) for name in ("old_logprobs", "sampler_logprobs"))
        weights, _ = correction_weights(old, sampler, rows, settings)
        plain = jax.grad(loss_of(batch, section(loss="dapo")))(at)
        np.testing.assert_allclose(jax.grad(loss_of(batch, settings))(at), plain * weights, rtol=1e-5, atol=1e-8)
        total = lambda x, y=sampler, r=rows, s=settings: jnp.sum(correction_weights(x, y, r, s)[0])  # noqa: E731
        moved = jax.grad(total)(old)
        assert not np.any(moved)


def test_on_policy_the_loss_is_zero_and_its_gradient_is_not():
    """With one update a rollout the value is minus the mean advantage, whatever happens; only the gradient says it."""
    batch = golden.packed(SCALED)
    del batch["old_logprobs"], batch["sampler_logprobs"]
    loss = loss_of(batch, section())
    value, slope = jax.value_and_grad(loss)(jnp.asarray(batch["logprobs"]))
    assert float(value) == pytest.approx(-np.mean(SCALED), abs=1e-6)
    lengths = np.maximum(golden.slots(golden.LENGTHS), 1)
    want = np.where(batch["loss_mask"] > 0, -batch["advantages"] / 9, 0)
    n = np.maximum(batch["segment_ids"] - 1, 0)
    want = np.nan_to_num(want / np.take_along_axis(lengths, n, axis=1))
    np.testing.assert_allclose(slope, want, atol=1e-7)


EVERYTHING = [
    {"loss": name, "beta": 0.1, "entropy_coef": 0.01, "kl_estimator": "k3_is", "correction": "token_truncate"}
    for name in LOSSES
] + [
    {"loss": "dapo", "correction": "sequence_mask", "off_policy_mask_threshold": 0.1, "top_entropy_quantile": 0.5},
    {"loss": "dapo", "offline_fraction": 0.5, "kl_estimator": "k3_k2grad", "beta": 0.1},
]


@pytest.mark.parametrize("settings", EVERYTHING)
def test_what_stands_outside_of_the_mask_is_not_seen(settings):
    """Value, gradient and metrics are the same whatever fills prompts and padding."""
    found = []
    for fill in (0.0, [np.nan, 1e4, -1e4, np.inf]):
        batch = golden.packed(SCALED, filler=fill)
        if "offline_fraction" in settings:
            batch["offline"] = golden.slots([1, 0, 0, 0, 0, 1, 0, 1, 0])
        loss = loss_of(batch, section(**settings))
        value, slope = jax.value_and_grad(loss)(jnp.asarray(batch["logprobs"]))
        found.append((value, slope, *objective(batch, section(**settings))[1].values()))
    for clean, dirty in zip(*found, strict=True):
        assert np.all(np.isfinite(dirty))
        np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("name", [name for name in LOSSES if AGGREGATION[name] != "batch_token"])
def test_packing_and_order_change_nothing(name):
    """The same sequences one in a row, and three in a row in another order."""
    want, _ = objective(golden.packed(SCALED), section(loss=name, beta=0.1))
    alone, _ = objective(golden.packed(SCALED, per_row=1), section(loss=name, beta=0.1))
    mixed, _ = objective(golden.packed(SCALED, order=[8, 0, 4, 2, 6, 1, 7, 5, 3]), section(loss=name, beta=0.1))
    assert float(alone) == pytest.approx(float(want), abs=1e-6)
    assert float(mixed) == pytest.approx(float(want), abs=1e-6)


COUNTING = ("loss_mask", "segment_ids", "trained", "counted")


def in_parts(batch, count, settings):
    """Totals and weights of `count` microbatches, added up and divided once, as the training step does.

    Rows of the other microbatches are padding.
    """
    pairs = []
    for part in range(count):
        mine = (np.arange(golden.ROWS) % count == part)[:, None]
        piece = {name: jnp.asarray(value * mine if name in COUNTING else value) for name, value in batch.items()}
        pairs.append(policy_objective(piece.pop("logprobs"), piece.pop("entropies"), piece, settings)[0])
    return float(sum(total for total, _ in pairs) / sum(weight for _, weight in pairs))


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_change_only_the_mean_over_their_own_tokens(name):
    """Every denominator is that of the whole step; `batch_token` is the one that is not."""
    batch = golden.packed(SCALED, order=[0, 1, 2, 3, 4, 5, 6, 7], per_row=1)
    one, two, four = (in_parts(batch, count, section(loss=name)) for count in (1, 2, 4))
    if name == "bnpo":
        assert abs(one - two) > 1e-3 and abs(one - four) > 1e-3
    else:
        assert two == pytest.approx(one, abs=1e-6) and four == pytest.approx(one, abs=1e-6)


def test_correction_weights_are_bounded_products():
    batch = golden.packed(SCALED)
    rows = Rows(jnp.asarray(batch["loss_mask"] > 0), jnp.asarray(batch["segment_ids"]), 3)
    old, sampler = (jnp.asarray(batch[name]) for name in ("old_logprobs", "sampler_logprobs"))
    free = {
        kind: np.asarray(correction_weights(old, sampler, rows, section(correction=kind, correction_cap=1e6))[0])
        for kind in ("token_truncate", "sequence_truncate")
    }
    inside = np.asarray(rows.mask)
    for row, n in itertools.product(range(3), range(1, 4)):
        mine = inside[row] & (batch["segment_ids"][row] == n)
        product = np.prod(free["token_truncate"][row][mine])
        np.testing.assert_allclose(free["sequence_truncate"][row][mine], product, rtol=1e-5)
        mean = np.exp(np.mean(np.log(free["token_truncate"][row][mine])))
        assert mine.sum() == 1 or abs(np.log(product)) < 1e-6 or abs(mean - product) > 1e-3
    for kind in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        settings = section(correction=kind, correction_cap=1.5)
        weights = np.asarray(correction_weights(old, sampler, rows, settings)[0])[inside]
        assert weights.max() <= 1.5 and weights.min() >= 0
        if kind == "token_mask":
            assert np.all((weights == 0) | (weights >= 0.5)) and np.any(weights == 0)
        same = np.asarray(correction_weights(old, old, rows, settings)[0])[inside]
        np.testing.assert_array_equal(same, 1)


def test_sequences_that_ran_away_from_the_sampler_are_left_out_when_they_were_bad():
    batch = golden.packed(SCALED)
    batch["sampler_logprobs"] = batch["logprobs"] + np.where(batch["index"] // 10 % 2 == 1, 0.3, 0.1)
    settings = section(off_policy_mask_threshold=0.2)
    want = objective(with_flags(batch, trained=~((SCALED < 0) & (np.arange(9) % 2 == 1))), section())[0]
    assert float(objective(batch, settings)[0]) == pytest.approx(float(want), abs=1e-6)
    assert abs(float(objective(batch, section())[0]) - float(want)) > 1e-3


def test_only_the_most_uncertain_tokens_count():
    batch = golden.packed(SCALED)
    entropies = {(i, t): golden.entropy(i, t) for i in range(9) for t in range(golden.LENGTHS[i])}
    bound = np.quantile(list(entropies.values()), 0.7)
    losses = [
        [x if entropies[i, t] >= bound else 0.0 for t, x in enumerate(golden.token_losses("dapo", i, SCALED[i]))]
        for i in range(9)
    ]
    settings = section(loss="dapo", top_entropy_quantile=0.3)
    want = golden.divided(losses, "token")
    assert float(objective(batch, settings)[0]) == pytest.approx(want, abs=1e-6)
    bonus = sum(h for h in entropies.values() if h >= bound) / golden.LENGTHS.sum()
    with_bonus = dataclasses.replace(settings, entropy_coef=0.3)
    assert float(objective(batch, with_bonus)[0]) == pytest.approx(want - 0.3 * bonus, abs=1e-6)


def tokens_of(ratios, worth_of_each, **settings):
    """Losses of single-token sequences with these ratios."""
    ratios = jnp.asarray(ratios, jnp.float32)[:, None]
    rows = Rows(jnp.ones(ratios.shape, bool), jnp.ones(ratios.shape, jnp.int32), 1)
    old = jnp.full(ratios.shape, -2.0)
    made = policy_loss(old + jnp.log(ratios), old, jnp.full(ratios.shape, worth_of_each), rows, section(**settings))
    return np.asarray(made.loss)[:, 0]


def test_the_dual_clip_bounds_the_loss_of_bad_answers():
    ratios = np.geomspace(0.05, 50, 60)
    for bound in (1.3, 3.0):
        for worth_of_each in (-0.2, -1.7):
            capped = tokens_of(ratios, worth_of_each, dual_clip=bound)
            free = tokens_of(ratios, worth_of_each)
            assert np.all(capped <= bound * abs(worth_of_each) + 1e-6)
            assert np.all(np.diff(capped) >= -1e-6)
            np.testing.assert_allclose(capped, np.minimum(free, bound * abs(worth_of_each)), rtol=1e-6)
        np.testing.assert_array_equal(tokens_of(ratios, 1.0, dual_clip=bound), tokens_of(ratios, 1.0))


def test_two_sided_clipping_bounds_the_ratio_of_bad_answers():
    ratios = np.geomspace(0.05, 50, 60)
    capped, free = (tokens_of(ratios, -1.5, delta=delta) for delta in (4.0, 0.0))
    np.testing.assert_allclose(capped, np.minimum(free, 1.5 * 4.0), rtol=1e-6)
    assert free.max() > 60 and np.all(np.diff(capped) >= -1e-6)
    np.testing.assert_array_equal(tokens_of(ratios, 1.5, delta=4.0), tokens_of(ratios, 1.5))


def test_vespo_weighs_a_sequence_by_its_sampler_too():
    """The correction stands in w, once; the loss is not multiplied by it again."""
    batch = golden.packed(SCALED)
    settings = section(loss="vespo", correction="sequence_truncate", correction_cap=1e6)
    moved = dict(batch, old_logprobs=batch["sampler_logprobs"])
    want = objective({k: v for k, v in moved.items() if k != "sampler_logprobs"}, section(loss="vespo"))[0]
    assert float(objective(batch, settings)[0]) == pytest.approx(float(want), rel=1e-5)
    assert abs(float(objective(batch, section(loss="vespo"))[0]) - float(want)) > 1e-3


def test_offline_tokens_have_the_gradient_weight_of_their_probability():
    """A gamma p / (p + gamma)^2, largest where p = gamma; on-policy sequences beside them are not clipped."""
    p = np.array([0.01, 0.05, 0.1, 0.2, 0.5, 0.9])
    shape, first = (golden.ROWS, golden.LENGTH), np.eye(1, golden.LENGTH)
    batch = {
        "loss_mask": np.zeros(shape, np.float32), "segment_ids": np.ones(shape, np.int32),
        "advantages": np.full(shape, 2.0, np.float32), "old_logprobs": np.full(shape, -3.0, np.float32),
        "logprobs": np.full(shape, np.nan, np.float32), "entropies": np.ones(shape, np.float32),
    }  # fmt: skip
    batch["loss_mask"][:6] = first
    batch["logprobs"][:6, 0] = np.log(p)
    for name in ("trained", "counted", "limit", "offline"):
        batch[name] = np.ones((golden.ROWS, golden.SLOTS), np.float32) * (np.arange(golden.SLOTS) == 0)
    settings = section(loss="dapo", offline_fraction=0.125)
    slope = jax.grad(loss_of(batch, settings))(jnp.asarray(batch["logprobs"]))[:6, 0]
    np.testing.assert_allclose(-np.asarray(slope) * 6 / 2, [0.0826, 0.2222, 0.25, 0.2222, 0.1389, 0.09], atol=5e-5)
    np.testing.assert_allclose(-np.asarray(slope) * 6 / 2, 0.1 * p / (p + 0.1) ** 2, atol=1e-5)
    _, metrics = objective(batch, settings)
    assert float(metrics["offline/mean_prob"]) == pytest.approx(p.mean(), abs=1e-6)
    assert float(metrics["offline/grad_weight"]) == pytest.approx(np.mean(0.1 * p / (p + 0.1) ** 2), abs=1e-6)


def test_runs_with_offline_samples_do_not_clip_unless_told_to():
    batch = golden.packed(SCALED) | {"offline": golden.slots(np.zeros(9))}
    losses = [[-np.exp(lp - old) * SCALED[i] for lp, old, _, _ in (golden.numbers(i, t) for t in range(n))]
              for i, n in enumerate(golden.LENGTHS)]  # fmt: skip
    free = objective(batch, section(loss="dapo", offline_fraction=0.1))[0]
    assert float(free) == pytest.approx(golden.divided(losses, "token"), abs=1e-6)
    held = objective(batch, section(loss="dapo", offline_fraction=0.1, offline_clip=True))[0]
    assert float(held) == pytest.approx(0.028901, abs=1e-6)


def test_a_part_without_anything_to_learn_weighs_nothing():
    for name in ("sequence", "token", "batch_token", "constant", "sequence_sum"):
        batch = with_flags(golden.packed(SCALED), trained=np.zeros(9), counted=np.zeros(9))
        given = {key: jnp.asarray(value) for key, value in batch.items()}
        made = policy_objective(given.pop("logprobs"), given.pop("entropies"), given, section(aggregation=name))
        assert [float(x) for x in made[0]] == [0.0, 0.0]
        assert all(np.isfinite(total) for total, _ in made[1].values())


def test_distances_estimate_what_they_say():
    """Means over draws of a categorical policy, within three standard errors, and gradients on average.

    As a loss, k1 has the gradient 0, k2 that of KL(policy || reference), k3 that of KL(reference || policy); k3 times
    the ratio has the gradient of KL(policy || reference), and so has k3 with the gradient of k2.
    """
    rng = np.random.default_rng(0)
    theta, other = jnp.asarray(rng.normal(size=6), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32)
    p, log_q = jax.nn.softmax(theta), jax.nn.log_softmax(other)
    forward = lambda t: jnp.sum(jax.nn.softmax(t) * (jax.nn.log_softmax(t) - log_q))  # noqa: E731
    backward = lambda t: jnp.sum(jnp.exp(log_q) * (log_q - jax.nn.log_softmax(t)))  # noqa: E731
    draws = rng.choice(6, size=20_000, p=np.asarray(p, np.float64) / np.sum(np.asarray(p, np.float64)))
    counts = np.bincount(draws, minlength=6) / len(draws)

    zero = jnp.zeros(6)
    wanted = {"k1": zero, "k2": jax.grad(forward)(theta), "k3": jax.grad(backward)(theta),
              "k3_is": jax.grad(forward)(theta), "k3_k2grad": jax.grad(forward)(theta)}  # fmt: skip

    def terms(t):
        """Every estimator at each of the actions, under a policy that has just drawn them."""
        logp = jax.nn.log_softmax(t)[None]
        ratio = jnp.exp(logp - jax.lax.stop_gradient(logp))
        rows = Rows(jnp.ones((1, 6), bool), jnp.ones((1, 6), jnp.int32), 1)
        return {kind: kl_tokens(logp, log_q[None], rows, kind, ratio)[0] for kind in wanted}

    values, slopes = terms(theta), jax.jit(jax.jacobian(terms))(theta)
    for kind, slope in wanted.items():
        value, each = (np.asarray(table[kind], np.float64) for table in (values, slopes))  # [action(, parameter)]
        mean = counts @ each
        error = np.sqrt(counts @ np.square(each - mean) / len(draws))
        assert np.all(np.abs(mean - np.asarray(slope)) < 3 * error + 1e-6), kind
        if kind != "k2":  # whose value is biased
            spread = np.sqrt(counts @ np.square(value - counts @ value) / len(draws))
            assert abs(counts @ value - float(forward(theta))) < 3 * spread, kind
    assert np.max(np.abs(wanted["k2"] - wanted["k3"])) > 0.05
