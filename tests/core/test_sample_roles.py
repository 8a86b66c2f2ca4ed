"""What becomes of a policy that learns from some of its samples: tables of logits, one per prompt, and the real losses.

An answer is one token drawn from the softmax of its prompt's table. The steps are those of plain gradient descent on
`policy_objective` with the advantages, filters and injections of `core`; 0.3 / G per sample, as in the study's
simulations, whose figures the bounds are taken from.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import advantages as worth
from gramjax.core import samples
from gramjax.core.policy_losses import policy_objective
from gramjax.core.reinforcement import GrpoSection, RewardSection

RATE = 0.3


@partial(jax.jit, static_argnames="settings")
def updated(table, batch, actions, settings):
    """The tables [R, A] after one step on answers [R, G]."""

    def loss(table):
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(table), actions, axis=-1)
        (total, _), _ = policy_objective(logprobs, jnp.zeros_like(logprobs), batch, settings)
        return total

    return table - RATE / actions.shape[1] * jax.grad(loss)(table)


def softmax(table):
    shifted = np.exp(table - table.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def draw(table, size, rng):
    """Answers [R, size]."""
    edges = np.cumsum(softmax(np.asarray(table, np.float64)), axis=-1)[:, None]
    return np.argmax(edges > rng.random((len(table), size, 1)) * edges[..., -1:], axis=-1)


class World:
    """Prompts with tables; `right` [A] says which answers are correct, `lengths` [A] how long they are."""

    def __init__(self, table, right, lengths=None, seed=0, reward=None, size=8, **settings):
        self.table, self.right = jnp.asarray(table, jnp.float32), np.asarray(right, bool)
        self.lengths = np.ones(len(self.right), int) if lengths is None else np.asarray(lengths)
        self.settings = GrpoSection(loss="grpo", aggregation="sequence_sum", group_size=size, **settings)
        self.reward, self.rng, self.dead = reward, np.random.default_rng(seed), 0.0

    def step(self):
        """Draw, inject, reward, value, select, learn; `dead` is the share of answers in groups of equal rewards."""
        count, size = len(self.table), self.settings.group_size
        groups = np.repeat(np.arange(count), size)
        actions = draw(self.table, size, self.rng).reshape(-1)
        offline = np.zeros(len(actions), np.float32)
        solutions = [[1]] * count  # the first right answer
        for one in samples.inject(self.right[actions], groups, solutions, self.settings):
            actions[one.answer], offline[one.answer] = np.argmax(self.right), 1
        correct, lengths = self.right[actions].astype(np.float64), self.lengths[actions]
        rewards = correct
        if self.reward is not None:
            rewards = correct + worth.relative_length(correct, lengths, groups, self.reward).bonus
        made = worth.estimate(rewards, groups, np.ones(len(actions)), self.settings)
        self.dead = made.dead.mean()
        chosen = samples.select(made, self.settings, self.settings.samples, correct)
        if chosen.empty:
            return
        shape = (count, size)
        places = np.broadcast_to(np.arange(1, size + 1), shape)
        batch = {"loss_mask": np.ones(shape), "segment_ids": places, "limit": np.ones(shape)}
        batch |= {"advantages": made.values, "trained": chosen.trained, "counted": chosen.counted}
        if self.settings.offline_fraction:
            batch["offline"] = offline
        batch = {name: np.reshape(x, shape).astype(int if name == "segment_ids" else np.float32)
                 for name, x in batch.items()}  # fmt: skip
        self.table = updated(self.table, batch, actions.reshape(shape), self.settings)

    def after(self, steps):
        """The world after so many more steps."""
        for _ in range(steps):
            self.step()
        return self

    @property
    def success(self):
        """Probability [R] of a right answer."""
        return softmax(np.asarray(self.table, np.float64))[:, self.right].sum(axis=-1)

    @property
    def length(self):
        """Mean length of an answer."""
        return float(np.mean(softmax(np.asarray(self.table, np.float64)) @ self.lengths))


def one_right(start, prompts=256, actions=64):
    """Tables where one answer has probability `start` and the others share the rest."""
    table = np.zeros((prompts, actions))
    table[:, 0] = np.log(start / (1 - start) * (actions - 1))
    return table, np.arange(actions) == 0


@cache
def curve(start, word, *steps):
    """pass@1 at each of the steps."""
    world, done, found = World(*one_right(start), samples=word), 0, []
    assert world.success.mean() == pytest.approx(start)
    for step in steps:
        found.append(world.after(step - done).success.mean())
        done = step
    return found


def test_from_nearly_nothing_only_positive_samples_help():
    assert curve(0.05, "positive", 200)[0] >= 0.8
    assert curve(0.05, "negative", 200)[0] <= 0.15


def test_from_a_good_start_negative_samples_do_as_well_as_all_and_positive_ones_stall():
    (negative,), (positive,), (both,) = (curve(0.7, word, 50) for word in ("negative", "positive", "all"))
    assert negative >= 0.94 and negative >= positive + 0.05
    assert abs(negative - both) < 0.02


def test_in_between_positive_samples_lead_at_first_and_negative_ones_later():
    positive, negative = (curve(0.3, word, 25, 100) for word in ("positive", "negative"))
    assert positive[0] > negative[0]
    assert negative[1] > positive[1]


def test_negative_samples_do_not_take_away_from_what_several_answers_find():
    """pass@8 rises at every logged point to nearly 1."""
    table = np.random.default_rng(0).normal(0, 0.5, size=(256, 16))
    world, seen = World(table, np.arange(16) < 4, samples="negative"), []
    for _ in range(12):
        seen.append(np.mean(1 - (1 - world.success) ** 8))
        world.after(10)
    seen.append(np.mean(1 - (1 - world.success) ** 8))
    assert 0.86 < seen[0] < 0.91
    assert np.all(np.diff(seen) >= -1e-4) and seen[-1] > 0.99


def test_the_relative_length_reward_shortens_answers_and_wakes_dead_groups():
    """Ten lengths, right or wrong: half the length or less with no fewer right answers; plain rewards leave it."""
    lengths, right = np.tile(np.arange(1, 11) * 400, 2), np.arange(20) < 10
    table = np.where(right, np.log(0.924 / 0.076), 0.0) * np.ones((128, 1))
    reward = RewardSection(relative_length=True)
    plain, shorter = (World(table, right, lengths, reward=chosen) for chosen in (None, reward))
    before, success = plain.length, plain.success.mean()
    assert success == pytest.approx(0.924)
    dead = [world.after(1).dead for world in (plain, shorter)]
    assert dead[0] == pytest.approx(0.53, abs=0.12) and dead[1] < 0.05
    for world in (plain, shorter):
        world.after(149)
    assert shorter.length <= 0.5 * before and shorter.success.mean() >= success
    assert abs(plain.length / before - 1) < 0.02


def test_solutions_from_elsewhere_teach_what_is_hardly_ever_drawn():
    table, right = one_right(0.003, prompts=96)
    alone = World(table, right, size=16).after(300)
    helped = World(table, right, size=16, offline_fraction=0.125).after(300)
    assert helped.success.mean() >= 0.8 and alone.success.mean() <= 0.5
