"""Which steps of a run were found whole, and when: `verified.json` in the run folder.

A step counts as verified while its files are those that were read: one that was written or copied since is not.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

NAME = "verified.json"


def measure(folder: Path) -> tuple[int, int]:
    """Bytes of all files below a folder, and when the newest of them was written (nanoseconds)."""
    facts = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(fact.st_size for fact in facts), max((fact.st_mtime_ns for fact in facts), default=0)


def remember(workdir: str | Path, folder: Path) -> None:
    """Note that a step folder was just found whole; a run folder that cannot be written is left as it is."""
    path = Path(workdir) / NAME
    size, newest = measure(folder)
    known = {name: entry for name, entry in _read(path).items() if (folder.parent / name).is_dir()}
    known[folder.name] = {"time": round(time.time(), 3), "bytes": size, "newest": newest}
    new = path.with_name(f"{NAME}.{os.getpid()}.new")
    try:
        new.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)


def when(workdir: str | Path, folder: Path) -> float | None:
    """When a step folder, as it is now, was found whole; None: it was not."""
    entry = _read(Path(workdir) / NAME).get(folder.name)
    if not isinstance(entry, dict) or (entry.get("bytes"), entry.get("newest")) != measure(folder):
        return None
    return float(entry["time"])


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
