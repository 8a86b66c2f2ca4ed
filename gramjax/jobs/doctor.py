"""Say what is installed, which devices are there, and what would keep a job from running.

`gramjax doctor` ends with `ready` or `n problems` (exit code 2); `--json` prints the same facts for a machine. Of the
flags of XLA it says which are in force, and which of those that pay on this platform are not.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gramjax.core import flags, runtime, xla_flags
from gramjax.core.errors import UserError

LEAST_PYTHON = (3, 11)


def problems(facts: dict[str, Any]) -> list[str]:
    """What would keep a job from running, each with the remedy."""
    versions = facts["versions"]
    out = [f"{name} is not installed: pip install -U gramjax" for name, found in versions.items() if not found]
    out += runtime.bad_pairs(versions)
    if sys.version_info < LEAST_PYTHON:
        out.append(f"Python {facts['python']} is too old: gramjax needs {'.'.join(map(str, LEAST_PYTHON))} or newer")
    out += [f"{problem}; set GRAMJAX_CACHE" for problem in [runtime.unwritable(Path(facts["cache"]))] if problem]
    out += [f"this folder: {problem}" for problem in [runtime.unwritable(Path.cwd())] if problem]
    if "error" in facts["devices"]:
        out.append(facts["devices"]["error"])
    out += [facts["processes"]["error"]] if "error" in facts["processes"] else []
    out += [f"LIBTPU_INIT_ARGS: the TPU compiler does not take {flag}" for flag in facts["xla_flags"]["refused"]]
    return out


def gather() -> dict[str, Any]:
    """`runtime.facts`, with a failing JAX as a fact instead of an error. Devices are asked in a process of their own:
    an unknown word in XLA_FLAGS ends the process that starts JAX."""
    out = runtime.facts(with_devices=False)
    code = "import json; from gramjax.core import runtime; print(json.dumps(runtime.devices()))"
    here = str(Path(runtime.__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    for_tpu = xla_flags.parse(os.environ.get("LIBTPU_INIT_ARGS", ""))
    refused = (xla_flags.unknown_to_tpu(for_tpu) or []) if for_tpu else []
    try:
        out["devices"] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        unknown = [line.split("] ", 1)[-1] for line in lines if "Unknown flag" in line]
        text = (unknown or lines[-1:] or [f"exit code {done.returncode}"])[0]
        text = text.removeprefix("gramjax.core.errors.UserError: ")
        hint = f" (XLA_FLAGS is {os.environ['XLA_FLAGS']!r})" if unknown else ""
        out["devices"] = {"error": f"JAX does not start: {text.removeprefix('JAX does not start: ')}{hint}"}
    found = xla_flags.report(os.environ, out["devices"].get("backend", ""))
    out["xla_flags"] = {**found, "refused": refused}
    out["processes"] = joining(os.environ)
    return out


def joining(environment: Mapping[str, str]) -> dict[str, Any]:
    """How a job that is started with these variables joins others, if nothing on its command line says so."""
    try:
        plan = runtime.distributed_plan("", environment)
    except UserError as error:
        return {"error": str(error)}
    if plan is None:
        return {"count": 1, "found": "one; several are started by gramjax launch"}
    if "num_processes" in plan:
        count, number, where = (plan[name] for name in ("num_processes", "process_id", "coordinator_address"))
        return {"count": count, "found": f"{count} that meet at {where}, this is number {number} (JAX_PROCESS_ID)"}
    tasks = int(environment["SLURM_NTASKS"])
    return {"count": tasks, "found": f"{tasks} tasks of SLURM, this is number {environment['SLURM_PROCID']}"}


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as a person reads them."""
    found = facts["devices"]
    memory = f", {found['memory_gib']} GiB each" if found.get("memory_gib") else ""
    where = "none" if "error" in found else f"{found['count']} x {found['kind']} ({found['backend']}{memory})"
    commit = f" at {facts['commit'][:12]}{'+changes' * facts['commit'].endswith('+changes')}" if facts["commit"] else ""
    free = facts["memory_gib"]
    have = [name for name, present in facts["extras"].items() if present]
    absent = [name for name, present in facts["extras"].items() if not present]
    rows = [
        ("gramjax", f"{facts['gramjax']}{commit}"),
        ("python", f"{facts['python']} on {facts['system']}, {facts['host']}"),
        ("devices", where),
        ("processes", facts["processes"].get("found", "not clear: see below")),
        ("memory", f"{free['available']} of {free['total']} GiB free" if free else "unknown"),
        ("cpus", str(facts["cpus"])),
        ("versions", ", ".join(f"{name} {found}" for name, found in facts["versions"].items() if found)),
        ("extras", f"{', '.join(have) or 'none'} (absent: {', '.join(absent) or 'none'})"),
        ("cache", facts["cache"]),
        ("variables", ", ".join(f"{name}={value}" for name, value in facts["variables"].items()) or "none set"),
        ("offline", "yes (HF_HUB_OFFLINE)" if facts["variables"].get("HF_HUB_OFFLINE") in ("1", "true") else
         "not forced; gramjax reads local paths only"),
    ]
    rows += [("xla flags", text) for text in xla_flags.lines(facts["xla_flags"])]
    return [f"{name:<10} {text}" for name, text in rows]


def main(argv: list[str]) -> int:
    """Print the facts and the problems; 0 when ready, 2 otherwise."""
    parser = flags.Parser("gramjax doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    facts = gather()
    found = problems(facts)
    if arguments.json:
        print(json.dumps({**facts, "problems": found}, indent=2))
    else:
        print("\n".join(lines(facts)))
        print("\n".join(f"problem    {problem}" for problem in found) + "\n" * bool(found), end="")
        print("ready" if not found else f"{len(found)} problem{'s' * (len(found) > 1)}")
    return UserError.exit_code if found else 0
