"""Records out of files: JSON lines, JSON arrays, questions in .tsv (all also gzipped), parquet, saved `datasets`
folders, TFDS folders.

Nothing here knows row types. Every reader yields `(where, record or BadRecord)`; a file that cannot be read at all
raises DataError. JSON is read strictly: UTF-8, no NaN or Infinity, no doubled keys, no lone surrogates, no NUL. How
much is held in memory is bounded, so that a small gzip file cannot grow without end.
"""

import glob
import gzip
import hashlib
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError, UserError

LONGEST_LINE = 256 * 2**20
"""Bytes of one line; a file whose lines are longer holds no JSON lines."""
LARGEST_WHOLE = 4 * 2**30
"""Bytes of a file that is one JSON value (an array of rows); more have to come as JSON lines."""


class BadRecord(Exception):
    """One record that cannot be read: `args[0]` is a countable reason, `detail` says what and where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


Item = tuple[str, "dict[str, Any] | BadRecord"]


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"name": path.name, "size": path.stat().st_size, "sha256": digest.hexdigest()}


def files_of(source: str) -> list[Path]:
    """The files behind a source: itself, or what a folder holds. Raises UserError if there is nothing to read."""
    if not source.strip():
        raise UserError("the name of a data file is empty")
    if "://" in source:
        raise UserError(f"{_short(source)}: nothing is downloaded here; give the path of a file on this machine")
    path = Path(source)
    try:
        if path.is_dir():
            return sorted(found for found in map(_usable, path.rglob("*")) if found is not None)
        if not path.exists() and not path.is_symlink():
            near = sorted(p.name for p in path.parent.glob(f"*{glob.escape(path.stem[:8])}*"))[:3]
            there = f" (there is: {', '.join(near)})" if near and path.parent.is_dir() else ""
            raise UserError(f"no file or folder {_short(source)}{there}")
        _usable(path)
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder that may not be read, a loop of links
        raise UserError(f"{_short(source)}: cannot be opened ({getattr(error, 'strerror', '') or error})") from None
    return [path]


def _usable(path: Path) -> Path | None:
    """The path of an ordinary file, None for a folder. Raises UserError for a link to nothing, a device or a pipe."""
    if path.is_file():
        return path
    if path.is_dir():
        return None
    if path.is_symlink() and not path.exists():
        raise UserError(f"{_short(str(path))} is a link to nothing")
    raise UserError(f"{_short(str(path))} is no ordinary file")


def _short(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


def read(source: str) -> Iterator[Item]:
    """The records of a file or folder, each with its name (`my.jsonl row 17`, rows counted from 1)."""
    files = files_of(source)
    path = Path(source)
    if path.is_dir():
        yield from _folder(path, files)
    elif path.name.endswith(".parquet"):
        yield from _parquet(path)
    elif path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson")):
        yield from _json(path)
    elif path.name.endswith((".tsv", ".tsv.gz")):
        yield from _questions(path)
    else:
        raise UserError(f"{path.name}: unknown kind of data file; .jsonl, .json, .tsv (all also .gz), .parquet, a "
                        "saved `datasets` folder and a TFDS folder can be read")  # fmt: skip


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRecord("doubled key", f"the key {key!r} stands twice in one object")
            seen.add(key)
    return out


def _constant(name: str) -> Any:
    raise BadRecord("NaN or Infinity", f"holds the literal {name}, which is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRecord("NaN or Infinity", f"the number {text[:20]} is too large")
    return value


def parse(text: str) -> Any:
    """Strict JSON. Raises BadRecord."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise BadRecord("invalid JSON", f"{error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except RecursionError:
        raise BadRecord("invalid JSON", "nested too deeply") from None
    except ValueError:  # Python refuses to read it, since that takes quadratic time
        most = sys.get_int_max_str_digits()
        raise BadRecord("invalid JSON", f"holds a whole number of more than {most} digits") from None
    if "\\" in text:
        try:
            _check_text(value)
        except RecursionError:
            raise BadRecord("invalid JSON", "nested too deeply") from None
    return value


def _check_text(value: Any, field: str = "") -> None:
    """Refuse what JSON escapes can smuggle in: lone surrogates, which no tokenizer can encode, and NUL."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadRecord("NUL character", f"field '{field}' holds a NUL character")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecord("lone surrogate", f"field '{field}' holds half of a surrogate pair, "
                            f"\\u{ord(value[error.start]):04x}, at character {error.start + 1}") from None  # fmt: skip
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, str(key).encode("utf-8", "replace").decode())
            _check_text(item, str(key).encode("utf-8", "replace").decode())
    elif isinstance(value, list):
        for item in value:
            _check_text(item, field)


def _decode(raw: bytes, offset: int) -> str:
    zero = raw.find(b"\0")
    if zero >= 0:
        raise BadRecord("NUL byte", f"NUL byte at byte {offset + zero} of the file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("invalid UTF-8", f"byte 0x{raw[error.start]:02x} at byte {offset + error.start} of the file "
                        "is no UTF-8; convert the file (for example from Latin-1)") from None  # fmt: skip


def _record(value: Any) -> dict[str, Any] | BadRecord:
    if isinstance(value, dict):
        return value
    return BadRecord("no JSON object", f"holds {type(value).__name__}, an object with named fields was expected")


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _json(path: Path) -> Iterator[Item]:
    try:
        with _open(path) as file:
            buffered = io.BufferedReader(file) if isinstance(file, gzip.GzipFile) else file
            head = buffered.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            if head[:1] == b"[":
                yield from _array(path, _all_of(path, buffered))
            elif head[:1] == b"{" and ".json" in path.suffixes:
                raw = _all_of(path, buffered)
                whole = _whole(raw)
                yield from _lines(path, io.BytesIO(raw)) if whole is None else [(f"{path.name} row 1", whole)]
            else:
                yield from _lines(path, buffered)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path.name}: damaged or truncated gzip file ({error})") from None


def _all_of(path: Path, file: Any) -> bytes:
    raw = file.read(LARGEST_WHOLE + 1)
    if len(raw) > LARGEST_WHOLE:
        raise DataError(f"{path.name}: one JSON value of more than {LARGEST_WHOLE:,} bytes; write it as JSON lines")
    return raw


def _lines_of(path: Path, file: Any) -> Iterator[bytes]:
    """The lines of an open file with their ends. Raises DataError for one that is too long to be one."""
    while raw := file.readline(LONGEST_LINE + 1):
        if len(raw) > LONGEST_LINE:
            raise DataError(f"{path.name}: a line of more than {LONGEST_LINE:,} bytes; this is no file of lines")
        yield raw


def _whole(raw: bytes) -> dict[str, Any] | None:
    """The object that a `.json` file is, over as many lines as it likes; None if it is no single object."""
    try:
        value = parse(_decode(raw, 0).removeprefix("\ufeff"))
    except BadRecord:
        return None
    return value if isinstance(value, dict) else None


def _array(path: Path, raw: bytes) -> Iterator[Item]:
    try:
        values = parse(_decode(raw, 0).removeprefix("\ufeff"))
    except BadRecord as bad:
        raise DataError(f"{path.name}: {bad.detail}") from None
    for index, value in enumerate(values):
        yield f"{path.name} row {index + 1}", _record(value)


def _lines(path: Path, file: Any) -> Iterator[Item]:
    """One object per line; lines end at \\n only, so that other Unicode line separators stay inside strings."""
    offset, row = 0, 0
    for line, raw in enumerate(_lines_of(path, file), 1):
        start, offset = offset, offset + len(raw)
        body = raw
        if start == 0 and body.startswith(b"\xef\xbb\xbf"):
            body, start = body[3:], 3
        if not body.strip():
            continue
        row += 1
        where = f"{path.name} row {row}"
        try:
            text = _decode(body.rstrip(b"\r\n"), start)
            yield where, _record(parse(text))
        except BadRecord as bad:
            if bad.args[0] == "invalid JSON" and not raw.endswith(b"\n"):
                bad = BadRecord("truncated last line", f"the last line breaks off: {bad.detail}; the file is truncated")
            if line != row:  # blank lines are no rows
                bad = BadRecord(bad.args[0], f"{bad.detail} (line {line} of the file)")
            yield where, bad


def _questions(path: Path) -> Iterator[Item]:
    """MGSM's files: a question and its answer on a line, a tab between them, no header and no quoting."""
    offset, row = 0, 0
    try:
        with _open(path) as file:
            for raw in _lines_of(path, file):
                start, offset = offset, offset + len(raw)
                if not raw.strip():
                    continue
                row += 1
                try:
                    fields = _decode(raw.rstrip(b"\r\n"), start).removeprefix("\ufeff").split("\t")
                    if len(fields) != 2:
                        raise BadRecord("not two columns", f"has {len(fields)} columns; a .tsv file is read as "
                                        "question, tab, answer")  # fmt: skip
                    yield f"{path.name} row {row}", {"question": fields[0], "answer": fields[1]}
                except BadRecord as bad:
                    yield f"{path.name} row {row}", bad
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path.name}: damaged or truncated gzip file ({error})") from None


