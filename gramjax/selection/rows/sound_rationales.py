"""Keep the rationales that follow the rules, as many for A as for B (GRAM-R2, section 2.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import tokenizer
from gramjax.data.rationale_rules import Rules, filtered
from gramjax.data.rows import Tally, digest

ROW_TYPES = ("rationale",)
MORE = "more than asked for"


@dataclasses.dataclass(frozen=True)
class Config:
    """The rules, and whose tokens a rationale is counted in."""

    rules: Rules = Rules()
    tokenizer: str = "bytes"
    """As `config.tokenizer.path`: rules.max_tokens counts its tokens."""
    most: int = 0
    """Most rows that are kept, drawn by seed and id; 0: all."""


def select(
    rows: Sequence[Mapping[str, Any]], features: Any, config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows that pass, in order, and the reasons of the others."""
    if not config.tokenizer:
        raise UserError("config.selection.tokenizer is empty; give the tokenizer of the judge, or 'bytes'")
    loaded = tokenizer.load(config.tokenizer, "", "")
    found = filtered(rows, config.rules, lambda text: len(loaded.encode_text(text)), seed)
    if not 0 < config.most < len(found.rows):
        return found.rows, found.dropped
    drawn = sorted(found.rows, key=lambda row: digest(seed, "most", row["id"]))
    for row in drawn[config.most :]:
        found.dropped.add(MORE, row["id"])
    chosen = {row["id"] for row in drawn[: config.most]}
    return [row for row in found.rows if row["id"] in chosen], found.dropped
