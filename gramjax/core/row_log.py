"""Rows written one by one by a job that may be killed: what is there already, and where to go on.

Two files: `rows.jsonl` with the rows that came out, and `refused.jsonl` with the id and reason of those that did not.
A row of the input is done when its id stands in one of them.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from gramjax.core import folder as folders
from gramjax.core.errors import DataError, UserError

ROWS, REFUSED, SUMMARY = "rows.jsonl", "refused.jsonl", "summary.json"


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file one by one; at the end a last line that a kill left half is cut off the file.

    Raises DataError naming the line for any other line that is no row with an id.
    """
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                row["id"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path} line {number}: no row of this job; move the file away") from None
            yield row
            size += len(line)
    if size < path.stat().st_size:
        os.truncate(path, size)


class RowLog:
    """Context manager that appends to the two files of a folder; only the process with `write` does so.

    Memory stays small: of the rows that are there only the ids are kept.
    """

    def __init__(self, folder: Path, write: bool = True) -> None:
        self.folder, self.write = folder, write
        self.written = [row["id"] for row in whole_lines(folder / ROWS)]
        self.reasons: dict[str, dict[str, Any]] = {}
        self.done = set(self.written)
        for row in whole_lines(folder / REFUSED):
            self.done.add(row["id"])
            self._count(row["id"], row["reason"])
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> "RowLog":
        if self.write:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (self.folder / name).open("a", encoding="utf-8") for name in (ROWS, REFUSED)}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _count(self, identity: str, reason: str) -> None:
        known = self.reasons.setdefault(reason, {"count": 0, "first": identity})
        known["count"] += 1

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row that came out."""
        self._append(ROWS, row)
        self.written.append(row["id"])

    def refuse(self, row: Mapping[str, Any], reason: str) -> None:
        """Note why a row did not come out."""
        self._append(REFUSED, {"id": row["id"], "reason": reason})
        self._count(row["id"], reason)

    def check_known(self, ids: Iterable[str], source: str) -> None:
        """Raise UserError if a row is done that `source` has no more: what is there belongs to other rows."""
        if strangers := self.done - set(ids):
            raise UserError(f"{self.folder} has row {min(strangers)!r}, which {source} has no more: the rows changed; "
                            "choose another --workdir, or --config.overwrite=True to begin again")  # fmt: skip

    def finish(self, count: int, unreadable: Mapping[str, tuple[int, str]]) -> str:
        """Write the summary of a job over `count` rows; what came out, and the reasons of what did not, as text.

        `unreadable` are the reasons of rows that were not even among them, with count and first example.
        """
        lost = {reason: {"count": n, "first": first} for reason, (n, first) in unreadable.items()}
        summary = {"rows": count, "written": len(self.written), "refused": self.reasons, "unreadable": lost}
        folders.write_json(self.folder / SUMMARY, summary)
        (self.folder / "DONE").write_text("")
        lines = [f"{len(self.written):,} of {count:,} rows  {self.folder / ROWS}"]
        for reason, found in (*self.reasons.items(), *lost.items()):
            lines.append(f"  {found['count']:,} without: {reason} (first: {found['first']})")
        return "\n".join(lines)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self.done.add(row["id"])
        if self.write:
            self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
            self._files[name].flush()
