"""Goodput: the share of a run's wall time that went into training steps, and what the rest went into.

A clock listens to what the job says that it begins (`progress`) and looks at a result of the last step without waiting
for it, so it costs the devices nothing. The sums are written with every line of metrics, and a run that goes on adds to
those of the last line: steps that have to be made a second time are taken from `steps` and become `repeated`. A start
that ends before its first line leaves no trace.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PREFIX = "goodput/"
CAUSES = {
    "steps": "training steps",
    "startup": "start: reading rows and weights",
    "compile": "compilation",
    "data": "waiting for data",
    "rollout": "rollouts",
    "evaluation": "evaluation",
    "saving": "checkpoints",
    "repeated": "steps made twice after a restart",
    "other": "other",
}
"""What time goes into, and how a report calls it. Time after the last line of metrics of a killed run is in none."""

BEGINS = {
    "the start of the training": "startup",
    "the encoding of rows": "startup",
    "reading the weights": "startup",
    "the compilation of the training step": "compile",
    "the first step": "other",
    "the next batch": "data",
    "a training step": "steps",
    "an evaluation": "evaluation",
    "a checkpoint": "saving",
    "the end of the last checkpoint": "saving",
    "the comparison of copies": "other",
}
"""What a job begins, and its cause. All else belongs to what it is a part of."""


class Clock:
    """Sums of seconds by cause; give `begins` to `progress.Listener`.

    `rolls`: batches are rollouts, made by the devices. Otherwise a wait for data counts as such as far as the devices
    had nothing to do meanwhile: all of it if they were idle when it began, half if they ran dry during it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.rolls = now, False
        self.sums: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
        self.starts = 1
        self.cause = "startup"
        self._since = now()
        self._last: Any = None
        self._idle = True
        self._thread = threading.get_ident()

    def begins(self, what: str, slow: bool = False) -> None:
        """The job begins something else."""
        cause = BEGINS.get(what)
        if cause is None or threading.get_ident() != self._thread:
            return
        self._count()
        self.cause, self._idle = cause, self._is_idle()

    def dispatched(self, result: Any) -> None:
        """A step was given to the devices; `result` is an array that is ready when they are done."""
        self._last = result

    def goes_on(self, entries: Iterable[Mapping[str, Any]], step: int) -> None:
        """Add what the metrics of earlier tries say; this one begins at `step`."""
        known = [entry for entry in entries if f"{PREFIX}share" in entry]
        if not known:
            return
        before = {cause: float(known[-1].get(PREFIX + cause) or 0.0) for cause in CAUSES}
        kept = [float(entry.get(f"{PREFIX}steps") or 0.0) for entry in known if entry["step"] <= step]
        again = max(before["steps"] - (kept[-1] if kept else 0.0), 0.0)
        before |= {"steps": before["steps"] - again, "repeated": before["repeated"] + again}
        self.starts += int(known[-1].get(f"{PREFIX}starts") or 0)
        for cause, seconds in before.items():
            self.sums[cause] += seconds

    def numbers(self) -> dict[str, float]:
        """The sums up to now, as metrics: the share of steps, the starts, the seconds of each cause that has any."""
        self._count()
        total = sum(self.sums.values())
        found = {PREFIX + cause: round(seconds, 3) for cause, seconds in self.sums.items() if seconds}
        share = self.sums["steps"] / total if total else 0.0
        return {f"{PREFIX}share": round(share, 4), f"{PREFIX}starts": float(self.starts), **found}

    def _count(self) -> None:
        """Give the time since the last look to the cause at hand."""
        now = self.now()
        seconds, self._since = now - self._since, now
        if self.cause != "data":
            self.sums[self.cause] += seconds
        elif self.rolls:
            self.sums["rollout"] += seconds
        else:
            lost = seconds * (1.0 if self._idle else 0.5 if self._is_idle() else 0.0)
            self.sums["data"] += lost
            self.sums["steps"] += seconds - lost

    def _is_idle(self) -> bool:
        """Whether the devices have done all steps that they were given."""
        try:
            return self._last is None or bool(self._last.is_ready())
        except Exception:  # it failed: whoever reads it gets the error
            return True


def table(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Rows for a report, from the last line of metrics that has any: what, seconds, share of the time."""
    known = [entry for entry in entries if f"{PREFIX}share" in entry]
    if not known:
        return []
    sums = {cause: float(known[-1].get(PREFIX + cause) or 0.0) for cause in CAUSES}
    total = sum(sums.values())
    return [(CAUSES[cause], seconds, seconds / total) for cause, seconds in sums.items() if seconds and total]
