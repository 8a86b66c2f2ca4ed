"""Values beside the policy: their loss and gradient, what a step may not depend on, and settings that are refused."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import checks, spec, tree
from gramjax.core import config as configs
from gramjax.core.errors import UserError
from gramjax.core.policy_losses import value_loss
from gramjax.core.reinforcement import GrpoSection
from gramjax.data import pipeline
from gramjax.generation import experience
from gramjax.models import decoder, heads, model
from gramjax.objectives import grpo, ppo
from gramjax.training import setup

COUNT, LENGTH, SLOTS = 6, 24, 4
NAMES = ("advantages", "old_logprobs", "returns", "old_values")


@cache
def setting():
    arch = decoder.Config(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        heads=ppo.HEADS, init_scale=0.1,
    )  # fmt: skip
    params = spec.init_params(decoder.specs(arch), jax.random.key(0))
    head = {"weight": jax.random.normal(jax.random.key(1), (16, 1)), "bias": jnp.ones(1)}
    return model.build("decoder", arch), {**params, "value": head}


@cache
def drawn():
    """Samples of unequal lengths, of which one gives no gradient."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(COUNT):
        start, size = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        tokens = rng.integers(0, 29, start + size).astype(np.int32)
        sample = experience.Sample(i, i, 0, start, tokens, "", "stop", 0, trained=i != 2)
        sample.old_logprobs = rng.normal(-3.3, 0.2, size).astype(np.float32)
        for name in ("advantages", "returns", "old_values"):
            setattr(sample, name, rng.normal(size=size).astype(np.float32))
        out.append(sample)
    return out


def batch(rows):
    """[COUNT, LENGTH] arrays of rows of samples."""
    made = [[experience.example(drawn()[i], NAMES, 8) for i in row] for row in rows]
    return pipeline.collate(made + [[]] * (COUNT - len(rows)), LENGTH, SLOTS, pad_id=5)


ALONE, PACKED = [[i] for i in range(COUNT)], [[3, 0], [4, 2, 1], [5]]


@cache
def compiled(value_coef):
    network, _ = setting()
    config = ppo.Config(value_coef=value_coef, value_clip=0.3, temperature=0.8)

    def loss(params, arrays):
        (total, weight), metrics = ppo.loss(network, network.pack(params), arrays, config)
        return total / weight, metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def measure(rows, value_coef=0.7):
    (value, metrics), slope = compiled(value_coef)(setting()[1], batch(rows))
    return {"loss": value, **tree.flatten(slope), **{name: total / weight for name, (total, weight) in metrics.items()}}


def test_the_loss_is_that_of_the_policy_and_of_the_values():
    """... with values read where the next token is predicted, and errors averaged over trained tokens as the policy."""
    network, params = setting()
    arrays = batch(ALONE)
    places = np.array([(row, s.start - 1 + t) for row, s in enumerate(drawn()) for t in range(s.length)]).T
    old, returns = (np.concatenate([getattr(s, name) for s in drawn()]) for name in ("old_values", "returns"))
    learned = np.concatenate([np.full(s.length, s.trained) for s in drawn()])

    def want(params):
        weights = network.pack(params)
        (total, weight), _ = grpo.loss(network, weights, arrays, GrpoSection(temperature=0.8))
        values = heads.value(weights, network.forward(weights, arrays).hidden)
        got = values[tuple(places)]
        near = jnp.clip(got, old - 0.3, old + 0.3)
        errors = jnp.maximum((got - returns) ** 2, (near - returns) ** 2) / 2
        return total / weight + 0.7 * jnp.sum(errors * learned) / len(returns)

    value, slope = jax.jit(jax.value_and_grad(want))(params)
    got = measure(ALONE)
    assert float(got["loss"]) == pytest.approx(float(value), rel=1e-5)
    for name, direct in tree.flatten(slope).items():
        np.testing.assert_allclose(got[name], direct, atol=2e-6, err_msg=name)
    assert np.any(slope["value"]["weight"])


def test_packing_changes_nothing():
    alone, packed = measure(ALONE), measure(PACKED)
    for name, value in alone.items():
        if name != "value/unexplained":
            np.testing.assert_allclose(packed[name], value, atol=2e-6, err_msg=name)
    assert float(alone["value/returns"]) == pytest.approx(np.concatenate([s.returns for s in drawn()]).mean(), abs=1e-6)


def test_values_without_weight_move_nothing():
    """The head has no gradient, and the rest has that of GRPO."""
    network, params = setting()
    got = measure(ALONE, value_coef=0.0)
    assert not np.any(got["value/weight"]) and not np.any(got["value/bias"])

    @jax.jit
    def policy(params):
        (total, weight), _ = grpo.loss(network, network.pack(params), batch(ALONE), GrpoSection(temperature=0.8))
        return total / weight

    assert float(got["loss"]) == pytest.approx(float(policy(params)), rel=1e-5)


