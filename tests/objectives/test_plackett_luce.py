"""Ranked lists: the formula in NumPy from rewards of each answer alone, Bradley-Terry for two, ties, unequal lists."""

import collections
import types

import answers_alone as alone
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import rows as row_types
from gramjax.data.rows import Drop
from gramjax.objectives import bradley_terry
from gramjax.objectives import plackett_luce as pl

PARAMS = alone.params()
LISTS = alone.sequences(4, answers=4)


def sequential(rewards, scores):
    """-log of the probability of drawing the list best first; answers with equal scores are never drawn against."""
    out = 0.0
    for i, reward in enumerate(rewards):
        worse = [other for j, other in enumerate(rewards) if scores[j] < scores[i]]
        out -= reward - np.log(np.sum(np.exp([reward, *worse])))
    return out


def batch_of(made, scores, most=4):
    """A batch made by `encode` from rows whose answers are given tokens."""
    tokens = [[(list(ids), [float(t >= start) for t in range(len(ids))]) for ids, start in item] for item in made]
    renderer = types.SimpleNamespace(completions=lambda prompt, answers: list(answers), counts=collections.Counter())
    rows = [{"prompt": "", "responses": t, "scores": s} for t, s in zip(tokens, scores)]
    from gramjax.data import pipeline

    made = [pl.encode(row, renderer, pl.Config(max_responses=most)) for row in rows]
    batch = pipeline.collate([*[[item] for item in made], []], 16)
    return {name: jnp.asarray(x) for name, x in batch.items()}


def test_lists_of_unequal_length_with_ties_from_the_rewards_of_each_answer_alone():
    """The rows are given in any order; padded answers and rows that only fill count for nothing."""
    made = [LISTS[0], LISTS[1][:2], LISTS[2], LISTS[3][:3]]
    scores = [[1, 4, 2, 3], [0, 1], [1.5, 1.5, 0, 3], [2, 7, 2]]
    value, metrics = alone.measure(pl, PARAMS, batch_of(made, scores), pl.Config())
    rewards = alone.alone(PARAMS, LISTS)[1]
    want = [sequential(rewards[i][: len(s)], s) for i, s in enumerate(scores)]
    np.testing.assert_allclose(value, np.mean(want), rtol=1e-5)
    pairs = [(r[i], r[j]) for r, s in zip(rewards, scores) for i in range(len(s)) for j in range(len(s)) if s[i] > s[j]]
    np.testing.assert_allclose(metrics["accuracy"], np.mean([a > b for a, b in pairs]), rtol=1e-6)
    best = [rewards[i][np.argmax(s)] == max(rewards[i][: len(s)]) for i, s in enumerate(scores)]
    np.testing.assert_allclose(metrics["top_accuracy"], np.mean(best))
    everything = np.concatenate([rewards[i][: len(s)] for i, s in enumerate(scores)])
    np.testing.assert_allclose(metrics["mean_reward"], everything.mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["max_reward"] * len(scores), everything.max(), rtol=1e-5)
    held, _ = alone.measure(pl, PARAMS, batch_of(made, scores), pl.Config(l2=0.5))
    np.testing.assert_allclose(held - value, 0.25 * np.sum(everything**2) / len(scores), rtol=1e-4)


def levels(*values):
    return jnp.asarray(values)[None, :, None]


def test_two_answers_are_bradley_terry_in_value_and_gradient():
    both = jnp.ones((1, 2, 1), bool)
    ours = lambda r: pl.list_loss(r[None, :, None], levels(1, 2), both)[0, 0]  # noqa: E731
    theirs = lambda r: bradley_terry.pairwise_loss(r[0] - r[1])  # noqa: E731
    for pair in jnp.array([[0.3, -1.2], [-4.0, 2.5], [30.0, 0.0]]):
        got, want = (jax.value_and_grad(f)(pair) for f in (ours, theirs))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(got[1], want[1], atol=1e-7)


def test_a_constant_changes_nothing_and_ties_have_no_gradient_between_them():
    rewards, real = jnp.array([0.5, -1.0, 2.0, 9.0])[None, :, None], jnp.array([True, True, True, False])[None, :, None]
    loss = lambda r: jnp.sum(pl.list_loss(r, levels(1, 2, 2, 3), real))  # noqa: E731
    np.testing.assert_allclose(loss(rewards + 7.0), loss(rewards), rtol=1e-6)
    grad = jax.grad(loss)(rewards)[0, :, 0]
    np.testing.assert_allclose(grad.sum(), 0, atol=1e-6)
    assert grad[3] == 0  # no answer
    chosen = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    np.testing.assert_allclose(grad[:3], chosen - [1, 0, 0], rtol=1e-5)  # the second draw, between ties, adds nothing


def test_the_order_of_rows():
    assert pl.best_first({"responses": list("abc"), "ranking": [2, 0, 1]}) == ([2, 0, 1], [False] * 3)
    assert pl.best_first({"responses": list("abc"), "scores": [1, 3.5, 1]}) == ([1, 0, 2], [False, False, True])
    with pytest.raises(Drop, match="tied"):
        pl.best_first({"responses": list("ab"), "scores": [1, 1]})
    for wrong in ({}, {"ranking": [0, 0, 1]}, {"scores": [1, 2]}, {"scores": [1, 2, None]},
                  {"scores": [1, 2, 3], "ranking": [0, 1, 2]}):  # fmt: skip
        with pytest.raises(DataError, match="ranking|scores"):
            pl.best_first({"responses": list("abc"), **wrong})


def test_long_lists_keep_their_ends_and_their_ties():
    renderer = types.SimpleNamespace(
        completions=lambda prompt, answers: [([int(a)], [1.0]) for a in answers], counts=collections.Counter()
    )
    row = {"prompt": "", "responses": list("0123456"), "scores": [6, 5, 4, 4, 4, 2, 1]}
    made = pl.encode(row, renderer, pl.Config(max_responses=4))
    assert [int(ids[0]) for ids in made.tokens] == [0, 2, 4, 6] and made.fields == {"count": 4, "ties": 0b0100}
    assert renderer.counts == {pl.CUT: 1}
    for most in (1, 32):
        with pytest.raises(UserError, match="max_responses"):
            pl.resolve(pl.Config(max_responses=most), renderer)


def test_a_preference_pair_read_as_a_list_keeps_its_label():
    for name in "abcdef":
        row = {"id": name, "prompt": "p", "chosen": "good", "rejected": "bad", "margin": None}
        made = row_types.converted(row, row_types.PREFERENCE, row_types.RESPONSES)
        assert made["responses"][pl.best_first(made)[0][0]] == "good"
