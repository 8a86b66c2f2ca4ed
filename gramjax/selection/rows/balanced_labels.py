"""Keep about as many pairs labelled A as B: the last filter of self-training on labels alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.data.rationale_rules import MORE, NO_VERDICT, UNBALANCED, Rules, at_most, balanced
from gramjax.data.rows import Tally
from gramjax.data.sides import SIDES

ROW_TYPES = ("pair_unlabelled",)


@dataclasses.dataclass(frozen=True)
class Config:
    """The range of the share of A (the other rules are not used here)."""

    rules: Rules = Rules()
    most: int = 0
    """Most rows that are kept, drawn by seed and id; 0: all."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """Rows with a `label`, as preference rows (`chosen`, `rejected`), in order."""
    dropped = Tally()
    known, kept = [], []
    for row in rows:
        if row.get("label") in SIDES:
            known.append(row)
        else:
            dropped.add(NO_VERDICT, row["id"])
    for row, keep in zip(known, balanced(known, config.rules, seed), strict=True):
        if keep:
            kept.append(row)
        else:
            dropped.add(UNBALANCED, row["id"])
    out = []
    for row, keep in zip(kept, at_most(kept, config.most, seed), strict=True):
        if keep:
            out.append(preferred(row))
        else:
            dropped.add(MORE, row["id"])
    return out, dropped


def preferred(row: Mapping[str, Any]) -> dict[str, Any]:
    """A labelled pair as a preference row; the label stays beside it."""
    first, second = row["responses"]
    chosen, rejected = (first, second) if row["label"] == "A" else (second, first)
    out = {name: value for name, value in row.items() if name != "responses"}
    return {**out, "chosen": chosen, "rejected": rejected}
