"""Signs of life: whatever takes long says what it begins; the job decides who listens.

A watchdog hears that things move, and a request to stop is served where a loop says that it can be stopped. Loops call
one function here and know nothing of either; without listeners the calls do nothing.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Listener:
    """Who wants to know what a job does."""

    begins: Callable[[str, bool], None] = lambda what, slow: None
    """Called with what begins, from any thread, and whether it may take much longer than a step."""
    may_stop: Callable[[str], None] = lambda what: None
    """Called in the main thread where the work at hand may be broken off; raises to do so."""


_listeners: list[Listener] = []


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let a listener hear everything that begins in the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def begins(what: str, slow: bool = False) -> None:
    """Say what begins: a few words, the same for everything of a kind. `slow`: it is no matter of seconds."""
    for listener in _listeners:
        listener.begins(what, slow)


def stop_point(what: str, slow: bool = False) -> None:
    """Say what begins (`begins`); it may be broken off here.

    All processes of a job must come to the stop points in the same order, or they would stop at different places.
    """
    begins(what, slow)
    if _listeners and threading.current_thread() is threading.main_thread():
        for listener in _listeners:
            listener.may_stop(what)
