"""What fits where: programs of named models compiled for TPU slices that need not exist; the table of docs/scale.md.

    python benchmarks/scale.py [--models llama31_8b,...] [--uses full,...] [--topologies v5e:4x4,...] [--largest]
    python benchmarks/scale.py --table          writes the table of docs/scale.md from the file of results

Every cell is `gramjax plan --json` in a process of its own; results are kept in benchmarks/results/scale.json, and
what is there is not compiled again. One sequence of 2,048 tokens per device, then, with --largest, about the most that
fit: a number that should, then those that the line through the memories gives, each compiled.
"""

import argparse
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import measure

from gramjax.core import chips, flags

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
MODELS = {"qwen3_1_7b": "Qwen3-1.7B", "llama31_8b": "Llama-3.1-8B", "qwen3_14b": "Qwen3-14B",
          "llama31_70b": "Llama-3.1-70B"}  # fmt: skip
USES = {"full": "full tuning", "selective": "15 % of the layers", "lora": "LoRA, rank 16",
        "score": "scoring", "decode": "decoding"}  # fmt: skip
TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4", "v6e:8x8")
FIELD = {"score": "score.batch_size", "decode": "generation.slots"}


def plan(model: str, use: str, topology: str, count: int) -> dict[str, Any]:
    """The budget of one program with `count` sequences."""
    command = [sys.executable, "-m", "gramjax", "plan", f"--config=models/{model}:{use}", f"--topology={topology}",
               "--json", "--no_advice", f"--config.{FIELD.get(use, 'train.batch_size')}={count}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in (0, 2) or not done.stdout.strip():
        raise SystemExit(f"scale: {' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return {**found, "sequences": count, "libtpu": metadata.version("libtpu")}


def more(found: dict[str, Any], devices: int, fixed: float, grows: float) -> int:
    """The number of sequences at which `fixed` GiB and `grows` for each per device fill it; in round numbers."""
    per_device = (0.98 * found["device_gib"] - fixed) / max(grows, 1e-4)
    step = 1 if per_device < 8 else 4 if per_device < 64 else 32
    return max(math.floor(per_device / step) * step, 1) * devices


def largest_that_fits(
    one: dict[str, Any], devices: int, tried: Callable[[int], dict[str, Any]], rise: float
) -> dict[str, Any]:
    """The plan of about the most sequences that fit; `one` has a sequence per device and fits.

    First a sequence of a device is taken to need `rise` GiB, what it needs in another cell; where that is not known,
    all that is not parameters or optimiser, which is mostly too careful: weights are gathered once for all of them.
    Then the line through two memories says how many: those of the most that fitted and the fewest that did not (whose
    memory is known, too), or of the first and the last. A tenth more is not looked for.
    """
    rise = rise or one["peak_gib_per_device"] - one["parameters_gib"] - one["optimizer_gib"]
    count = max(more(one, devices, one["peak_gib_per_device"] - rise, rise), 2 * devices)
    fitted, refused = one, None
    for _ in range(4):
        found = tried(count)
        if found["fits"]:
            below, above = (one, found) if refused is None else (found, refused)
            fitted = found
        else:
            below, above, refused = fitted, found, found
        taken = [plan["peak_gib_per_device"] for plan in (below, above)]
        rises = (taken[1] - taken[0]) / (above["sequences"] - below["sequences"])
        count = more(one, devices, taken[0] - rises * below["sequences"], rises * devices)
        if count <= 1.1 * fitted["sequences"] or (refused and count >= refused["sequences"]):
            break
    return fitted


def rise_elsewhere(name: str, cells: dict[str, Any]) -> float:
    """The GiB that a sequence more per device took in another cell of this use; 0: not known.

    Of the same model where there is one, else of the one of the next size, by hidden states (layers times width).
    """
    model, use, _ = name.split("/")
    found: dict[str, float] = {}
    for other, plans in cells.items():
        its_model, its_use, _ = other.split("/")
        if its_use == use and other != name and "largest" in plans:
            one, most = plans["one"], plans["largest"]
            added = (most["sequences"] - one["sequences"]) / one["sequences"]
            if added:
                found[its_model] = (most["peak_gib_per_device"] - one["peak_gib_per_device"]) / added
    nearest = min(found, key=lambda other: abs(math.log(hidden_states(other) / hidden_states(model))), default="")
    return found[nearest] * hidden_states(model) / hidden_states(nearest) if found else 0.0


def hidden_states(model: str) -> int:
    """Numbers per token that full remat keeps."""
    arch = flags.load(f"models/{model}").model.arch
    return arch.num_layers * arch.hidden_size


def cell(model: str, use: str, topology: str, known: dict[str, Any], largest: bool, rise: float) -> dict[str, Any]:
    """One cell of the table; what is known is kept."""
    devices = chips.parse(topology).count
    out = dict(known)
    if "one" not in out:
        out["one"] = plan(model, use, topology, devices)
    if largest and out["one"]["fits"] and "largest" not in out:
        out["largest"] = largest_that_fits(out["one"], devices, functools.partial(plan, model, use, topology), rise)
    return out


def check(cells: dict[str, Any]) -> None:
    """Compile recorded programs again; exit with an error when memory or traffic grew by more than 5 %."""
    worse = []
    for name, found in cells.items():
        was = found["one"]
        now = plan(*name.split("/"), was["sequences"])
        for key in ("peak_gib_per_device", "collective_gib_per_step"):
            print(f"{name}: {key} {was[key]} -> {now[key]}", flush=True)
            if was[key] is not None and (now[key] is None or now[key] > 1.05 * was[key] + 0.01):
                worse.append(f"{name} {key}")
    if worse:
        raise SystemExit(f"scale: more than recorded: {', '.join(worse)}")


def table(results: dict[str, Any]) -> list[str]:
    """The rows of docs/scale.md."""
    heads = ("model", "program", "slice", "sequences", "GiB per chip (of)", "traffic, GiB", "floor, s", "most that fit")
    out = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, found in sorted(results["cells"].items(), key=lambda item: order(item[0])):
        model, use, topology = name.split("/")
        one, largest = found["one"], found.get("largest")
        verdict = "" if one["fits"] else " **no**"
        most = "not tried" if one["fits"] else "none"
        if largest:
            most = f"{largest['sequences']}: {largest['peak_gib_per_device']:.1f} GiB"
        moved = f"{one['collective_gib_per_step']:.1f}" if one["fits"] else "–"
        floor = f"{one['floor_step_seconds']:.3f}" if one["fits"] else "–"
        out.append(
            f"| {MODELS[model]} | {USES[use]} | {topology} | {one['sequences']} | {one['peak_gib_per_device']:.2f} "
            f"({one['device_gib']}){verdict} | {moved} | {floor} | {most} |"
        )
    return out


def order(name: str) -> tuple[int, ...]:
    model, use, topology = name.split("/")
    return list(MODELS).index(model), list(USES).index(use), chips.parse(topology).count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--uses", default=",".join(USES))
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--largest", action="store_true", help="look for the most sequences that fit, too")
    parser.add_argument("--check", action="store_true", help="compile recorded cells again and compare")
    parser.add_argument("--table", action="store_true", help="write the table of docs/scale.md and stop")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cells": {}}
    chosen = [
        f"{model}/{use}/{topology}" for model in arguments.models.split(",") for use in arguments.uses.split(",")
        for topology in arguments.topologies.split(",")
    ]  # fmt: skip
    if arguments.check:
        check({name: results["cells"][name] for name in chosen if name in results["cells"]})
        return
    if not arguments.table:
        results |= {"command": "python benchmarks/scale.py", "machine": measure.machine()}
        for name in chosen:
            known = results["cells"].get(name, {})
            results["cells"][name] = found = cell(
                *name.split("/"), known, arguments.largest, rise_elsewhere(name, results["cells"])
            )
            measure.write(str(RESULTS), results)
            print(name, {key: (part["sequences"], part["peak_gib_per_device"], part["compile_seconds"])
                         for key, part in found.items()}, flush=True)  # fmt: skip
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(table(results)) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
