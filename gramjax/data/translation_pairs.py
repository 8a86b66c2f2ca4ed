"""Pairs of texts that say the same in two languages, as prompts and completions: what SLAM and QAlign align with.

A row asks for a translation and has it as its completion: `prompt`, `completion`, and beside them `source_lang`,
`target_lang`, `task`, `source_text` and `target_text`.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import language_names, languages
from gramjax.data.formats import assistant, user
from gramjax.data.languages import LanguageText, Texts
from gramjax.data.math_answers import western
from gramjax.data.rows import Tally, Text

TEMPLATE = "Translate from {source} into {target}.\n\n{text}"
"""The package's own wording of the order; the names of the languages are in English."""

TASKS = ("question", "answer", "question+answer")
TO, FROM, BOTH = "to_pivot", "from_pivot", "both"
DIRECTIONS = (TO, FROM, BOTH)
FIELDS = ("source", "target", "text")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pairs are made."""

    pivot: str = "en"
    """The language that every pair has on one side."""
    languages: tuple[str, ...] = ()
    """The others; empty: all that the texts have."""
    task: str = "question"
    """Translate the `question` (the text itself), the `answer` (the worked solution), or both: `question+answer`."""
    direction: str = TO
    """`to_pivot`, `from_pivot` or `both`."""
    template: str = TEMPLATE
    """The order, with `{source}`, `{target}` and `{text}` in it."""
    same_numerals: bool = False
    """Leave out pairs whose numerals differ."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What was made."""

    rows: list[dict[str, Any]]
    dropped: Tally
    files: list[dict[str, Any]]

    def counts(self) -> dict[str, int]:
        """Rows by direction: `de -> en`."""
        return dict(collections.Counter(f"{row['source_lang']} -> {row['target_lang']}" for row in self.rows))


def check(settings: Settings) -> None:
    """Raise UserError for settings that mean nothing."""
    for name, known in (("task", TASKS), ("direction", DIRECTIONS)):
        if getattr(settings, name) not in known:
            raise UserError(f"{name} {getattr(settings, name)!r} is not one of {', '.join(known)}")
    if "{text}" not in settings.template:
        raise UserError("the template has no {text}, the place of what is translated")


def read(sources: Sequence[str], settings: Settings, section: DataSection = DataSection()) -> Pairs:
    """The pairs of files or folders (`data.languages`). Raises UserError, and DataError when there are none."""
    check(settings)
    rows: list[dict[str, Any]] = []
    dropped = Tally()
    files: list[dict[str, Any]] = []
    for task in settings.task.split("+"):
        found = languages.read(sources, section, "prompt" if task == "question" else "completion")
        files = files or found.files
        dropped.merge(found.dropped)
        rows += list(_pairs(found, task, settings, dropped))
    if not rows:
        reasons = "; ".join(f"{count:,} {reason} (first: {first})" for reason, (count, first) in dropped.items())
        raise DataError(
            f"{', '.join(sources)}: no pair of texts with one row number{f': {reasons}' if reasons else ''}"
        )
    return Pairs(rows, dropped, files)


def _pairs(found: Texts, task: str, settings: Settings, dropped: Tally) -> Iterator[dict[str, Any]]:
    pivot = language_names.code(settings.pivot) or settings.pivot
    wanted = languages.chosen(found, (*settings.languages, pivot) if settings.languages else (), "languages")
    if pivot not in wanted:
        raise UserError(f"no texts in the pivot {pivot!r}; the data has {', '.join(wanted)}")
    seen: set[tuple[str, str, str]] = set()
    for other, same in languages.pairs_of(found, pivot, [name for name in wanted if name != pivot]):
        sides = [(other, same), (same, other)]
        for source, target in sides if settings.direction == BOTH else sides[settings.direction == FROM :][:1]:
            name = f"{source.language}-{target.language}-{other.language}-{source.key}"
            texts = [_plain(side.completion if task == "answer" else side.prompt) for side in (source, target)]
            if not all(texts):
                dropped.add(f"pair without the {task}", name)
            elif settings.same_numerals and numerals(texts[0]) != numerals(texts[1]):
                dropped.add("numerals differ", name)
            elif (key := (source.language, target.language, texts[0])) in seen:
                dropped.add("source that occurs before", name)
            else:
                seen.add(key)
                yield _row(source, target, texts, task, settings.template)


def _row(source: LanguageText, target: LanguageText, texts: Sequence[str], task: str, template: str) -> dict[str, Any]:
    asked = template
    names = [language_names.name(side.language) for side in (source, target)]
    values = dict(zip(FIELDS, (*names, texts[0]), strict=True))
    for name in FIELDS:  # the text last: braces in it are text
        asked = asked.replace(f"{{{name}}}", values[name])
    return {
        "id": f"{task}-{source.language}-{target.language}-{source.key}",
        "subset": f"{source.language}-{target.language}",
        "task": task,
        "source_lang": source.language,
        "target_lang": target.language,
        "source_text": texts[0],
        "target_text": texts[1],
        "prompt": user(asked),
        "completion": assistant(texts[1]),
    }


def _plain(text: Text | None) -> str:
    """The words of a text column: of a conversation, its last turn."""
    if text is None:
        return ""
    return (text if isinstance(text, str) else text[-1]["content"]).strip()


def numerals(text: str) -> list[str]:
    """The numbers written in digits of any script, sorted; separators are left out, since languages differ in them."""
    return sorted(re.sub(r"\D", "", found) for found in re.findall(r"\d+(?:[.,\u066b\u066c]\d+)*", western(text)))
