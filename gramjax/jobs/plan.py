"""Say what a config needs of devices that need not be here: memory, collectives, a floor of the step time.

`gramjax plan --config=NAME --topology=v5e:4x4 [--json] [--config.a.b=c]` compiles the real program of the config (the
training step, the reader of `score`, the decoding step of `generate`) for a TPU slice that need not exist
(`pip install "gramjax[plan]"` brings its compiler; config.mesh.slices says how many such slices), or for simulated CPU
devices (`cpu:8`). For GPUs (`h100:8`) memory is an estimate. Nothing is allocated or run. Exit code 0 when it fits; 2
when not, with two changes that make it fit.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gramjax.core import chips, flags
from gramjax.core.errors import UserError

OWN = ("topology",)
SWITCHES = ("json", "no_advice")


def main(argv: list[str]) -> int:
    """Compile, print, and look for changes when the program does not fit; 0 when it fits, 2 when not."""
    own, rest = taken(argv)
    if "help" in own:
        print(__doc__)
        return 0
    if "topology" not in own:
        raise UserError("plan: --topology is missing, such as --topology=v5e:4x4 (gramjax plan --help)")
    topology = chips.parse(own["topology"])
    chips.prepare(topology)
    arguments = flags.parse(rest, "plan", workdir_needed=False)
    for name in ("workdir", "dry_run", "distributed", "devices"):
        if getattr(arguments, name):
            raise UserError(f"plan: --{name} means nothing here: a plan runs and writes nothing; leave it out")
    from gramjax.core.phases import phases

    say, results = "json" not in own, {}
    for name, config, _ in phases(arguments.config, Path(arguments.workdir), dry_run=True):
        results[name] = found = one(name, config, topology, say)
        if not found["fits"] and "no_advice" not in own:
            found["advice"] = list(advice(config, topology, say))
    if not say:
        largest = max(results.values(), key=lambda found: found["peak_gib_per_device"])
        print(json.dumps(largest if len(results) == 1 else {**largest, "phases": results}, indent=2))
    return 0 if all(found["fits"] for found in results.values()) else UserError.exit_code


def taken(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this verb, and the others."""
    own: dict[str, str] = {}
    rest = []
    for word in argv:
        name, given, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and (name in OWN and given or name in (*SWITCHES, "help") and not given):
            if name in own:
                raise UserError(f"plan: --{name} is given twice")
            own[name] = value
        else:
            rest.append(word)
    if "help" in own and any(word.startswith("--config") for word in rest):
        del own["help"]  # the settings of that config
        rest.append("--help")
    return own, rest


def one(name: str, config: Any, topology: chips.Topology, say: bool) -> dict[str, Any]:
    """The budget of one config as a dictionary; printed when `say`."""
    from gramjax.training import budget, planning

    topology = topology.times(config.mesh.slices)
    program = planning.build(config, chips.devices(topology))
    found = dataclasses.asdict(budget.read(program, topology))
    if say:
        print("\n".join(lines(found, name)), flush=True)
    return found


def lines(found: dict[str, Any], name: str = "") -> Iterator[str]:
    """A budget as a person reads it."""
    settings = ", ".join(f"{name} {value}" for name, value in found["settings"].items() if name != "mesh")
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["settings"]["mesh"].items() if size > 1) or "one device"
    yield f"{name + ': ' * bool(name)}{found['program']} on {found['topology']} (mesh: {mesh}; {settings})"
    if found["device_gib"]:
        verdict = "fits" if found["fits"] else "DOES NOT FIT"
        of = f"of {found['device_gib']} GiB per device: {verdict}"
    else:
        of = "per device"
    estimated = ", an estimate from sizes: no compiler for this GPU is here" if found["estimated"] else ""
    yield f"  peak        {found['peak_gib_per_device']:9.2f} GiB {of}{estimated}"
    for name in ("parameters", "optimizer", "cache", "batch", "temporaries"):
        if found[f"{name}_gib"]:
            yield f"  {name:<11} {found[f'{name}_gib']:9.2f} GiB"
    again = found["hardware_flops_per_step"] / max(found["flops_per_step"], 1)
    more = f" (x {again:.2f} with what remat computes again)" if again > 1.001 else ""
    yield f"  products    {found['flops_per_step'] / 1e12:9.2f} TFLOP per step, all devices{more}"
    kinds = ", ".join(f"{kind} {size:.2f}" for kind, size in found["collective_gib_by_kind"].items() if size >= 0.005)
    if found["collective_gib_per_step"] is not None:
        moved = found["collective_gib_per_step"]
        yield f"  collectives {moved:9.2f} GiB received per device and step ({kinds or 'none'})"
    elif found["fits"]:
        yield '  collectives   unknown: this JAX cannot read what a newer compiler made (pip install "gramjax[plan]")'
    if found["floor_step_seconds"]:
        causes = ", ".join(f"{name} {value:.4f}" for name, value in found["floor_seconds_by_cause"].items())
        yield f"  floor       {found['floor_step_seconds']:9.4f} s per step, no prediction ({causes})"
    yield f"  compiled in {found['compile_seconds']:9.1f} s"


