"""Flags of the XLA compiler that pay or that make runs repeatable: one table, a reason each, nothing set silently.

`gramjax doctor` says which are in force, `gramjax launch --xla_flags=recommended` writes them into what it renders,
where they can be read. An unknown flag ends the process that starts JAX, so one that the XLA of this machine does not
know is refused before: those of GPUs by a process that is given all of them, those of TPUs by compiling one line for a
slice that need not exist. The values come from public recipes; nothing here was timed by us on an accelerator.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gramjax.core.errors import UserError

VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS", "cpu": "XLA_FLAGS"}
"""Where a flag of a platform is given. The TPU compiler comes with libtpu: XLA_FLAGS would not know its flags."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag and why."""

    name: str
    value: str
    platform: str
    reason: str
    since: str
    """The oldest release in which we saw it."""
    group: str = "recommended"
    until: str = ""
    """The release of jaxlib from which on it may be gone: 0.12 does not take it."""

    def taken(self) -> bool:
        """Whether the installed jaxlib is old enough for it."""
        installed = importlib.metadata.version("jaxlib").split(".")[:2]
        return not self.until or [int(part) for part in installed] < [int(part) for part in self.until.split(".")]


JAXLIB, LIBTPU = "jaxlib 0.5.0", "libtpu 0.0.42.1"
LAYER = str(2**30)
"""Bytes: more than the weights of one layer of a 70B model in bfloat16 need on a host."""

TABLE = (
    Flag("xla_gpu_enable_latency_hiding_scheduler", "true", "gpu",
         "starts collectives early and runs products meanwhile", JAXLIB),
    Flag("xla_gpu_enable_pipelined_all_gather", "true", "gpu",
         "gathers the next layer's weights while this one computes", JAXLIB),
    Flag("xla_gpu_enable_pipelined_reduce_scatter", "true", "gpu",
         "sends a layer's gradient while the next is computed", JAXLIB),
    Flag("xla_gpu_enable_pipelined_all_reduce", "true", "gpu",
         "the same for weights that every device holds whole", JAXLIB),
    Flag("xla_gpu_all_gather_combine_threshold_bytes", LAYER, "gpu",
         "one message per layer, not one per matrix", JAXLIB),
    Flag("xla_gpu_reduce_scatter_combine_threshold_bytes", LAYER, "gpu",
         "one message per layer, not one per matrix", JAXLIB),
    Flag("xla_gpu_all_reduce_combine_threshold_bytes", LAYER, "gpu",
         "one message per layer, not one per matrix", JAXLIB),
    Flag("xla_gpu_enable_while_loop_double_buffering", "true", "gpu",
         "a scan over layers keeps two buffers and copies none", JAXLIB),
    Flag("xla_gpu_deterministic_ops", "true", "gpu",
         "the same run gives the same bits; slower", JAXLIB, "deterministic"),
    Flag("xla_tpu_enable_latency_hiding_scheduler", "true", "tpu",
         "starts collectives early and runs products meanwhile", LIBTPU),
    Flag("xla_tpu_enable_async_collective_fusion", "true", "tpu",
         "lets a collective share a fusion with products", LIBTPU),
    Flag("xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true", "tpu",
         "the same for the gathers of sharded weights", LIBTPU),
    Flag("xla_tpu_enable_async_collective_fusion_multiple_steps", "true", "tpu",
         "a gather may last over several products", LIBTPU),
    Flag("xla_tpu_overlap_compute_collective_tc", "true", "tpu",
         "products and collectives side by side on one core", LIBTPU),
    Flag("xla_enable_async_all_gather", "true", "tpu",
         "gathers do not hold up what does not need them", LIBTPU),
    Flag("xla_tpu_enable_data_parallel_all_reduce_opt", "true", "tpu",
         "gradients cross the network between slices while the backward pass goes on", LIBTPU),
    Flag("xla_tpu_data_parallel_opt_different_sized_ops", "true", "tpu",
         "the same when layers differ in size", LIBTPU),
    Flag("xla_cpu_use_fusion_emitters", "false", "cpu",
         "compiles two to three times as fast, and what it compiles may run slower: tests, first tries",
         "jaxlib 0.10.2", "quick_compile", until="0.11"),
)  # fmt: skip
GROUPS = tuple(sorted({flag.group for flag in TABLE if flag.platform != "cpu"}))
"""Those that a launcher can be asked for."""


def parse(text: str) -> dict[str, str]:
    """The flags of a variable's text: `--a=1 --b` is {"a": "1", "b": "true"}."""
    pairs = [word.lstrip("-").partition("=") for word in text.split()]
    return {name: value if equals else "true" for name, equals, value in pairs}


def as_text(given: Mapping[str, str]) -> str:
    """The text of a variable."""
    return " ".join(f"--{name}={value}" for name, value in given.items())


