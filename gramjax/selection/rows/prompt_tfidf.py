"""Keep the rows whose prompts share words with those of a small target set, weighted by TF-IDF: a baseline of LRHP's
selection that knows nothing of preferences.

Words are lower-case runs of two word characters or more; a word in d of n prompts weighs ln((1 + n) / (1 + d)) + 1
times its count, and prompts are compared by cosine (as scikit-learn's `TfidfVectorizer` does with its defaults).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import representations
from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.data import readers
from gramjax.data.rows import Tally

ROW_TYPES = ("preference", "pair_unlabelled")
LESS = "prompt less similar to the target set"
_WORD = re.compile(r"\b\w\w+\b")


@dataclasses.dataclass(frozen=True)
class Config:
    """The target set and the number of rows."""

    target: str = ""
    """Rows of the target set: a file or a folder."""
    most: int = 0
    """Rows that are kept."""
    neighbours: int = 8
    """A row scores the mean over so many of its most similar prompts of the target set."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The `most` best rows, in order, with their `similarity`."""
    if not config.target or config.most < 1 or config.neighbours < 1:
        raise UserError("give --config.selection.target=ROWS and --config.selection.most=COUNT (neighbours at least 1)")
    target = readers.read(config.target, DataSection(), ROW_TYPES).rows
    values = similarities([words(row) for row in rows], [words(row) for row in target], config.neighbours)
    kept = set(map(int, representations.best(values, config.most)))
    dropped = Tally()
    for i, row in enumerate(rows):
        if i not in kept:
            dropped.add(LESS, str(row["id"]))
    return [{**rows[i], "similarity": float(values[i])} for i in sorted(kept)], dropped


def words(row: Mapping[str, Any]) -> list[str]:
    """The words of a row's prompt."""
    prompt = row["prompt"]
    text = prompt if isinstance(prompt, str) else "\n".join(str(turn.get("content") or "") for turn in prompt)
    return _WORD.findall(text.lower())


def similarities(pool: Sequence[Sequence[str]], target: Sequence[Sequence[str]], neighbours: int) -> np.ndarray:
    """The mean cosine of each text of the pool to its nearest texts of the target set. Words that are not in the target
    set count in the length of a vector only, so that the matrix is as wide as the target's vocabulary."""
    documents = [collections.Counter(text) for text in (*pool, *target)]
    containing = collections.Counter(word for counts in documents for word in counts)
    weight = {word: math.log((1 + len(documents)) / (1 + d)) + 1 for word, d in containing.items()}
    known = {word: place for place, word in enumerate(sorted({word for text in target for word in text}))}

    def rows_of(counts: Sequence[Mapping[str, int]]) -> np.ndarray:
        out = np.zeros((len(counts), len(known)), np.float32)
        for i, found in enumerate(counts):
            length = math.sqrt(sum((count * weight[word]) ** 2 for word, count in found.items())) or 1.0
            for word, count in found.items():
                if word in known:
                    out[i, known[word]] = count * weight[word] / length
        return out

    members = rows_of(documents[len(pool) :])
    out = np.zeros(len(pool), np.float32)
    for part in representations.parts(len(pool), max(len(known), len(members))):
        out[part] = representations.top_mean(rows_of(documents[: len(pool)][part]) @ members.T, neighbours)
    return out