def advice(config: Any, topology: chips.Topology, say: bool, wanted: int = 2) -> Iterator[dict[str, Any]]:
    """The first changes that make a config fit, the cheapest in time first, each found by compiling it.

    More of what was enough already comes after all other settings.
    """
    from gramjax.training import budget

    topology = topology.times(config.mesh.slices)
    used: set[str] = set()

    def turns() -> Iterator[tuple[dict[str, Any], Any]]:
        more = []
        for change, program in in_order_of_cost(config, topology):
            if used & set(change):
                more.append((change, program))
            else:
                yield change, program
        yield from more

    for change, program in turns():
        found = budget.read(program, topology)
        if not found.fits:
            continue
        used |= set(change)
        words = " ".join(f"--config.{path}={value}" for path, value in change.items())
        if say:
            print(f"fits with {words}: {found.peak_gib_per_device:.2f} GiB, floor "
                  f"{found.floor_step_seconds:.4f} s per step", flush=True)  # fmt: skip
        yield {"change": words, "peak_gib_per_device": found.peak_gib_per_device,
               "floor_step_seconds": found.floor_step_seconds}  # fmt: skip
        wanted -= 1
        if not wanted:
            return
    if say:
        other = "other " if used else ""
        print(f"no {other}single change of remat, logit_chunk, grad_accum, tensor or batch makes it fit: use more "
              "devices", file=sys.stderr)  # fmt: skip


def in_order_of_cost(config: Any, topology: chips.Topology) -> list[tuple[dict[str, Any], Any]]:
    """The changes that can be made and their programs, not compiled: by the seconds that a sequence costs at least.

    A smaller batch of a training comes last: what is learned changes with it.
    """
    from gramjax.training import budget, planning

    ranked = []
    for number, change in enumerate(changes(config, topology)):
        try:
            program = planning.build(planning.changed(config, change), chips.devices(topology))
        except UserError:
            continue  # the sizes do not divide: no change that can be made
        changes_training = bool({"train.batch_size", "grpo.prompts_per_step"} & set(change))
        ranked.append((changes_training, budget.least_seconds(program, topology), number, change, program))
    return [(change, program) for *_, change, program in sorted(ranked, key=lambda entry: entry[:3])]


def changes(config: Any, topology: chips.Topology) -> Iterator[dict[str, Any]]:
    """Changes that need less memory; where two cost the same the first is better."""
    if config.job == "train":
        if config.train.logit_chunk > 256:
            yield {"train.logit_chunk": 256}
        order = ("none", "projections", "full")
        yield from ({"train.remat": name} for name in order[order.index(config.train.remat) + 1 :])
        rolls = "grpo" in config  # a step is counted in prompts there
        field, each = ("grpo.prompts_per_step", config.grpo.group_size) if rolls else ("train.batch_size", 1)
        section, name = field.split(".")
        count, shards = config[section][name], max(topology.count // max(config.mesh.tensor, 1), 1)
        for factor in (2, 4, 8):
            if count * each % (shards * config.train.grad_accum * factor) == 0:
                yield {"train.grad_accum": config.train.grad_accum * factor}
        for tensor in (2, 4, 8):
            if tensor > config.mesh.tensor and topology.count % tensor == 0:
                yield {"mesh.tensor": tensor}
        if count // 2:
            yield {field: count // 2}
        return
    name = "score.batch_size" if config.job == "score" else "generation.slots"
    if config.job == "generate" and config.generation.gather_weights:
        yield {"generation.gather_weights": False}
    for tensor in (2, 4, 8):
        if tensor > config.mesh.tensor and topology.count % tensor == 0:
            yield {"mesh.tensor": tensor}
    section, field = name.split(".")
    for factor in (2, 4, 8):
        if config[section][field] // factor:
            yield {name: config[section][field] // factor}
