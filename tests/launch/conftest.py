"""Programs of schedulers that are not here: stand-ins on the PATH that note how they were called."""

import json
import os
import sys
from pathlib import Path

import pytest

NOTE = """#!/usr/bin/env bash
{python} -S -c '
import json, os, sys
line = json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ)}})
print(line, file=open("{notes}", "a"))
' "${{0##*/}}" "$@"
"""


class Stands:
    """A folder of stand-ins, first on the PATH, and what they noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder / "bin", folder / "notes.jsonl"
        self.folder.mkdir()

    def add(self, name: str, body: str = "") -> None:
        """A program that notes its call and then does `body` (bash)."""
        path = self.folder / name
        path.write_text(NOTE.format(python=sys.executable, notes=self.notes) + body + "\n")
        path.chmod(0o755)

    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def calls(self, name: str) -> list[dict]:
        """The calls of a program so far, with `argv` (without its own name) and `env`."""
        if not self.notes.exists():
            return []
        noted = [json.loads(line) for line in self.notes.read_text().splitlines()]
        return [{**call, "argv": call["argv"][1:]} for call in noted if call["argv"][0] == name]


@pytest.fixture
def stands(tmp_path) -> Stands:
    return Stands(tmp_path)
