"""GRM: the formula from logits of each answer alone, Bradley-Terry at alpha 0, and what its gradient may touch."""

import answers_alone as alone
import jax
import numpy as np
import pytest

from gramjax.core import tree
from gramjax.core.errors import UserError
from gramjax.objectives import bradley_terry, grm

PARAMS, OTHER = alone.params(0), alone.params(1)
MADE = alone.sequences(5)
BATCH = alone.batch(MADE, fill=2, margin=[0.0] * 5)


@pytest.mark.parametrize("kind", grm.REGULARIZATIONS)
def test_loss_from_the_logits_of_each_answer_alone(kind):
    config = grm.Config(regularization=kind, alpha=0.3, beta=0.2)
    reference = alone.NETWORK.pack(OTHER) if grm.needs_reference(config) else None
    value, metrics = alone.measure(grm, PARAMS, BATCH, config, reference)
    logps, rewards = alone.alone(PARAMS, MADE)
    others = alone.alone(OTHER, MADE)[0]
    h = logps[:, 0] - logps[:, 1]
    text = {
        "sft": -alone.log_sigmoid(0.2 * logps[:, 0]),
        "nll": -0.2 * logps[:, 0],
        "dpo": -alone.log_sigmoid(0.2 * (h - (others[:, 0] - others[:, 1]))),
        "dpo_noref": -alone.log_sigmoid(0.2 * h),
    }[kind]
    ranking = -alone.log_sigmoid(rewards[:, 0] - rewards[:, 1])
    np.testing.assert_allclose(value, np.mean(0.7 * ranking + 0.3 * text), rtol=1e-5)
    np.testing.assert_allclose(metrics["logps/chosen"], logps[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["logps/rejected"], logps[:, 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["regularization_loss"], text.mean(), rtol=1e-5)


def gradient(objective, config):
    def total(params):
        return objective.loss(alone.NETWORK, alone.NETWORK.pack(params), BATCH, config)[0][0]

    return tree.flatten(jax.grad(total)(PARAMS))


def test_alpha_0_is_bradley_terry_and_alpha_1_leaves_the_reward_head_alone():
    plain, none, whole = (
        gradient(bradley_terry, bradley_terry.Config()),
        gradient(grm, grm.Config(alpha=0.0)),
        gradient(grm, grm.Config(alpha=1.0)),
    )
    for path, want in plain.items():
        np.testing.assert_allclose(none[path], want, atol=1e-5, err_msg=path)
    assert not np.any(whole["score"]) and np.any(plain["score"]) and np.any(whole["layers/000/attn/q"])


def test_the_vocabulary_head_is_trained_on_request_only():
    """The matrix is tied here: rows of tokens that no input holds change through the head alone."""
    frozen = gradient(grm, grm.Config(alpha=1.0))["embed"]
    trained = gradient(grm, grm.Config(alpha=1.0, train_lm_head=True))["embed"]
    used = {int(token) for item in MADE for ids, _ in item for token in ids} | {0}
    unused = [token for token in range(alone.VOCAB) if token not in used]
    assert unused and not np.any(frozen[np.array(unused)]) and np.all(np.any(trained[np.array(unused)], axis=-1))


def test_settings_out_of_range_are_named():
    for settings, name in (({"regularization": "kl"}, "regularization"), ({"alpha": 1.5}, "alpha"),
                           ({"beta": -1.0}, "beta")):  # fmt: skip
        with pytest.raises(UserError, match=f"config.objective.{name}"):
            grm.resolve(grm.Config(**settings), None)
