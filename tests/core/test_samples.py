"""Which answers are learned from: filters and their schedule, truncated and dead ones, solutions from elsewhere."""

import math

import numpy as np
import pytest

from gramjax.core import advantages as worth
from gramjax.core import samples
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection

NAN = float("nan")
CORRECT = np.array([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], np.float64)
"""Right or wrong."""
GROUPS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
"""Mixed, mixed, all right, all wrong."""


def section(**settings):
    return GrpoSection(**settings)


def valued(correct=CORRECT, groups=GROUPS, **settings):
    return worth.estimate(correct, groups, np.full(len(correct), 3), section(**settings))


def chosen(word="all", correct=CORRECT, made=None, rng=None, **settings):
    """Numbers of the answers that are trained, and of those that are counted."""
    made = valued(**settings) if made is None else made
    got = samples.select(made, section(**settings), word, correct, rng=rng)
    return np.flatnonzero(got.trained).tolist(), np.flatnonzero(got.counted).tolist()


EVERYONE = list(range(12))
RIGHT, WRONG = np.flatnonzero(CORRECT == 1).tolist(), np.flatnonzero(CORRECT == 0).tolist()


@pytest.mark.smoke
def test_filters_keep_what_they_say():
    """Dead groups of the kept class stay; the denominators are those of all answers, or of the kept ones."""
    assert chosen() == (EVERYONE, EVERYONE)
    assert chosen("positive") == (RIGHT, EVERYONE)
    assert chosen("negative") == (WRONG, EVERYONE)
    assert chosen("positive", filter_denominator="kept") == (RIGHT, RIGHT)
    assert chosen("negative", filter_denominator="kept") == (WRONG, WRONG)
    assert 6 in RIGHT and 8 in WRONG  # of the dead groups


def test_the_sign_of_the_advantage_is_another_filter():
    """A dead group is on neither side; a right answer may be worth less than nothing when length counts."""
    assert chosen("positive", samples_by="advantage")[0] == [0, 4, 5]
    assert chosen("negative", samples_by="advantage")[0] == [1, 2, 3]
    made = valued(np.array([1.5, 0.5, 1.0]), np.zeros(3))
    right = np.ones(3)
    assert chosen("positive", right, made, samples_by="advantage")[0] == [0]
    assert chosen("positive", right, made)[0] == [0, 1, 2]


def test_dead_groups_are_kept_dropped_or_renormalised():
    alive = [0, 1, 2, 3, 4, 5]
    assert chosen(zero_variance="keep") == (EVERYONE, EVERYONE)
    assert chosen(zero_variance="drop") == (alive, EVERYONE)
    assert chosen(zero_variance="renormalise") == (alive, alive)
    assert chosen(zero_variance="resample") == (alive, alive)
    assert chosen("negative", zero_variance="renormalise") == ([1, 2, 3], alive)
    assert chosen("negative", zero_variance="drop", filter_denominator="kept") == ([1, 2, 3], WRONG)


