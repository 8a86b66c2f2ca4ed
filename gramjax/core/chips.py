"""What accelerators can do, from their makers' public tables, and the slices of them that can be asked for.

The figures bound a step from below (`floor`); nothing is predicted from them.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from gramjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of one device."""

    name: str
    tflops: float
    """bfloat16 products, dense, 10^12 per second."""
    memory_gib: float
    """What a program may use: on a TPU what its compiler allows, on a GPU nine tenths of the whole."""
    bandwidth_gb: float
    """To its own memory, 10^9 bytes per second."""
    link_gb: float
    """To its neighbours in the slice or host, all links together, one way, 10^9 bytes per second."""
    platform: str = "tpu"
    between_slices_gb: float = 0
    """From other slices, this device's share of its host's network cards, 10^9 bytes per second; 0 where it is not a
    figure of the device."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197, 15.75, 819, 200, between_slices_gb=3.125),
        Chip("v5p", 459, 95.73, 2765, 600, between_slices_gb=6.25),
        Chip("v6e", 918, 31.24, 1640, 448, between_slices_gb=12.5),
        Chip("a100", 312, 72, 2039, 300, "gpu"),
        Chip("h100", 989, 72, 3350, 450, "gpu"),
        Chip("h200", 989, 126, 4800, 450, "gpu"),
        Chip("b200", 2250, 162, 8000, 900, "gpu"),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind: `v5e:4x4` is a slice of 16 chips, `h100:8` are eight GPUs, `cpu:8` simulated devices."""

    kind: str
    shape: tuple[int, ...]
    slices: int = 1
    """How many such slices, with a slow network between them; GPUs and simulated devices are one."""

    def __str__(self) -> str:
        times = f"{self.slices} times " if self.slices > 1 else ""
        return f"{times}{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def count(self) -> int:
        """Devices, of all slices."""
        return self.slices * math.prod(self.shape)

    def times(self, slices: int) -> "Topology":
        """So many slices of this kind; GPUs and simulated devices, which are named altogether, stay as they are."""
        return dataclasses.replace(self, slices=slices if self.platform == "tpu" else 1)

    @property
    def chip(self) -> Chip | None:
        """The figures of a device; None for simulated ones."""
        return CHIPS.get(self.kind)

    @property
    def platform(self) -> str:
        """`tpu`, `gpu` or `cpu`."""
        return self.chip.platform if self.chip else "cpu"


def parse(text: str) -> Topology:
    """The topology that a text names. Raises UserError with what can be named."""
    found = re.fullmatch(r"([a-z0-9]+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    if found is None or (found[1] not in CHIPS and found[1] != "cpu"):
        raise UserError(
            f"--topology={text}: expected KIND:SHAPE such as v5e:4x4, v5p:4x4x4, h100:8 or cpu:8 "
            f"(kinds: {', '.join(CHIPS)}, cpu)"
        )
    shape = tuple(int(size) for size in found[2].split("x"))
    made = Topology(found[1], shape)
    dimensions = {"v5p": 3, "v5e": 2, "v6e": 2}.get(made.kind, 1)
    if len(shape) != dimensions:
        example = {3: "4x4x4", 2: "4x4", 1: "8"}[dimensions]
        raise UserError(f"--topology={text}: {made.kind} has {dimensions} dimensions, as in {made.kind}:{example}")
    return made


def prepare(topology: Topology) -> None:
    """Set what JAX has to be told before it is imported, for a process that only compiles.

    Nothing runs on an accelerator here, so JAX starts on the CPU, with as many simulated devices as a `cpu` or GPU
    topology has; the TPU compiler is kept from asking a metadata server and from locking others out.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # these two only keep it from complaining
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    if topology.platform != "tpu":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={topology.count}".strip()


def devices(topology: Topology) -> Sequence[Any]:
    """The devices to compile for (`prepare` first): those of a TPU slice that need not exist, or simulated ones.

    Raises UserError without the TPU compiler, or when it does not know the slice.
    """
    import jax

    if topology.platform != "tpu":
        return jax.devices()
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError('a TPU slice needs the TPU compiler (no TPU): pip install "gramjax[plan]"') from None
    try:
        one = str(topology.times(1))
        return topologies.get_topology_desc(
            platform="tpu", topology_name=one, num_slices=topology.slices
        ).devices
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--topology={topology}: the TPU compiler does not know this slice ({first})") from error
