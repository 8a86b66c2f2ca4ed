"""From a source (file, folder or recipe) to rows of the type that a job wants, with every loss counted."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import plugins
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import formats, language_names, records
from gramjax.data import rows as row_types
from gramjax.data.rows import Drop, Tally

DUPLICATE = "duplicate row"


@dataclasses.dataclass
class Rows:
    """What was read: usable rows (plain dicts with `id`), their type, and what happened to the others."""

    rows: list[dict[str, Any]]
    type: str
    dropped: Tally
    """Rows that were not kept, by reason."""
    notes: Tally
    """Rows that were kept but are worth knowing about (duplicates)."""
    files: list[dict[str, Any]]
    """Name, size and sha256 of every file (for a recipe: its name, split, seed and size)."""
    format: str = "trl"
    records: int = 0
    """Records in the source; one record can give several rows."""
    refused: int = 0
    """Of the dropped rows, those that are an error unless `on_bad_row="skip"`."""

    @property
    def total(self) -> int:
        """Usable and dropped rows together."""
        return len(self.rows) + self.dropped.total


def counts(found: Rows, examples: int, dropped: Tally) -> dict[str, Any]:
    """What became of the rows of a training, as `data.json` says it; `dropped` holds all that was left out."""
    return {
        "rows": found.total,
        "examples": examples,
        "dropped": {reason: list(item) for reason, item in dropped.items()},
        "notes": {note: list(item) for note, item in found.notes.items()},
    }


def _recipe(source: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `recipe:NAME[:SPLIT[:SIZE[:SEED]]]`."""
    _, name, *rest = source.split(":")
    numbers = [int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1 for text in rest[1:]]
    if len(rest) > 3 or min(numbers, default=0) < 0:
        raise UserError(f"{source[:200]!r}: write recipe:NAME, recipe:NAME:SPLIT, …:SPLIT:SIZE or …:SPLIT:SIZE:SEED")
    if numbers[:1] == [0]:
        raise UserError(f"{source!r} asks for 0 rows")
    module = plugins.load("data/recipes", name)
    split = rest[0] if rest else "train"
    if split not in module.SPLITS:
        raise UserError(f"{source!r}: no split {split!r} (there are: {', '.join(module.SPLITS)})")
    size = numbers[0] if numbers else module.SPLITS[split]
    seed = numbers[1] if len(numbers) > 1 else 0
    facts = {"name": f"recipe:{name}:{split}" + (f":{size}:{seed}" if seed else ""), "size": size}
    return module.rows(split=split, size=size, seed=seed), {**facts, "sha256": module.VERSION}


def _items(source: str) -> tuple[Iterator[records.Item], list[dict[str, Any]]]:
    if source.startswith("recipe:"):
        made, facts = _recipe(source)
        name = facts["name"].removeprefix("recipe:")
        return ((f"{name} row {index + 1}", row) for index, row in enumerate(made)), [facts]
    files = records.files_of(source)
    return records.read(source), [records.fingerprint(path) for path in files]


def _stem(source: str) -> str:
    """The part of made-up ids that names the source: `my` for `data/my.jsonl.gz`."""
    if source.startswith("recipe:"):
        return "-".join(source.split(":")[1:])
    return Path(source.rstrip("/")).name.split(".")[0] or "row"


def renames(section: DataSection) -> dict[str, str]:
    """`config.data.rename` as a dict. Raises UserError for an entry without a colon."""
    out = {}
    for entry in section.rename:
        old, colon, new = entry.partition(":")
        if not (old and colon and new):
            raise UserError(f"config.data.rename: {entry!r} is not of the form 'old:new'")
        out[old] = new
    return out


def _renamed(record: dict[str, Any], names: dict[str, str], where: str) -> dict[str, Any]:
    if not names:
        return record
    out = {key: value for key, value in record.items() if key not in names}
    for old, new in names.items():
        if old in record:
            if new in out:
                raise DataError(f"{where}: cannot rename '{old}' to '{new}', which is there already")
            out[new] = record[old]
    return out


def _lift(row: dict[str, Any]) -> dict[str, Any]:
    """verl's `reward_model.ground_truth` as a column of its own."""
    model = row.get("reward_model")
    if isinstance(model, dict) and "ground_truth" in model and "ground_truth" not in row:
        return {**row, "ground_truth": model["ground_truth"]}
    return row


