"""The scalar reward objective: margin, smoothing, centring, and reading the right position."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core.errors import UserError
from gramjax.core.preference_losses import pairwise_loss
from gramjax.objectives import bradley_terry as bt
from gramjax.objectives import generative_preference as gram


class FreeRewards:
    """A model whose hidden state is one number per token, so that the score head shows which token was read."""

    def forward(self, weights, batch):
        return types.SimpleNamespace(hidden=batch["tokens"][..., None].astype(jnp.float32))


def run_loss(tokens_B2T, ends_B2, margin=None, mask=None, **settings):
    tokens = jnp.asarray(tokens_B2T)
    B = tokens.shape[0]
    batch = {
        "tokens": tokens,
        "segment_ids": jnp.ones_like(tokens),
        "positions": jnp.zeros_like(tokens),
        "ends": jnp.asarray(ends_B2)[..., None],
        "margin": jnp.zeros((B, 1)) if margin is None else jnp.asarray(margin)[:, None],
        "example_mask": jnp.ones((B, 1)) if mask is None else jnp.asarray(mask)[:, None],
    }
    (total, weight), metrics = bt.loss(FreeRewards(), {"score": jnp.ones((1, 1))}, batch, bt.Config(**settings))
    return total / weight, {
        name: float(t / w) if name[:3] not in ("min", "max") else float(t) for name, (t, w) in metrics.items()
    }


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_rewards_are_read_at_the_last_token_of_each_side():
    value, metrics = run_loss([[[1, 5, 9], [2, 3, 0]]], [[1, 0]])
    np.testing.assert_allclose(value, -log_sigmoid(5 - 2), rtol=1e-6)
    assert metrics["accuracy"] == 1 and metrics["margin"] == 3
    assert (metrics["min_reward"], metrics["mean_reward"], metrics["max_reward"]) == (2, 3.5, 5)


def test_margin_is_subtracted_from_the_difference():
    value, _ = run_loss([[[4], [1]]], [[0, 0]], margin=[2.0])
    np.testing.assert_allclose(value, -log_sigmoid(1), rtol=1e-6)


def test_label_smoothing_and_centring():
    eps, center = 0.1, 0.01
    value, _ = run_loss([[[4], [1]]], [[0, 0]], label_smoothing=eps, center_rewards_coefficient=center)
    want = -(1 - eps) * log_sigmoid(3) - eps * log_sigmoid(-3) + center * 25
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_a_tie_is_not_correct_and_fill_rows_do_not_count():
    value, metrics = run_loss([[[2], [2]], [[9], [0]]], [[0, 0], [0, 0]], mask=[1.0, 0.0])
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert metrics["accuracy"] == 0 and metrics["max_reward"] == 2


def test_gradient_pushes_the_sides_apart_equally():
    grad = jax.grad(lambda d: pairwise_loss(d[0] - d[1]))(jnp.array([0.3, 0.1]))
    np.testing.assert_allclose(grad[0], -grad[1])
    assert grad[0] < 0


def test_use_margin_without_the_column_names_the_row():
    renderer = types.SimpleNamespace(completion=lambda prompt, answer: ([1], np.zeros(1)))
    row = {"id": "r7", "prompt": "p", "chosen": "a", "rejected": "b", "margin": None}
    with pytest.raises(UserError, match="r7.*margin"):
        bt.encode(row, renderer, bt.Config(use_margin=True))


def test_terms_that_hold_the_rewards_where_they_are():
    """Chosen 4, rejected 1: the ranking loss, then -log sigmoid(4) and half the squares on top of it."""
    plain, _ = run_loss([[[4], [1]]], [[0, 0]])
    value, _ = run_loss([[[4], [1]]], [[0, 0]], posreg=0.5)
    np.testing.assert_allclose(value - plain, -0.5 * log_sigmoid(4), rtol=1e-4)
    value, _ = run_loss([[[4], [1]]], [[0, 0]], l2=0.01)
    np.testing.assert_allclose(value - plain, 0.01 * (16 + 1) / 2, rtol=1e-4)


def test_both_conventions_of_smoothing_and_the_verdict_loss_are_one_loss():
    """V6: rewards that differ by d and verdict logits that differ by d have one loss; alpha 0.2 is eps 0.1."""
    flip, _ = run_loss([[[4], [1]]], [[0, 0]], label_smoothing=0.1)
    uniform, _ = run_loss([[[4], [1]]], [[0, 0]], label_smoothing=0.2, smoothing_convention="uniform")
    np.testing.assert_allclose(uniform, flip)
    np.testing.assert_allclose(flip, gram.verdict_loss(jnp.float32(3), 0.1), rtol=1e-6)


def test_settings_out_of_range_are_refused():
    for settings in ({"label_smoothing": 0.5}, {"l2": -1.0}, {"smoothing_convention": "coin"}):
        with pytest.raises(UserError, match=f"config.objective.{next(iter(settings))}"):
            bt.resolve(bt.Config(**settings), None)
