"""Texts by language: files that say in their name, in a column or on the command line which language they hold.

A source is a file or a folder of files. Its language is what stands before a colon (`de:my_file.jsonl`), else a column
`language` or `lang`, else the file name: `de.jsonl.gz`, `german.jsonl`, `mgsm_de.tsv`, `deu.dev.txt.gz`. A file that
names two, `deu-eng.tsv.gz`, holds a sentence and its translation on each line. A `.txt` file has a text on each line.
"""

import dataclasses
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import readers, records
from gramjax.data.language_names import code, of_file
from gramjax.data.rows import LANGUAGE_MODELING, PROMPT_COMPLETION, PROMPT_ONLY, Tally, Text

TYPES = {
    "prompt": (PROMPT_ONLY, LANGUAGE_MODELING),
    "last": (PROMPT_ONLY, LANGUAGE_MODELING),
    "completion": (PROMPT_COMPLETION,),
    "all": (PROMPT_COMPLETION, PROMPT_ONLY, LANGUAGE_MODELING),
}
"""Row types that are read, best first, by the positions that count."""


@dataclasses.dataclass(frozen=True)
class LanguageText:
    """One text in one language."""

    language: str
    """Two-letter code, or what the source said; empty: unknown."""
    key: str
    """The same for texts that say the same in other languages."""
    prompt: Text
    completion: Text | None = None


@dataclasses.dataclass(frozen=True)
class Texts:
    """What was read."""

    texts: list[LanguageText]
    files: list[dict[str, Any]]
    """Name, size and sha256 of every file."""
    dropped: Tally
    places: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    """By language: a file whose texts are joined with others by their place in it, and how many places it has."""

    @property
    def languages(self) -> tuple[str, ...]:
        """English first, the others in the order of their codes."""
        return tuple(sorted({text.language for text in self.texts}, key=lambda code: (code != "en", code)))

    def by_key(self, language: str) -> dict[str, LanguageText]:
        """The texts of a language; of two with one key, the first."""
        out: dict[str, LanguageText] = {}
        for text in self.texts:
            if text.language == language:
                out.setdefault(text.key, text)
        return out


def read(sources: Sequence[str], section: DataSection, positions: str = "prompt") -> Texts:
    """The texts of several sources. Raises UserError and DataError like `readers.read`."""
    out = Texts([], [], Tally())
    for source in sources:
        given, path = _split(source)
        if not path.startswith("recipe:") and Path(path).is_dir() and not given and _one_each(Path(path)):
            for file in records.files_of(path):
                if _readable(file) and of_file(file.name):
                    _read_file(out, str(file), "", section, positions)
                elif _readable(file):
                    out.dropped.add("file whose name tells no language", file.name)
        else:
            _read_file(out, path, given, section, positions)
    if not out.texts:
        raise DataError(f"{', '.join(sources)}: no texts")
    return out


def _split(source: str) -> tuple[str, str]:
    """`de:FILE` as (language, file)."""
    before, colon, rest = source.partition(":")
    if not colon or before == "recipe" or "/" in before or "\\" in before or Path(source).exists():
        return "", source
    return code(before) or before, rest


def _readable(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".tsv", ".txt", ".parquet"))


def _one_each(folder: Path) -> bool:
    """Whether a folder holds files that each name their language."""
    return any(of_file(path.name) for path in records.files_of(str(folder)) if _readable(path))


def _read_file(out: Texts, path: str, given: str, section: DataSection, positions: str) -> None:
    known = () if path.startswith("recipe:") else of_file(Path(path).name)
    plain = path.removesuffix(".gz")
    if plain.endswith(".txt") or (plain.endswith(".tsv") and len(known) == 2 and not given):
        languages = (given,) if given else known or ("",)
        _read_lines(out, Path(path), languages if plain.endswith(".tsv") else languages[:1], section)
        return
    found = readers.read(path, section, TYPES[positions])
    out.dropped.merge(found.dropped)
    out.files.extend(found.files)
    stem = Path(path).name.split(".")[0]
    counted = "" if section.limit or path.startswith("recipe:") else given or (known[0] if known else "")
    for row in found.rows:
        said = row.get("language", row.get("lang"))
        language = given or (code(str(said)) or str(said) if said else "") or (known[0] if known else "")
        prompt = row.get("prompt") if row.get("prompt") is not None else row.get("messages") or row.get("text")
        if prompt:
            out.texts.append(LanguageText(language, key := _key(row, stem), prompt, row.get("completion")))
            if key.startswith("#") and language == counted:
                out.places[language] = (Path(path).name, found.records)


