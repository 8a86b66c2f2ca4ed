"""Vectors beside rows: `vectors.safetensors` (float32 `vectors` [N, P], optionally `order_direction` [P]) and
`vectors.ids.json`, the ids of the rows in the same order.

While they are made they are appended to `vectors.part`, each before its row is written, so that after a kill there are
at least as many vectors as rows: the job cuts off the rest and goes on. Reading maps the file; nothing is copied.
"""

import dataclasses
import json
import math
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gramjax.core.errors import DataError, UserError

PART, FILE, IDS = "vectors.part", "vectors.safetensors", "vectors.ids.json"
_WIDTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Vectors by the id of their row."""

    ids: tuple[str, ...]
    matrix: np.ndarray
    """float32 [N, P]."""
    order_direction: np.ndarray | None = None
    """float32 [P]: the direction along which the order of two responses is read."""

    def of(self, ids: Sequence[str], where: str = "the vectors") -> np.ndarray:
        """The vectors of these rows. Raises UserError naming the first row that has none."""
        if list(self.ids) == list(ids):
            return self.matrix
        places = {identity: place for place, identity in enumerate(self.ids)}
        absent = [identity for identity in ids if identity not in places]
        if absent:
            raise UserError(
                f"{len(absent):,} of {len(ids):,} rows have no vector in {where} (first: {absent[0]!r}); give the "
                "rows.jsonl that gramjax annotate wrote beside the vectors, or annotate this file"
            )
        return self.matrix[[places[identity] for identity in ids]]


def read(path: str | Path) -> Vectors:
    """The vectors of a folder that `gramjax annotate` wrote. Raises UserError when there are none, DataError when the
    files contradict each other."""
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / FILE).is_file() or not (folder / IDS).is_file():
        raise UserError(
            f"{path} holds no {FILE} with {IDS}: make them with gramjax annotate --config=embed_preferences "
            f"--config.model.path=RUN --config.data.path=ROWS --workdir={folder}"
        )
    try:
        ids = json.loads((folder / IDS).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / IDS}: no readable JSON ({error})") from None
    if not isinstance(ids, list):
        raise DataError(f"{folder / IDS}: holds {type(ids).__name__}, a list of ids was expected")
    arrays = _map(folder / FILE)
    if "vectors" not in arrays or len(arrays["vectors"]) != len(ids):
        raise DataError(f"{folder}: {FILE} and {IDS} differ in number; annotate again with --config.overwrite=True")
    return Vectors(tuple(map(str, ids)), arrays["vectors"], arrays.get("order_direction"))


def _map(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a safetensors file, mapped."""
    try:
        with path.open("rb") as file:
            (length,) = _WIDTH.unpack(file.read(8))
            if length > path.stat().st_size:
                raise ValueError("truncated")
            header = json.loads(file.read(length))
        out = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            room = path.stat().st_size - 8 - length
            if not 0 <= begin <= end <= room or end - begin != 4 * math.prod(entry["shape"]):
                raise ValueError(f"{name} does not lie where the header says")
            if entry["dtype"] != "F32":
                raise DataError(f"{path}: {name} is {entry['dtype']}; vectors are F32")
            start, shape = 8 + length + begin, tuple(entry["shape"])
            empty = 0 in shape
            out[name] = np.zeros(shape, np.float32) if empty else np.memmap(path, "<f4", "r", start, shape)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"{path}: no readable safetensors file ({error})") from None
    return out


class VectorLog:
    """Appends vectors to a folder, `count` of which are there already (a context manager)."""

    def __init__(self, folder: Path, count: int, write: bool = True) -> None:
        self.folder, self.count, self.write = folder, count, write
        self.width = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "VectorLog":
        path = self.folder / PART
        if not self.write or not self.count:
            path.unlink(missing_ok=True)
            return self
        if not path.exists() and not (self.folder / FILE).exists():
            return self  # rows of an annotator that makes no vectors
        if not path.exists():
            self._take_back()
        with path.open("rb") as file:
            self.width = _WIDTH.unpack(file.read(8))[0]
        wanted = 8 + 4 * self.width * self.count
        if path.stat().st_size < wanted:
            raise DataError(f"{path} has fewer vectors than there are rows; begin again with --config.overwrite=True")
        self._file = path.open("r+b")
        self._file.truncate(wanted)
        self._file.seek(wanted)
        return self

    def _take_back(self) -> None:
        """The finished file as one that can be appended to."""
        matrix = read(self.folder).matrix
        with (self.folder / PART).open("wb") as file:
            file.write(_WIDTH.pack(matrix.shape[1]))
            for start in range(0, len(matrix), 4096):
                file.write(np.ascontiguousarray(matrix[start : start + 4096], "<f4").tobytes())

    @property
    def unfinished(self) -> bool:
        """Whether there are vectors that `finish` has not written."""
        return self._file is not None

    def add(self, vector: np.ndarray) -> None:
        """Append one vector; it is on its way to the disk before this returns."""
        if self.count and not self.width:
            raise DataError(f"{self.folder} has rows without vectors; begin again with --config.overwrite=True")
        self.count += 1
        if not self.write:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.width = len(vector)
            self._file = (self.folder / PART).open("wb")
            self._file.write(_WIDTH.pack(self.width))
        self._file.write(np.ascontiguousarray(vector, "<f4").tobytes())
        self._file.flush()

    def finish(self, ids: Sequence[str], extra: Mapping[str, Any]) -> None:
        """Write the two files that stay, each in one move; `extra` holds more arrays for the safetensors file."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        others = {name: np.ascontiguousarray(value, "<f4") for name, value in extra.items()}
        shapes = {"vectors": (len(ids), self.width), **{name: value.shape for name, value in others.items()}}
        place, header = 0, {}
        for name, shape in shapes.items():
            stop = place + 4 * int(np.prod(shape))
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, stop]}
            place = stop
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        new = self.folder / f"{FILE}.new"
        with new.open("wb") as file, (self.folder / PART).open("rb") as part:
            file.write(_WIDTH.pack(len(text)) + text)
            part.seek(8)
            shutil.copyfileobj(part, file, 1 << 20)
            for value in others.values():
                file.write(value.tobytes())
        (self.folder / f"{IDS}.new").write_text(json.dumps(list(ids), ensure_ascii=False), "utf-8")
        new.replace(self.folder / FILE)
        (self.folder / f"{IDS}.new").replace(self.folder / IDS)
        (self.folder / PART).unlink()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
