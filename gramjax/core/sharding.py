"""The mesh `(data, fsdp, tensor)` and the one dictionary that maps logical axes onto it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gramjax.core.config import MeshSection
from gramjax.core.errors import UserError
from gramjax.core.spec import Spec, map_specs

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    # of activations and batches
    "batch": ("data", "fsdp"),
    "length": (),
    "act_embed": (),
    # of both
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # of parameters
    "embed": ("fsdp",),
    "rank": (),
}
"""Mesh axes of each logical axis. Parameters are spread over `fsdp` by their width and over `tensor` by their heads."""

DECODING: dict[str, tuple[str, ...]] = RULES
"""The rules of passes with a cache."""

Constrain = Callable[..., jax.Array]
"""`constrain(x, *axes)`: the array with its sharding pinned to the logical axes."""


def make_mesh(section: MeshSection, devices: Any = None) -> Mesh:
    """The mesh over all (or the given) devices; raises UserError when the sizes do not multiply to their number."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = [section.data, section.fsdp, section.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise UserError(f"config.mesh sizes are {dict(zip(AXES, sizes))}; each must be positive, and one at most -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"config.mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, found {len(devices)} "
            f"({devices[0].platform}); set config.mesh.data, fsdp and tensor so that they multiply to that number"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = RULES
) -> PartitionSpec:
    """The PartitionSpec of an array with the given logical axes.

    A dimension that the mesh axes do not divide stays whole, and no mesh axis is used twice in one array.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape):
        mesh_axes = tuple(a for a in (rules[axis] if axis is not None else ()) if a not in used and mesh.shape[a] > 1)
        if not mesh_axes or size % int(np.prod([mesh.shape[a] for a in mesh_axes])):
            entries.append(None)
            continue
        used.update(mesh_axes)
        entries.append(mesh_axes)
    return PartitionSpec(*entries)


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def shardings(specs: Any, mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = RULES) -> Any:
    """NamedSharding of every parameter of a tree of specs."""

    def one(spec: Spec) -> NamedSharding:
        return NamedSharding(mesh, partition(spec.axes, spec.shape, mesh, rules))

    return map_specs(one, specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays: the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place(batch: Mapping[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """A global batch over the mesh. Every process holds all of it and gives its devices their part (evaluation)."""
    if mesh is None:
        return dict(batch)
    where = batch_sharding(mesh)
    return {name: jax.make_array_from_callback(x.shape, where, x.__getitem__) for name, x in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrainer(mesh: Mesh | None, rules: Mapping[str, tuple[str, ...]] = RULES) -> Constrain:
    """The function models call at block boundaries; the identity without a mesh or on a single device."""
    if mesh is None or mesh.size == 1:
        return lambda x, *axes: x

    def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh, rules)))

    return constrain