def _key(row: Mapping[str, Any], stem: str) -> str:
    """What joins a row with the same in other languages: its `src_row`, the number of the row where the reader made up
    its id, or its own id. These never meet one another."""
    if row.get("src_row") is not None:
        return str(row["src_row"])
    made_up = re.fullmatch(rf"{re.escape(stem)}-([\d.]+)", row["id"])
    return f"#{made_up[1]}" if made_up else f"id:{row['id']}"


def _read_lines(out: Texts, path: Path, languages: Sequence[str], section: DataSection) -> None:
    """A text, or one in each of two languages with a tab between them, on every line."""
    (file,) = records.files_of(str(path))
    out.files.append(records.fingerprint(file))
    opened = gzip.open if file.name.endswith(".gz") else open
    wanted = len(languages)
    try:
        with opened(file, "rt", encoding="utf-8", newline="\n") as lines:  # other line separators stay inside a text
            number = -1
            for number, line in enumerate(lines):
                if section.limit and number >= section.limit:
                    break
                parts = [part.strip() for part in (line.split("\t") if wanted > 1 else [line])]
                if len(parts) != wanted or not all(parts):
                    reason = f"not {wanted} columns" if any(parts) else "empty line"
                    out.dropped.add(reason, f"{file.name} line {number + 1}")
                    continue
                key = f"{file.name if wanted > 1 else ''}#{number + 1}"
                out.texts.extend(LanguageText(language, key, part) for language, part in zip(languages, parts))
            if wanted == 1 and not section.limit:
                out.places[languages[0]] = (file.name, number + 1)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file.name}: cannot be read as lines of text ({error})") from None


def parallel(found: Texts, languages: Sequence[str]) -> tuple[Texts, int]:
    """The texts whose key every language has, by key in the order of the first language; how many were left out.

    Raises UserError when there are none, and DataError when they would be joined by their places in files of different
    length: from some line on, the texts would not say the same.
    """
    _same_length(found, languages)
    tables = [found.by_key(language) for language in languages]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    if not shared:
        raise UserError(
            f"the languages {', '.join(languages)} share no rows (joined by 'src_row', 'id' or the number of the "
            "row): give parallel texts, or --config.probe.parallel=False"
        )
    kept = [table[key] for key in shared for table in tables]
    of_them = sum(text.language in languages for text in found.texts)
    return dataclasses.replace(found, texts=kept), of_them - len(kept)


def _same_length(found: Texts, languages: Sequence[str]) -> None:
    placed = [found.places[language] for language in languages if language in found.places]
    for name, count in placed[1:]:
        if count != placed[0][1]:
            first, rows = placed[0]
            raise DataError(f"{first} has {rows:,} rows and {name} has {count:,}: rows without ids are joined by their "
                            "place, so files must be equally long (or give the rows an 'id')")  # fmt: skip


def chosen(found: Texts, languages: Sequence[str], where: str) -> tuple[str, ...]:
    """The codes of the languages that were asked for (all, when none were). Raises UserError for one that is absent."""
    there = found.languages
    wanted = tuple(dict.fromkeys(code(word) or word for word in languages)) or there
    if missing := [word for word in wanted if word not in there]:
        shown = ", ".join(word or "(unknown)" for word in there)
        raise UserError(f"{where}: no texts in {missing[0]!r}; the data has {shown}")
    return wanted


def counts(found: Texts) -> Mapping[str, int]:
    """Texts by language."""
    return {language: sum(text.language == language for text in found.texts) for language in found.languages}


def pairs_of(found: Texts, pivot: str, languages: Sequence[str]) -> Iterator[tuple[LanguageText, LanguageText]]:
    """(text in one of the languages, the same in the pivot), language by language. Raises DataError like `parallel`."""
    _same_length(found, (pivot, *languages))
    target = found.by_key(pivot)
    for language in languages:
        for key, text in found.by_key(language).items():
            if language != pivot and key in target:
                yield text, target[key]
