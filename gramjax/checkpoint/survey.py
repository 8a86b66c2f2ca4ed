"""What a run folder holds in checkpoints, and which of them may go: `gramjax checkpoint list` and `prune`."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from gramjax.checkpoint import best as bests
from gramjax.checkpoint import json_file, manifest, state, verified
from gramjax.core.errors import DataError, UserError


@dataclasses.dataclass(frozen=True)
class Step:
    """One checkpoint as it lies on disk."""

    step: int
    status: str
    """`complete`, `refused` (put aside by a restore that found it damaged) or `incomplete` (never committed)."""
    path: str
    """Its folder, below the run."""
    time: float
    """When it was committed, or last written (seconds since 1970)."""
    bytes: int
    leaves: int | None
    """Arrays in it; None where its manifest cannot be read."""
    mesh: dict[str, int] | None
    verified: float | None
    """When its files, as they are now, were read and found whole; None: not since they were written."""
    metric: float | None = None
    """The number that the best of the run are best by (`config.train.best_metric`); None: not known, or not finite."""
    best: bool = False
    """Whether it is one of the best, as many as the run keeps."""


def run_folder(path: str | Path) -> Path:
    """A run folder that has checkpoints; raises UserError that says what to give instead of anything else."""
    folder = Path(path).expanduser()
    if (folder / state.FOLDER).is_dir() or (folder / state.REFUSED).is_dir():
        return folder
    if folder.name in (state.FOLDER, state.REFUSED) and folder.is_dir():
        raise UserError(f"{path} is the checkpoint folder of a run: give {folder.parent}")
    if folder.parent.name in (state.FOLDER, state.REFUSED):
        run = folder.parent.parent
        known = ", ".join(map(str, state.steps_of(run))) or "none"
        raise UserError(f"{path} is a step of a run (steps there: {known}): give {run} and --step={folder.name}")
    json_file.read(folder / "config.json", lambda: UserError(f"{path} is no run folder: no checkpoints there"))
    raise UserError(f"{path} holds no checkpoints")


def steps(workdir: Path, best: bests.Best | None = None) -> list[Step]:
    """Every checkpoint of a run folder, by number: also those that were put aside or never committed.

    `best` is what the run says of its evaluations (`best.of_run`).
    """
    out, best = [], best or bests.Best(None)
    among = best.among(state.steps_of(workdir))
    for parent in (state.FOLDER, state.REFUSED):
        folders = (workdir / parent).iterdir() if (workdir / parent).is_dir() else ()
        for folder in folders:
            number = folder.name.split("-")[0].split(".")[0]  # `7-again`, `7.orbax-checkpoint-tmp`
            if folder.is_dir() and number.isdigit():
                found = _step(workdir, folder, int(number), parent == state.REFUSED)
                if found.status == "complete":
                    value = best.values.get(found.step)
                    found = dataclasses.replace(found, metric=value, best=found.step in among)
                out.append(found)
    return sorted(out, key=lambda found: (found.step, found.path))


def _step(workdir: Path, folder: Path, number: int, refused: bool) -> Step:
    committed = folder.name.isdigit() and (folder / state.COMMITTED).exists()
    size, newest = verified.measure(folder)
    made = (folder / state.COMMITTED).stat().st_mtime if committed else newest / 1e9 or folder.stat().st_mtime
    leaves, mesh = None, None
    try:
        record = manifest.read(folder)
        leaves, mesh = len(record.leaves), record.meta.get("mesh")
    except DataError:
        pass
    status = "refused" if refused else "complete" if committed else "incomplete"
    when = verified.when(workdir, folder) if status == "complete" else None
    return Step(number, status, str(folder.relative_to(workdir)), round(made, 3), size, leaves, mesh, when)


def prunable(
    workdir: Path,
    keep: int = 0,
    chosen: Collection[int] = (),
    say: Callable[[str], None] = print,
    keep_best: int | None = None,
) -> list[int]:
    """The steps that may be deleted: `chosen`, or all but the `keep` newest and the best; never the last that verifies.

    `keep_best` of the best stay; None: as many as the run keeps.

    Of the steps that stay, one must verify. If none does, the newest of the others that does stays with `keep`, and
    is refused when it was `chosen`. Raises DataError when no step verifies at all.
    """
    known = state.steps_of(workdir)
    if absent := sorted(set(chosen) - set(known)):
        state.choose(workdir, absent[0])  # says which there are
    leaving = sorted(chosen)
    if not chosen:
        best = bests.of_run(workdir).among(known, keep_best)
        leaving = [step for step in known[:-keep] if step not in best]
    if not leaving:
        return []
    staying = [step for step in known if step not in leaving]
    if any(_whole(workdir, step, say) for step in reversed(staying)):
        return leaving
    last = next((step for step in reversed(leaving) if _whole(workdir, step, say)), None)
    if last is None:
        raise DataError(f"{workdir}: none of the checkpoints {', '.join(map(str, known))} verifies: nothing is deleted")
    if chosen:
        raise UserError(f"{workdir}: step {last} is the last that verifies: it is not deleted")
    say(f"step {last} stays: of those that would be kept none verifies")
    return [step for step in leaving if step != last]


def _whole(workdir: Path, step: int, say: Callable[[str], None]) -> bool:
    problems = state.verify(workdir, step)
    for problem in problems:
        say(problem)
    return not problems