def _plain(value: Any) -> Any:
    """Arrow, numpy and TFDS values as plain Python: bytes become text."""
    if isinstance(value, bytes):
        return _decode(value, 0)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord("NaN or Infinity", f"holds the number {value}")
    return value


def _plain_record(value: Any) -> dict[str, Any] | BadRecord:
    try:
        record = _plain(value)
        _check_text(record)
        return record
    except BadRecord as bad:
        return bad


def _table(name: str, batches: Any, row: int = 0) -> Iterator[Item]:
    for batch in batches:
        for value in batch.to_pylist():
            row += 1
            yield f"{name} row {row}", _plain_record(value)


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        yield from _table(path.name, file.iter_batches(1024))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: no readable parquet file ({' '.join(str(error).split())})") from None


def _folder(path: Path, files: list[Path]) -> Iterator[Item]:
    names = {p.name for p in files if p.parent == path}
    if "dataset_dict.json" in names:
        splits = _object(path / "dataset_dict.json").get("splits")
        shown = ", ".join(str(path / str(split)) for split in splits) if isinstance(splits, list) else "a folder in it"
        raise UserError(f"{path} holds several splits; give one: {shown}")
    if "state.json" in names:
        yield from _saved_dataset(path)
    elif "features.json" in names:
        yield from _tfds(path)
    elif tables := [p for p in files if p.name.endswith(".parquet")]:
        for table in tables:
            yield from _parquet(table)
    elif rows := rows_of(files):
        for file in rows:
            inside = file.relative_to(path).as_posix().removesuffix(file.name)
            one = _questions(file) if file.name.endswith((".tsv", ".tsv.gz")) else _json(file)
            yield from ((f"{inside}{where}", record) for where, record in one)
    else:
        raise UserError(f"{path} is no data folder: no state.json (saved `datasets` folder), features.json (TFDS) or "
                        "parquet file in it, and not JSON or .tsv files alone")  # fmt: skip


