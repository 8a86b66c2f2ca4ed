"""Calls in processes of their own, each with a deadline on the wall clock.

A process that takes too long is killed and another one takes its place; one that dies or raises costs its own call
only. What comes back is in the order of the calls, failures as values. Processes are spawned: they import what the
function's module imports and nothing of the caller's, so that module must stay light (no JAX).
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gramjax.core import runtime

TIMEOUT, ERROR = "timeout", "error"


@dataclasses.dataclass(frozen=True)
class Failed:
    """A call without a result."""

    reason: str
    """TIMEOUT or ERROR."""
    detail: str = ""


class Pool:
    """Processes that call one function. The same arguments are asked once (the last `remembered` of them are kept)."""

    def __init__(
        self,
        function: Callable[..., Any],
        processes: int,
        seconds: float,
        what: str,
        extra: str = "math",
        prepare: Callable[[], None] | None = None,
        remembered: int = 65536,
    ) -> None:
        """`function` and `prepare` (run at the start of each process, outside of the deadlines) stand at the top of a
        module. Raises UserError, naming the extra for `what`, where pebble is not installed."""
        pebble = runtime.need("pebble", extra, what)
        self.function, self.seconds = function, seconds
        self._pool = pebble.ProcessPool(processes, 0, prepare, (), context=multiprocessing.get_context("spawn"))
        self._lock = threading.Lock()
        self._ask = functools.lru_cache(remembered)(self._start)

    def _start(self, *arguments: Any) -> Any:
        return self._pool.schedule(self.function, args=arguments, timeout=self.seconds)

    def call(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of calls with these (hashable) arguments, Failed for those without one. Any thread may ask."""
        with self._lock:
            asked = [self._ask(*arguments) for arguments in calls]
        return [_result(future) for future in asked]

    def close(self) -> None:
        """Kill the processes."""
        self._pool.stop()
        self._pool.join()


def _result(future: Any) -> Any:
    try:
        return future.result()
    except (concurrent.futures.TimeoutError, TimeoutError) as error:
        # The function's own TimeoutError carries the traceback of the other process.
        late = error.__cause__ is None
        return Failed(TIMEOUT) if late else Failed(ERROR, f"{type(error).__name__}: {error}")
    except Exception as error:  # what the function raised, or its process died
        return Failed(ERROR, f"{type(error).__name__}: {error}")
