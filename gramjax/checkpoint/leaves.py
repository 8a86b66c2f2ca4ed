"""The arrays of a checkpoint, read in groups, each compared with the checksum it was saved with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gramjax.checkpoint import manifest
from gramjax.checkpoint.checksum import checksums
from gramjax.core import tree
from gramjax.core.errors import DataError

GROUP_BYTES = 2**30
"""Leaves are restored, verified and cast in groups of about this size."""


def read_leaves(
    folder: Path, record: manifest.Manifest, wanted: Mapping[str, Any], damaged: dict[str, str] | None = None
) -> Iterator[tuple[str, jax.Array]]:
    """Verified leaves of one step in the dtype they were saved in, on the shardings of `wanted`.

    Raises DataError naming the leaf when one cannot be read or does not have the value that was saved; with a
    dictionary `damaged` such leaves are noted there and left out.
    """
    group: dict[str, Any] = {}
    size = 0
    names = list(wanted)
    for i, name in enumerate(names):
        saved = record.leaves[name]
        place = wanted[name].sharding or _anywhere()
        group[name] = jax.ShapeDtypeStruct(saved.shape, jnp.dtype(saved.dtype), sharding=place)
        size += int(np.prod(saved.shape)) * group[name].dtype.itemsize
        if size >= GROUP_BYTES or i == len(names) - 1:
            leaves = _what_can_be_read(folder, group, damaged) if damaged is not None else _restore_group(folder, group)
            for key, total in checksums(leaves).items():
                if total != record.leaves[key].checksum:
                    problem = "its values are not those that were saved"
                    if damaged is None:
                        raise DataError(f"{folder}: {key} is damaged ({problem})")
                    damaged[key] = problem
            yield from ((key, leaf) for key, leaf in leaves.items() if key not in (damaged or {}))
            group, size = {}, 0


def _anywhere() -> Any:
    """Where a leaf is read to whose place does not matter: whole, and on every process that takes part."""
    if jax.process_count() == 1:
        return SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())


def on_the_host() -> SingleDeviceSharding:
    """The memory of this process's host, where JAX has it: that of the devices belongs to a training that goes on."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return SingleDeviceSharding(jax.local_devices()[0])


def _restore_group(folder: Path, group: dict[str, Any]) -> dict[str, jax.Array]:
    try:
        leaves = _orbax_restore(folder, group)
    except Exception as error:  # Orbax and TensorStore raise KeyError, ValueError, JSONDecodeError and more
        broken = group
        if len(group) > 1:
            broken = {name: leaf for name, leaf in group.items() if not _readable(folder, name, leaf)} or group
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(
            f"{folder}: {manifest.listing(broken)} cannot be read ({type(error).__name__}: {first})"
        ) from error
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array) or leaf.shape != group[name].shape or leaf.dtype != group[name].dtype:
            raise DataError(f"{folder}: {name} is not in the arrays on disk")
    return leaves


def _what_can_be_read(folder: Path, group: dict[str, Any], damaged: dict[str, str]) -> dict[str, jax.Array]:
    try:
        return _restore_group(folder, group)
    except DataError:
        leaves: dict[str, jax.Array] = {}
        for name, leaf in group.items():
            try:
                leaves |= _restore_group(folder, {name: leaf})
            except DataError as error:
                damaged[name] = str(error).removeprefix(f"{folder}: {name} ")
        return leaves


def _readable(folder: Path, name: str, leaf: Any) -> bool:
    try:
        return isinstance(_orbax_restore(folder, {name: leaf})[name], jax.Array)
    except Exception:
        return False


def _orbax_restore(folder: Path, group: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    item = tree.unflatten(group)
    arguments = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    options = ocp.options.MultiprocessingOptions()
    if all(isinstance(leaf.sharding, SingleDeviceSharding) for leaf in group.values()):  # this process reads by itself
        own = jax.process_index()
        options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=options) as checkpointer:
        restored = tree.flatten(checkpointer.restore((folder / "state").absolute(), args=arguments))
    return {name: restored[name] for name in group}
