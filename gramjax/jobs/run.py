"""Run a recipe: commands in order, those that are done are skipped, every file in between can be read."""

import sys
import time
from pathlib import Path
from typing import Any

from gramjax.checkpoint.lock import RunLock
from gramjax.core import flags, folder, plugins
from gramjax.core.errors import GramjaxError, UserError
from gramjax.core.recipe import Step

ROUNDS = "rounds.json"


def main(argv: list[str]) -> int:
    """`gramjax run --config=RECIPE --workdir=DIR`: DIR/steps/NN-NAME for each step, DIR/rounds.json for all."""
    arguments = flags.parse(argv, "run")
    config, workdir = arguments.config, Path(arguments.workdir or ".")
    if "recipe" not in config:
        raise UserError(f"config {arguments.config_name!r} is no recipe (it has no config.recipe)")
    plugin = plugins.load("recipes", config.recipe.name)
    steps = plugin.steps(config, workdir)
    if arguments.dry_run:
        for step in steps:
            flags.checks.check(step.config, step.verb)
            print(command(step, workdir))
        return 0
    with RunLock(workdir):
        folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
        for step in steps:
            if not (code := take(step, steps, workdir)):
                folder.write_json(workdir / ROUNDS, state(plugin, config, steps, workdir))
                continue
            return code
        (workdir / "DONE").write_text("")
    finish(workdir)
    return 0


def command(step: Step, workdir: Path) -> str:
    """The command of a step, as a person would type it."""
    return f"gramjax {step.verb} --config={config_file(step, workdir)} --workdir={place(step, workdir)}"


def config_file(step: Step, workdir: Path) -> Path:
    """Where the config of a step lies."""
    return workdir / "configs" / f"{step.name}.json"


def place(step: Step, workdir: Path) -> Path:
    """The folder of a step."""
    return workdir / "steps" / step.name


def take(step: Step, steps: list[Step], workdir: Path) -> int:
    """Run a step unless it is done; returns its exit code."""
    done = workdir / "steps" / f"{step.name}.json"
    if done.is_file():
        return 0
    folder.write_json(config_file(step, workdir), folder.as_dict(step.config))
    print(f"== {step.name} ({steps.index(step) + 1} of {len(steps)})  {command(step, workdir)}", flush=True)
    began = time.perf_counter()
    argv = [f"--config={config_file(step, workdir)}", f"--workdir={place(step, workdir)}"]
    code = plugins.load("jobs", step.verb).main(argv)
    if not code:
        folder.write_json(done, {"seconds": time.perf_counter() - began})
    return code


def state(plugin: Any, config: Any, steps: list[Step], workdir: Path) -> dict[str, Any]:
    """What `rounds.json` holds: the recipe's numbers, and every step with its seconds."""
    listed = []
    for step in steps:
        found = flags.read_json(path) if (path := workdir / "steps" / f"{step.name}.json").is_file() else {}
        seconds = found.get("seconds")
        listed.append({"name": step.name, "verb": step.verb, "done": bool(found), "seconds": seconds})
    finished = all(step["done"] for step in listed)
    return {**plugin.summarise(config, workdir), "steps": listed, "finished": finished}


def finish(workdir: Path) -> None:
    """Write the report and say where everything is."""
    from gramjax.plots import report

    try:
        print(f"report  {report.write_report(workdir)}")
    except GramjaxError as error:
        print(f"gramjax: no report: {error}", file=sys.stderr)
    print(f"rounds  {workdir / ROUNDS}")
