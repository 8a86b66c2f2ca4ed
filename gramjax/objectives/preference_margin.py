"""Margin prediction on preference representations (LRHP): how much better the chosen response is, from the column
`margin`.

Two layers on h, the representation of the pair with the chosen response first, predict the margin in standard
deviations of its data set; the loss is Huber's. The probe keeps the encoder:
--config.train.trainable="('margin/.*',)"; a full fine-tuning trains everything. Means and standard deviations come from
the training rows and stand in `objective.json` of the run, where the annotator `predict_margins` finds them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.errors import UserError
from gramjax.core.margins import Standardisation, standardisation
from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("preference",)
HEADS = ("preference", "margin")


@dataclasses.dataclass(frozen=True)
class Config:
    """The loss, and the numbers that standardise the margins."""

    huber_delta: float = 1.0
    """Error, in standard deviations, from which the loss grows linearly."""
    standardisation: Standardisation = Standardisation()
    """Mean and scale of each data set; empty: those of the training rows."""


def fit_rows(config: Config, rows: Sequence[dict[str, Any]]) -> Config:
    """The config with the means and scales of the training rows, unless they are given."""
    given = config.standardisation
    if not len(given.subsets) == len(given.means) == len(given.scales) or any(scale <= 0 for scale in given.scales):
        raise UserError("config.objective.standardisation needs as many means and (positive) scales as subsets")
    if config.huber_delta <= 0:
        raise UserError(f"config.objective.huber_delta is {config.huber_delta}; it must be above 0")
    return config if given.subsets else dataclasses.replace(config, standardisation=standardisation(rows))


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The pair with the chosen response first."""
    ids = renderer.preference(row["prompt"], row["chosen"], row["rejected"])
    return example((ids, [0.0] * len(ids)), margin=config.standardisation.standard(row))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics `mse` and `absolute_error`, in standard deviations."""
    mask = batch["example_mask"]
    learned = heads.learned_mask(batch["ends"], mask, batch["tokens"].shape[-1])
    hidden = model.forward(weights, {**batch, "learned_mask": learned}).hidden
    h = heads.representation(weights, heads.take_positions(hidden, batch["ends"]))
    error = heads.margin(weights, h) - batch["margin"]
    count = jnp.sum(mask)
    return (jnp.sum(mask * huber(error, config.huber_delta)), count), {
        "mse": (jnp.sum(mask * jnp.square(error)), count),
        "absolute_error": (jnp.sum(mask * jnp.abs(error)), count),
    }


def huber(error: jax.Array, delta: float) -> jax.Array:
    """error^2 / 2 up to `delta`, then linear, elementwise."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))
