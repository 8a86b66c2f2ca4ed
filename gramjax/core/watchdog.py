"""A watchdog: ends a process in which nothing moves any more, after it has printed where every thread stands.

A peer that is stuck but alive is noticed by nobody: heartbeats go on, and a collective waits for ever. Every process
watches itself; the first one that gives up ends the job, and the launcher or scheduler may start it again.
"""

import collections
import faulthandler
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gramjax.core.errors import STUCK

SLOW = 10
"""What compiles (anything for the first time), saves or restores is given so many times as long."""

PRINTING = 30.0
"""Seconds that the last words may take."""

REMEMBERED = 101
"""Steps whose times are remembered."""


class Watchdog:
    """Context manager: a thread that ends the process when nothing moved for so long. Does nothing with 0 seconds.

    Two things count as moving: what the host says that it begins (`begins`), and steps that the devices finish
    (`dispatched`), which the host may be far ahead of. The limit is `seconds` or, where that is more, `factor` times
    the median step; ten times that for whatever is done for the first time (it compiles) or is called slow.
    """

    def __init__(self, seconds: float, factor: float, end: Callable[[str], None] | None = None) -> None:
        self.seconds, self.factor = seconds, factor
        self.end = end or end_process
        self.what = "the start"
        self.quiet = 0.0
        """Seconds without a sign of life, as this thread lived them: not those for which the process was suspended."""
        self._slow = True
        self._known: set[str] = set()
        self._running: collections.deque[tuple[float, Any]] = collections.deque()
        self._finished = 0.0
        self._steps: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def begins(self, what: str, slow: bool = False) -> None:
        """The host has got to a new piece of work."""
        self._slow = slow or what not in self._known
        self._known.add(what)
        self.what, self.quiet = what, 0.0

    def dispatched(self, result: Any) -> None:
        """A step was given to the devices; `result` is an array that is ready when they are done."""
        if self._thread is not None:
            self._running.append((time.monotonic(), result))

    def limit(self) -> float:
        """Seconds of silence that are allowed now."""
        usual = statistics.median(self._steps) if self._steps else 0.0
        return max(self.seconds, self.factor * usual) * (SLOW if self._slow else 1)

    def tick(self, elapsed: float) -> None:
        """Count time, look at the devices, and end the process when the limit is over."""
        self.quiet += elapsed
        self._look(time.monotonic())
        if self.quiet > self.limit():
            running = f", {len(self._running)} steps not finished by the devices" if self._running else ""
            self.end(f"nothing moved for {self.quiet:.0f} s in {self.what}{running} "
                     f"(config.safety.watchdog_seconds={self.seconds:g})")  # fmt: skip

    def _look(self, now: float) -> None:
        """Take the steps that are done off the list; their mean time counts for each."""
        started, count = self._finished, 0
        while self._running and ready(self._running[0][1]):
            began, _ = self._running.popleft()
            started, count = (max(started, began) if not count else started), count + 1
        if count:
            self._steps.extend([(now - started) / count] * count)
            self._finished, self.quiet = now, 0.0

    def _watch(self) -> None:
        interval = min(1.0, self.seconds / 10)
        before = time.monotonic()
        while not self._over.wait(interval):
            now = time.monotonic()
            self.tick(min(now - before, 2 * interval))
            before = now


def ready(result: Any) -> bool:
    """Whether an array is computed; one that failed is (whoever reads it gets the error)."""
    try:
        return bool(result.is_ready())
    except Exception:
        return True


def end_process(text: str) -> None:
    """Print what is known and where every thread stands, and end: no cleanup is waited for, nor a pipe that is full."""
    import jax

    last = threading.Timer(PRINTING, os._exit, (STUCK,))
    last.daemon = True
    last.start()
    try:
        own = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
        print(f"gramjax: {own}: {text}; where every thread stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    finally:
        os._exit(STUCK)
