"""1 for a completion of a given form, else 0: thinking between tags before the answer, or a pattern of your own."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.generation.reward_functions import text_of

THINKING = r"\s*<think>(?:(?!</?think>).)*</think>\s*(?=\S)(?:(?!</?think>).)+"
"""One block of thinking, closed, with something after it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The form of a completion."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    pattern: str = ""
    """Regular expression that the whole completion must match (`.` also stands for line breaks); empty: one block
    `<think>...</think>` and then an answer."""


def open(config: Config, resources: Any) -> re.Pattern[str]:
    """The pattern. Raises UserError for one that is no regular expression."""
    try:
        return re.compile(config.pattern or THINKING, re.DOTALL)
    except re.error as error:
        raise UserError(f"config.rewards.format.pattern: {error}") from None


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: re.Pattern[str], **columns: Any,
) -> list[float | None]:  # fmt: skip
    """1 or 0 for each completion."""
    return [float(opened.fullmatch(text_of(completion)) is not None) for completion in completions]