def scan(source: str, section: DataSection | None = None, want: str | Sequence[str] = "") -> Rows:
    """Like `read`, but a source without a usable row is returned, not raised."""
    section = section or DataSection()
    if section.on_bad_row not in ("raise", "skip"):
        raise UserError(f"config.data.on_bad_row is {section.on_bad_row!r}; 'raise' or 'skip'")
    wanted = (want,) if isinstance(want, str) and want else tuple(want)
    if unknown := [kind for kind in wanted if kind not in row_types.NEEDS]:
        raise UserError(f"no row type {unknown[0]!r} (there are: {', '.join(row_types.NEEDS)})")
    items, files = _items(source)
    state = _Reading(_stem(source), wanted, renames(section), section, Path(source).is_dir())
    for where, record in items:
        if section.limit and len(state.out.rows) >= section.limit:
            break
        state.take(where, record)
    state.out.files = files
    if section.limit:
        del state.out.rows[section.limit :]
    return state.out


def read(source: str, section: DataSection | None = None, want: str | Sequence[str] = "") -> Rows:
    """Read one source.

    `want` names the row type or types that the caller can use, best first; empty: whatever the file holds. Rows of
    another type are converted where that loses nothing that was asked for (a preference pair is also an unlabelled
    pair). Raises DataError naming file and row for a row that cannot be read (counted instead under
    `on_bad_row="skip"`), and when nothing usable remains.
    """
    found = scan(source, section, want)
    if not found.records:
        raise DataError(f"{source}: 0 records")
    if not found.rows:
        raise DataError(nothing_usable(source, found))
    return found


