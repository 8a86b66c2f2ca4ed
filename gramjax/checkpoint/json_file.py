"""JSON objects read with one clear error instead of a traceback, and without the leniency of the standard reader."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError

LARGEST = 256 * 2**20
"""Bytes of JSON that are read; a larger file is not one of ours."""


def parse(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; raises DataError for bad JSON, a doubled key, or anything but an object."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise DataError(f"{where}: the key {key!r} stands there twice")
            out[key] = value
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds a JSON {type(value).__name__}, expected an object")
    return value


def read(path: Path, missing: Callable[[], Exception] | None = None) -> dict[str, Any]:
    """The JSON object in a file; raises `missing()` (by default a DataError) when there is no such file."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: no ordinary file (a device or a pipe)")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise DataError(f"{path}: more than {LARGEST} bytes is too large for a JSON file of a model folder")
        return parse(raw, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise (missing() if missing else DataError(f"{path} does not exist")) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def write(path: Path, value: Any) -> None:
    """Write a JSON value, indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
