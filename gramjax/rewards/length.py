"""What the length of a completion is worth, in tokens: near a target, or short (for what other rewards find right).

    target   1 - |length - target| / target, at least 0
    cosine   from `longest` to `shortest` along half a cosine as the length falls from `limit` to 0
    overlong 0 up to limit - cache, then falling to -1 at the limit, -1 beyond it (DAPO's soft punishment)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.core.errors import UserError

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
    limit: int = 512
    """Tokens, of `cosine` and `overlong`: the longest completion allowed (config.sampling.max_tokens)."""
    cache: int = 128
    """Tokens before the limit over which the punishment of `overlong` grows."""
    shortest: float = 1.0
    """Reward of an empty completion, of `cosine`."""
    longest: float = 0.0
    """Reward at the limit, of `cosine`."""


def open(config: Config, resources: Any) -> None:
    """Check the settings."""
    one_of(config, "rewards.length", kind=KINDS)
    if config.target < 1 or config.limit < 1 or not 0 < config.cache <= config.limit:
        raise UserError(
            f"config.rewards.length: target={config.target} and limit={config.limit} must be at least 1, cache="
            f"{config.cache} from 1 to the limit"
        )


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Any = None, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """A number for each completion."""
    return [worth(len(ids), config) for ids in completion_ids]


def worth(length: int, config: Config) -> float:
    """The reward of a completion of `length` tokens."""
    if config.kind == "target":
        return max(1 - abs(length - config.target) / config.target, 0.0)
    if config.kind == "cosine":
        share = min(length / config.limit, 1.0)
        return config.longest + (config.shortest - config.longest) * (1 + math.cos(math.pi * share)) / 2
    return max(min((config.limit - config.cache - length) / config.cache, 0.0), -1.0)
