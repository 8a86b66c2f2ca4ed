"""Check S4 of LRHP: in a world of hidden criteria the encoder finds the pairs of a criterion that nobody named."""

import functools

import criteria_world as world
import pytest


@functools.cache
def found():
    """One seed, a target set of two of the four criteria."""
    return world.run(0, criteria=(0, 2))


def test_the_encoder_learns_the_order():
    assert found()["order_accuracy"] >= 0.90 and found()["order_correlation"] >= 0.9
    assert found()["criterion_probe"] >= 0.85 and found()["effective_rank"] > 8, "h has not collapsed onto the order"


@pytest.mark.parametrize("how", ["centroid", "neighbours", "deflated", "diverse"])
def test_selections_by_representation_find_the_criterion(how):
    assert found()[f"precision_{how}"] >= 0.85
    assert found()[f"precision_{how}"] >= found()["precision_difference"] + 0.25


def test_baselines_do_worse_and_chance_is_a_quarter():
    assert found()["precision_random"] == pytest.approx(0.25, abs=0.05)
    for name in ("difference", "untrained"):
        assert found()[f"precision_{name}"] <= 0.7, name
    assert found()["recall_adaptive"] >= 0.9 and found()["precision_adaptive"] >= 0.45


def test_a_reward_model_of_a_tenth_beats_one_of_all():
    assert found()["reward_neighbours"] >= found()["reward_random"] + 0.15
    assert found()["reward_neighbours"] >= found()["reward_all"] + 0.15


def test_a_ridge_head_predicts_margins_better_than_the_logit():
    assert found()["margin_ridge"] >= max(0.5, found()["margin_logit"])
