"""What a compiled program takes of a device: memory, collectives, and a floor of its time.

Memory is what the compiler says of the program for its devices: exact for a TPU and this version of its compiler. For a
GPU, whose compiler is not here, arguments are exact and the rest is an estimate from the sizes of the model.
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from gramjax.core import collectives
from gramjax.core.chips import Topology
from gramjax.training.planning import Program

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Budget:
    """What `gramjax plan` says of a program; sizes are per device, FLOPs of all devices."""

    program: str
    topology: str
    fits: bool
    peak_gib_per_device: float
    device_gib: float
    """0 for simulated devices, which have no memory of their own."""
    parameters_gib: float
    optimizer_gib: float
    cache_gib: float
    batch_gib: float
    temporaries_gib: float
    """Activations, gradients and working space."""
    flops_per_step: int
    """Products of the step, without what remat computes again."""
    hardware_flops_per_step: int
    """With it."""
    collective_gib_per_step: float | None
    """What a device receives; None where there is no program to read (it does not fit), or this JAX cannot read that of
    a newer compiler."""
    collective_gib_by_kind: Mapping[str, float]
    floor_step_seconds: float
    """No step can be faster, by the chip's public figures: the longest of those below. No prediction."""
    floor_seconds_by_cause: Mapping[str, float]
    compile_seconds: float
    estimated: bool
    """Memory is estimated from sizes, not read from a program compiled for these devices."""
    settings: Mapping[str, Any]


def device_bytes(part: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(part)
    )


def read(program: Program, topology: Topology) -> Budget:
    """Compile a program and read it. One that does not fit a TPU is refused by its compiler: then only its peak is
    known."""
    sizes = {name: device_bytes(part) for name, part in program.parts.items()}
    arguments = sum(sizes.values())
    began = time.perf_counter()
    lowered = program.lower()
    needed = 0.0
    by_kind: Mapping[str, int] = {}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, readable = needed_bytes(str(error)), False
    else:
        memory = compiled.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        needed += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        by_kind, readable = traffic(compiled)
    seconds = time.perf_counter() - began
    estimated = topology.platform == "gpu"
    if estimated:
        needed = arguments + estimated_temporaries(program)
    chip = topology.chip
    limit = chip.memory_gib if chip else 0.0
    model_flops, hardware_flops = program.model_flops(), program.flops()
    floors: dict[str, float] = {}
    moved = sum(by_kind.values())
    if chip:
        floors = {
            "products": hardware_flops / topology.count / (chip.tflops * 1e12),
            "memory": (arguments + program.writes * sizes.get("optimizer", 0) * 1.5) / (chip.bandwidth_gb * 1e9),
        }
    if chip and readable:
        slow = by_kind[collectives.BETWEEN_SLICES]
        floors["network"] = (moved - slow) / (chip.link_gb * 1e9)
        if slow and chip.between_slices_gb:
            floors["slices"] = slow / (chip.between_slices_gb * 1e9)
    gib = lambda size: round(size / GIB, 3)  # noqa: E731
    return Budget(
        program=program.name,
        topology=str(topology),
        fits=not limit or needed <= limit * GIB,
        peak_gib_per_device=gib(needed),
        device_gib=limit,
        parameters_gib=gib(sizes.get("parameters", 0) + sizes.get("reference", 0)),
        optimizer_gib=gib(sizes.get("optimizer", 0)),
        cache_gib=gib(sizes.get("cache", 0)),
        batch_gib=gib(sizes.get("batch", 0)),
        temporaries_gib=gib(max(needed - arguments, 0)),
        flops_per_step=model_flops,
        hardware_flops_per_step=hardware_flops,
        collective_gib_per_step=gib(moved) if readable else None,
        collective_gib_by_kind={kind: gib(size) for kind, size in by_kind.items()},
        floor_step_seconds=round(max(floors.values(), default=0.0), 6),
        floor_seconds_by_cause={name: round(value, 6) for name, value in floors.items()},
        compile_seconds=round(seconds, 1),
        estimated=estimated,
        settings=program.settings,
    )


