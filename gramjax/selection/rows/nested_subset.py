"""The first rows of a seeded order: of one seed, a smaller subset lies inside every larger one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data.rows import Tally, digest

ROW_TYPES = ("rationale", "preference", "pair_unlabelled", "prompt_completion", "prompt_only", "language_modeling")
OTHER = "not in the subset"


@dataclasses.dataclass(frozen=True)
class Config:
    """How many rows."""

    size: int = 1000
    """Rows that are kept; more than there are is an error."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """`size` rows in the order of the file; which ones is decided by seed and ids alone."""
    if not 1 <= config.size <= len(rows):
        raise UserError(f"config.selection.size={config.size} must be from 1 to the number of rows, {len(rows)}")
    drawn = sorted(range(len(rows)), key=lambda i: (digest(seed, "subset", rows[i]["id"]), i))
    inside = set(drawn[: config.size])
    dropped = Tally()
    for i, row in enumerate(rows):
        if i not in inside:
            dropped.add(OTHER, str(row["id"]))
    return [dict(rows[i]) for i in sorted(inside)], dropped
