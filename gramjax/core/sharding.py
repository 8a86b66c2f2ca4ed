"""The mesh `(data, fsdp, context, tensor)` and the one dictionary that maps logical axes onto it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gramjax.core.config import MeshSection
from gramjax.core.errors import UserError
from gramjax.core.spec import Spec, map_specs

AXES = ("data", "fsdp", "context", "tensor")
"""From the slowest network to the fastest: the first may span slices, those of the last are neighbours."""

RULES: dict[str, tuple[str, ...]] = {
    # of activations and batches
    "batch": ("data", "fsdp"),
    "length": ("context",),
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
"""Mesh axes of each logical axis. Parameters are spread over `fsdp` by their width and over `tensor` by their heads;
along `data` and `context` every device has them whole."""

DECODING: dict[str, tuple[str, ...]] = {**RULES, "batch": ("data", "fsdp", "context"), "length": ()}
"""The rules of passes with a cache, whose tokens are few: devices that would share a row have rows of their own."""

Constrain = Callable[..., jax.Array]
"""`constrain(x, *axes)`: the array with its sharding pinned to the logical axes."""


def make_mesh(section: MeshSection, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all (or the given) devices; raises UserError when the sizes do not multiply to their number.

    Neighbours in the mesh are neighbours in the network of a TPU. Devices may be ones that are not there, to compile
    for. Those that do not know their slice (a CPU's, a GPU's) are cut into slices in their order.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: getattr(section, axis) for axis in AXES}
    if list(sizes.values()).count(-1) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(f"config.mesh sizes are {sizes}; each must be positive, and one at most -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: max(len(devices) // known, 1) if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"config.mesh {sizes} needs {math.prod(sizes.values())} devices, found {len(devices)} "
            f"({devices[0].platform}); set config.mesh.data, fsdp, tensor and context so that they multiply to that "
            "number"
        )
    if sizes["data"] % section.slices:
        raise UserError(
            f"config.mesh.data={sizes['data']} spans config.mesh.slices={section.slices} slices: give a multiple of "
            "them (the other axes stay inside a slice)"
        )
    return Mesh(_placed(devices, tuple(sizes.values()), section.slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(devices: list[Any], sizes: tuple[int, ...], slices: int) -> np.ndarray:
    """The devices as an array of the given sizes."""
    from jax.experimental import mesh_utils

    if devices[0].platform != "tpu":
        return np.asarray(devices, object).reshape(sizes)
    found = {getattr(device, "slice_index", 0) for device in devices}  # a slice that is not here has no number
    if len(found) != slices:
        raise UserError(f"config.mesh.slices={slices}, but the {len(devices)} devices lie in {len(found)} slices")
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    inside, between = (sizes[0] // slices, *sizes[1:]), (slices, *(1,) * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def partition(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = RULES
) -> PartitionSpec:
    """The PartitionSpec of an array with the given logical axes.

    A dimension is cut along as many of its mesh axes, the first ones, as divide it, and no mesh axis is used twice in
    one array.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape):
        cut: list[str] = []
        for mesh_axis in rules[axis] if axis is not None else ():
            if mesh_axis in used or mesh.shape[mesh_axis] == 1:
                continue
            if size % math.prod([mesh.shape[a] for a in (*cut, mesh_axis)]):
                break
            cut.append(mesh_axis)
        used.update(cut)
        entries.append(tuple(cut) or None)
    return PartitionSpec(*entries)


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def shardings(specs: Any, mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = RULES) -> Any:
    """NamedSharding of every parameter of a tree of specs."""

    def one(spec: Spec) -> NamedSharding:
        return NamedSharding(mesh, partition(spec.axes, spec.shape, mesh, rules))

    return map_specs(one, specs)


def platform(mesh: Mesh | None) -> str:
    """What the devices of a mesh are (which may be there only for the compiler), or those of this process."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays without a length: the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_axes(batch: Mapping[str, Any]) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of the arrays of a batch: rows, and the length as the last axis where it is that of `tokens`."""
    length = batch["tokens"].shape[-1] if "tokens" in batch else 0

    def one(x: Any) -> tuple[str | None, ...]:
        last = "length" if x.shape[-1] == length else None
        return ("batch", *(None,) * (x.ndim - 2), *((last,) if x.ndim > 1 else ()))

    return {name: one(x) for name, x in batch.items()}


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of the arrays of a batch; rows that do not divide among devices are an error of JAX."""
    rows = (("data", "fsdp"),)
    return {
        name: NamedSharding(mesh, PartitionSpec(*rows, *partition(axes[1:], batch[name].shape[1:], mesh)))
        for name, axes in batch_axes(batch).items()
    }


def share_of_rows(mesh: Mesh, process: int) -> tuple[int, int]:
    """Which share of the rows of a batch a process gives, and how many there are.

    Processes that hold the same rows (`tensor` or `context` spans them) give the same share. Raises UserError where the
    rows of two processes overlap in part.
    """
    blocks = np.arange(mesh.devices.shape[0] * mesh.devices.shape[1])
    held: dict[int, set[int]] = {}
    for block, devices in zip(blocks, mesh.devices.reshape(len(blocks), -1), strict=True):
        for device in devices:
            held.setdefault(device.process_index, set()).add(int(block))
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    size = len(shares[0])
    if [list(rows) for rows in shares] != [list(range(i * size, (i + 1) * size)) for i in range(len(shares))]:
        raise UserError(
            f"config.mesh {dict(mesh.shape)} over {len(held)} processes: a process would hold a part of the rows of "
            "another; let data x fsdp be a multiple of the processes, or the processes of data x fsdp"
        )
    return shares.index(tuple(sorted(held[process]))), len(shares)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """A global batch over the mesh. Every process holds all of it and gives its devices their part (evaluation)."""
    if mesh is None:
        return dict(batch)
    where = batch_shardings(batch, mesh)
    return {name: jax.make_array_from_callback(x.shape, where[name], x.__getitem__) for name, x in batch.items()}


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
