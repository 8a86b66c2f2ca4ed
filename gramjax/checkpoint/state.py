"""Checkpoints of a run: Orbax for the arrays; around it what Orbax does not promise.

Orbax restores a flipped byte, another dtype and an absent key without a word, and offers steps that were never
committed. Here every step carries a manifest (`manifest.py`) that restore compares and verifies; a step that fails is
put aside, the one before is used, and this is said.
"""

import contextlib
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gramjax.checkpoint import json_file, manifest, verified
from gramjax.checkpoint.leaves import on_the_host, read_leaves
from gramjax.checkpoint.lock import RunLock
from gramjax.core import processes, tree
from gramjax.core.errors import DataError, UserError

__all__ = ["Checkpoints", "Restored", "RunLock", "read_run", "restore_params", "steps_of", "verify"]

FOLDER, REFUSED, COMMITTED = "checkpoints", "checkpoints-refused", "commit_success.txt"
MOST_FAILED = 3
"""Saves in a row that may find the disk full; then the training ends."""

FULL = ("No space left", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "quota", "File too large")
"""What errors of a disk without room say: TensorStore's are ValueErrors, and a limit of the process is one too."""


def say(text: str) -> None:
    """Print a line for a person on standard error."""
    print(f"gramjax: {text}", file=sys.stderr)


class DiskFull(UserError):
    """A checkpoint was not written for want of room; older ones are whole."""


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    step: int
    state: Any
    data_state: dict[str, Any]
    meta: dict[str, Any]


