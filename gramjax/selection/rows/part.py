"""One of several equal parts of a file, for rounds that must not see the same rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data.rows import Tally, digest

ROW_TYPES = ("rationale", "preference", "pair_unlabelled", "prompt_completion", "prompt_only", "language_modeling")
OTHER = "in another part"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which part."""

    part: int = 0
    """From 0."""
    parts: int = 1
    """Into how many parts the rows are cut; sizes differ by one at most."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows of the part, in order; which row is in which is decided by seed and ids."""
    if not 0 <= config.part < config.parts:
        raise UserError(f"config.selection.part={config.part} must be from 0 to parts - 1 ({config.parts - 1})")
    drawn = sorted(range(len(rows)), key=lambda i: (digest(seed, "part", rows[i]["id"]), i))
    inside = set(drawn[config.part :: config.parts])
    dropped = Tally()
    for i, row in enumerate(rows):
        if i not in inside:
            dropped.add(OTHER, str(row["id"]))
    return [dict(rows[i]) for i in sorted(inside)], dropped
