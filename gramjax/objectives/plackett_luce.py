"""Plackett-Luce: a scalar reward model learned from ranked lists of answers.

A list is drawn best first, each time by a softmax of the rewards of the answers that remain. With r_1 ... r_K the
rewards in the order of the list:

    L = - sum_k log( exp r_k / sum_{j >= k} exp r_j )

With two answers this is the Bradley-Terry loss. Answers that are tied say nothing about each other: each is compared
with those that are worse, so the sum in the denominator runs over the answer itself and the worse ones. Adding a
constant to all rewards of a list changes nothing.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core.checks import at_least_zero
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Drop
from gramjax.data.text import example
from gramjax.models import sides

ROW_TYPES = ("responses",)
HEADS = ("score",)
MOST = 31
"""Longest list: ties are kept as the bits of one int32."""

CUT = "lists cut to max_responses"


@dataclasses.dataclass(frozen=True)
class Config:
    """The lists."""

    max_responses: int = 4
    """Answers per row that are trained on, at least 2. Shorter lists are padded to this, which costs their computation;
    of longer ones these many are kept, spread evenly over the ranks, best and worst included."""
    l2: float = 0.0
    """Factor of half the sum of squared rewards of a list, which keeps them near zero."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    at_least_zero(config, "objective", "l2")
    if not 2 <= config.max_responses <= MOST:
        raise UserError(f"config.objective.max_responses={config.max_responses} must be from 2 to {MOST}")
    return config


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The answers best first, as many sequences as `max_responses`; bit k of `ties`: answer k is tied with the last."""
    order, tied = best_first(row)
    if len(order) > config.max_responses:
        kept = np.linspace(0, len(order) - 1, config.max_responses).round().astype(int)
        levels = np.cumsum(~np.array(tied))[kept]  # one level for the tied, whichever of them are kept
        order, tied = [order[i] for i in kept], [False, *(levels[1:] == levels[:-1])]
        renderer.counts[CUT] += 1
    made = renderer.completions(row["prompt"], [row["responses"][i] for i in order])
    bits = sum(1 << k for k, same in enumerate(tied) if same)
    nothing: tuple[list[int], list[float]] = ([], [])
    return example(*made, *[nothing] * (config.max_responses - len(made)), count=len(made), ties=bits)


def best_first(row: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """The indices of the answers, best first, and which of them is tied with the one before it.

    `ranking` holds the indices in that order; `scores` a number per answer, the highest best, equal ones tied. Raises
    DataError for anything else, Drop if all answers are tied.
    """
    count = len(row["responses"])
    ranking, scores = row.get("ranking"), row.get("scores")
    if (ranking is None) == (scores is None):
        found = "neither" if ranking is None else "both"
        raise DataError(f"a list of responses needs 'ranking' (indices, best first) or 'scores'; the row has {found}")
    if ranking is not None:
        if not isinstance(ranking, list) or sorted(map(str, ranking)) != sorted(map(str, range(count))):
            raise DataError(f"'ranking' is {ranking!r}; the indices 0 to {count - 1}, best first, were expected")
        return [int(i) for i in ranking], [False] * count
    if not isinstance(scores, list) or len(scores) != count or not all(map(_is_number, scores)):
        raise DataError(f"'scores' is {scores!r}; {count} finite numbers were expected")
    order = sorted(range(count), key=lambda i: -scores[i])
    tied = [False] + [scores[i] == scores[j] for i, j in zip(order, order[1:])]
    if all(tied[1:]):
        raise Drop("all responses tied")
    return order, tied


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over lists; metrics `accuracy` (of ordered pairs), `top_accuracy` (the best has the highest reward), …"""
    rewards_BKN = sides.rewards(weights, sides.hidden_states(model, weights, batch), batch)
    place = jnp.arange(rewards_BKN.shape[1])[:, None]
    real_BKN = place < batch["count"][:, None]
    level_BKN = jnp.cumsum(1 - (batch["ties"][:, None] >> place & 1), axis=1)
    mask = batch["example_mask"]
    losses = list_loss(rewards_BKN, level_BKN, real_BKN)
    losses += config.l2 / 2 * jnp.sum(real_BKN * jnp.square(rewards_BKN), axis=1)
    worse = worse_than(level_BKN, real_BKN)
    ahead = worse & (rewards_BKN[:, :, None] > rewards_BKN[:, None])
    pairs, count, answers = jnp.sum(mask[:, None, None] * worse), jnp.sum(mask), jnp.sum(mask[:, None] * real_BKN)
    highest = lambda which: jnp.max(jnp.where(which, rewards_BKN, -jnp.inf), axis=1)  # noqa: E731
    real = real_BKN & (mask[:, None] > 0)
    return (jnp.sum(mask * losses), count), {
        "accuracy": (jnp.sum(mask[:, None, None] * ahead), pairs),
        "top_accuracy": (jnp.sum(mask * (highest(level_BKN == 1) > highest(real_BKN & (level_BKN > 1)))), count),
        "mean_reward": (jnp.sum(jnp.where(real, rewards_BKN, 0.0)), answers),
        "min_reward": (jnp.min(jnp.where(real, rewards_BKN, jnp.inf)), count),
        "max_reward": (jnp.max(jnp.where(real, rewards_BKN, -jnp.inf)), count),
    }


def worse_than(level_BKN: jax.Array, real_BKN: jax.Array) -> jax.Array:
    """[B, K, K, N]: whether both answers exist and the second stands on a later level than the first."""
    return (level_BKN[:, None] > level_BKN[:, :, None]) & real_BKN[:, None] & real_BKN[:, :, None]


def list_loss(rewards_BKN: jax.Array, level_BKN: jax.Array, real_BKN: jax.Array) -> jax.Array:
    """The loss [B, N] of every list; `level` counts from the best, tied answers have one level."""
    itself = jnp.eye(rewards_BKN.shape[1], dtype=bool)[None, :, :, None]
    among = worse_than(level_BKN, real_BKN) | itself
    remaining = jax.nn.logsumexp(jnp.where(among, rewards_BKN[:, None], -jnp.inf), axis=2)
    return jnp.sum(jnp.where(real_BKN, remaining - rewards_BKN, 0.0), axis=1)
