"""One training step for every method: the loss is an argument.

freeze -> pack -> forward -> loss, the gradient of the trained parameters only, accumulated over microbatches as sums
and divided once, so that accumulation equals one large batch. Losses and metrics are (total, weight) pairs. Some
methods look at a second, frozen model, the reference: its parameters are an argument that is never differentiated.

A bad step, whose loss or gradient norm is not finite, leaves parameters and optimiser state (its count too) as they
were: on the device, so that every process does the same and no bad value ever comes to rest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gramjax.core import tree
from gramjax.core.sharding import batch_axes, constrainer
from gramjax.models import lora

BAD_STEPS, BAD_LEAF = "bad_steps", "bad_leaf"
"""Metrics of the step: whether it was bad, and the place of the first parameter with a bad gradient (-1: none)."""

State = dict[str, Any]
"""`params` at rest, `opt_state`, `step` (int32 scalar)."""

Pair = tuple[jax.Array, jax.Array]
LossFunction = Callable[..., tuple[Pair, dict[str, Pair]]]
"""`loss(model, weights, batch[, reference]) -> ((total, weight), metrics)`; the reference is weights in use, too."""


def make_step(
    model: Any,
    loss: LossFunction,
    tx: optax.GradientTransformation,
    labels: Mapping[str, str],
    learning_rate: optax.Schedule,
    grad_accum: int = 1,
    may_be_empty: bool = False,
    reference_model: Any = None,
) -> Callable[..., tuple[State, dict[str, Pair]]]:
    """The function `(state, batch[, reference]) -> (state, metrics)`, to be jitted with the state alone donated.

    `reference` holds the parameters at rest of a model that `loss` is to be given in use (packed once a step, as
    weights of `reference_model`; default: of `model`).
    `may_be_empty`: a batch whose loss has weight 0 changes neither parameters nor optimiser state (momentum would move
    them); the step counts.
    """

    dropout = lora.of(getattr(model, "config", None)).dropout

    def total_loss(
        trained: dict[str, Any], frozen: dict[str, Any], batch: Any, number: jax.Array, *packed: Any
    ) -> tuple[jax.Array, Any]:
        weights = model.pack(tree.merge(trained, frozen), labels)
        if dropout:
            weights = lora.with_dropout(weights, number, batch["tokens"])
        (total, weight), metrics = loss(model, weights, batch, *packed)
        return total, (weight, metrics)

    def step(state: State, batch: Any, *reference: Any) -> tuple[State, dict[str, Pair]]:
        trained, frozen = tree.split(state["params"], labels)
        packed = [(reference_model or model).pack(params) for params in reference]

        def gradients(batch: Any) -> tuple[Any, Any]:
            value_and_grad = jax.value_and_grad(total_loss, has_aux=True)
            (total, (weight, metrics)), grads = value_and_grad(trained, frozen, batch, state["step"], *packed)
            return grads, {**metrics, "loss": (total, weight)}

        if grad_accum == 1:
            grads, metrics = gradients(batch)
        else:
            grads, metrics = _accumulate(gradients, batch, grad_accum, model.mesh)
        weight = jnp.maximum(metrics["loss"][1], 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)

        def learn(trained: Any, opt_state: Any) -> tuple[Any, Any]:
            # The zeros stand for gradients that nobody computes; the frozen branch of the optimiser does not read them.
            zeros = jax.tree.map(jnp.zeros_like, frozen)
            updates, opt_state = tx.update(tree.merge(grads, zeros), opt_state, state["params"])
            updates, _ = tree.split(updates, labels)
            return optax.apply_updates(trained, updates), opt_state

        one = jnp.ones((), jnp.float32)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"][0])
        old = (trained, state["opt_state"])
        if may_be_empty:
            good_and_full = good & (metrics["loss"][1] > 0)
            trained, opt_state = jax.lax.cond(good_and_full, learn, lambda *same: same, *old)
        elif branches(model.mesh):
            trained, opt_state = jax.lax.cond(good, learn, lambda *same: same, *old)
        else:
            trained, opt_state = jax.tree.map(lambda new, same: jnp.where(good, new, same), learn(*old), old)
        metrics["grad_norm"] = (norm, one)
        metrics[BAD_STEPS] = (1 - good.astype(jnp.float32), one)
        metrics[BAD_LEAF] = (_first_bad(grads, list(tree.flatten(state["params"]))), one)
        metrics["learning_rate"] = (jnp.asarray(learning_rate(state["step"]), jnp.float32), one)
        return {"params": tree.merge(trained, frozen), "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return step


def branches(mesh: Any) -> bool:
    """Whether a step that may be bad is best chosen by a branch, not leaf by leaf.

    Measured: XLA's CPU compiler materialises both sides of the leaves (a tenth to a fifth more memory); for a TPU it
    does not (0.3 %), where a branch costs more (2 %); on a GPU a branch makes the host wait for the gradients.
    """
    return mesh is None or mesh.devices.flat[0].platform == "cpu"


def _first_bad(grads: Mapping[str, jax.Array], paths: list[str]) -> jax.Array:
    """The place among `paths` of the first gradient that is not finite, from sums that the norm needs anyway; or -1."""
    finite = jnp.stack([jnp.isfinite(optax.tree.norm(leaf, squared=True)) for leaf in grads.values()])
    places = jnp.asarray([paths.index(path) for path in grads], jnp.float32)
    return jnp.where(jnp.all(finite), -1.0, places[jnp.argmin(finite)])


def _accumulate(gradients: Callable[[Any], tuple[Any, Any]], batch: Any, count: int, mesh: Any) -> tuple[Any, Any]:
    """Sum gradients and metrics over `count` microbatches, which take every count-th row (so each stays spread)."""
    constrain = constrainer(mesh)

    def cut(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, *axes)

    micro = {name: cut(batch[name], axes) for name, axes in batch_axes(batch).items()}
    shapes, _ = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.float32), shapes)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        grads, metrics = gradients(part)
        return jax.tree.map(jnp.add, total, grads), metrics

    grads, metrics = jax.lax.scan(add, zeros, micro)
    return grads, {name: _reduce(name, pair) for name, pair in metrics.items()}


def _reduce(name: str, pair: Pair) -> Pair:
    """Totals and weights summed over microbatches; names with the word `min` or `max` keep the extreme."""
    total, weight = pair
    reduce = {"min": jnp.min, "max": jnp.max}.get(extreme(name), jnp.sum)
    return reduce(total), jnp.sum(weight)


def extreme(name: str) -> str:
    """`min` or `max` for a metric with that word in the last part of its name (`clip_ratio/low_min`), else ""."""
    words = name.rsplit("/", 1)[-1].split("_")
    return next((word for word in ("min", "max") if word in words), "")
