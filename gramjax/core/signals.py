"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person. The first is noted, the second ends the process.

A thread reads the numbers of the signals from a pipe that the interpreter writes to at once: the main thread may be in
a compilation or wait for a device for minutes, in which no Python handler runs. `jax.distributed` replaces the handler
of SIGTERM by its own, which tells the other processes; `relay` puts ours before it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from gramjax.core import progress
from gramjax.core.errors import Preempted

SERVED = (signal.SIGTERM, signal.SIGINT)
END = b"\0"

AT_ONCE = "{}: ended at once, nothing that it could go on from was begun: run the same command again"

GOES_ON = "run the same command to go on"
BEGINS_AGAIN = "it keeps nothing half done: run the same command to begin again"

ONE = 1.0
"""Seconds within which signals are one request: Ctrl-C reaches a process from the terminal and from its launcher."""


def before_the_job() -> None:
    """Until a `Watch` takes over (packages are imported first): a request to stop ends the process with its code.

    Ctrl-C too, which a shell lets the processes ignore that it starts in the background.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        end(AT_ONCE.format(signal.Signals(number).name), Preempted.exit_code)

    for number in SERVED:
        signal.signal(number, stop)


class Watch:
    """Context manager that notes the first SIGTERM or SIGINT in `asked`; one a second later ends the process at once.

    While `at_once` the first one ends it too (exit code 75): before there is anything to save. `joined`: this process
    is one of several already, so that `jax.distributed` has set its handler.
    """

    def __init__(self, at_once: bool = False, joined: bool = False) -> None:
        self.asked, self.at_once, self.joined = False, at_once, joined
        self._theirs: int | None = None
        self._count, self._first = 0, 0.0
        self._before: dict[int, Any] = {}
        self._tell: Callable[[int], None] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
            return self
        if self.joined:  # what stands there for the system: Python knows nothing of handlers that it did not set
            self._theirs = handle(None)
            handle(self._theirs)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._fd_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        for number in SERVED:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._fd_before)
        os.write(self._writing, END)
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)
        self._thread = None
        around = getattr(self._before[signal.SIGTERM], "__self__", None)
        if self.asked and isinstance(around, Watch):  # of the job that this one was a step of: it must not go on
            around.asked = True

    def begin(self, several: bool) -> None:
        """The job has begun: from now on the first request is noted, and served where the job can be stopped.

        `several`: of several processes, whose runtime has to hear of it.
        """
        self.at_once = False
        if several:
            self.relay()

    def relay(self) -> None:
        """Pass the first request on to the handler of SIGTERM that `jax.distributed` has put in the place of ours."""
        if self._thread is None:
            return
        theirs = handle(None) if self._theirs is None else self._theirs
        signal.signal(signal.SIGTERM, self._note)
        ours = handle(None)
        signal.signal(signal.SIGTERM, self._note)
        if theirs and theirs != ours:
            self._tell = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)
            if self.asked:
                self._tell(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _listen(self) -> None:
        while (block := os.read(self._reading, 64)) and END not in block:
            for number in block:
                if number in SERVED:
                    self._serve(number)

    def _serve(self, number: int) -> None:
        self._count += 1
        self.asked = True
        name = signal.Signals(number).name
        if self.at_once:
            end(AT_ONCE.format(name), Preempted.exit_code)
        now = time.monotonic()
        if self._count > 1 and now - self._first < ONE:
            return
        self._first = self._first or now
        if self._count > 1:
            end(f"{name} after another request to stop: ended at once, what was saved is whole", 128 + number)
        print(f"gramjax: {name}: stops where it can go on from; once more ends it at once", file=sys.stderr, flush=True)
        if self._tell is not None:
            self._tell(signal.SIGTERM)


def handle(handler: int | None) -> int | None:
    """Set the system's handler of SIGTERM (None: the default one), past Python; the one that was there."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return libc.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def served(then: str = GOES_ON, several: bool = False) -> Iterator[None]:
    """A request to stop ends the block at its next stop point (`progress.stop_point`): Preempted, exit code 75.

    For every job that makes its output piece by piece; what it has written is whole because its files are closed by
    the context managers within. `then` says what the same command does next; `several`: of several processes, which
    all stop at the same point.
    """
    with Watch(joined=several) as watch:
        watch.begin(several)
        asked: Callable[[], bool] = lambda: watch.asked  # noqa: E731
        if several:
            from gramjax.core import processes  # with JAX, which a job of one process imports later

            asked = processes.stopping(asked)
        with progress.heard_by(progress.Listener(may_stop=stopper(asked, then))):
            yield


def stopper(asked: Callable[[], bool], then: str = GOES_ON) -> Callable[[str], None]:
    """What is called where the job may be broken off (`progress.stop_point`): raises Preempted when it is asked to."""

    def may_stop(what: str) -> None:
        if asked():
            raise Preempted(f"stopped on request in {what}: {then}")

    return may_stop


def end(text: str, code: int) -> None:
    """Say why and end the process, from any thread."""
    print(f"gramjax: {text}", file=sys.stderr, flush=True)
    os._exit(code)
