"""Look after the checkpoints of a run: verify every value, list them, or delete old ones.

`gramjax checkpoint verify RUN [--step=N]` reads every leaf and compares it with the checksum that was saved with it;
the exit code is 3 if one is damaged. `gramjax checkpoint list RUN` says what is there, also what was put aside.
`gramjax checkpoint prune RUN --keep=N` (or --steps=N,M) deletes, but never the last step that verifies, and not while a
job works in the folder; with --keep the best of a run that keeps some (config.train.keep_best) stay too.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

from gramjax.checkpoint import best, state, survey
from gramjax.checkpoint.lock import RunLock
from gramjax.checkpoint.shards import listing
from gramjax.core import flags
from gramjax.core.errors import GramjaxError, UserError


def main(argv: list[str]) -> int:
    """`gramjax checkpoint verify|list|prune RUN ...`; 0, or 3 when something is damaged."""
    arguments = _parser().parse_args(argv)
    actions = {"verify": verify, "list": list_steps, "prune": prune}
    return actions[arguments.action](arguments, survey.run_folder(arguments.run))


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser("gramjax checkpoint", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("verify", help="read every leaf and compare it with its checksum", allow_abbrev=False)
    check.add_argument("--step", type=int, help="only this one (default: all)")
    show = actions.add_parser("list", help="steps, sizes, and which are known to be whole", allow_abbrev=False)
    drop = actions.add_parser("prune", help="delete old steps", allow_abbrev=False)
    which = drop.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", type=int, help="so many of the newest stay")
    which.add_argument("--steps", help="delete these, with commas between")
    drop.add_argument("--keep_best", type=int, help="with --keep: so many of the best stay beside them (default: as "
                      "the training was told)")  # fmt: skip
    drop.add_argument("--refused", action="store_true", help="delete what was put aside as damaged, too")
    drop.add_argument("--dry_run", action="store_true", help="say what would be deleted, and stop")
    for action in (check, show, drop):
        action.add_argument("run", metavar="RUN", help="run folder")
    for action in (check, show):
        action.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def verify(arguments: argparse.Namespace, run: Path) -> int:
    """Verify one or all committed steps; 3 when a leaf of one is damaged."""
    _on_the_host()
    found = []
    for step in sorted(state.choose(run, arguments.step)):
        leaves, damaged = state.examine(run, step)
        found.append({"step": step, "leaves": leaves, "damaged": damaged})
        if arguments.json:
            continue
        if not damaged:
            print(f"step {step}: whole ({leaves:,} leaves)")
        elif not leaves:
            print(f"step {step}: DAMAGED: {damaged['manifest']}")
        else:
            rest = leaves - len(damaged)
            print(f"step {step}: DAMAGED: {listing(damaged, 50)}; the other {rest:,} of {leaves:,} leaves are whole")
            for name, why in list(damaged.items())[:5]:
                print(f"  {name}: {why}")
    bad = [entry["step"] for entry in found if entry["damaged"]]
    if arguments.json:
        print(json.dumps({"run": str(run), "whole": not bad, "steps": found}, indent=2))
    return 3 if bad else 0


def list_steps(arguments: argparse.Namespace, run: Path) -> int:
    """Print what a run folder holds."""
    evaluated = best.Best(None)
    try:
        evaluated = best.of_run(run)
    except GramjaxError as error:  # a list is made to see what is damaged
        print(f"gramjax: {error}", file=sys.stderr)
    found, rule = survey.steps(run, evaluated), evaluated.rule
    if arguments.json:
        by = {"best_by": None if rule is None else dataclasses.asdict(rule)}
        print(json.dumps({"run": str(run), **by, "steps": [dataclasses.asdict(step) for step in found]}, indent=2))
        return 0
    for step in found:
        mesh = " ".join(f"{name}={size}" for name, size in (step.mesh or {}).items()) or "-"
        if step.status == "complete":
            known = f"verified {_date(step.verified)}" if step.verified else "not verified"
        else:
            known = {"refused": f"refused (damaged), in {step.path}", "incomplete": "never completed"}[step.status]
        leaves = f"{step.leaves:,} leaves" if step.leaves is not None else "no manifest"
        if rule is not None and step.status == "complete":
            value = "no value" if step.metric is None else f"{step.metric:.6g}"
            known += f"  {rule.metric} {value}{'  best' if step.best else ''}"
        print(f"{step.step:>9}  {_date(step.time)}  {size_of(step.bytes):>10}  {leaves:>13}  {mesh}  {known}")
    if not found:
        print(f"{run} holds no checkpoints")
    return 0


def prune(arguments: argparse.Namespace, run: Path) -> int:
    """Delete steps, the folder locked; the last one that verifies stays."""
    if arguments.keep is not None and arguments.keep < 1:
        raise UserError(f"--keep={arguments.keep}: keep at least 1 checkpoint")
    if arguments.keep_best is not None:
        if arguments.keep is None or arguments.keep_best < 0:
            raise UserError(f"--keep_best={arguments.keep_best}: a number from 0, beside --keep")
        if best.of_run(run).rule is None:
            raise UserError(f"--keep_best={arguments.keep_best}: {run} has no best, it was not told a best_metric")
    chosen = _numbers(arguments.steps) if arguments.steps is not None else ()
    _on_the_host()
    if arguments.dry_run:
        _prune(arguments, run, chosen)
    else:
        with RunLock(run):
            _prune(arguments, run, chosen)
    return 0


def _prune(arguments: argparse.Namespace, run: Path, chosen: tuple[int, ...]) -> None:
    leaving = survey.prunable(
        run, arguments.keep or 0, chosen, lambda line: print(line, file=sys.stderr), arguments.keep_best
    )
    word = "would delete" if arguments.dry_run else "deleted"
    freed = 0
    for step in survey.steps(run):
        aside = step.status == "refused" and arguments.refused
        if not aside and not (step.status == "complete" and step.step in leaving):
            continue
        if not arguments.dry_run:
            _delete(run, step)
        freed += step.bytes
        print(f"{word} {step.path} ({size_of(step.bytes)})")
    staying = [str(step) for step in state.steps_of(run) if step not in leaving]
    print(f"{size_of(freed)} {'would be ' if arguments.dry_run else ''}freed; steps that stay: {listing(staying)}")


def _delete(run: Path, step: survey.Step) -> None:
    if step.status == "complete":
        problem = state.delete_step(run, step.step)
    else:
        try:
            shutil.rmtree(run / step.path)
            problem = ""
        except OSError as error:
            problem = f"{step.path} cannot be deleted ({error.strerror or error})"
    if problem:
        raise GramjaxError(f"{run}: {problem}")


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"--steps={text}: expected numbers with commas between")
    return tuple(dict.fromkeys(map(int, parts)))


def _on_the_host() -> None:
    """Values are compared on the host: the accelerator may belong to a training that goes on."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size_of(count: int) -> str:
    """`3.2 MiB`."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