def traffic(compiled: Any) -> tuple[Mapping[str, int], bool]:
    """Bytes by kind of collective, and whether the text of the program could be read."""
    try:
        return collectives.bytes_by_kind(compiled.as_text()), True
    except jax.errors.JaxRuntimeError:  # a libtpu that is newer than this JAX asks for
        return {}, False


def needed_bytes(message: str) -> float:
    """The memory that a refused program wanted, from the compiler's message; raises it again when it says no size."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", message) or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        raise RuntimeError(message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)  # its "temporaries" are the arguments, too


def least_seconds(program: Program, topology: Topology) -> float:
    """Seconds per sequence that a program costs by what is known without compiling it: what programs are ordered by.

    The longest of products, reading what is used once, and traffic by rule: the weights as they are gathered over
    `fsdp` (once to read; in a training twice a microbatch, and the gradients scattered once), and over `tensor` two
    sums of activations a layer and pass.
    """
    chip, settings, mesh = topology.chip, program.settings, program.network.mesh.shape
    arch, width = program.network.model.config, program.network.model.compute_dtype.itemsize
    if chip is None:
        return 0.0
    rows = settings.get("sequences", settings.get("batch_size", settings.get("slots", 1)))
    tokens = rows * (1 if "slots" in settings else settings["max_length"])
    passes = (4 if settings["remat"] == "full" else 3) if program.writes else 1
    gathers = 3 * settings["grad_accum"] if program.writes else 1
    weights = jax.tree.leaves(program.parts["parameters"])
    own = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in weights)
    missing = sum(math.prod(leaf.shape) for leaf in weights) / mesh["tensor"] - own
    summed = 2 * (mesh["tensor"] - 1) / mesh["tensor"] * tokens * mesh["tensor"] / topology.count * arch.hidden_size
    moved = width * (gathers * max(missing, 0) + 2 * passes * arch.num_layers * summed)
    seen = sum(device_bytes(part) for part in program.parts.values()) + width * max(missing, 0)
    seconds = (program.flops() / topology.count / (chip.tflops * 1e12), seen / (chip.bandwidth_gb * 1e9),
               moved / (chip.link_gb * 1e9))  # fmt: skip
    return max(seconds) / rows


def estimated_temporaries(program: Program) -> float:
    """Working memory of a step by rule of thumb, bytes per device.

    Saved: the input of every layer (full remat; all products of it with `projections`, and the whole layer with
    `none`), in the compute dtype. At the same time: a layer's weights gathered, its inner activations in the backward
    pass, gradients in the compute dtype, the logits of a chunk in float32 with their gradient.
    """
    settings, arch = program.settings, program.network.model.config
    mesh, width = program.network.mesh, program.network.model.compute_dtype.itemsize
    D, F, V = arch.hidden_size, arch.intermediate_size, arch.vocab_size
    heads = (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
    layer = D * (2 * arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim + 3 * D * F
    tensor = mesh.shape["tensor"]
    shards = mesh.size // tensor
    rows = settings.get("sequences", settings.get("batch_size", settings.get("slots", 1)))
    tokens = rows * settings["max_length"] / shards / settings.get("grad_accum", 1)
    if program.name != "training step":
        tokens = tokens if "batch_size" in settings else rows / shards
        return width * (2 * layer / tensor + tokens * (4 * D + (heads + 3 * F) / tensor))
    inner = D * 4 + (2 * heads + 4 * F) / tensor
    kept = {"full": D, "projections": D + (2 * heads + 2 * F) / tensor, "none": inner}[settings["remat"]]
    trained = device_bytes(program.parts["optimizer"]) / 8 * width
    logits = 0.0
    if "tokens" in arch.heads:  # the matrix gathered, its gradient summed in float32, the logits and their gradient
        gathered = width * D + (4 * D if program.trains_vocabulary else 0)
        logits = (6 * min(settings["logit_chunk"], tokens) + gathered) * V / tensor
    return width * (arch.num_layers * tokens * kept + 2 * tokens * inner + 2 * layer / tensor) + trained + logits
