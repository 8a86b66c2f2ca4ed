"""A punishment for completions that repeat themselves: `most` times the share of n-grams that stood there before.

With `only_wrong` and words of 40 it is the one of the offline-injection run of the study (arXiv 2506.04913); with n = 3
the usual one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import math_answers
from gramjax.generation.reward_functions import text_of


@dataclasses.dataclass(frozen=True)
class Config:
    """What counts as a repetition."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    n: int = 3
    """Words of an n-gram (lower case, split at white space)."""
    most: float = -1.0
    """Reward of a text that only repeats, at most 0."""
    only_wrong: bool = False
    """Punish wrong answers only; those that cannot be judged count as wrong."""
    column: str = ""
    """Column with the right answer, as of the reward `verifiable`."""


def open(config: Config, resources: Any) -> None:
    """Check the settings."""
    if config.n < 1 or config.most > 0:
        raise UserError(
            f"config.rewards.repetition: n={config.n} must be at least 1 and most={config.most:g} at most 0"
        )


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Any = None, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """A number of at most 0 for each completion."""
    texts = [text_of(completion) for completion in completions]
    spared = [False] * len(texts)
    if config.only_wrong:
        spared = [bool(verdict.correct) for verdict in math_answers.grade_all(texts, columns, config.column)]
    return [0.0 if fine else config.most * repeated(text, config.n) for text, fine in zip(texts, spared, strict=True)]


def repeated(text: str, n: int) -> float:
    """Share of the n-grams of a text that stood in it before; 0 for a text of fewer words."""
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
