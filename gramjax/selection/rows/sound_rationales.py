"""Keep the rationales that follow the rules, as many for A as for B (GRAM-R2, section 2.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import tokenizer
from gramjax.data.rationale_rules import MORE, Rules, at_most, filtered
from gramjax.data.rows import Tally

ROW_TYPES = ("rationale",)


@dataclasses.dataclass(frozen=True)
class Config:
    """The rules, and whose tokens a rationale is counted in."""

    rules: Rules = Rules()
    tokenizer: str = "bytes"
    """As `config.tokenizer.path`, or a run folder: rules.max_tokens counts its tokens."""
    most: int = 0
    """Most rows that are kept, drawn by seed and id; 0: all."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows that pass, in order, and the reasons of the others."""
    if not config.tokenizer:
        raise UserError("config.selection.tokenizer is empty; give the tokenizer of the judge, or 'bytes'")
    of_run = Path(config.tokenizer) / "tokenizer"
    loaded = tokenizer.load(str(of_run) if of_run.is_dir() else config.tokenizer, "", "")
    found = filtered(rows, config.rules, lambda text: len(loaded.encode_text(text)), seed)
    kept = []
    for row, keep in zip(found.rows, at_most(found.rows, config.most, seed), strict=True):
        if keep:
            kept.append(row)
        else:
            found.dropped.add(MORE, row["id"])
    return kept, found.dropped
