"""What a run says while it goes: `metrics.jsonl`, TensorBoard, optional W&B, and a line a person can watch.

Only process 0 writes. Values are Python numbers: the caller fetches them from the devices, when it suits the loop.
"""

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from gramjax.core.config import LogSection
from gramjax.core.errors import UserError

SHOWN = (("loss", "loss"), ("accuracy", "accuracy"), ("margin", "margin"), ("reward", "reward"))
"""Metrics of the progress line, where present, and their labels."""

SPEED = "perf/tokens_per_sec"
SPEED_PER_DEVICE = "perf/tokens_per_sec_per_device"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a `metrics.jsonl`; a half-written last line (the job was killed) is left out.

    Raises UserError naming the line for a broken line in the middle.
    """
    lines = Path(path).read_bytes().split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number}: no JSON") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise UserError(f"{path} line {number}: no entry with a step")
        out.append(entry)
    return out


def rewind(path: str | Path, step: int, evaluated: bool = True) -> int:
    """Drop what a killed run logged after the step it resumes from; returns the number of entries dropped.

    With `evaluated` False the evaluation of that step will be made again: what was logged of it goes too. The file is
    replaced in one move, so that a second kill leaves the old or the new one.
    """
    path = Path(path)
    if not path.exists():
        return 0
    entries = read_metrics(path)
    last = step if evaluated else step - 1
    kept = [e for e in entries if e["step"] <= last or (e["step"] == step and not any("eval/" in name for name in e))]
    text = "".join(json.dumps(entry) + "\n" for entry in kept)
    if text.encode() != path.read_bytes():
        new = path.with_name(path.name + ".new")
        new.write_text(text, "utf-8")
        new.replace(path)
    return len(entries) - len(kept)


def last_step(path: str | Path) -> int:
    """The last step in a `metrics.jsonl`; 0 when there is none. Reads the end of the file only."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # half a line
    return 0


def json_safe(value: Any) -> Any:
    """A value, with all that it holds, that strict JSON readers accept: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {name: json_safe(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """`42s`, `3m07s` or `2h05m`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def number(value: float) -> str:
    """Four significant digits; counts with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Writer:
    """The output of one run; a context manager. `write` may be called for any step, in increasing order.

    On a resumed run (`start_step` > 0) entries after that step are dropped first, so that the file holds every step
    once. A metrics file or TensorBoard folder that cannot be written is one warning: a full disk ends no training.
    """

    def __init__(
        self,
        workdir: str | Path,
        section: LogSection,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        process_index: int | None = None,
        clock: Callable[[], float] = time.time,
        beside: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """`beside` gives numbers that are logged with every entry."""
        self.path = Path(workdir) / "metrics.jsonl"
        self.total_steps, self.start_step, self.clock, self.beside = total_steps, start_step, clock, beside
        self.stream = sys.stdout if stream is None else stream
        self.active = (own_process() if process_index is None else process_index) == 0
        self.live = self.active and self.stream.isatty()
        self.began = clock()
        self.warned: set[str] = set()
        self.line_open = False
        self.file: Any = None
        self.board: Any = None
        self.wandb: Any = None
        if not self.active:
            return
        if section.wandb:
            self.wandb = start_wandb(section.wandb, workdir)
        self.attempt("metrics.jsonl", self.open_file)
        if section.tensorboard:
            self.attempt("TensorBoard", lambda: self.open_board(Path(workdir) / "tb"))

    def open_file(self) -> None:
        """Open the metrics file at the resumed step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rewind(self.path, self.start_step if self.start_step else -1)
        self.file = self.path.open("ab", buffering=0)

    def open_board(self, folder: Path) -> None:
        """Open TensorBoard's event file; points after the resumed step are marked as replaced."""
        from tensorboardX import SummaryWriter

        self.board = SummaryWriter(str(folder), purge_step=self.start_step + 1 if self.start_step else None)

    def attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Run an action that writes; a failing disk is reported once per kind of output."""
        try:
            action()
        except OSError as error:
            if what not in self.warned:
                self.warned.add(what)
                self.say(f"warning: {what} is not written: {error.strerror or error}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of an optimiser step everywhere and move the progress line."""
        if not self.active:
            return
        values = {**values, **self.beside()}
        entry = {"step": step, "time": round(self.clock(), 3), **{name: json_safe(v) for name, v in values.items()}}
        if self.file is not None:
            self.attempt("metrics.jsonl", lambda: self.append(json.dumps(entry, allow_nan=False) + "\n"))
        if self.board is not None:
            self.attempt("TensorBoard", lambda: [self.board.add_scalar(n, v, step) for n, v in values.items()])
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)
        self.progress(step, values)

    def append(self, line: str) -> None:
        """Write one line through to the file system, whole or not at all."""
        before, data = self.file.tell(), line.encode()
        if self.file.write(data) < len(data):
            self.file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Show where the run is: one line that is overwritten on a terminal, a line per call otherwise."""
        parts = [f"step {step}/{self.total_steps}"]
        parts += [f"{label} {number(values[name])}" for name, label in SHOWN if name in values]
        evaluated = [name for name in values if name.startswith("eval/")]
        parts += [f"{name.removeprefix('eval/')} {number(values[name])}" for name in evaluated[:4]]
        speed = values.get(SPEED, values.get(SPEED_PER_DEVICE))
        if speed:
            parts.append(f"{number(speed)} tokens/s")
        done = step - self.start_step
        if done > 0 and step < self.total_steps:
            left = (self.clock() - self.began) / done * (self.total_steps - step)
            parts.append(f"{duration(left)} left")
        if self.live:
            line = "   ".join(parts)[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r\x1b[2K" + line)
            self.line_open = True
        else:
            self.stream.write("   ".join(parts) + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print a line above the progress line."""
        if self.active:
            self.stream.write(("\r\x1b[2K" if self.line_open else "") + text + "\n")
            self.stream.flush()
            self.line_open = False

    def close(self) -> None:
        """Finish the progress line and close every output."""
        if self.line_open:
            self.stream.write("\n")
            self.stream.flush()
            self.line_open = False
        if self.file is not None:
            self.attempt("metrics.jsonl", self.file.close)
        if self.board is not None:
            self.attempt("TensorBoard", self.board.close)
        if self.wandb is not None:
            self.wandb.finish()
        self.file = self.board = self.wandb = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def own_process() -> int:
    """This process's number among those of the job."""
    import jax

    return jax.process_index()


def start_wandb(project: str, workdir: str | Path) -> Any:
    """Begin a W&B run that a resumed job continues; raises UserError naming the extra when it is not installed."""
    from gramjax.core import runtime

    module = runtime.need("wandb", "wandb", "config.log.wandb")
    folder = Path(workdir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{folder.parent.name}-{folder.name}"
    identity = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return module.init(project=project, name=folder.name, id=identity, dir=str(folder), resume="allow")
