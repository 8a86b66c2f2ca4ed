"""Keep rows by a margin: pairs whose difference, as a reward model or an annotator sees it, is in a range.

The column comes with the data or from `gramjax annotate --config=annotate:predict_margins` (method `reward_difference`:
the margin filter of Bradley-Terry models, a baseline of LRHP's selection).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Tally

ROW_TYPES = ("preference", "pair_unlabelled")
BELOW, ABOVE, MORE = "margin below the least", "margin above the largest", "more than the most that are kept"


@dataclasses.dataclass(frozen=True)
class Config:
    """The column and its range."""

    column: str = "margin"
    """Whose numbers count."""
    least: float = -1e30
    """Smallest margin that is kept."""
    largest: float = 1e30
    """Largest margin that is kept."""
    most: int = 0
    """Rows that are kept of those in the range; 0: all."""
    prefer: str = "large"
    """Which of them, if there are more: `large` or `small` margins."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows that pass, in order. Raises DataError for a row without the column."""
    if config.prefer not in ("large", "small"):
        raise UserError(f"config.selection.prefer is {config.prefer!r}; choose large or small")
    if config.most < 0 or config.least > config.largest:
        raise UserError("config.selection.most must be at least 0, and config.selection.least not above largest")
    dropped, inside = Tally(), []
    for i, row in enumerate(rows):
        value = row.get(config.column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(
                f"row {row['id']!r} has no number in the column {config.column!r}: gramjax annotate "
                "--config=annotate:predict_margins writes one"
            )
        if value < config.least or value > config.largest:
            dropped.add(BELOW if value < config.least else ABOVE, str(row["id"]))
        else:
            inside.append((float(value) * (-1 if config.prefer == "large" else 1), i))
    inside.sort()
    kept = sorted(i for _, i in inside[: config.most or None])
    for _, i in sorted(inside[len(kept) :], key=lambda entry: entry[1]):
        dropped.add(MORE, str(rows[i]["id"]))
    return [dict(rows[i]) for i in kept], dropped
