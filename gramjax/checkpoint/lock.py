"""One run per folder: a lock file that names its holder, and is taken over when the holder is dead."""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from gramjax.core.errors import UserError

NAME = "run.lock"


def _started(pid: int) -> str:
    """When a process of this host started, in a form that another process of the same pid does not share."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":" + stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""  # no such file system: the pid alone has to do


def _alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not started or not _started(pid) or _started(pid) == started


class RunLock:
    """Context manager that holds a run folder for this process.

    Raises UserError naming holder, host and pid when another run holds it. A lock of a dead process of this host is
    taken over with a warning through `warn` (standard error by default).
    """

    def __init__(self, workdir: str | Path, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(workdir) / NAME
        self.warn = warn or (lambda text: print(f"gramjax: {text}", file=sys.stderr))
        pid = os.getpid()
        self._content = {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "time": time.time()}

    def __enter__(self) -> "RunLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"--workdir={self.path.parent} is a file") from None
        except OSError as error:
            raise self._unwritable(error) from None
        for _ in range(100):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                if self._take_over():
                    return self
            except OSError as error:
                raise self._unwritable(error) from None
            else:
                with os.fdopen(handle, "w") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(json.dumps(self._content))
                return self
        raise UserError(f"{self.path} comes and goes: another job starts and stops in this folder")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if json.loads(self.path.read_text()) == self._content:
                self.path.unlink()
        except (OSError, ValueError):
            pass  # gone, or another's: nothing of ours to remove

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--workdir: {self.path.parent} cannot be written ({error.strerror or error})")

    def _take_over(self) -> bool:
        """Judge a lock that exists. True: it is ours now. False: look again. Raises UserError: somebody works here."""
        try:
            file = self.path.open("r+")
        except FileNotFoundError:
            return False
        with file:
            # Two processes may find the same stale lock: whoever comes second reads what the first one wrote.
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file.fileno()).st_ino != self.path.stat().st_ino:
                    return False
                age = time.time() - os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:
                return False
            holder = _parse(file.read())
            if holder is None and age < 5:
                time.sleep(0.1)  # made this moment and not yet written
                return False
            if holder is not None:
                host, pid = holder.get("host"), holder.get("pid")
                if host != self._content["host"]:
                    raise UserError(
                        f"{self.path.parent} is in use by process {pid} on {host}; "
                        f"if that run is over, remove {self.path}"
                    )
                if isinstance(pid, int) and _alive(pid, str(holder.get("started", ""))):
                    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder.get("time", 0))))
                    raise UserError(
                        f"{self.path.parent} is in use by process {pid} on {host} since {since}; "
                        "wait for it, stop it, or use another workdir"
                    )
            who = f"process {holder.get('pid')}" if holder else "an unreadable lock"
            self.warn(f"{self.path.parent}: {who} is gone without releasing the folder; taking it over")
            file.seek(0)
            file.truncate()
            file.write(json.dumps(self._content))
            file.flush()
            return True


def _parse(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
