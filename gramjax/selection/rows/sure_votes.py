"""Keep the pairs whose votes are sure: majority, vote share, probability of the label (GRAM-R2, section 2.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import DataError
from gramjax.data.rationale_rules import Rules, doubtful
from gramjax.data.rows import Tally

ROW_TYPES = ("pair_unlabelled",)


@dataclasses.dataclass(frozen=True)
class Config:
    """The thresholds (the rules on rationales are not used here)."""

    rules: Rules = Rules()


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows that pass, in order, and the reasons of the others. Rows come from the annotator `judge_pairs`.

    Raises DataError for rows that were not voted on.
    """
    kept, dropped = [], Tally()
    for row in rows:
        if "vote_share" not in row:
            raise DataError(f"row {row['id']!r} has no 'vote_share'; gramjax annotate --config=annotate:judge_pairs")
        votes = row["vote_share"], row.get("label_probability"), bool(row.get("tied"))
        reason = doubtful(*votes, row.get("label"), config.rules)
        if reason:
            dropped.add(reason, row["id"])
        else:
            kept.append(dict(row))
    return kept, dropped
