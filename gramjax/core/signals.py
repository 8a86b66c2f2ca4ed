"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person. The first is noted, the second ends the process.

Only for jobs of one process: with `jax.distributed` the runtime owns SIGTERM (it replaces handlers set before it).
"""

import signal
import threading
from types import FrameType
from typing import Any


class Watch:
    """Context manager that notes the first SIGTERM or SIGINT in `asked`; a second one acts as without the watch."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for known, handler in self._before.items():
            signal.signal(known, handler)