def steps_of(workdir: str | Path) -> list[int]:
    """Committed steps of a run folder, ascending, as they are on disk now."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / COMMITTED).exists())


def read_run(workdir: str | Path) -> dict[str, Any]:
    """The saved `config.json` of a run folder; raises UserError where there is none."""
    path = Path(workdir) / "config.json"
    return json_file.read(path, lambda: UserError(f"{workdir} is no run folder: no config.json there"))


def choose(workdir: str | Path, step: int | None) -> list[int]:
    """Steps to try, newest first, or the one asked for; raises UserError that says which steps exist."""
    known = steps_of(workdir)
    if step is not None and step not in known:
        raise UserError(
            f"{workdir} has no checkpoint of step {step} (there are: {', '.join(map(str, known)) or 'none'})"
        )
    if not known:
        raise UserError(f"{workdir} holds no complete checkpoint")
    return [step] if step is not None else known[::-1]


def verify(workdir: str | Path, step: int, given_up: Callable[[], bool] = lambda: False) -> list[str]:
    """Problems of one committed step: empty when every leaf can be read and has the value that was saved.

    `given_up` is asked now and then; a step that was not read to its end does not count as whole.
    """
    folder = Path(workdir) / FOLDER / str(step)
    try:
        _read_all(folder, given_up=given_up)
    except DataError as error:
        return [str(error)]
    if given_up():
        return [f"{folder}: not read to its end"]
    _remember(workdir, step)
    return []


def examine(workdir: str | Path, step: int) -> tuple[int, dict[str, str]]:
    """How many leaves one committed step has, and what is wrong with each that is damaged; all of them are read.

    A step whose manifest cannot be trusted has no leaves, and `manifest` is what is damaged.
    """
    folder = Path(workdir) / FOLDER / str(step)
    damaged: dict[str, str] = {}
    try:
        count = _read_all(folder, damaged)
    except DataError as error:
        return 0, {"manifest": str(error).removeprefix(f"{folder}: ")}
    if not damaged:
        _remember(workdir, step)
    return count, damaged


def _read_all(
    folder: Path, damaged: dict[str, str] | None = None, given_up: Callable[[], bool] = lambda: False
) -> int:
    """Read and compare every leaf of a step; how many there are."""
    record = manifest.read(folder)
    place = on_the_host()
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=place)
        for name, leaf in record.leaves.items()
    }
    for _ in read_leaves(folder, record, abstract, damaged):
        if given_up():
            break
    return len(abstract)


def _remember(workdir: str | Path, step: int) -> None:
    if jax.process_index() == 0:
        verified.remember(workdir, Path(workdir) / FOLDER / str(step))


def delete_step(workdir: str | Path, step: int) -> str:
    """Delete one step; returns why it could not be, or "".

    A kill in the middle leaves a folder that is not offered, and that the next training removes.
    """
    folder = Path(workdir) / FOLDER / str(step)
    try:
        (folder / COMMITTED).unlink()  # first: half a step must not be offered
        shutil.rmtree(folder)
    except OSError as error:
        return f"checkpoint {step} cannot be deleted ({error.strerror or error})"
    return ""


def restore_params(
    workdir: str | Path, abstract_params: Any, step: int | None = None, log: Callable[[str], None] = say
) -> Any:
    """Only the parameters of a run, in the dtypes and shardings of a tree of `ShapeDtypeStruct`.

    The newest step that verifies is used (`log` says which were not), or exactly `step`. Saved leaves that are not
    asked for are not read. Raises UserError for a leaf that is absent or of another shape, DataError when no step
    verifies.
    """
    wanted = {f"params/{path}": leaf for path, leaf in tree.flatten(abstract_params).items()}
    problems: list[str] = []
    for candidate in choose(workdir, step):
        folder = Path(workdir) / FOLDER / str(candidate)
        try:
            record = manifest.read(folder)
            manifest.check_leaves(candidate, record.leaves, wanted, all_of_them=False, dtypes=False)
            flat = {}
            for name, leaf in read_leaves(folder, record, wanted):
                flat[name.removeprefix("params/")] = leaf.astype(wanted[name].dtype)
            for problem in problems:
                log(f"{problem}; using step {candidate}")
            return tree.unflatten(flat)
        except DataError as error:
            problems.append(str(error))
    raise DataError(f"{workdir}: no checkpoint can be restored; " + "; ".join(problems))


class Checkpoints:
    """The checkpoints of the run that owns `workdir` (hold its `RunLock`).

    `keep` newest steps stay, those that `beside` names of a run's steps (`best.Best.among`), and never fewer than one
    of the newest that verifies. `log` receives a line for everything that a person should know; the lines are kept in
    `notes`.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep: int = 3,
        log: Callable[[str], None] = say,
        beside: Callable[[list[int]], Collection[int]] = lambda steps: (),
    ) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise UserError(f"config.train.keep is {keep}; keep at least 1 checkpoint")
        self.workdir, self.keep = Path(workdir), keep
        self.notes: list[str] = []
        self._log, self._beside = log, beside
        self._verified: set[int] = set()
        self._failed = 0
        self._under_way: int | None = None
        self._remains: set[int] = set()
        """Steps whose save found no room. Looked for more than once: threads of a save that failed may still write."""
        self._reader: threading.Thread | None = None
        self._settled, self._given_up = threading.Event(), threading.Event()
        atomicity = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # retention is ours: Orbax would delete a good step for a bad one
            cleanup_tmp_directories=True,
            atomicity_options=atomicity,
            create=True,
        )
        (self.workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        processes.by_the_first(self._sweep)  # half of a save or of a delete that was killed
        self._manager = ocp.CheckpointManager((self.workdir / FOLDER).absolute(), options=options)
        # Orbax would ask for the agreed stop with numbers of its own, and the job could miss it (`processes.stopping`).
        self._manager.reached_preemption = lambda step: False  # type: ignore[method-assign]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # With an error of this process alone nobody else comes here, and to close is something that all do together.
        if error is None or jax.process_count() == 1 or getattr(error, "agreed", False):
            self.close(hurry=error is not None)

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        return steps_of(self.workdir)

    def coming(self) -> list[int]:
        """Committed steps and the one that is being saved, ascending."""
        return sorted({*self.steps()} | ({self._under_way} if self._under_way is not None else set()))

    def verify(self, step: int) -> list[str]:
        """Problems of one step; empty when it is whole."""
        choose(self.workdir, step)
        problems = verify(self.workdir, step)
        if not problems:
            self._verified.add(step)
        return problems

    def save(self, step: int, state: Any, data_state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Save in the background: arrays of any pytree, the data state and the run's facts (both JSON).

        The values are those at the call, also when the next step donates the buffers. `meta` should have `model`
        (the fields of the model config), and may have `data` (fingerprint), `mesh` and others that resume compares.
        A save for which the disk is too full is noted, and its remains are removed: the next may find room. Raises
        UserError when the step exists or is older than the newest, and for the third save in a row without room.
        """
        import orbax.checkpoint as ocp

        try:
            self.wait()
        except DiskFull as error:
            self._goes_on_without(error)
        self._retain()
        leaves = {
            name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            for name, leaf in manifest.named(state).items()
        }
        record = manifest.make(leaves, data_state, meta)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree.unflatten(leaves)), manifest=ocp.args.JsonSave(record)
        )
        self._under_way = step
        try:
            with self._disk(step):
                saved = self._manager.save(step, args=items)
        except DiskFull as error:
            self._goes_on_without(error)
            return
        if saved:
            self._verify_when_committed(step)
        else:
            raise UserError(
                f"checkpoint {step} was not written: {self.workdir} already has the steps "
                f"{', '.join(map(str, self.steps()))}. Resume from the newest, or use another workdir"
            )

    def wait(self) -> None:
        """Wait until the last save is on disk; raises UserError when it failed."""
        if self._under_way is not None:
            with self._disk(self._under_way):
                self._manager.wait_until_finished()
            self._under_way, self._failed = None, 0

    def _goes_on_without(self, error: DiskFull) -> None:
        """Count a save that found no room; raises its error when it was one too many in a row.

        One of several processes raises it at once: the others may have found room, and wait for it.
        """
        self._failed += 1
        if jax.process_count() > 1:
            raise error
        if self._failed >= MOST_FAILED:
            raise DiskFull(f"{error}; {self._failed} saves in a row found no room: make some, and start again")
        self._note(f"{error}; the training goes on")

    @contextlib.contextmanager
    def _disk(self, step: int) -> Iterator[None]:
        """A save of a step, or the wait for it: raises DiskFull when there is no room."""
        try:
            yield
        except (ValueError, OSError) as error:
            if not any(sign in str(error) for sign in FULL):
                raise
            self._under_way = None
            self._remains.add(step)
            raise DiskFull(
                f"checkpoint {step} was not written: the disk of {self.workdir} is full, older ones are whole"
            ) from error

    def close(self, hurry: bool = False) -> None:
        """Finish the last save and drop old steps; in a `hurry` (a request to stop, an error) the next run drops."""
        self.wait()
        if hurry:
            self._stop_reading(wait=False)
        else:
            self._retain()
        self._manager.close()

    def restore(
        self,
        step: int | None,
        abstract_state: Any,
        expect: Mapping[str, Any] | None = None,
        strict: bool = False,
        reset_data: bool = False,
    ) -> Restored:
        """The newest step that verifies (or exactly `step`), bit for bit, with the structure of `abstract_state`.

        `abstract_state` is a pytree of `ShapeDtypeStruct` with shardings, of any mesh. `expect` is the `meta` of this
        run, compared with the saved one (`manifest.check_meta`). Newer steps that fail are moved to
        `checkpoints-refused` and named in `notes`; with `strict`, or an explicit `step`, they are an error.

        Raises UserError for a step that is absent and for a checkpoint of another model (every leaf with both shapes
        and dtypes), DataError when nothing verifies.
        """
        wanted = manifest.named(abstract_state)
        problems: list[tuple[int, str]] = []
        for candidate in choose(self.workdir, step):
            folder = self.workdir / FOLDER / str(candidate)
            try:
                record = manifest.read(folder)
                notes = manifest.check_meta(candidate, record.meta, expect or {}, reset_data)
                manifest.check_leaves(candidate, record.leaves, wanted, all_of_them=True, dtypes=True)
                leaves = dict(read_leaves(folder, record, wanted))
            except DataError as error:
                if strict or step is not None:
                    raise
                problems.append((candidate, str(error)))
                continue
            for bad, problem in problems:
                self._note(f"checkpoint {bad} is refused ({problem}); using step {candidate}")
                self._put_aside(bad)
            for note in notes:
                self._note(note)
            self._verified.add(candidate)
            _remember(self.workdir, candidate)
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[name] for name in wanted])
            return Restored(candidate, state, record.data, record.meta)
        raise DataError(f"{self.workdir}: no checkpoint can be restored; " + "; ".join(text for _, text in problems))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._log(text)

    def _put_aside(self, step: int) -> None:
        """Move a refused step out of the way of the step that will be saved under its number."""

        def move() -> None:
            target = self.workdir / REFUSED / str(step)
            while target.exists():
                target = target.with_name(target.name + "-again")
            target.parent.mkdir(exist_ok=True)
            (self.workdir / FOLDER / str(step)).rename(target)

        processes.by_the_first(move)
        self._manager.reload()

    def _verify_when_committed(self, step: int) -> None:
        """Verify a step that is being saved in a thread, if retention will ask for it: no step of the run waits."""
        steps = sorted({*self.steps(), step})
        if jax.process_index() or not self._old(steps) or self._verified & set(steps[-self.keep :]):
            return
        self._settled.clear()

        def read() -> None:
            committed = self.workdir / FOLDER / str(step) / COMMITTED
            while not committed.exists() and not self._settled.wait(0.2):
                pass
            if committed.exists() and not verify(self.workdir, step, self._given_up.is_set):
                self._verified.add(step)

        self._reader = threading.Thread(target=read, name="verification", daemon=True)
        self._reader.start()

    def _stop_reading(self, wait: bool) -> None:
        """No verification goes on after this: it is waited for, or given up."""
        self._settled.set()
        if not wait:
            self._given_up.set()
        if self._reader is not None:
            self._reader.join()
            self._reader = None

    def _sweep(self, steps: Collection[int] | None = None) -> None:
        """Remove what is there of these steps, or of any, and was never committed."""
        for path in (self.workdir / FOLDER).iterdir():
            name = path.name.partition(".")[0]
            known = name.isdigit() and (steps is None or int(name) in steps)
            if known and path.is_dir() and not (path / COMMITTED).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _retain(self) -> None:
        """Delete what is left of saves that failed, and steps that are old, if one of the newest verifies."""
        self._settled.set()
        if self._remains and jax.process_count() == 1:
            self._sweep(self._remains)
            self._manager.reload()
        if processes.shared(len(self._old(self.steps()))):
            processes.by_the_first(self._delete_old)
            self._manager.reload()

    def _old(self, steps: list[int]) -> list[int]:
        """Those of the steps that neither are new nor stay for another reason."""
        best = self._beside(steps)
        return [step for step in steps[: -self.keep] if step not in best]

    def _delete_old(self) -> None:
        """What process 0 does of it, with its own eyes: the others have nothing to read."""
        self._stop_reading(wait=True)
        steps = self.steps()
        old, kept = self._old(steps), steps[-self.keep :]
        if not self._verified & set(kept) and not any(not self.verify(step) for step in reversed(kept)):
            self._note(f"none of the checkpoints {kept} verifies: keeping the older ones too")
            return
        for problem in filter(None, (delete_step(self.workdir, step) for step in old)):
            if problem not in self.notes:  # tried again after every save
                self._note(problem)
        self._verified -= set(old)
