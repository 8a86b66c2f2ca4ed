"""Problems with one right answer, as GSM8K, MATH, MGSM, MSVAMP, AIME and AQuA publish them: prompts with that answer.

A row gets `prompt`, `answer` (the right one alone, as text), `answer_kind` (how `data.math_answers` finds an answer in
a reply) and, where the source has one, `solution` (how it is reached).
"""

import re
from collections.abc import Mapping
from typing import Any

from gramjax.core.errors import DataError
from gramjax.data.math_answers import boxed, last_number
from gramjax.data.rows import Drop

Record = Mapping[str, Any]

MARK = "####"
"""GSM8K's mark before the final answer."""
SUBSETS = ("subset", "type", "subject")
"""Columns that say which part of a set a problem belongs to, the first that is there."""
LETTERS = "ABCDEFGHIJ"
NO_ANSWER = "problem without an answer"


def _text(record: Record, *names: str) -> bool:
    return all(isinstance(record.get(name), str) for name in names)


def _number(value: Any) -> str | None:
    """A number, or text that is nothing but one, without thousands separators; else None."""
    text = value.strip() if isinstance(value, str) else str(value) if type(value) in (int, float) else ""
    found = last_number(text)
    plain = re.sub(r"[\s$]", "", text)
    return plain.replace(",", "") if found is not None and plain == re.sub(r"\s", "", found) else None


def is_worked(record: Record) -> bool:
    """GSM8K: a worked answer whose last line is the mark and a number."""
    return _text(record, "question", "answer") and MARK in record["answer"]


def is_numeric(record: Record) -> bool:
    """MGSM, MSVAMP: a question and a number."""
    return _text(record, "question") and _number(record.get("answer")) is not None


def is_problem(record: Record) -> bool:
    """MATH, AIME: a problem with its answer, or with a solution that boxes it."""
    return _text(record, "problem") and ("answer" in record or _text(record, "solution"))


def is_choice(record: Record) -> bool:
    """AQuA: options that begin with a letter, and the letter of the right one."""
    options = record.get("options")
    return _text(record, "question", "correct") and isinstance(options, list) and len(options) > 1


def worked(record: Record, where: str) -> dict[str, Any]:
    """A GSM8K row."""
    solution, _, final = record["answer"].rpartition(MARK)
    answer = final.strip().replace(",", "")
    if not answer:
        raise DataError(f"{where}: nothing follows {MARK} in 'answer'")
    return _row(record, record["question"], answer, "number", ("question",)) | {"solution": record["answer"].strip()}


def numeric(record: Record, where: str) -> dict[str, Any]:
    """A question with a number."""
    answer = _number(record["answer"])
    assert answer is not None
    return _row(record, record["question"], answer, "number", ("question",))


def problem(record: Record, where: str) -> dict[str, Any]:
    """A problem whose answer may be any mathematical expression."""
    answer = record.get("answer")
    if not isinstance(answer, str | int | float | None):
        raise DataError(f"{where}: 'answer' is {answer!r}; text or a number was expected")
    if answer is None and record.get("solution") is None:
        raise Drop(NO_ANSWER)
    if answer is None:
        answer = boxed(record["solution"])
        if answer is None:
            raise DataError(f"{where}: 'solution' has no \\boxed{{}} that holds the answer, and there is no 'answer'")
    if not str(answer).strip():
        raise Drop(NO_ANSWER)
    return _row(record, record["problem"], str(answer).strip(), "boxed", ("problem",))


def choice(record: Record, where: str) -> dict[str, Any]:
    """A question with lettered options below it."""
    options, letter = record["options"], record["correct"].strip().upper()
    shown = [_option(option, LETTERS[i], where) for i, option in enumerate(options[: len(LETTERS)])]
    if letter not in list(LETTERS[: len(shown)]):
        raise DataError(f"{where}: 'correct' is {record['correct']!r}; a letter of the {len(options)} options, A to J, "
                        "was expected")  # fmt: skip
    text = "\n".join([record["question"].strip(), *shown])
    row = _row(record, text, letter, "choice", ("question", "correct", "rationale"))
    return row | ({"solution": record["rationale"]} if record.get("rationale") else {})


def _option(option: Any, letter: str, where: str) -> str:
    if not isinstance(option, str | int | float):
        raise DataError(f"{where}: option {letter} is {option!r}; text was expected")
    text = re.sub(rf"^\(?{letter}\s*[).:]\s*", "", str(option).strip())
    return f"({letter}) {text}"


def _row(record: Record, prompt: str, answer: str, kind: str, gone: tuple[str, ...]) -> dict[str, Any]:
    row = {name: value for name, value in record.items() if name not in gone}
    part = next((record[name] for name in SUBSETS if _text(record, name)), None)
    if part is not None:
        row["subset"] = part
    return {**row, "prompt": prompt.strip(), "answer": answer, "answer_kind": kind}


SHAPES = (
    ("gsm8k", is_worked, worked),
    ("choice", is_choice, choice),
    ("math", is_problem, problem),
    ("question and number", is_numeric, numeric),
)
"""(name, test, reader)."""
