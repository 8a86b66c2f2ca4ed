"""What the processes of one job do together: agree, let the first one act, stop at the same step.

A job of several processes (`jax.distributed`) hangs or dies without a word when one of them goes another way: reads
another config, fails on a file that only its host lacks, or stops a step earlier. Each function here is called by
all processes at the same place and ends the same way in all of them; in a job of one process it costs nothing.
"""

import hashlib
import itertools
import json
import platform
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

import gramjax
from gramjax.core import runtime
from gramjax.core.errors import DataError, DoNotRequeue, GramjaxError, UserError

T = TypeVar("T")

ROOM = 2048
"""Bytes of a message from one process to the others; longer ones are cut."""

LONGEST = 80
"""Characters of a value that an error shows."""

KINDS: tuple[type[GramjaxError], ...] = (UserError, DataError, DoNotRequeue, GramjaxError)


def together(action: Callable[[], T]) -> T:
    """What `action` gives; if it raises a GramjaxError in any process, all raise it, naming the process.

    A process whose error is of another kind (a bug) raises that, and the others say that it stopped.
    """
    if jax.process_count() == 1:
        return action()
    result: Any = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    for number, text in enumerate(_gathered(_packed(error))):
        if text:
            found = error if error is not None else _unpacked(number, text)
            found.agreed = True  # type: ignore[attr-defined]
            raise found
    return result


def by_the_first(action: Callable[[], Any]) -> None:
    """Run an action in process 0 while the others wait for it; an error of it is raised in all of them."""
    together(action if jax.process_index() == 0 else lambda: None)


def shared(value: Any) -> Any:
    """A JSON value of process 0, in all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    block = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        block[:] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(block)).tobytes())


def agree(name: str, value: Any, differences: Callable[[Any, Any], list[str]] | None = None) -> None:
    """Raise UserError in all processes unless they have the same JSON value.

    `differences(theirs, ours)` says what differs between the value of process 0 and another's (default: `fields`).
    """
    if jax.process_count() == 1:
        return
    first = shared(value)

    def compare() -> None:
        ours = json.loads(json.dumps(value))
        if first == ours:
            return
        found = (differences or fields)(first, ours)[:3]
        detail = "; ".join(found) or f"{_digest(first)} there, {_digest(ours)} here"
        raise UserError(f"process {jax.process_index()} has another {name} than process 0: {detail}")

    together(compare)


def fields(theirs: Any, ours: Any) -> list[str]:
    """The fields in which two objects differ, with both values."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return []
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} {str(theirs.get(name))[:LONGEST]} there, {str(ours.get(name))[:LONGEST]} here" for name in names]


def identity() -> dict[str, str]:
    """What code runs here: versions, and a digest of the package's source files."""
    package, digest = Path(gramjax.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {name: runtime.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}
    own = {"gramjax": gramjax.__version__, "source": digest.hexdigest()[:12], "python": platform.python_version()}
    return {**own, **versions}


def agree_on_code() -> None:
    """Raise UserError in all processes unless they run the same code."""
    if jax.process_count() > 1:
        agree("code", identity())


def any_of(flag: bool) -> bool:
    """Whether any process says so."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def stopping(asked: Callable[[], bool]) -> Callable[[], bool]:
    """A function that says whether the job was asked to stop; once it says so, it does for good.

    In one process that is what `asked` says. In several the runtime of `jax.distributed` tells all of SIGTERM to one,
    and names a point that all have still to reach: they call the function at the same points, in the same order.
    """
    if jax.process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    points, reached = itertools.count(1), False

    def ask() -> bool:
        nonlocal reached
        reached = reached or bool(multihost_utils.reached_preemption_sync_point(next(points)))
        return reached

    return ask


def hosts() -> list[str]:
    """The name of the host of every process."""
    return _gathered(socket.gethostname()) if jax.process_count() > 1 else [socket.gethostname()]


def _gathered(text: str) -> list[str]:
    """The texts of all processes, by number."""
    from jax.experimental import multihost_utils

    block = np.zeros(ROOM, np.uint8)
    data = text.encode()[:ROOM]
    block[: len(data)] = np.frombuffer(data, np.uint8)
    blocks = np.asarray(multihost_utils.process_allgather(block)).reshape(jax.process_count(), ROOM)
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "ignore") for row in blocks]


def _packed(error: Exception | None) -> str:
    if error is None:
        return ""
    kind = next((i for i, known in enumerate(KINDS) if isinstance(error, known)), len(KINDS))
    return f"{kind} {error}" if kind < len(KINDS) else f"{kind} {type(error).__name__}: {error}"


def _unpacked(number: int, text: str) -> GramjaxError:
    kind, _, message = text.partition(" ")
    known = KINDS[int(kind)] if int(kind) < len(KINDS) else GramjaxError
    return known(f"process {number} of {jax.process_count()}: {message}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
