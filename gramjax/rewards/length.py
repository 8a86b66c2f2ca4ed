"""What the length of a completion is worth, in tokens: near a target, or short (for what other rewards find right).

    target   1 - |length - target| / target, at least 0
    cosine   from `longest` to `shortest` along half a cosine as the length falls from the limit to 0
    overlong 0 up to limit - cache, then falling to -1 at the limit, -1 beyond it (DAPO's soft punishment)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.core.errors import UserError
from gramjax.data import math_answers
from gramjax.generation.reward_functions import text_of

KINDS = ("target", "cosine", "overlong")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which lengths are good."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    kind: str = "overlong"
    """`target`, `cosine` or `overlong`."""
    target: int = 256
    """Tokens, of `target`."""
    limit: int = 0
    """Tokens, of `cosine` and `overlong`: the longest completion allowed; 0: config.sampling.max_tokens."""
    cache: int = 0
    """Tokens before the limit over which the punishment of `overlong` grows; 0: a quarter of the limit."""
    shortest: float = 1.0
    """Reward of an empty completion, of `cosine`."""
    longest: float = 0.0
    """Reward at the limit, of `cosine`."""
    wrong: tuple[float, ...] = ()
    """Of `cosine`: (shortest, longest) of wrong answers, such as (-1.0, -0.5), where a wrong one should think longer;
    empty: as for right ones."""
    column: str = ""
    """With `wrong`: column with the right answer, as of the reward `verifiable`."""


def open(config: Config, resources: Any) -> Config:
    """The settings with those that follow from others. Raises UserError for some that do not fit."""
    one_of(config, "rewards.length", kind=KINDS)
    limit = config.limit or resources.max_tokens
    config = dataclasses.replace(config, limit=limit, cache=config.cache or max(limit // 4, 1))
    if config.target < 1 or config.limit < 1 or not 0 < config.cache <= config.limit:
        raise UserError(
            f"config.rewards.length: target={config.target} and limit={config.limit} must be at least 1, cache="
            f"{config.cache} from 1 to the limit"
        )
    if len(config.wrong) not in (0, 2) or (config.wrong and config.kind != "cosine"):
        raise UserError(f"config.rewards.length.wrong={config.wrong}: two numbers, with kind=cosine")
    return config


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Config, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """A number for each completion; with `wrong` None where rightness cannot be judged."""
    if not opened.wrong:
        return [worth(len(ids), opened) for ids in completion_ids]
    other = dataclasses.replace(opened, shortest=opened.wrong[0], longest=opened.wrong[1])
    verdicts = math_answers.grade_all([text_of(completion) for completion in completions], columns, opened.column)
    return [
        None if verdict.correct is None else worth(len(ids), opened if verdict.correct else other)
        for verdict, ids in zip(verdicts, completion_ids, strict=True)
    ]


def worth(length: int, config: Config) -> float:
    """The reward of a completion of `length` tokens."""
    if config.kind == "target":
        return max(1 - abs(length - config.target) / config.target, 0.0)
    if config.kind == "cosine":
        share = min(length / config.limit, 1.0)
        return config.longest + (config.shortest - config.longest) * (1 + math.cos(math.pi * share)) / 2
    return max(min((config.limit - config.cache - length) / config.cache, 0.0), -1.0)
