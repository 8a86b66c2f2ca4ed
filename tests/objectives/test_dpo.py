"""DPO: the formulas from logits of each answer alone, what happens at the reference, and TRL's metrics."""

import types

import answers_alone as alone
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import tree
from gramjax.core.errors import UserError
from gramjax.objectives import bradley_terry, dpo

POLICY, REFERENCE = alone.params(0), alone.params(1)
MADE = alone.sequences(5)
MARGINS = [0.5, 1.0, 0.0, 2.0, 0.25]
BATCH = alone.batch(MADE, fill=2, margin=MARGINS)


def direct(config):
    """Loss and implicit rewards [5, 2] in NumPy, from `alone`."""
    logps, others = alone.alone(POLICY, MADE)[0], alone.alone(REFERENCE, MADE)[0]
    ratios = logps - (0 if config.reference_free else others)
    if config.loss == "ipo":
        ratios = ratios / [[len(ids) - start for ids, start in item] for item in MADE]
    h, eps = ratios[:, 0] - ratios[:, 1], config.label_smoothing
    d = config.beta * h - config.margin_weight * np.array(MARGINS)
    losses = {
        "sigmoid": -(1 - eps) * alone.log_sigmoid(d) - eps * alone.log_sigmoid(-d),
        "hinge": np.maximum(0, 1 - d),
        "ipo": (h - 1 / (2 * config.beta)) ** 2,
    }[config.loss]
    return losses.mean(), config.beta * ratios, logps


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.1, "beta": 0.5},
        {"margin_weight": 0.5},
        {"loss": "hinge", "margin_weight": 0.5},
        {"loss": "ipo", "beta": 0.3},
        {"reference_free": True},
    ],
    ids=str,
)
def test_loss_and_metrics_from_the_logits_of_each_answer_alone(settings):
    config = dpo.resolve(dpo.Config(**settings), None)
    value, metrics = alone.measure(dpo, POLICY, BATCH, config, alone.NETWORK.pack(REFERENCE))
    want, rewards, logps = direct(config)
    np.testing.assert_allclose(value, want, rtol=2e-5)
    for side, name in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(metrics[f"rewards/{name}"], rewards[:, side].mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics[f"logps/{name}"], logps[:, side].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/margins"], (rewards[:, 0] - rewards[:, 1]).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/accuracies"], (rewards[:, 0] > rewards[:, 1]).mean())


def test_the_loss_starts_at_log_2_and_no_pair_is_right_there():
    value, metrics = alone.measure(dpo, POLICY, BATCH, dpo.Config(), alone.NETWORK.pack(POLICY))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert metrics["rewards/margins"] == 0 and metrics["rewards/accuracies"] == 0


def test_the_reference_gets_no_gradient_and_the_policy_that_of_the_weighted_log_likelihoods():
    """At the reference, sigmoid(-d) is 1/2: the gradient is -beta/2 times that of log pi(chosen) - log pi(rejected)."""

    def total(policy, reference):
        packed = (alone.NETWORK.pack(policy), alone.NETWORK.pack(reference))
        return dpo.loss(alone.NETWORK, packed[0], BATCH, dpo.Config(beta=0.4), packed[1])[0][0]

    def difference(policy):
        logps = dpo.answer_logprobs(alone.NETWORK, alone.NETWORK.pack(policy), BATCH)
        return jnp.sum(BATCH["example_mask"] * (logps[:, 0] - logps[:, 1]))

    policy, reference = jax.jit(jax.grad(total, (0, 1)))(POLICY, POLICY)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(reference))
    want = tree.flatten(jax.jit(jax.grad(difference))(POLICY))
    for path, leaf in tree.flatten(policy).items():
        np.testing.assert_allclose(leaf, -0.2 * want[path], atol=1e-4, err_msg=path)


def test_dpo_is_bradley_terry_on_implicit_rewards():
    """V6, for implicit rewards: the same function of the difference, margin and smoothing included."""
    difference = jnp.linspace(-4, 4, 9)
    got = dpo.pair_loss(difference, dpo.Config(label_smoothing=0.2))
    np.testing.assert_allclose(got, bradley_terry.pairwise_loss(difference, 0.2))


def test_torch_gives_the_same_losses():
    torch = pytest.importorskip("torch")
    d = np.linspace(-3, 3, 7, dtype=np.float32)
    want = {
        "sigmoid": -torch.nn.functional.logsigmoid(torch.tensor(d)),
        "hinge": torch.relu(1 - torch.tensor(d)),
        "ipo": (torch.tensor(d) / 0.1 - 1 / (2 * 0.1)) ** 2,
    }
    for name, values in want.items():
        np.testing.assert_allclose(dpo.pair_loss(jnp.asarray(d), dpo.Config(loss=name)), values.numpy(), rtol=1e-5)


def test_contradictions_and_missing_margins_are_named():
    for settings, name in (
        ({"loss": "kto"}, "loss"),
        ({"beta": 0.0}, "beta"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "ipo", "margin_weight": 0.1}, "margin_weight"),
    ):
        with pytest.raises(UserError, match=f"config.objective.{name}"):
            dpo.resolve(dpo.Config(**settings), None)
    renderer = types.SimpleNamespace(completion_pair=lambda *texts: (([1], [0.0]), ([1], [0.0])))
    row = {"id": "r7", "prompt": "p", "chosen": "a", "rejected": "b", "margin": None}
    with pytest.raises(UserError, match="r7.*margin_weight"):
        dpo.encode(row, renderer, dpo.Config(margin_weight=0.5))
    assert dpo.encode(row, renderer, dpo.Config()).fields == {"margin": 0.0}
