"""GRAM's verdict loss: the identities of the paper, its gradients and its optimum."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax.core.errors import UserError
from gramjax.core.preference_losses import pairwise_loss
from gramjax.models import heads
from gramjax.objectives import generative_preference as gram

EPS = (0.0, 0.05, 0.1, 0.15)
VOCAB, IDS = 7, (5, 2)


class FreeLogits:
    """A model whose vocabulary logits at the verdict position are free parameters: hidden states times identity."""

    logit_chunk = 8

    def forward(self, weights, batch):
        return types.SimpleNamespace(hidden=weights["hidden"])


def run_loss(logits_BV, verdict, **settings):
    """The objective's mean loss on given logits, one token per row."""
    weights = {"hidden": logits_BV[:, None, :], "embed": jnp.eye(VOCAB)}
    count = len(verdict)
    batch = {
        "ends": jnp.zeros((count, 1), jnp.int32),
        "verdict": jnp.asarray(verdict)[:, None],
        "example_mask": jnp.ones((count, 1)),
    }
    config = gram.Config(verdict_ids=IDS, **settings)
    (total, weight), metrics = gram.loss(FreeLogits(), weights, batch, config)
    return total / weight, metrics


def two_label_nll(z_2, right, eps):
    """Equation (1), written out: cross-entropy of the target (1 - eps, eps) with a softmax over two logits."""
    logp = jax.nn.log_softmax(z_2)
    return -(1 - eps) * logp[right] - eps * logp[1 - right]


@pytest.mark.parametrize("eps", EPS)
def test_smoothed_verdict_nll_is_a_regularised_bradley_terry_loss(eps):
    """V1, V2: equation (1) equals -log sigmoid(d) + eps d, in value and in gradient over every logit."""
    logits = 3 * jax.random.normal(jax.random.key(0), (40, VOCAB))
    verdict = np.arange(40) % 2

    def direct(logits):
        return jnp.mean(jnp.stack([two_label_nll(logits[i, list(IDS)], int(v), eps) for i, v in enumerate(verdict)]))

    def ours(logits):
        return run_loss(logits, verdict, label_smoothing=eps)[0]

    (a, grad_a), (b, grad_b) = jax.value_and_grad(direct)(logits), jax.value_and_grad(ours)(logits)
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(grad_a, grad_b, atol=1e-7)
    right, wrong = np.asarray(IDS)[verdict], np.asarray(IDS)[1 - verdict]
    rows = np.arange(40)
    d = np.asarray(logits)[rows, right] - np.asarray(logits)[rows, wrong]
    np.testing.assert_allclose(40 * grad_b[rows, right], 1 / (1 + np.exp(-d)) - (1 - eps), atol=1e-6)
    np.testing.assert_allclose(grad_b[rows, right], -grad_b[rows, wrong], atol=1e-7)
    others = np.delete(np.arange(VOCAB), IDS)
    assert not np.any(grad_b[:, others])


@pytest.mark.parametrize("eps", EPS)
def test_full_vocabulary_adds_the_format_term_only(eps):
    """V3: with the softmax over the vocabulary the loss is equation (2) minus log of the mass on both verdicts."""
    logits = jax.random.normal(jax.random.key(1), (1, VOCAB))
    target = np.zeros(VOCAB)
    target[IDS[0]], target[IDS[1]] = 1 - eps, eps

    def ours(logits):
        return run_loss(logits, [0], label_smoothing=eps, label_space="full")[0]

    logp = jax.nn.log_softmax(logits[0])
    np.testing.assert_allclose(ours(logits), -np.sum(target * logp), atol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(logits)[0], jnp.exp(logp) - target, atol=1e-5)


@pytest.mark.parametrize("eps", EPS[1:])
def test_descent_reaches_the_finite_optimum(eps):
    """V4: d* = log((1 - eps) / eps), and the loss there is the binary entropy of eps."""
    tx = optax.adam(0.05)

    def step(carry, _):
        d, state = carry
        loss, grad = jax.value_and_grad(lambda d: gram.verdict_loss(d, eps))(d)
        update, state = tx.update(grad, state)
        return (d + update, state), loss

    d0 = jnp.zeros(())
    (d, _), losses = jax.lax.scan(step, (d0, tx.init(d0)), None, length=1500)
    np.testing.assert_allclose(d, np.log((1 - eps) / eps), atol=1e-3)
    np.testing.assert_allclose(losses[-1], -(1 - eps) * np.log(1 - eps) - eps * np.log(eps), atol=1e-4)


