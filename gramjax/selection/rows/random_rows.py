"""Keep a number of rows drawn at random: the baseline of every selection."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data.rows import Tally, digest

ROW_TYPES = ("rationale", "preference", "pair_unlabelled", "prompt_completion", "prompt_only", "language_modeling")
NOT_DRAWN = "not drawn"


@dataclasses.dataclass(frozen=True)
class Config:
    """How many."""

    most: int = 0
    """Rows that are kept."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The drawn rows, in order; which they are is decided by seed and ids, and fewer are always among more."""
    if config.most < 1:
        raise UserError(f"config.selection.most is {config.most}; give the number of rows to keep")
    drawn = sorted(range(len(rows)), key=lambda i: (digest(seed, "random rows", rows[i]["id"]), i))
    dropped = Tally()
    inside = set(drawn[: config.most])
    for i, row in enumerate(rows):
        if i not in inside:
            dropped.add(NOT_DRAWN, str(row["id"]))
    return [dict(rows[i]) for i in sorted(inside)], dropped
