"""Reference answers: what a judge of pairs compares an answer with when it is to give one number to it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError, UserError
from gramjax.data import records, rows
from gramjax.data.rows import Drop, Text

ANSWERS = ("reference", "response", "completion", "text")
"""Columns of a file of references that may hold the answer, the first that is filled."""


@dataclasses.dataclass(frozen=True)
class References:
    """Answers by the id of a row, by prompt, or in a column of the row itself."""

    column: str = ""
    by_id: Mapping[str, Text] = dataclasses.field(default_factory=dict)
    by_prompt: Mapping[str, Text] = dataclasses.field(default_factory=dict)

    def of_row(self, row: Mapping[str, Any]) -> Text:
        """The reference of a row. Raises Drop with the reason where there is none."""
        if self.column:
            try:
                return rows.text_field(row, self.column, f"row {row.get('id')!r}")
            except DataError:
                raise Drop(f"no reference in the column '{self.column}'") from None
        found = self.by_id.get(str(row.get("id")))
        return self.of_prompt(row.get("prompt") or "") if found is None else found

    def of_prompt(self, prompt: Text) -> Text:
        """The reference for a prompt. Raises Drop where there is none."""
        found = self.by_prompt.get(key_of(prompt))
        if found is None:
            raise Drop("no reference answer")
        return found


def key_of(prompt: Text) -> str:
    """A prompt as it is looked up: a text and a lone message of a user are the same question."""
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0]["content"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def open_references(name: str, setting: str) -> References:
    """The references that a setting names: a file, or (what is no file) a column.

    Raises UserError for a name that looks like a file and is none, DataError for a file that cannot be used.
    """
    if not Path(name).exists():
        if "/" in name or Path(name).suffix in (".jsonl", ".json", ".gz", ".parquet"):
            raise UserError(f"config.{setting}: no file {name!r}")
        return References(column=name)
    by_id: dict[str, Text] = {}
    by_prompt: dict[str, Text] = {}
    for where, row in records.read(name):
        if isinstance(row, records.BadRecord):
            raise DataError(f"{where}: {row.detail}")
        column = next((column for column in ANSWERS if row.get(column) is not None), "")
        if not column or (row.get("id") is None and row.get("prompt") is None):
            raise DataError(f"{where}: has {rows.columns(row)}; a reference needs 'prompt' or 'id', and the answer as "
                            f"{', '.join(map(repr, ANSWERS))}")  # fmt: skip
        try:
            answer = rows.text_field(row, column, where)
            prompt = rows.text_field(row, "prompt", where) if row.get("prompt") is not None else None
        except Drop as drop:
            raise DataError(f"{where}: {drop}") from None
        for known, key in ((by_id, row.get("id")), (by_prompt, None if prompt is None else key_of(prompt))):
            if key is None:
                continue
            if known.setdefault(str(key), answer) != answer:
                raise DataError(f"{where}: a second, other reference for {str(key)[:60]!r}")
    if not by_id and not by_prompt:
        raise DataError(f"{name}: 0 records")
    return References("", by_id, by_prompt)


def same_form(answer: Text, reference: Text) -> Text:
    """The reference as text where the answer is text, as messages where it is messages.

    Raises Drop for a conversation that stands against a text.
    """
    if isinstance(answer, str) == isinstance(reference, str):
        return reference
    if isinstance(reference, str):
        return [{"role": "assistant", "content": reference}]
    if len(reference) == 1:
        return reference[0]["content"]
    raise Drop("the reference is a conversation, the answer a text")
