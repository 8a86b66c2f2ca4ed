"""Do training rows hold the questions of an evaluation? Word n-grams of prompts, after normalisation.

A training prompt is contaminated if it shares a run of n words with an evaluation prompt; prompts of fewer words are
compared whole, with each other. Words are what Unicode calls words, without case and punctuation; Chinese and Japanese
characters are a word each, as nothing stands between them. Answers do not count, nor do system turns, which many files
have in common. The n-grams of the evaluation are kept as texts in one dict; training rows are looked at one by one.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NGRAM = 13
SHOWN = 5
"""Examples kept, and commonest shared n-grams."""

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e00-\u0eff\u1000-\u109f"
"""Marks that belong to the letter before (accents, points, vowel signs), with the letters of their scripts."""
_WORDS = re.compile(f"[{_ALONE}]|(?:[^\\W_{_ALONE}]|[{_MARKS}])+")


def words(text: str) -> list[str]:
    """The words of a text in one spelling: compatibility forms folded (NFKC), no case, no punctuation."""
    return _WORDS.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def ngrams(found: Sequence[str], n: int) -> list[str]:
    """The runs of n words of a prompt; of a shorter one its whole text, marked as such; nothing without words."""
    if not found:
        return []
    if len(found) < n:
        return [f"= {' '.join(found)}"]
    return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


def prompt_text(row: Mapping[str, Any]) -> str:
    """What was asked: the prompt of a row, or its turns up to the last answer; system turns left out."""
    value = row.get("prompt")
    if value is None and isinstance(row.get("messages"), list):
        turns = row["messages"]
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
        value = turns[:last]
    if value is None:
        value = row.get("text") or ""
    if isinstance(value, str):
        return value
    asked = [turn for turn in value if turn.get("role") not in ("system", "developer")]
    return "\n".join(str(turn.get("content") or "") for turn in asked)


@dataclasses.dataclass
class Found:
    """What was found, row by row."""

    n: int
    contaminated: dict[str, str] = dataclasses.field(default_factory=dict)
    """Training rows (ids) and the evaluation row each of them meets first."""
    hits: dict[str, int] = dataclasses.field(default_factory=dict)
    """Evaluation rows (ids) and the number of training rows that share something with them."""
    shared: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Training rows by shared n-gram."""
    examples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    train: dict[str, int] = dataclasses.field(default_factory=dict)
    eval: dict[str, int] = dataclasses.field(default_factory=dict)
    """Counts: rows, rows without a word in the prompt, prompts of fewer than n words (compared whole)."""

    def report(self) -> dict[str, Any]:
        """The counts, shares, first examples and commonest n-grams, as JSON has them."""
        train, evaluation = len(self.contaminated), len(self.hits)
        return {
            "n": self.n,
            "train": {**self.train, "contaminated": train, "share": train / max(self.train["rows"], 1)},
            "eval": {**self.eval, "contaminated": evaluation, "share": evaluation / max(self.eval["rows"], 1)},
            "examples": self.examples,
            "most_shared": [{"text": text, "train_rows": count} for text, count in self.shared.most_common(SHOWN)],
        }


def compare(train: Iterable[Mapping[str, Any]], evaluation: Iterable[Mapping[str, Any]], n: int = NGRAM) -> Found:
    """Look for the prompts of evaluation rows among training rows. Raises ValueError unless n is positive."""
    if n < 1:
        raise ValueError(f"n is {n}; it must be positive")
    out = Found(n, train=_counts(), eval=_counts())
    owners: dict[str, list[str]] = {}
    for identity, grams in _prompts(evaluation, n, out.eval):
        for gram in dict.fromkeys(grams):
            owners.setdefault(gram, []).append(identity)
    for identity, grams in _prompts(train, n, out.train):
        common = [gram for gram in dict.fromkeys(grams) if gram in owners]
        if not common:
            continue
        met = list(dict.fromkeys(owner for gram in common for owner in owners[gram]))
        out.contaminated[identity] = met[0]
        out.shared.update(common)
        for owner in met:
            out.hits[owner] = out.hits.get(owner, 0) + 1
        if len(out.examples) < SHOWN:
            out.examples.append({"train": identity, "eval": met[0], "text": common[0], "shared": len(common)})
    return out


def _counts() -> dict[str, int]:
    return {"rows": 0, "without_prompt": 0, "short": 0}


def _prompts(rows: Iterable[Mapping[str, Any]], n: int, counts: dict[str, int]) -> Iterator[tuple[str, list[str]]]:
    for row in rows:
        found = words(prompt_text(row))
        counts["rows"] += 1
        counts["without_prompt"] += not found
        counts["short"] += 0 < len(found) < n
        yield str(row["id"]), ngrams(found, n)
