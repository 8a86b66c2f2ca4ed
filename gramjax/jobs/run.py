"""Run a recipe: commands in order, those that are done are skipped, every file in between can be read."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from gramjax.checkpoint import best
from gramjax.checkpoint.lock import RunLock
from gramjax.core import checks, flags, folder, plugins, progress, runtime, signals
from gramjax.core.errors import DataError, GramjaxError, UserError
from gramjax.core.recipe import Step
from gramjax.core.row_log import ROWS, SUMMARY

ROUNDS = "rounds.json"


def main(argv: list[str]) -> int:
    """`gramjax run --config=RECIPE --workdir=DIR`: DIR/steps/NN-NAME for each step, DIR/rounds.json for all."""
    arguments = flags.parse(argv, "run")
    config, workdir = arguments.config, Path(arguments.workdir or ".")
    if "recipe" not in config:
        raise UserError(f"config {arguments.config_name!r} is no recipe (it has no config.recipe)")
    if arguments.distributed:
        raise UserError("gramjax run is one process; run its steps (--dry_run lists them) with --distributed instead")
    runtime.one_process("run")
    plugin = plugins.load("recipes", config.recipe.name)
    steps = plugin.steps(config, workdir)
    for step in steps:
        checks.check(step.config, step.verb)
        if not finished(step, workdir):
            inputs_exist(step, workdir)
    if arguments.dry_run:
        for step in steps:
            print(command(step, workdir))
        return 0
    if arguments.devices:
        runtime.start(expected=arguments.devices, alone="run")
    with RunLock(workdir), signals.served():
        folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
        for step in steps:
            if finished(step, workdir):
                continue
            progress.stop_point(f"the beginning of step {step.name}")
            print(f"== {step.name} ({steps.index(step) + 1} of {len(steps)})  {command(step, workdir)}", flush=True)
            if code := take(step, workdir):
                return code
            folder.write_json(workdir / ROUNDS, state(plugin, config, steps, workdir))
        folder.write_json(workdir / ROUNDS, state(plugin, config, steps, workdir))
        (workdir / "DONE").write_text("")
    finish(workdir)
    return 0


def inputs_exist(step: Step, workdir: Path) -> None:
    """Raise UserError for rows or weights that a step needs, no step makes, and nobody has: hours before it begins."""
    data, model = step.config.get("data", {}), step.config.get("model", {})
    for path in (*data.get("train", ()), *data.get("valid", ()), data.get("path", ""), model.get("path", "")):
        if path and not path.startswith((str(workdir / "steps"), "recipe:")) and not best.split(path)[0].exists():
            raise UserError(f"step {step.name}: no file or folder {path!r}")


def command(step: Step, workdir: Path) -> str:
    """The command of a step, as a person would type it."""
    return f"gramjax {step.verb} --config={config_file(step, workdir)} --workdir={place(step, workdir)}"


def config_file(step: Step, workdir: Path) -> Path:
    """Where the config of a step lies."""
    return workdir / "steps" / f"{step.name}.config.json"


def place(step: Step, workdir: Path) -> Path:
    """The folder of a step."""
    return workdir / "steps" / step.name


def finished(step: Step, workdir: Path) -> dict[str, Any]:
    """What was noted when a step was done; empty before."""
    path = workdir / "steps" / f"{step.name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def take(step: Step, workdir: Path) -> int:
    """Run a step and note that it is done; returns its exit code. Errors name the step."""
    folder.write_json(config_file(step, workdir), folder.as_dict(step.config))
    began = time.perf_counter()
    argv = [f"--config={config_file(step, workdir)}", f"--workdir={place(step, workdir)}"]
    try:
        code = plugins.load("jobs", step.verb).main(argv)
        nothing_left(place(step, workdir))
    except (UserError, DataError) as error:
        raise type(error)(f"step {step.name}: {error}") from error
    if not code:
        folder.write_json(workdir / "steps" / f"{step.name}.json", {"seconds": time.perf_counter() - began})
    return code


def nothing_left(done: Path) -> None:
    """Raise DataError for a step that wrote a file of rows without a row: no later step could go on."""
    summary = json.loads((done / SUMMARY).read_text("utf-8")) if (done / SUMMARY).is_file() else {}
    if summary and not summary["written"]:
        reasons = {**summary["refused"], **summary["unreadable"]}
        found = "; ".join(f"{lost['count']:,} {why}" for why, lost in reasons.items())
        raise DataError(f"{done / ROWS}: none of {summary['rows']:,} rows is left ({found})")


def state(plugin: Any, config: Any, steps: list[Step], workdir: Path) -> dict[str, Any]:
    """What `rounds.json` holds: the recipe's numbers, and every step with its seconds."""
    listed = []
    for step in steps:
        found = finished(step, workdir)
        listed.append({"name": step.name, "verb": step.verb, "done": bool(found), "seconds": found.get("seconds")})
    return {**plugin.summarise(config, workdir), "steps": listed, "finished": all(step["done"] for step in listed)}


def finish(workdir: Path) -> None:
    """Write the report and say where everything is."""
    from gramjax.plots import report

    try:
        print(f"report  {report.write_report(workdir)}")
    except GramjaxError as error:
        print(f"gramjax: no report: {error}", file=sys.stderr)
    print(f"rounds  {workdir / ROUNDS}")
