"""Margin prediction on preference representations (LRHP): how much better the chosen response is, from the column
`margin`.

Two layers on h, the representation of the pair with the chosen response first, predict the margin m in standard
deviations of its data set. The loss is Huber's, or with `bins` that of an ordinal model, which only asks in which bin
the margin lies: with the edges e_k at equal shares of the training rows, and f the prediction,

    L = mean over k of -log sigmoid(4 (f - e_k) (m > e_k ? 1 : -1))

so that f stays on the scale of the margins whatever their tails are. The probe keeps the encoder:
--config.train.trainable="('margin/.*',)"; a full fine-tuning trains everything. Means and standard deviations come from
the training rows and stand in `objective.json` of the run, where the annotator `predict_margins` finds them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core.errors import UserError
from gramjax.core.margins import Standardisation, standardisation
from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("preference",)
HEADS = ("preference", "margin")
SLOPE = 4.0
"""How fast the ordinal model's probabilities change: from 0.12 to 0.88 within a standard deviation."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The loss, and the numbers that standardise the margins."""

    huber_delta: float = 1.0
    """Error, in standard deviations, from which the loss grows linearly."""
    bins: int = 0
    """0: Huber's loss; 2 or more: ordinal bins instead."""
    edges: tuple[float, ...] = ()
    """Of the bins, in standard deviations, ascending; empty: the bins hold equal shares of the training rows."""
    standardisation: Standardisation = Standardisation()
    """Mean and scale of each data set; empty: those of the training rows."""


def fit_rows(config: Config, rows: Sequence[dict[str, Any]]) -> Config:
    """The config with the means and scales of the training rows, unless they are given."""
    given = config.standardisation
    if not len(given.subsets) == len(given.means) == len(given.scales) or any(scale <= 0 for scale in given.scales):
        raise UserError("config.objective.standardisation needs as many means and (positive) scales as subsets")
    if config.huber_delta <= 0:
        raise UserError(f"config.objective.huber_delta is {config.huber_delta}; it must be above 0")
    if config.bins < 0 or config.bins == 1:
        raise UserError(f"config.objective.bins is {config.bins}; use 0 (Huber's loss) or at least 2")
    if config.bins and config.huber_delta != Config.huber_delta:
        raise UserError(f"config.objective.huber_delta={config.huber_delta} is for Huber's loss, not for bins")
    if config.edges and (len(config.edges) != config.bins - 1 or sorted(set(config.edges)) != list(config.edges)):
        raise UserError(f"config.objective.edges must be {max(config.bins - 1, 0)} ascending numbers, bins less one")
    known = config if given.subsets else dataclasses.replace(config, standardisation=standardisation(rows))
    if not config.bins or config.edges:
        return known
    shares = np.arange(1, config.bins) / config.bins
    edges = np.unique(np.quantile([known.standardisation.standard(row) for row in rows], shares))
    return dataclasses.replace(known, edges=tuple(map(float, edges)))


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The pair with the chosen response first."""
    pair = renderer.preference(row["prompt"], row["chosen"], row["rejected"])
    return example(pair, margin=config.standardisation.standard(row))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs; metrics `mse` and `absolute_error`, in standard deviations."""
    mask = batch["example_mask"]
    learned = heads.learned_mask(batch["ends"], mask, batch["tokens"].shape[-1])
    hidden = model.forward(weights, {**batch, "learned_mask": learned}).hidden
    state = heads.pooled(hidden, batch, heads.responses(batch), model.config.preference_pool)
    h = heads.representation(weights, state)
    predicted = heads.margin(weights, h)
    error = predicted - batch["margin"]
    count = jnp.sum(mask)
    losses = ordinal(predicted, batch["margin"], config.edges) if config.bins else huber(error, config.huber_delta)
    return (jnp.sum(mask * losses), count), {
        "mse": (jnp.sum(mask * jnp.square(error)), count),
        "absolute_error": (jnp.sum(mask * jnp.abs(error)), count),
    }


def ordinal(predicted: jax.Array, margin: jax.Array, edges: Sequence[float]) -> jax.Array:
    """Mean over the edges of the loss of "is the margin above it?", elementwise."""
    sides = jnp.asarray(edges)
    above = jnp.where(margin[..., None] > sides, 1.0, -1.0)
    return jnp.mean(jax.nn.softplus(-SLOPE * above * (predicted[..., None] - sides)), axis=-1)


def huber(error: jax.Array, delta: float) -> jax.Array:
    """error^2 / 2 up to `delta`, then linear, elementwise."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))
