"""One record per parameter: shape, axis names, initialiser. Everything else about a parameter is derived from it."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import tree


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration of one parameter.

    `axes` names each dimension with a logical axis (`core.sharding.RULES` maps them to the mesh). `init` is `normal`
    (standard deviation `scale`), `ones` or `zeros`.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"
    scale: float = 0.02

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def is_spec(value: Any) -> bool:
    """True for a Spec; the `is_leaf` of trees of specs."""
    return isinstance(value, Spec)


def map_specs(function: Callable[..., Any], specs: Any, *rest: Any) -> Any:
    """`jax.tree.map` over a tree of specs."""
    return jax.tree.map(function, specs, *rest, is_leaf=is_spec)


def abstract(specs: Any, dtype: Any = jnp.float32, shardings: Any = None) -> Any:
    """Tree of `jax.ShapeDtypeStruct`, with shardings when given. `dtype` may be a tree of dtypes."""
    dtypes = dtype if isinstance(dtype, dict) else map_specs(lambda s: dtype, specs)
    if shardings is None:
        return map_specs(lambda s, d: jax.ShapeDtypeStruct(s.shape, d), specs, dtypes)
    return map_specs(lambda s, d, sh: jax.ShapeDtypeStruct(s.shape, d, sharding=sh), specs, dtypes, shardings)


def init_leaf(spec: Spec, key: jax.Array, path: str, dtype: Any = jnp.float32, sharding: Any = None) -> jax.Array:
    """The initial value of one parameter: depends on the key and its path only, never on the other parameters.

    Parameters that are alike share one compiled program, which makes the value on its own devices.
    """
    if spec.init not in ("normal", "ones", "zeros"):
        raise ValueError(f"{path}: unknown initialiser {spec.init!r}")
    return _drawing(spec, jnp.dtype(dtype), sharding)(key, np.uint32(zlib.crc32(path.encode())))


@functools.lru_cache(maxsize=256)
def _drawing(spec: Spec, dtype: Any, sharding: Any) -> Callable[[jax.Array, np.uint32], jax.Array]:
    def draw(key: jax.Array, number: np.uint32) -> jax.Array:
        if spec.init != "normal":
            return jnp.full(spec.shape, 1 if spec.init == "ones" else 0, dtype)
        values = jax.random.normal(jax.random.fold_in(key, number), spec.shape, jnp.float32)
        return (spec.scale * values).astype(dtype)

    return jax.jit(draw, out_shardings=sharding)


def init_params(specs: Any, key: jax.Array, dtype: Any = jnp.float32, shardings: Any = None) -> Any:
    """Initial parameters for a tree of specs, one after the other. `dtype` and `shardings` may be trees like specs."""
    flat = tree.flatten(specs, is_leaf=is_spec)
    dtypes = tree.flatten(dtype) if isinstance(dtype, dict) else dict.fromkeys(flat, dtype)
    places = dict.fromkeys(flat) if shardings is None else tree.flatten(shardings)
    return tree.unflatten({path: init_leaf(s, key, path, dtypes[path], places[path]) for path, s in flat.items()})


def count(specs: Any) -> int:
    """Number of parameters."""
    return sum(s.size for s in tree.flatten(specs, is_leaf=is_spec).values())
