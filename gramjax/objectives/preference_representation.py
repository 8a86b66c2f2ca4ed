"""LRHP (arXiv 2410.04503): a vector for the human preference that a pair expresses, read at one learned token.

The sequence is prompt, first response, second response, then a place where the model puts a vector of its own. There
h is the hidden state after the final norm (optionally projected) and u = w h the order logit. With t = 1 where the
first response is the preferred one and eps the probability that a label is wrong:

    L = softplus(-(2t - 1) u) + eps (2t - 1) u
        + antisymmetry * (u(s) + u(s_T))^2          s_T: the same pair in the other order
        + contrastive * InfoNCE(h of the chosen-first order; pairs of one source belong together)

The first line is the loss of GRAM's verdicts (its equation 2) with the order logit for the margin. With antisymmetry
or contrastive, both orders of a pair stand in one example (twice the tokens); with neither, one is drawn per epoch.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.errors import UserError
from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("preference",)
HEADS = ("preference",)
NO_SOURCE = -1


@dataclasses.dataclass(frozen=True)
class Config:
    """The smoothing of the order loss and the weights of the optional terms (0: off)."""

    label_smoothing: float = 0.05
    """eps, the probability that a label is wrong; below 0.5. Without it h can collapse onto one direction."""
    antisymmetry: float = 0.1
    """Weight of (u(s) + u(s_T))^2, which removes what the order of the responses does to the logit."""
    contrastive: float = 0.0
    """Weight of the supervised contrastive term, over the pairs of a (micro)batch that have a source."""
    temperature: float = 0.1
    """Of the contrastive term, whose similarities are cosines."""
    source_column: str = "subset"
    """Column that names the source (data set, criterion) of a pair for the contrastive term; an empty one: unknown."""
    gaussian_dropout: float = 0.0
    """Rate p of the noise bottleneck: h is multiplied by normal noise of mean 1 and variance p / (1 - p)."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, with its ranges checked."""
    for name, good in {
        "label_smoothing": 0 <= config.label_smoothing < 0.5,
        "antisymmetry": config.antisymmetry >= 0,
        "contrastive": config.contrastive >= 0,
        "temperature": config.temperature > 0,
        "gaussian_dropout": 0 <= config.gaussian_dropout < 1,
    }.items():
        if not good:
            needed = {"label_smoothing": "in [0, 0.5)", "temperature": "above 0", "gaussian_dropout": "in [0, 1)"}
            needs = needed.get(name, "at least 0")
            raise UserError(f"config.objective.{name} is {getattr(config, name)}; it must be {needs}")
    return config


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Both orders of a pair, chosen first: as one example of two sequences, or as two renderings to draw from."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    orders = [
        renderer.preference(prompt, *order) for order in ((chosen, rejected), (rejected, chosen))
    ]
    source = source_of(row, config.source_column)
    if config.antisymmetry or config.contrastive:
        return example(*orders, source=source)
    return tuple(example(order, swapped=swapped, source=source) for swapped, order in enumerate(orders))


def source_of(row: dict[str, Any], column: str) -> int:
    """A number for the source of a row; `NO_SOURCE` where the column is missing or empty."""
    value = row.get(column)
    return NO_SOURCE if value is None or value == "" else zlib.crc32(str(value).encode()) & 0x7FFFFFFF


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Mean over pairs. `accuracy` and `margin` are those of single orders; with both orders in a batch, `swap_error` is
    the mean of (u(s) + u(s_T))^2 and `contrastive` that of the contrastive term."""
    both = batch["tokens"].ndim == 3
    mask_BN = batch["example_mask"]
    count = jnp.sum(mask_BN)
    sides = 2 if both else 1
    flat = {
        name: batch[name].reshape(-1, batch[name].shape[-1])
        for name in ("tokens", "segment_ids", "positions", "ends", "loss_mask")
    }
    present = jnp.repeat(mask_BN, sides, axis=0)
    learned = heads.learned_mask(flat["ends"], present, flat["tokens"].shape[-1])
    hidden = model.forward(weights, {**flat, "learned_mask": learned}).hidden
    state = heads.pooled(hidden, flat, heads.responses(flat), model.config.preference_pool)
    h = heads.representation(weights, state)
    if config.gaussian_dropout:
        h = noisy(h, config.gaussian_dropout)
    u = heads.order(weights, h).reshape(-1, sides, mask_BN.shape[-1])
    sign = jnp.array([1.0, -1.0])[:, None] if both else 1 - 2 * batch["swapped"].astype(jnp.float32)[:, None]
    losses = jnp.mean(order_loss(sign * u, config.label_smoothing), axis=1)
    metrics = {
        "accuracy": (jnp.sum(mask_BN[:, None] * (sign * u > 0)), sides * count),
        "margin": (jnp.sum(mask_BN[:, None] * sign * u), sides * count),
    }
    if both:
        swap_error = jnp.square(u[:, 0] + u[:, 1])
        losses += config.antisymmetry * swap_error
        metrics["swap_error"] = (jnp.sum(mask_BN * swap_error), count)
    if config.contrastive:
        canonical = h.reshape(-1, sides, *h.shape[1:])[:, 0].reshape(mask_BN.size, -1)
        told_apart = contrastive_loss(canonical, batch["source"].reshape(-1), mask_BN.reshape(-1), config.temperature)
        losses += config.contrastive * told_apart.reshape(mask_BN.shape)
        metrics["contrastive"] = (jnp.sum(mask_BN * told_apart.reshape(mask_BN.shape)), count)
    return (jnp.sum(mask_BN * losses), count), metrics


def order_loss(signed: jax.Array, eps: float) -> jax.Array:
    """softplus(-x) + eps x with x = (2t - 1) u, elementwise: the loss of a pairwise margin with label smoothing."""
    return jax.nn.softplus(-signed) + eps * signed


def contrastive_loss(h: jax.Array, source: jax.Array, mask: jax.Array, temperature: float) -> jax.Array:
    """Supervised InfoNCE of each of M representations [M, P]: the mean over the others of its source of
    -log softmax(cosine / temperature), the softmax running over all others that have a source; 0 where there is no
    other of its source."""
    unit = h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-12)
    logits = unit @ unit.T / temperature
    known = (mask > 0) & (source != NO_SOURCE)
    others = known[None, :] & known[:, None] & ~jnp.eye(len(h), dtype=bool)
    logits = jnp.where(others, logits, -1e30)
    log_share = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    same = others & (source[None, :] == source[:, None])
    total = jnp.sum(jnp.where(same, -log_share, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(same, axis=-1), 1)


def noisy(h: jax.Array, rate: float) -> jax.Array:
    """h times normal noise (Gaussian dropout). The key is made of h itself: it differs from step to step, and a run
    that was resumed draws the same."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(jnp.sum(h)), jnp.uint32)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), bits), h.shape)
    return h * (1 + (rate / (1 - rate)) ** 0.5 * noise)
