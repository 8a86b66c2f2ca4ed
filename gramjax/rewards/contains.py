"""1 for a completion that contains given words and ends in time, else 0: a verifiable reward without a right answer."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.generation.reward_functions import text_of

JUDGES = True
"""It says what is right."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a completion has to have."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    words: tuple[str, ...] = ()
    """Words that must occur, each as a whole word (upper and lower case are the same)."""
    column: str = ""
    """Column of the rows with further words (a text or a list of texts); empty: none."""
    max_tokens: int = 0
    """Most tokens of the completion, its end token included; 0: any number. Below `config.sampling.max_tokens`, so that
    a completion of this length has ended by itself."""


def open(config: Config, resources: Any) -> None:
    """Check the settings."""
    if not config.words and not config.column:
        raise UserError("config.rewards.contains: give words or a column")


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Any = None, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """1 or 0 for each completion."""
    if config.column and config.column not in columns:
        raise ValueError(f"the rows have no column {config.column!r} (config.rewards.contains.column)")
    asked = columns[config.column] if config.column else [()] * len(completions)
    out: list[float | None] = []
    for completion, ids, more in zip(completions, completion_ids, asked, strict=True):
        text = text_of(completion)
        words = [*config.words, *([more] if isinstance(more, str) else more)]
        in_time = not config.max_tokens or len(ids) <= config.max_tokens
        out.append(float(in_time and all(has(text, word) for word in words)))
    return out


def has(text: str, word: str) -> bool:
    """Whether a text contains a word as a whole."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
