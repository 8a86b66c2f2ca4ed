"""How the tries of a run ended: one that crashes at the same step again and again is not started anew.

`tries.json` in the run folder holds a line for each try since the last one that ended well. It is written when a try
starts and when it ends; how far one got that vanished (killed, out of memory, a host lost) is read off the metrics.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from gramjax.core import folder
from gramjax.core.errors import DoNotRequeue, GramjaxError
from gramjax.core.writer import last_step

NAME = "tries.json"
REMEMBERED = 100


class Try:
    """Context manager around one try of a run, in the process that holds its lock.

    Raises DoNotRequeue when the last `most` tries (0: any number) crashed after the same step. A crash is an end that
    nobody wrote down, a bug, or an error of another process; a request to stop, a wrong setting or file, Ctrl-C and
    the end of the run wipe the slate.
    """

    def __init__(self, workdir: str | Path, most: int) -> None:
        self.workdir, self.most = Path(workdir), most
        self.path = self.workdir / NAME
        self.tries: list[dict[str, Any]] = []

    def __enter__(self) -> "Try":
        self.tries = read(self.path)
        if self.tries and self.tries[-1]["end"] is None:
            self.tries[-1] |= {"step": last_step(self.workdir / "metrics.jsonl"), "end": "it vanished"}
        count = crashes(self.tries)
        if self.most and count >= self.most:
            self._write()
            last = self.tries[-1]
            raise DoNotRequeue(
                f"{self.workdir} crashed {count} times in a row after step {last['step']} (the last time: "
                f"{last['end']}): find the cause, then remove {self.path} or give --config.safety.max_crashes=0"
            )
        self.tries.append({"time": round(time.time(), 3), "step": None, "end": None})
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        crash = isinstance(error, Exception) and getattr(error, "exit_code", GramjaxError.exit_code) == 1
        if crash:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.tries[-1] |= {"step": last_step(self.workdir / "metrics.jsonl"), "end": text}
        else:
            self.tries = []
        self._write()

    def _write(self) -> None:
        try:
            folder.write_json(self.path, {"tries": self.tries[-REMEMBERED:]})
        except OSError:
            pass  # a full disk must not end a run that may still go on


def read(path: Path) -> list[dict[str, Any]]:
    """The tries in a file; none when it is absent or not readable."""
    try:
        found = json.loads(path.read_text("utf-8"))["tries"]
        return [{"time": entry["time"], "step": entry["step"], "end": entry["end"]} for entry in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def crashes(tries: list[dict[str, Any]]) -> int:
    """How many of the last tries crashed after the same step."""
    count = 0
    for entry in reversed(tries):
        if entry["step"] != tries[-1]["step"]:
            break
        count += 1
    return count
