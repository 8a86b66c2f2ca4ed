"""Safetensors files of a folder: checked headers, slices on demand, and writing that holds one array at a time.

The format has no checksums, and a flipped byte of data is a number like any other: files that are written here hold a
CRC-32 of every array in their metadata (other readers ignore it), which is compared when an array is read whole.
"""

import contextlib
import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gramjax.checkpoint import json_file
from gramjax.core.errors import DataError, UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100 * 2**20

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
"""Dtypes of weights by their safetensors names."""

CHECKSUM = "crc32."
"""Before the name of an array in the metadata of a file: its checksum, eight hexadecimal digits."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.joblib")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    checksum: str = ""
    """CRC-32 of the bytes; empty: the writer left none."""


def read_header(path: Path) -> dict[str, Entry]:
    """The arrays of one file by name.

    Raises DataError for a file that is truncated or has bytes to spare, for overlapping or uncovered data, for a name
    that stands twice in the header (the usual reader keeps the last), and for sizes that contradict the shape.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= LARGEST_HEADER or 8 + length > total:
                raise DataError(f"{path}: not a safetensors file, or truncated ({total} bytes, header of {length})")
            header = json_file.parse(file.read(length), f"{path} (header)")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    about = header.pop("__metadata__", None)
    checksums = about if isinstance(about, dict) else {}
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, value in header.items():
        try:
            begin, end = (int(offset) for offset in value["data_offsets"])
            sizes = tuple(int(size) for size in value["shape"])
            entry = Entry(path, str(value["dtype"]), sizes, str(checksums.get(CHECKSUM + name, "")))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(f"{path}: the header entry of {name!r} is damaged") from None
        width = np.dtype(DTYPES[entry.dtype]).itemsize if entry.dtype in DTYPES else None
        if begin > end or min(entry.shape, default=0) < 0:
            raise DataError(f"{path}: the header entry of {name!r} is damaged")
        if width is not None and end - begin != width * math.prod(entry.shape):
            raise DataError(f"{path}: {name} has {end - begin} bytes, not what {entry.shape} {entry.dtype} needs")
        entries[name] = entry
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise DataError(f"{path}: {name} starts at byte {begin}, expected {position} (overlap or gap)")
        position = end
    if 8 + length + position != total:
        raise DataError(
            f"{path}: {total} bytes, its header describes {8 + length + position}; the file is "
            f"{'truncated' if total < 8 + length + position else 'longer than it should be'}, copy it again"
        )
    return entries


def files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of a folder, and the map from names to files when there is an index.

    Raises UserError for a folder with pickles only, DataError for an index that names a file outside the folder or one
    that is absent.
    """
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE], None
        found = sorted(folder.glob("*.safetensors"))
        if len(found) == 1 and found[0].name != "adapter_model.safetensors":
            return found, None
        if len(found) > 1:
            raise DataError(f"{folder}: {len(found)} safetensors files and no {INDEX} that says what belongs together")
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder}: only {pickles[0]}, a pickle that can run code when it is read; "
                "convert it to safetensors first"
            )
        raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")
    weight_map = json_file.read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DataError(f"{index}: no 'weight_map' from names to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise DataError(f"{index}: names the file {name!r}, which lies outside the folder")
        if not name.endswith(".safetensors"):
            raise DataError(f"{index}: names the file {name!r}; only safetensors files are read")
        if not (folder / name).is_file():
            raise DataError(f"{index}: names the file {name!r}, which is not there")
    return [folder / name for name in names], weight_map


def entries(folder: Path) -> dict[str, Entry]:
    """Every array of a folder by name; raises DataError when index and files disagree, or a name is doubled."""
    paths, weight_map = files(folder)
    out: dict[str, Entry] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name in out:
                raise DataError(f"{name} is in both {out[name].file.name} and {path.name} of {folder}")
            out[name] = entry
    if weight_map is not None:
        wrong = [n for n, f in weight_map.items() if n not in out or out[n].file.name != f]
        unlisted = sorted(set(out) - set(weight_map))
        if wrong or unlisted:
            raise DataError(
                f"{folder / INDEX} and the files disagree: not where it says: {listing(wrong)}; "
                f"in a file but not listed: {listing(unlisted)}"
            )
    return out


def listing(names: Any, limit: int = 12) -> str:
    """Names for a message: all of them, or the first ones and how many more."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"


@contextlib.contextmanager
def reader(found: Mapping[str, Entry]) -> Iterator[Callable[[str, tuple[slice, ...]], np.ndarray]]:
    """A function `read(name, slices) -> array in the dtype of the file`; files are mapped, not loaded."""
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        handles: dict[Path, Any] = {}

        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            entry = found[name]
            try:
                if entry.file not in handles:
                    handles[entry.file] = stack.enter_context(safe_open(entry.file, framework="np"))
                block = handles[entry.file].get_slice(name)[index]
            except (SafetensorError, OSError) as error:
                raise DataError(f"{entry.file}: {name} cannot be read ({error})") from None
            if entry.checksum and block.shape == entry.shape and checksum(block) != entry.checksum:
                raise DataError(f"{entry.file}: {name} is not what was written there (checksum); copy the file again")
            return block

        yield read


def checksum(array: np.ndarray) -> str:
    """CRC-32 of the bytes of an array, as files hold it."""
    return f"{zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data):08x}"


@dataclasses.dataclass(frozen=True)
class Planned:
    """An array to be written: its place in the file, and a function that makes it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def plan(arrays: list[Planned], max_bytes: int) -> list[list[Planned]]:
    """Arrays in order, cut into files of at most `max_bytes` (a larger array has a file of its own)."""
    out: list[list[Planned]] = [[]]
    used = 0
    for array in arrays:
        if out[-1] and used + array.nbytes > max_bytes:
            out.append([])
            used = 0
        out[-1].append(array)
        used += array.nbytes
    return out


def write(folder: Path, arrays: list[Planned], max_bytes: int) -> None:
    """Write arrays as one or several safetensors files (with an index); one array at a time is in memory."""
    parts = plan(arrays, max_bytes)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        write_file(folder / name, part)
        weight_map.update({array.name: name for array in part})
    if len(parts) > 1:
        total = sum(array.nbytes for array in arrays)
        json_file.write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_file(path: Path, arrays: list[Planned]) -> None:
    """Write arrays as one safetensors file; one array at a time is in memory."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    about = {"format": "pt", **{CHECKSUM + array.name: "0" * 8 for array in arrays}}
    header: dict[str, Any] = {"__metadata__": about}
    position = 0
    for array in arrays:
        offsets = [position, position + array.nbytes]
        header[array.name] = {
            "dtype": names[np.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        position += array.nbytes

    def encoded() -> bytes:
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format asks for data aligned to 8 bytes
        return struct.pack("<Q", len(text)) + text

    with path.open("wb") as file:
        file.write(encoded())
        for array in arrays:
            value = np.ascontiguousarray(array.make(), dtype=array.dtype)
            if value.shape != array.shape:
                raise ValueError(f"{array.name}: planned {array.shape}, made {value.shape}")
            file.write(value.reshape(-1).view(np.uint8).data)
            about[CHECKSUM + array.name] = checksum(value)
        file.seek(0)
        file.write(encoded())  # as long as before: now with the checksums