def test_nothing_to_learn_is_a_step_to_skip():
    """Of all answers wrong, positive ones only: empty. Dead groups alone: empty, unless distance or entropy count."""
    wrong = np.zeros(6)
    made = valued(wrong, np.arange(6) // 3)

    def of(word, **settings):
        return samples.select(made, section(**settings), word, wrong)

    assert of("positive").empty and of("positive", filter_denominator="kept").empty
    assert of("positive", beta=0.1, entropy_coef=0.1).empty
    assert of("negative").empty and of("all").empty
    assert not of("negative", beta=0.1).empty and not of("all", entropy_coef=0.01).empty
    assert of("all", beta=0.1, kl_in="reward").empty
    assert of("all", beta=0.1, zero_variance="drop").empty
    assert not samples.select(valued(), section(), "all", CORRECT).empty


def test_answers_that_nobody_judged_are_left_out_altogether():
    correct = np.array([1, 0, NAN, NAN, 1, 1])
    made = valued(correct, np.arange(6) // 3)
    assert chosen("all", correct, made) == ([0, 1, 4, 5], [0, 1, 4, 5])
    assert chosen("negative", correct, made) == ([1], [0, 1, 4, 5])
    nobody = valued(np.full(3, NAN), np.zeros(3))
    assert samples.select(nobody, section(), "all", np.full(3, NAN)).empty


def test_some_answers_of_the_other_kind_may_stay():
    correct = np.tile([1.0, 0.0], 2000)
    made = valued(correct, np.arange(4000) // 4)
    rng = np.random.default_rng(0)
    trained, _ = chosen("positive", correct, made, rng, filter_keep_prob=0.25)
    kept = correct[trained]
    assert kept.sum() == 2000
    assert abs(len(kept) - 2000 - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)
    with pytest.raises(ValueError, match="random generator"):
        samples.select(made, section(filter_keep_prob=0.25), "positive", correct)


def test_the_filter_changes_by_schedule():
    settings = section(samples="positive", samples_schedule=("200:all", "50: negative"))
    assert [samples.samples_at(settings, step) for step in (0, 49, 50, 199, 200, 10_000)] == [
        "positive", "positive", "negative", "negative", "all", "all",
    ]  # fmt: skip
    for entry in ("negative", "a:all", "-3:all", "5:some", "5:"):
        with pytest.raises(UserError, match="config.grpo.samples_schedule"):
            samples.schedule(section(samples_schedule=(entry,)))
    with pytest.raises(UserError, match="names a step twice"):
        samples.schedule(section(samples_schedule=("5:all", "5:negative")))


def test_truncated_answers():
    """Wrong ones that do not go round in circles, as intended; or just those that do, as the study's code did."""
    correct = np.array([1, 0, 0, 0, NAN])
    cut, loops = np.array([1, 1, 1, 0, 1], bool), np.array([0, 0, 1, 1, 0], bool)
    masked = {
        word: np.flatnonzero(samples.truncated_mask(word, cut, correct, loops)).tolist() for word in samples.TRUNCATED
    }
    assert masked == {"none": [], "all": [0, 1, 2, 4], "wrong": [1, 4], "wrong_repetitive": [2]}
    made = valued(np.array([1, 0, 0, 0, 1.0]), np.zeros(5))
    got = samples.select(made, section(mask_truncated="wrong"), "all", correct, cut, loops)
    assert got.trained.tolist() == [1, 0, 1, 1, 0] and got.counted.tolist() == [1] * 5
    assert made.values[1] != 0  # it still was one of the group
    kept = section(mask_truncated="wrong", filter_denominator="kept")
    assert samples.select(made, kept, "all", correct, cut, loops).counted.tolist() == [1, 0, 1, 1, 0]


def test_repetition_is_the_share_of_word_sequences_seen_before():
    assert samples.repeated_share(range(100)) == 0
    assert samples.repeated_share([7] * 29) == pytest.approx(0.9)
    assert samples.repeated_share([7] * 19) == 0  # shorter than one n-gram
    assert samples.repeated_share([1, 2, 1, 2, 1], n=2) == pytest.approx(0.5)
    assert samples.repeats(list(range(20)) * 5) and not samples.repeats(list(range(200)))
    assert not samples.repeats(list(range(60)) * 2)


def placed(correct, groups, solutions, limit=0, **settings):
    """(answer, solution) of every injection."""
    made = samples.inject(correct, groups, solutions, section(offline_fraction=0.125, **settings), limit)
    return [(one.answer, one.solution) for one in made]


def test_the_first_wrong_answers_of_hard_groups_are_replaced_by_the_first_solutions_that_fit():
    hard = [0, 0, 0, 1, 0, 0, 0, 0]  # 1 of 8 is at the bound
    assert placed(hard, [0] * 8, [[5, 6]]) == [(0, 0), (1, 1)]
    assert placed([1, 0, 0, 0, 0, 0, 0, 0], [0] * 8, [[5, 6]]) == [(1, 0), (2, 1)]
    assert placed([0, 0, 1, 1, 0, 0, 0, 0], [0] * 8, [[5, 6]]) == []
    assert placed(hard, [0] * 8, [[5, 99, 6]], limit=10) == [(0, 0), (1, 2)]
    assert placed(hard, [0] * 8, [[99]], limit=98) == []
    assert placed(hard, [0] * 8, [[98]], limit=98) == [(0, 0)]
    assert placed(hard, [0] * 8, [[5, 6, 7]], offline_per_prompt=1) == [(0, 0)]
    assert placed(hard, [0] * 8, [[1] * 20]) == [(i, k) for k, i in enumerate([0, 1, 2, 4, 5, 6, 7])]
    assert samples.inject(hard, [0] * 8, [[5]], section()) == []


def test_solutions_go_to_their_own_group_and_not_in_the_place_of_answers_nobody_judged():
    groups = [1, 0, 1, 0, 1, 0]
    assert placed([0, 1, 0, 1, 0, 1], groups, [[5], [6, 7]]) == [(0, 0), (2, 1)]
    assert placed([NAN, 0, 0, 0, 0, 0], groups, [[5], [6]]) == [(2, 0), (1, 0)]
    assert placed([NAN, 0, NAN, 0, NAN, 0], groups, [[], [6]]) == []


@pytest.mark.parametrize("size", [8, 16])
def test_one_solution_among_wrong_answers(size):
    """It is worth (G - 1) / sqrt(G), each of the others -1 / sqrt(G): a dead group comes to life."""
    correct = np.zeros(size)
    assert valued(correct, np.zeros(size)).dead.all()
    (place,) = samples.inject(correct, np.zeros(size, int), [[4]], section(offline_fraction=0.125))
    correct[place.answer] = 1
    made = valued(correct, np.zeros(size), advantage_epsilon=0.0)
    assert made.values[place.answer] == pytest.approx((size - 1) / math.sqrt(size), abs=1e-5)
    np.testing.assert_allclose(np.delete(made.values, place.answer), -1 / math.sqrt(size), atol=1e-5)
