"""A look at the copies: what several devices or hosts hold the same of must be the same, to the bit.

Replicated weights are copied once, at the start; from then on every device computes its own from what should be the
same numbers in the same order. A device that computes or remembers wrongly lets its copy drift, and nothing says so:
the loss goes on falling. Each device sums up its part of every array where it lies; sums of copies are compared.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gramjax.checkpoint.checksum import sums
from gramjax.core import processes, progress, tree
from gramjax.core.errors import DoNotRequeue

SHOWN = 3
"""Arrays that an error names."""


def check(step: int, state: Any) -> None:
    """Raise DoNotRequeue in all processes, naming arrays, devices and hosts, when copies of a state differ.

    The job is not to be started again by itself: it would get the same hardware. Checkpoints hold one of the copies,
    and those saved since the last check may hold the wrong one.
    """
    leaves = {path: leaf for path, leaf in tree.flatten(state).items() if has_copies(leaf)}
    if not leaves:
        return
    progress.begins("the comparison of copies")
    found = digests(leaves)
    bad = {path: odd for path, leaf in leaves.items() if (odd := odd_ones(leaf, found[path]))}
    if not bad:
        return
    hosts = processes.hosts()
    where = {
        path: ", ".join(f"device {d.id} of {hosts[d.process_index]} (process {d.process_index})" for d in odd)
        for path, odd in list(bad.items())[:SHOWN]
    }
    error = DoNotRequeue(
        f"step {step}: copies that should be the same differ in {len(bad)} of {len(leaves)} arrays: "
        + "; ".join(f"{path} on {text}" for path, text in where.items())
        + ". Nothing was saved of it. Take that device out, and go on from a checkpoint that was saved before "
        "(gramjax checkpoint list DIR)"
    )
    error.agreed = True
    raise error


def has_copies(leaf: Any) -> bool:
    """Whether several devices hold the same part of an array."""
    place = getattr(leaf, "sharding", None)
    if not isinstance(place, NamedSharding) or place.mesh.size == 1 or leaf.size == 0:
        return False
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == jnp.bool_):
        return False
    return len({str(part) for part in place.devices_indices_map(leaf.shape).values()}) < place.mesh.size


def digests(leaves: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Of every array two 32-bit sums per device, [device, 2]: of the part that the device holds, by place and value."""
    mesh = next(iter(leaves.values())).sharding.mesh  # type: ignore[attr-defined]
    specs = {path: leaf.sharding.spec for path, leaf in leaves.items()}  # type: ignore[attr-defined]
    table_DL2 = _program(mesh, tuple(specs.items()))(dict(leaves))
    if not table_DL2.is_fully_addressable:
        from jax.experimental import multihost_utils

        table_DL2 = multihost_utils.process_allgather(table_DL2, tiled=True)
    table = np.asarray(table_DL2)
    return {path: table[:, number] for number, path in enumerate(specs)}


def odd_ones(leaf: jax.Array, sums_D2: np.ndarray) -> list[jax.Device]:
    """The devices whose part differs from that of most devices that hold the same part; all of them without a most."""
    place = leaf.sharding
    parts = place.devices_indices_map(leaf.shape)
    holders: dict[str, dict[bytes, list[jax.Device]]] = {}
    for device, own in zip(place.mesh.devices.flat, sums_D2, strict=True):  # type: ignore[attr-defined]
        holders.setdefault(str(parts[device]), {}).setdefault(own.tobytes(), []).append(device)
    odd = []
    for kinds in holders.values():
        groups = sorted(kinds.values(), key=len, reverse=True)
        if len(groups) > 1:
            clear = len(groups[0]) > len(groups[1])
            odd += [device for group in groups[clear:] for device in group]
    return odd


@functools.lru_cache(8)
def _program(mesh: Mesh, specs: tuple[tuple[str, PartitionSpec], ...]) -> Any:
    """The compiled function from arrays to their sums [device, array, 2]; no device looks at another's part."""
    def own(leaves: dict[str, jax.Array]) -> jax.Array:
        return jnp.stack([sums(leaves[path]) for path, _ in specs])[None]

    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=(dict(specs),), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
    )
    return jax.jit(mapped)
