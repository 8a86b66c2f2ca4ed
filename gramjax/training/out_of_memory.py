"""What a training says when the memory of a device does not suffice: what takes it, and what would help.

Running out is the same at the next try, so the exit code tells a scheduler not to start the job again.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gramjax.core.config import DataSection, TrainSection, section
from gramjax.core.errors import DoNotRequeue
from gramjax.training.setup import Run

LARGEST = 5
"""Arrays that are named."""

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class OutOfMemory(DoNotRequeue):
    """A program needs more memory than a device has."""


@contextlib.contextmanager
def explained(config: Any, run: Run) -> Iterator[None]:
    """Turn the error of a compiler or device without memory, anywhere in the block, into one that helps."""
    try:
        yield
    except Exception as error:
        if not is_one(error):
            raise
        raise OutOfMemory(message(config, run, error)) from error


def is_one(error: Exception) -> bool:
    """Whether an error of JAX says that memory ran out."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in SIGNS)


def message(config: Any, run: Run, error: Exception) -> str:
    """What happened, what the state takes per device, and the remedies that this config has left, cheapest first."""
    train, data = section(config.train, TrainSection, "train"), section(config.data, DataSection, "data")
    first = next(line for line in str(error).splitlines() if any(sign in line for sign in SIGNS))[:200]
    mesh = run.network.mesh.shape
    shards = mesh["data"] * mesh["fsdp"]
    rows = train.batch_size // (shards * train.grad_accum)
    parts = sizes(run.abstract_state)
    held = ", ".join(f"{what} {mib(size)}" for what, size in by_kind(parts).items())
    top = ", ".join(f"{path} {mib(size)}" for path, size in sorted(parts.items(), key=lambda p: -p[1])[:LARGEST])
    return (
        f"a device ran out of memory ({first}). A device works on {rows} rows of {data.max_length} tokens at a time "
        f"(config.train.batch_size={train.batch_size} over {shards} devices, grad_accum={train.grad_accum}), with "
        f"config.train.remat={train.remat}, logit_chunk={train.logit_chunk}. Its part of the state: {held}; the "
        f"largest arrays: {top}. What helps: {'; '.join(remedies(train, data, mesh, rows))}"
    )


def remedies(train: TrainSection, data: DataSection, mesh: Any, rows: int) -> list[str]:
    """Settings that take less memory, as far as they have not been used."""
    out = []
    if train.remat != "full":
        out.append("--config.train.remat=full (keeps no activations)")
    if rows > 1:
        factor = next(k for k in range(2, rows + 1) if rows % k == 0)
        parts = train.grad_accum * factor
        out.append(f"--config.train.grad_accum={parts} (same batch, {rows // factor} rows at a time)")
    if train.logit_chunk > 256:
        out.append(f"--config.train.logit_chunk={train.logit_chunk // 4}")
    if mesh["data"] > 1:
        out.append(f"--config.mesh.fsdp={mesh['fsdp'] * mesh['data']} with data=1 (spreads the state)")
    out.append(f"a smaller --config.data.max_length than {data.max_length}")
    out.append("fewer trained parameters (config.lora, config.train.trainable, config.select), or more devices")
    out.append("gramjax plan, which says what fits")
    return out


def sizes(state: Any) -> dict[str, int]:
    """Bytes of every array of a state on one device, by path."""
    out: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in keys]
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        out["/".join(names)] = int(np.prod(shape)) * leaf.dtype.itemsize
    return out


def by_kind(parts: dict[str, int]) -> dict[str, int]:
    """Bytes of the parameters and of the optimiser."""
    named = {"params": "parameters", "opt_state": "optimiser"}
    return {word: sum(size for path, size in parts.items() if path.startswith(kind)) for kind, word in named.items()}


def mib(size: Any) -> str:
    """`1.25 GiB` or `12.5 MiB`."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