def test_a_value_gains_nothing_from_a_move_beyond_its_bound():
    values, old, returns = (
        jnp.asarray(x, jnp.float32) for x in ([0.1, 0.6, 0.6, 0.6], [0.0] * 4, [1.0, 1.0, -1.0, 0.5])
    )
    loss, bounded = value_loss(values, old, returns, 0.2)
    np.testing.assert_allclose(loss, [0.81 / 2, 0.64 / 2, 2.56 / 2, 0.09 / 2], rtol=1e-5)
    assert bounded.tolist() == [False, True, False, True]
    slope = jax.grad(lambda v: value_loss(v, old, returns, 0.2)[0].sum())(values)
    np.testing.assert_allclose(slope, [-0.9, 0, 1.6, 0], atol=1e-6)
    free, never = value_loss(values, old, returns, 0.0)
    np.testing.assert_allclose(free, np.square(np.asarray(values) - np.asarray(returns)) / 2)
    assert not never.any()


@pytest.mark.smoke
def test_settings():
    config = ppo.Config()
    assert ppo.resolve(config, None) is config and not ppo.needs_reference(config)
    assert ppo.needs_reference(ppo.resolve(ppo.Config(beta=0.1, kl_estimator="k1", kl_in="reward"), None))
    assert ppo.resolve(ppo.Config(group_size=1), None).group_size == 1
    for settings, field in (
        ({"advantage": "grpo"}, "advantage"),
        ({"zero_variance": "drop"}, "zero_variance"),
        ({"offline_fraction": 0.1, "offline_baseline": "on_policy"}, "offline_baseline"),
        ({"beta": 0.1, "kl_in": "reward", "kl_before_normalisation": True}, "kl_before_normalisation"),
    ):
        with pytest.raises(UserError, match=rf"config\.grpo\.{field}="):
            ppo.resolve(ppo.Config(**settings), None)


def test_a_config_of_two_phases_keeps_the_settings_of_the_values():
    """A warm-up by another method does not mind them; they are checked, and a phase that sets them is told."""
    config = configs.defaults("ppo")
    assert config.grpo.advantage == "gae" and config.grpo.value_clip == 0.2
    config.data.train = ("rows.jsonl",)
    config.phases = {"a": {"objective": {"name": "cross_entropy"}}, "b": {"grpo": {"gamma": 0.9}}}
    assert checks.problems(config) == []
    config.grpo.gamma, config.grpo.gae_lambda = 0.0, 1.5
    assert [p for p in checks.problems(config) if not p.startswith("phase")] == [
        "config.grpo.gae_lambda is 1.5; it must be from 0 to 1",
        "config.grpo.gamma is 0.0; it must be from 5e-324 to 1",
    ]
    config.grpo.gamma, config.grpo.gae_lambda = 1.0, 0.9
    config.phases.a.grpo = {"gamma": 0.5}
    assert any("unknown setting config.grpo.gamma" in problem for problem in checks.problems(config))


REWARD = '''
def digits(prompts, completions, **columns):
    """The share of characters that are digits."""
    return [sum(c.isdigit() for c in text) / max(len(text), 1) + 0.5 for text in completions]
'''


def test_rollouts_bring_what_the_values_learn(tmp_path):
    """With lambda and gamma 1 the return of every token is the reward; the first step starts at a ratio of 1."""
    (tmp_path / "mine.py").write_text(REWARD)
    config = configs.defaults("ppo")
    config.tokenizer.path, config.data.train = "bytes", ("recipe:modular_addition:train:20",)
    config.data.max_length, config.data.packing = 16, True
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 32, 64, 1
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 1, 16
    config.optim.lr, config.optim.warmup_ratio = 1e-2, 0.0
    config.train.remat, config.train.scan_layers, config.train.steps = "none", False, 2
    config.reward.functions = (f"{tmp_path / 'mine.py'}:digits",)
    config.grpo.prompts_per_step, config.grpo.group_size, config.grpo.iterations = 8, 1, 2
    config.grpo.gae_lambda = 1.0
    config.sampling.max_tokens, config.generation.slots = 4, 8
    run = setup.build_run(config)
    state, _ = setup.first_state(run)
    seen = []
    run.source.record = lambda step, samples, metrics: seen.extend(samples)
    arrays = run.source.next(state["params"])
    network = run.network.model
    weights = network.pack(state["params"])
    values = heads.value(weights, network.forward(weights, {k: jnp.asarray(v) for k, v in arrays.items()}).hidden)
    inside = arrays["loss_mask"] > 0
    np.testing.assert_allclose(arrays["old_values"][inside], values[inside], atol=1e-5)
    assert len(seen) == 8 and inside.sum() == sum(sample.length for sample in seen)
    for sample in seen:
        np.testing.assert_allclose(sample.returns, sample.reward, rtol=1e-5)
    advantages = arrays["returns"][inside] - arrays["old_values"][inside]
    want = (advantages - advantages.mean()) / advantages.std(ddof=1)
    np.testing.assert_allclose(arrays["advantages"][inside], want, atol=1e-4)
    before = np.asarray(state["params"]["value"]["weight"])
    state, metrics = run.step(state, run.put(arrays))
    got = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    assert got["ratio_mean"] == pytest.approx(1, abs=1e-4) and got["clip_ratio/region_mean"] == 0
    assert got["value/clipped"] == 0 and got["value/loss"] == pytest.approx(np.square(advantages).mean() / 2, rel=1e-4)
    assert np.any(np.asarray(state["params"]["value"]["weight"]) != before)
    again = run.source.next(state["params"])
    np.testing.assert_array_equal(again["returns"], arrays["returns"])
    _, metrics = run.step(state, run.put(again))
    assert abs(float(metrics["ratio_mean"][0] / metrics["ratio_mean"][1]) - 1) > 1e-4
