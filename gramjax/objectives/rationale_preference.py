"""GRAM-R2 (arXiv 2509.02492): a judge that writes why, then which; a prover that is told which and writes why.

All are next-token cross-entropy over one assistant's turn. For a pair s with rationale z and label l:

    judge    L = -log p(z | s) - log p(l | s, z)      a think block with the rationale, an answer block with the label
    label    L = -log p(l | s)                        the answer block alone: the judge without rationales
    prover   L = -log p(z' | s, l)                    z' is the rationale rewritten as a proof
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core.errors import UserError
from gramjax.data import judge_prompts
from gramjax.data.rows import Drop
from gramjax.data.text import Example, example
from gramjax.generation.judging import letter_place
from gramjax.models import heads

HEADS = ("tokens",)
PARTS = ("judge", "label", "prover")
NOT_SWAPPED = "pairs trained on in one order only"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which part of the method is trained."""

    part: str = "judge"
    """`judge` (rationale and label), `label` (label alone) or `prover` (proof of a given label)."""
    instruction: str = ""
    """The judge's or prover's instruction; empty: the package's own wording."""
    label_weight: float = 1.0
    """Weight of the token that is the label; 1: that of any other token, as published."""
    swap: bool = False
    """Also train on each pair in the other order, where the names of the sides can be rewritten with certainty and the
    number of tokens stays."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    if config.part not in PARTS:
        raise UserError(f"config.objective.part={config.part!r} is not one of {', '.join(PARTS)}")
    if config.label_weight < 0:
        raise UserError(f"config.objective.label_weight={config.label_weight} must not be negative")
    return config


def row_types(config: Config) -> tuple[str, ...]:
    """Rationale rows; labels alone are also learned from preference rows."""
    return ("rationale", "preference") if config.part == "label" else ("rationale",)


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """The row as prompt and reply; with `swap`, two renderings of it where that is possible."""
    if "chosen" in row:
        row = judge_prompts.in_random_order(row)
    first = _rendered(row, renderer, config)
    if not config.swap:
        return first
    turned = _swapped(row, config)
    second = None if turned is None else _rendered(turned, renderer, config)
    if second is None or len(second.tokens[0]) != len(first.tokens[0]):  # renderings of a row have one length
        renderer.counts[NOT_SWAPPED] += 1
        return first
    return first, second


def _swapped(row: dict[str, Any], config: Config) -> dict[str, Any] | None:
    if config.part == "label":
        other = {"A": "B", "B": "A"}[row["label"]]
        return {**row, "responses": row["responses"][::-1], "label": other}
    try:
        return judge_prompts.swapped_row(row)
    except Drop:
        return None


def _rendered(row: dict[str, Any], renderer: Any, config: Config) -> Example:
    write = {
        "judge": judge_prompts.judge_row, "label": judge_prompts.label_row, "prover": judge_prompts.prover_row,
    }[config.part]  # fmt: skip
    default = judge_prompts.PROVER_PROMPT if config.part == "prover" else judge_prompts.JUDGE_PROMPT
    asked = write(row, config.instruction or default)
    ids, mask = renderer.completion(asked["prompt"], asked["completion"], **(row.get("chat_template_kwargs") or {}))
    if config.label_weight != 1 and config.part != "prover":
        begin = int(np.argmax(np.asarray(mask) > 0))
        place = letter_place(ids[begin:], lambda part: renderer.tokenizer.decode(part, skip_special=True))
        if place is None:
            raise UserError("config.objective.label_weight: with this tokenizer the label is not a token of its own")
        mask = [*mask]
        mask[begin + place] = config.label_weight
    return example((ids, mask))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Weighted mean over the tokens of the replies: ((sum, weight), metrics)."""
    hidden = model.forward(weights, batch).hidden
    total = heads.cross_entropy(weights, hidden, batch["labels"], batch["loss_mask"], model.logit_chunk, model.mesh)
    tokens = jnp.sum(batch["loss_mask"])
    return (total, tokens), {"nll": (total, tokens)}