def chosen(text: str, platform: str) -> dict[str, str]:
    """The flags that `--xla_flags=TEXT` asks for on a platform: groups of the table by name, or flags as they are."""
    out: dict[str, str] = {}
    for word in text.replace(",", " ").split() if not text.lstrip().startswith("-") else [text]:
        if word.lstrip().startswith("-"):
            out |= parse(word)
        elif word in GROUPS:
            out |= {flag.name: flag.value for flag in TABLE if flag.group == word and flag.platform == platform}
        else:
            raise UserError(f"--xla_flags={text}: {word!r} is neither {' nor '.join(GROUPS)} nor a flag (--xla_…)")
    if not out:
        raise UserError(f"--xla_flags={text}: the table has no such flag for {platform}")
    return out


def check(given: Mapping[str, str], platform: str) -> bool:
    """Raise UserError naming the flags that the compiler of this machine does not know; False where it is not here."""
    found = unknown_to_tpu(given) if platform == "tpu" else unknown_to_xla(given)
    if found:
        raise UserError(f"{VARIABLES[platform]}: this XLA does not take {'; '.join(found)}")
    return found is not None


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise UserError naming the flags in XLA_FLAGS that XLA does not know: it would end the process without more ado.

    A process is asked, which takes a second, unless there are only flags that are known to be taken.
    """
    given = parse(environment.get("XLA_FLAGS", ""))
    table = {(flag.name, flag.value) for flag in TABLE if VARIABLES[flag.platform] == "XLA_FLAGS" and flag.taken()}
    simulated = ("xla_force_host_platform_device_count", given.get("xla_force_host_platform_device_count"))
    if set(given.items()) - table - ({simulated} if str(simulated[1]).isdecimal() else set()):
        check(given, "gpu")


def unknown_to_xla(given: Mapping[str, str]) -> list[str]:
    """The flags that the installed jaxlib refuses; one process answers for all of them."""
    done = _process("import jax; jax.devices()", XLA_FLAGS=as_text(given))
    if not done.returncode:
        return []
    logged = [line.partition("] ")[::2] for line in done.stderr.splitlines() if "] " in line]
    unknown = next((said for _, said in logged if said.startswith("Unknown flag")), "").partition(": ")[2]
    illegal = [said for head, said in logged if head.startswith("E")]
    return unknown.split() or illegal or done.stderr.strip().splitlines()[-1:]


def unknown_to_tpu(given: Mapping[str, str]) -> list[str] | None:
    """The flags that the installed TPU compiler refuses; None where there is none."""
    if importlib.util.find_spec("libtpu") is None:
        return None
    code = f"import json; from gramjax.core import xla_flags; print(json.dumps(xla_flags.refused({dict(given)!r})))"
    done = _process(code, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    if done.returncode:
        raise UserError(f"the TPU compiler does not start: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def refused(given: Mapping[str, str]) -> list[str]:
    """The flags that a one-line program cannot be compiled with for a virtual slice, each with what was said."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    slice_of_four = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    place = jax.sharding.SingleDeviceSharding(slice_of_four.devices[0])
    program = jax.jit(lambda x: x + 1, in_shardings=place, out_shardings=place)
    lowered = program.lower(jax.ShapeDtypeStruct((8, 128), jnp.float32))
    out = []
    for name, value in given.items():
        try:
            lowered.compile(compiler_options={name: value})
        except Exception as error:
            out.append(f"--{name}={value} ({str(error).splitlines()[0]})")
    return out


def report(environment: Mapping[str, str], platform: str) -> dict[str, Any]:
    """What is in force, by variable, and every flag of the table for a platform with the value that is set, or None."""
    force = {variable: parse(environment.get(variable, "")) for variable in dict.fromkeys(VARIABLES.values())}
    of_platform = [flag for flag in TABLE if flag.platform == platform and flag.taken()]
    table = [{**dataclasses.asdict(flag), "set": force[VARIABLES[platform]].get(flag.name)} for flag in of_platform]
    return {"in_force": {name: given for name, given in force.items() if given}, "table": table}


def lines(found: Mapping[str, Any]) -> list[str]:
    """A report as a person reads it."""
    out = [f"{variable}: {as_text(given)}" for variable, given in found["in_force"].items()] or ["none set"]
    for group in sorted({flag["group"] for flag in found["table"]}):
        flags = [flag for flag in found["table"] if flag["group"] == group]
        off = [flag["name"] for flag in flags if flag["set"] is None]
        other = [f"{f['name']}={f['set']} (table: {f['value']})" for f in flags if f["set"] not in (None, f["value"])]
        if flags:
            out.append(f"{group}: {len(flags) - len(off)} of {len(flags)} set"
                       + (f", otherwise: {', '.join(other)}" if other else "")
                       + (f", unset: {', '.join(off)}" if off else ""))  # fmt: skip
    return out


def _process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with JAX on the CPU and some variables."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}
    here = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**kept, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
