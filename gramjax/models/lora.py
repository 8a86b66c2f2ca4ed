"""Low-rank adapters (LoRA, arXiv 2106.09685): a product of two thin matrices beside a frozen one.

A projection W has the leaves `<name>_lora/a` (its input axes, then the rank) and `<name>_lora/b` (the rank, then its
output axes); the layer computes x @ W + scale * (x @ a) @ b. They are ordinary leaves of the tree: declared as `Spec`s
beside their matrix, initialised, sharded, saved, labelled like any other. Since b starts as zeros, so does the product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core import tree
from gramjax.core.config import LoraSection
from gramjax.core.errors import UserError
from gramjax.core.spec import Spec, is_spec

SUFFIX = "_lora"
"""What the name of a matrix is followed by in the name of its pair of rank leaves."""

Pair = Mapping[str, jax.Array]
"""The rank leaves of one matrix: `a` [inputs..., R] and `b` [R, outputs...]; in a training step with dropout also a
random key (`DROP`)."""

DROP = "drop"


def is_rank_leaf(path: str) -> bool:
    """Whether a path names one of the thin matrices."""
    return path.endswith((f"{SUFFIX}/a", f"{SUFFIX}/b"))


def of(config: Any) -> LoraSection:
    """The adapters of a model config; rank 0 for a kind of model that has none."""
    return getattr(config, "lora", LoraSection())


def off(config: Any) -> Any:
    """The model config without adapters."""
    return dataclasses.replace(config, lora=LoraSection()) if of(config).rank else config


def scale(lora: LoraSection) -> float:
    """The factor of the product: alpha / rank, or alpha / sqrt(rank) (arXiv 2312.03732)."""
    alpha = lora.alpha or 2.0 * lora.rank
    return alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def targets(lora: LoraSection, paths: list[str]) -> list[str]:
    """The matrices among `paths` that a pattern matches whole.

    Raises UserError for a pattern that is no regular expression or matches none of them.
    """
    if not lora.targets:
        raise UserError(f"config.lora.rank is {lora.rank} and config.lora.targets is empty: name matrices to adapt")
    label = tree.labels(paths, lora.targets, "config.lora.targets")
    return [path for path in paths if label[path] == tree.TRAIN]


def declare(specs: Mapping[str, Any], lora: LoraSection, input_axes: Mapping[str, int]) -> dict[str, Any]:
    """The specs of a model with the rank leaves of its targets.

    `input_axes` says which matrices of a layer can be adapted and how many of their axes are inputs. The spread of `a`
    is that of PEFT's default, 1 / sqrt(3 inputs).
    """
    if not lora.rank:
        return dict(specs)
    flat = tree.flatten(specs, is_leaf=is_spec)
    known = [path for path in flat if path.partition("/")[0] == "layers" and path.split("/", 2)[2] in input_axes]
    for path in targets(lora, known):
        matrix, count = flat[path], input_axes[path.split("/", 2)[2]]
        inputs, outputs = matrix.shape[:count], matrix.shape[count:]
        flat[f"{path}{SUFFIX}/a"] = Spec(
            (*inputs, lora.rank), (*matrix.axes[:count], "rank"), scale=(3 * math.prod(inputs)) ** -0.5
        )
        flat[f"{path}{SUFFIX}/b"] = Spec((lora.rank, *outputs), ("rank", *matrix.axes[count:]), "zeros")
    return tree.unflatten(dict(sorted(flat.items())))


def product(rows: jax.Array, pair: Pair, factor: float, rate: float = 0.0) -> jax.Array:
    """factor * (rows @ a) @ b for rows [..., inputs], as [..., outputs].

    Where the pair has a key, a share `rate` of the numbers in the rows is set to 0 first, and the others are scaled up.
    """
    if DROP in pair:
        kept = jax.random.bernoulli(pair[DROP], 1 - rate, rows.shape)
        rows = jnp.where(kept, rows / (1 - rate), 0).astype(rows.dtype)
    a, b = (leaf.astype(rows.dtype) for leaf in (pair["a"], pair["b"]))
    return (rows @ a.reshape(-1, a.shape[-1]) * factor) @ b.reshape(b.shape[0], -1)


def with_dropout(weights: Mapping[str, Any], step: jax.Array, tokens: jax.Array) -> dict[str, Any]:
    """Weights in use (`stack.pack`) in which every pair has a random key, other in every layer.

    The keys follow from the step and the tokens of the (micro)batch, so that a run that is resumed draws them again.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), jnp.sum(tokens.astype(jnp.uint32)))

    def keyed(tree_of_run: Mapping[str, Any], key: jax.Array, count: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for place, (name, value) in enumerate(sorted(tree_of_run.items())):
            own = jax.random.fold_in(key, place)
            if name.endswith(SUFFIX):
                out[name] = {**value, DROP: jax.random.split(own, count) if count > 1 else own}
            else:
                out[name] = keyed(value, own, count) if isinstance(value, Mapping) else value
        return out

    packed = weights["layers"]
    trees = tuple(keyed(part, jax.random.fold_in(key, run.start), run.stop - run.start)
                  for part, run in zip(packed.trees, packed.runs, strict=True))  # fmt: skip
    return {**weights, "layers": packed.replace(trees=trees)}


def merge(params: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Parameters at rest with every product added to its matrix, and without rank leaves.

    The sum is made in float32 and rounded once, to the dtype of the matrix, one matrix after the other; it lies where
    the matrix lay.
    """
    flat = tree.flatten(params)
    out = {path: leaf for path, leaf in flat.items() if not is_rank_leaf(path)}
    for path in out:
        if f"{path}{SUFFIX}/a" in flat:
            weight, a, b = out[path], flat[f"{path}{SUFFIX}/a"], flat[f"{path}{SUFFIX}/b"]
            add = _sum if isinstance(weight, jax.core.Tracer) else _sum_on(weight.sharding)
            out[path] = add(weight, a, b, scale(of(config)))
    return tree.unflatten(out)


def _sum(weight: jax.Array, a: jax.Array, b: jax.Array, factor: float) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    change = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
    return (weight.astype(jnp.float32) + factor * change).astype(weight.dtype)


@functools.lru_cache(maxsize=64)
def _sum_on(place: Any) -> Callable[..., jax.Array]:
    return jax.jit(_sum, out_shardings=place)