def _object(path: Path) -> dict[str, Any]:
    """The JSON object that a file of a data folder holds. Raises DataError."""
    try:
        value = parse(_decode(path.read_bytes(), 0))
    except BadRecord as bad:
        raise DataError(f"{path}: {bad.detail}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}, an object was expected")
    return value


def rows_of(files: list[Path]) -> list[Path]:
    """JSON and .tsv files, beside which only pages of text (.md) stand; empty where there is something else."""
    rows = [file for file in files if not file.name.endswith(".md")]
    known = (".jsonl", ".json", ".tsv")
    return rows if all(file.name.removesuffix(".gz").endswith(known) for file in rows) else []


def _saved_dataset(path: Path) -> Iterator[Item]:
    """`Dataset.save_to_disk`: Arrow stream files listed in state.json. Read without importing `datasets`."""
    import pyarrow

    state = _object(path / "state.json")
    if state.get("_indices_files"):
        raise UserError(f"{path} was saved with an index mapping; save it again after flatten_indices()")
    row = 0
    for entry in state["_data_files"] if isinstance(state.get("_data_files"), list) else [None]:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise DataError(f"{path}/state.json does not list its files (_data_files, each with a filename)")
        file = path / name
        if file.resolve().parent != path.resolve():
            raise DataError(f"{path}/state.json names {name!r}, outside the folder")
        if not file.is_file():
            raise DataError(f"{path}/state.json names {name!r}, which is absent")
        try:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    for _, record in _table("", [batch]):
                        row += 1
                        yield f"{path.name} row {row}", record
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: no readable Arrow file ({' '.join(str(error).split())})") from None


def _tfds(path: Path) -> Iterator[Item]:
    """A prepared TFDS dataset in array_record or parquet form, read without TensorFlow."""
    info = _object(path / "dataset_info.json")
    kind = info.get("fileFormat", "tfrecord")
    if kind not in ("array_record", "parquet"):
        raise UserError(f"{path}: TFDS format {kind!r} needs TensorFlow; prepare it with file_format='array_record'")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            f'{path} needs tensorflow-datasets: pip install "tensorflow-datasets" importlib_resources'
        ) from None
    try:
        builder = tfds.builder_from_directory(str(path))
    except Exception as error:  # its readers raise many kinds
        raise DataError(f"{path}: no readable TFDS folder ({' '.join(str(error).split())})") from None
    for split in sorted(builder.info.splits):
        source = builder.as_data_source(split=split)
        for index in range(len(source)):
            yield f"{path.name}/{split} row {index + 1}", _plain_record(source[index])
