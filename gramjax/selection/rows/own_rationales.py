"""Give each voted pair the rationale of one of its own judgements: the ablation of GRAM-R2 without a prover."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import DataError
from gramjax.data import rationales
from gramjax.data.rows import Drop, Tally

ROW_TYPES = ("pair_unlabelled",)
NONE = "no judgement for the label can be used as it stands"


@dataclasses.dataclass(frozen=True)
class Config:
    """No settings."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows with `rationale`: the reply, among those that voted for the label, whose label was most probable.

    A reply about the swapped pair is rewritten (`rationales.swapped`), or passed over where it cannot be.
    """
    kept, dropped = [], Tally()
    for row in rows:
        if "judgements" not in row:
            raise DataError(f"row {row['id']!r} has no 'judgements'; gramjax annotate --config=annotate:judge_pairs")
        found = best(row)
        if found is None:
            dropped.add(NONE, row["id"])
        else:
            kept.append({**row, "rationale": found})
    return kept, dropped


def best(row: Mapping[str, Any]) -> str | None:
    """The rationale for a voted row, about its responses as they stand; None without one."""
    label = row.get("label")

    def sureness(draw: Mapping[str, Any]) -> float:
        p = 0.5 if draw["probability"] is None else draw["probability"]
        return p if label == "A" else 1 - p

    agreeing = [draw for draw in row["judgements"] if label is not None and draw["verdict"] == label]
    for draw in sorted(agreeing, key=sureness, reverse=True):
        try:
            plain = rationales.render_rationale(rationales.read_rationale(draw["reply"]))
            text = rationales.swapped(plain) if draw["swapped"] else plain
        except Drop:
            continue
        if text is not None:
            return text
    return None
