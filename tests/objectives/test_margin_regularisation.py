"""GRAM's learning check S2: smoothing holds the margin at its optimum, costs no accuracy on clean labels, and makes a
judge of noisy labels honest. That it makes one more accurate is not claimed: here it does not.

The table (two noises, three eps, three seeds) is `margin_world.py` beside this file; its numbers are in docs/gram.md.
"""

import math

import margin_world
import pytest


@pytest.fixture(scope="module")
def clean():
    """Trained on clean labels without smoothing."""
    return margin_world.run(0, 0.0)


@pytest.mark.parametrize("eps", [0.05, 0.1])
def test_the_margin_lands_on_the_optimum_and_accuracy_stays(clean, eps):
    smoothed = margin_world.run(0, eps)
    optimum = math.log((1 - eps) / eps)
    assert smoothed["margin_train"] == pytest.approx(optimum, rel=0.03)
    assert smoothed["accuracy"] >= clean["accuracy"] - 0.005
    assert clean["margin_train"] > 5 * optimum, "without smoothing there is no optimum: the margin grows and grows"


def test_under_noise_the_likelihood_of_the_truth_rises():
    plain, smoothed = (margin_world.run(0, eps, noise=0.2) for eps in (0.0, 0.05))
    assert smoothed["nll"] <= plain["nll"] - 0.15
    assert smoothed["margin_test"] < plain["margin_test"]