def test_published_table_of_optima():
    table = {0.025: 3.6636, 0.05: 2.9444, 0.075: 2.5123, 0.10: 2.1972, 0.15: 1.7346}
    for eps, optimum in table.items():
        slope = jax.grad(gram.verdict_loss)(jnp.float32(optimum), eps)
        np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_framework_smoothing_is_twice_the_flip_probability():
    """V5: alpha spread uniformly over two classes equals a flip probability of alpha / 2."""
    logits = jax.random.normal(jax.random.key(2), (8, VOCAB))
    verdict = np.arange(8) % 2
    uniform = run_loss(logits, verdict, label_smoothing=0.1, smoothing_convention="uniform")[0]
    flip = run_loss(logits, verdict, label_smoothing=0.05, smoothing_convention="flip")[0]
    np.testing.assert_allclose(uniform, flip, atol=1e-7)
    want = optax.softmax_cross_entropy(
        logits[:, list(IDS)], optax.smooth_labels(jax.nn.one_hot(jnp.asarray(verdict), 2), 0.1)
    ).mean()
    np.testing.assert_allclose(uniform, want, atol=1e-6)


def test_judge_and_scalar_model_share_one_loss():
    """V6: the verdict loss and the label-smoothed Bradley-Terry loss are one function of the margin."""
    d = jnp.linspace(-5, 5, 41)
    np.testing.assert_allclose(gram.verdict_loss(d, 0.1), pairwise_loss(d, 0.1), atol=1e-6)
    eps = 0.1
    smoothed = -(1 - eps) * jax.nn.log_sigmoid(d) - eps * jax.nn.log_sigmoid(-d)
    np.testing.assert_allclose(pairwise_loss(d, eps), smoothed, atol=1e-5)


def test_two_columns_equal_the_whole_output_matrix():
    """V11: verdict logits never form the vocabulary and are the same numbers, tied or not."""
    hidden = jax.random.normal(jax.random.key(3), (2, 3, 16))
    table = jax.random.normal(jax.random.key(4), (VOCAB, 16))
    for weights in ({"embed": table}, {"embed": table, "lm_head": jnp.flip(table, 0).T}):
        want = heads.logits(weights, hidden)[..., list(IDS)]
        np.testing.assert_allclose(heads.verdict_logits(weights, hidden, IDS), want, atol=1e-5)


def test_masked_examples_count_for_nothing():
    logits = jax.random.normal(jax.random.key(5), (4, VOCAB))
    weights = {"hidden": logits[:, None, :], "embed": jnp.eye(VOCAB)}
    batch = {"ends": jnp.zeros((4, 1), jnp.int32), "verdict": jnp.array([[0], [1], [0], [0]])}
    mask = jnp.array([[1.0], [1.0], [0.0], [0.0]])
    config = gram.Config(verdict_ids=IDS)
    (total, weight), metrics = gram.loss(FreeLogits(), weights, {**batch, "example_mask": mask}, config)
    want, _ = run_loss(logits[:2], [0, 1])
    np.testing.assert_allclose(total / weight, want, atol=1e-6)
    assert weight == 2 and metrics["accuracy"][1] == 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"stage": "train"}, "stage"),
        ({"smoothing_convention": "alpha"}, "smoothing_convention"),
        ({"label_space": "all"}, "label_space"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, word):
    with pytest.raises(UserError, match=word):
        gram.resolve(gram.Config(**settings), types.SimpleNamespace(verdict_ids=IDS))


def test_dpo_between_the_verdicts_is_dpo_on_their_log_probabilities():
    """From the log-softmax over the whole vocabulary, whose normaliser must cancel; log 2 where both models agree."""
    policy, other = 3 * jax.random.normal(jax.random.key(3), (2, 6, VOCAB))
    verdict = np.arange(6) % 2
    batch = {
        "ends": jnp.zeros((6, 1), jnp.int32), "verdict": jnp.asarray(verdict)[:, None], "example_mask": jnp.ones((6, 1))
    }  # fmt: skip
    config = gram.resolve(gram.Config(dpo_beta=0.3, label_smoothing=0.0), types.SimpleNamespace(verdict_ids=IDS))
    weights = [{"hidden": logits[:, None, :], "embed": jnp.eye(VOCAB)} for logits in (policy, other)]
    (total, count), _ = gram.loss(FreeLogits(), weights[0], batch, config, weights[1])
    logp, logref = jax.nn.log_softmax(policy), jax.nn.log_softmax(other)
    ratio = np.asarray(logp - logref)
    right, wrong = (np.array([ratio[i, IDS[v ^ flip]] for i, v in enumerate(verdict)]) for flip in (0, 1))
    np.testing.assert_allclose(total / count, np.mean(np.log1p(np.exp(-0.3 * (right - wrong)))), rtol=1e-5)
    (same, _), _ = gram.loss(FreeLogits(), weights[0], batch, config, weights[0])
    np.testing.assert_allclose(same / count, np.log(2), rtol=1e-6)
    with pytest.raises(UserError, match="dpo_beta"):
        gram.resolve(gram.Config(dpo_beta=0.3, stage="pretrain"), None)
