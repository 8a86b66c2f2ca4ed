"""Distances, corrections and filters of the golden rollout in float64: scalar loops, to nine decimals."""

import golden_rollout as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core.policy_losses import policy_objective
from gramjax.core.reinforcement import GrpoSection

SCALED = golden.scaled()
RIGHT = golden.REWARDS == 1
ALIVE = SCALED != 0


def loss(settings, worths=SCALED, **flags):
    """In float64."""
    with jax.enable_x64(True):
        batch = golden.packed(worths, np.float64) | {name: golden.slots(flag) for name, flag in flags.items()}
        given = {name: jnp.asarray(value) for name, value in batch.items()}
        logprobs, entropies = given.pop("logprobs"), given.pop("entropies")
        (total, weight), _ = policy_objective(logprobs, entropies, given, GrpoSection(**settings))
        assert total.dtype == jnp.float64
        return float(total / weight)


def losses(**settings):
    return [golden.token_losses("dapo", i, SCALED[i], **settings) for i in range(9)]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("how", ["token", "sequence"])
def test_distances(kind, how):
    want = golden.divided([golden.distances(kind, i) for i in range(9)], how)
    settings = {"aggregation": how, "beta": 1.0, "kl_estimator": kind, "allow_k1_loss": True}
    assert loss(settings, np.zeros(9)) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(("name", "high"), [("grpo", 0.2), ("dapo", 0.28)])
def test_losses_with_distance(name, high):
    tokens = [
        [x + 0.04 * k for x, k in zip(own, golden.distances("k3", i), strict=True)]
        for i, own in enumerate(losses(epsilon_high=high))
    ]
    want = golden.divided(tokens, "sequence" if name == "grpo" else "token")
    assert loss({"loss": name, "beta": 0.04, "epsilon_high": high}) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("cap", [1.5, 2.0])
@pytest.mark.parametrize("kind", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_corrections(kind, cap):
    tokens = [
        [x * w for x, w in zip(own, golden.corrections(kind, i, cap), strict=True)] for i, own in enumerate(losses())
    ]
    got = loss({"loss": "dapo", "correction": kind, "correction_cap": cap})
    assert got == pytest.approx(golden.divided(tokens, "token"), abs=1e-9)


@pytest.mark.parametrize("how", ["token", "sequence", "sequence_sum", "constant"])
@pytest.mark.parametrize(
    ("trained", "counted"),
    [(RIGHT, None), (RIGHT, RIGHT), (~RIGHT, None), (~RIGHT, ~RIGHT), (ALIVE, ALIVE), (ALIVE & RIGHT, ALIVE)],
)
def test_filters(how, trained, counted):
    counted = np.ones(9, bool) if counted is None else counted
    got = loss({"aggregation": how}, trained=trained, counted=counted)
    assert got == pytest.approx(golden.divided(losses(), how, trained, counted), abs=1e-9)


@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("how", ["token", "sequence", "sequence_sum", "constant"])
def test_denominators(how, high):
    got = loss({"aggregation": how, "epsilon_high": high})
    assert got == pytest.approx(golden.divided(losses(epsilon_high=high), how), abs=1e-9)
