"""What every loader of parameters returns, and how it places and initialises leaves."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from gramjax.core import spec, tree


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters from a file, and what a reader should know about them."""

    params: dict[str, Any]
    fresh: tuple[str, ...] = ()
    """Paths that were not in the file and got initial values."""
    notes: tuple[str, ...] = ()
    """One line each: what was left out, initialised, padded, or refused."""


def is_fresh(path: str, fresh: Collection[str]) -> bool:
    """Whether a path is, or lies under, one of the names."""
    return any(path == name or path.startswith(name + "/") for name in fresh)


def placement(specs: Mapping[str, spec.Spec], shardings: Any, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sharding and dtype of every leaf, by path (default: whole on the first device)."""
    one = SingleDeviceSharding(jax.devices()[0])
    places = dict.fromkeys(specs, one) if shardings is None else tree.flatten(shardings)
    dtypes = tree.flatten(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(specs, dtype)
    return places, dtypes


def initialised(
    specs: Mapping[str, spec.Spec],
    paths: Collection[str],
    places: Mapping[str, Any],
    dtypes: Mapping[str, Any],
    key: Any,
) -> dict[str, jax.Array]:
    """Initial values of the given paths, on their shardings."""
    if paths and key is None:
        raise ValueError(f"a key is needed to initialise {', '.join(sorted(paths))}")
    return {p: jax.device_put(spec.init_leaf(specs[p], key, p, dtypes[p]), places[p]) for p in sorted(paths)}