def nothing_usable(source: str, found: Rows) -> str:
    """The message for a source of which no row can be used."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, (count, _) in found.dropped.items())
    first = next(iter(found.dropped.values()), (0, ""))[1]
    return f"{source}: 0 of {found.total:,} rows usable: {reasons} (first: {first})"


class _Reading:
    """The state of reading one source: what was seen so far."""

    def __init__(
        self, stem: str, wanted: tuple[str, ...], names: dict[str, str], section: DataSection, folder: bool
    ) -> None:
        self.stem, self.wanted, self.names, self.section, self.folder = stem, wanted, names, section, folder
        self.out = Rows([], "", Tally(), Tally(), [])
        self.ids: dict[str, str] = {}
        self.seen: set[str] = set()
        self.detected = ""
        self.began = ""
        self.file = ""

    def take(self, where: str, record: "dict[str, Any] | records.BadRecord") -> None:
        """Read one record; a bad one is raised or counted."""
        self.out.records += 1
        if isinstance(record, records.BadRecord):
            self._bad(record.args[0], where, f"{where}: {record.detail}")
            return
        try:
            name, made = formats.adapt(_renamed(record, self.names, where), where, self.wanted)
        except Drop as drop:
            self.out.dropped.add(drop.args[0], where)
            return
        except DataError as error:
            self._bad("unreadable row", where, str(error))
            return
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            self._bad("unreadable row", where, f"{where}: not what its columns promise ({error!r})")
            return
        self.out.format = name if self.out.records == 1 else self.out.format
        file, _, number = where.rpartition(" row ")
        if self.folder and len(spoken := language_names.of_file(file.rpartition("/")[2])) == 1:
            made = [{"language": spoken[0], **row} for row in made]
        self.file = self.file or file
        number = number if file == self.file else f"{file}-{number}"  # rows of the other files of a folder
        keep = self.section.pairs_per_record
        if keep and len(made) > keep:
            made = [made[i] for i in sorted(draw(0, len(made), keep, self.stem, number))]
        for part, row in enumerate(made):
            self._row(_lift(row), where, number if len(made) == 1 else f"{number}.{part + 1}")

    def _bad(self, reason: str, where: str, message: str) -> None:
        if self.section.on_bad_row == "raise":
            raise DataError(message)
        self.out.dropped.add(reason, message)
        self.out.refused += 1

    def _row(self, row: dict[str, Any], where: str, number: str) -> None:
        if "_drop" in row:
            self.out.dropped.add(row["_drop"], where)
            return
        given = row.get("id")
        if given is not None and (isinstance(given, bool) or not isinstance(given, str | int | float) or given == ""):
            self._bad("unusable row", where, f"{where}: 'id' is {given!r:.80}; text or a number was expected")
            return
        row = {**row, "id": f"{self.stem}-{number}" if given is None else str(given)}
        try:
            row = self._checked(row, where, given is None)
        except Drop as drop:
            self.out.dropped.add(drop.args[0], where)
            return
        except DataError as error:
            reason = "wrong columns" if isinstance(error, row_types.WrongColumns) else "unusable row"
            self._bad(reason, where, str(error))
            return
        if row["id"] in self.ids:
            message = f"{where}: the id {row['id']!r} was used before, by {self.ids[row['id']]}; ids must be unique"
            self._bad("duplicate id", where, message)
            return
        self.ids[row["id"]] = where
        content = json.dumps({k: v for k, v in row.items() if k in _CONTENT}, sort_keys=True, default=str)
        if content in self.seen:
            self.out.notes.add(DUPLICATE, where)
        self.seen.add(content)
        self.out.rows.append(row)

    def _checked(self, row: dict[str, Any], where: str, numbered: bool) -> dict[str, Any]:
        shown = {key: value for key, value in row.items() if not (numbered and key == "id")}
        try:
            kind = row_types.detect(shown, where)
        except row_types.WrongColumns:
            raise row_types.missing(shown, where, self.wanted[:1]) from None
        if not self.detected:
            self.detected, self.began = kind, where
        elif kind != self.detected and not self.wanted:
            has = row_types.columns(shown)
            raise row_types.WrongColumns(f"{where}: has {has} ({kind}), but {self.began} is {self.detected}")
        row = row_types.normalise(row, kind, where)
        for target in self.wanted or (kind,):
            made = row_types.converted(row, kind, target)
            if made is not None and (not self.out.type or target == self.out.type):
                self.out.type = target
                return made
        raise row_types.missing(shown, where, self.wanted[:1])


def originals(source: str, section: DataSection | None = None) -> dict[str, dict[str, Any]]:
    """The records of a source as they stand in it, by their own ids (`pair_id` where JudgeBench has that)."""
    names, out = renames(section or DataSection()), {}
    for where, record in _items(source)[0]:
        if isinstance(record, dict):
            row = _renamed(record, names, where)
            own = row.get("id", row.get("pair_id"))
            number = where.rpartition(" ")[2]
            out[f"{_stem(source)}-{number}" if own is None else str(own)] = record
    return out


def draw(seed: int, count: int, keep: int, *parts: Any) -> list[int]:
    """`keep` of `range(count)`, chosen by the arguments only (the same on every machine)."""
    return sorted(range(count), key=lambda i: row_types.digest(seed, *parts, i))[:keep]


def read_all(sources: Sequence[str], section: DataSection | None = None, want: str | Sequence[str] = "") -> Rows:
    """Read several sources as one, in order; all must give the same row type.

    Sources with the same file name number their rows by folder and file name. Raises like `read`, and DataError for an
    id that two sources use, and when more rows than `section.max_bad_share` were skipped as unreadable.
    """
    if not sources:
        raise UserError("no data source; set config.data.train")
    found = [read(source, section, want) for source in sources]
    wanted = [want] if isinstance(want, str) else list(want)
    if len({part.type for part in found}) > 1:
        common = next((kind for kind in wanted if all(_can_be(part, kind) for part in found)), None)
        found = [_as(part, common) for part in found] if common else found
    stems = [_stem(source) for source in sources]
    first = found[0]
    out = Rows([], first.type, Tally(), Tally(), [], first.format)
    owners: dict[str, str] = {}
    for source, stem, part in zip(sources, stems, found, strict=True):
        if part.type != first.type:
            raise DataError(f"{source} holds {part.type} rows, but {sources[0]} holds {first.type} rows")
        prefix = f"{Path(source).resolve().parent.name}/" if stems.count(stem) > 1 and ":" not in source else ""
        for row in part.rows:
            if prefix and row["id"].startswith(f"{stem}-"):
                row["id"] = prefix + row["id"]
            if row["id"] in owners:
                raise DataError(
                    f"{source}: the id {row['id']!r} is also used in {owners[row['id']]}; ids must be unique"
                )
            owners[row["id"]] = source
        out.rows += part.rows
        out.dropped.merge(part.dropped)
        out.notes.merge(part.notes)
        out.files += part.files
        out.records += part.records
        out.refused += part.refused
    section = section or DataSection()
    if out.refused > section.max_bad_share * out.total:
        reason, (count, where) = next((r, item) for r, item in out.dropped.items() if item[1].partition(":")[2])
        raise DataError(
            f"{out.refused:,} of {out.total:,} rows cannot be read, more than config.data.max_bad_share="
            f"{section.max_bad_share:g} ({count:,} {reason}, first {where}): repair the file, or allow it"
        )
    return out


def _can_be(part: Rows, kind: str) -> bool:
    return row_types.converted(part.rows[0], part.type, kind) is not None


def _as(part: Rows, kind: str) -> Rows:
    made = [row_types.converted(row, part.type, kind) for row in part.rows]
    return dataclasses.replace(part, rows=[row for row in made if row is not None], type=kind)


def overlap(train: Sequence[dict[str, Any]], valid: Sequence[dict[str, Any]]) -> int:
    """How many validation rows have a prompt that training rows have too (a leak, unless it is meant)."""

    def key(row: dict[str, Any]) -> str:
        text = row.get("prompt", row.get("messages", row.get("text")))
        return json.dumps(text, sort_keys=True, default=str) if text else ""

    known = {key(row) for row in train} - {""}
    return sum(key(row) in known for row in valid)


_CONTENT = ("prompt", "chosen", "rejected", "completion", "label", "responses", "messages", "text", "completions",
            "rationale")  # fmt: skip
