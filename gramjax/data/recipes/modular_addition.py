"""Sums modulo a prime as a task with a checkable answer (experiment E-1 of the reinforcement-learning study).

A prompt is `17+9=`, its answer `3` (modulo 23), read and written character by character. All 529 pairs of terms exist;
a fixed tenth of them is held out.

Splits: `train` and `valid` (prompts with the column `answer`; `answer_kind` says that a right reply is nothing else),
`worked` (the prompts of `train` with their answers as completions, for a supervised warm-up), `solved` (as `train`,
with the answer in the column `solutions`, too: offline samples for reinforcement learning).

Meant for the byte tokenizer (`config.tokenizer.path="bytes"`); prompt, answer and the end token fit into 9 tokens.
"""

import hashlib
import random
from typing import Any

from gramjax.core.errors import UserError

PRIME = 23
SPLITS = {"train": 0, "valid": 0, "worked": 0, "solved": 0}
"""Splits and their default sizes; 0: all there is. A smaller size is a seeded choice."""

VERSION = hashlib.sha256(f"2{PRIME}".encode()).hexdigest()
"""Names the generator in the fingerprint of a run's data."""


def held_out(left: int, right: int) -> bool:
    """One pair in ten belongs to `valid`, the same ones for ever."""
    return hashlib.sha256(f"{left}+{right}".encode()).digest()[0] % 10 == 0


def rows(split: str = "train", size: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Generated rows of a split, in a seeded order. Raises UserError for an unknown split or more rows than exist."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r} (there are: {', '.join(SPLITS)})")
    pairs = [(a, b) for a in range(PRIME) for b in range(PRIME) if held_out(a, b) == (split == "valid")]
    if size > len(pairs):
        raise UserError(f"recipe modular_addition: {split} has {len(pairs)} rows, {size} asked")
    random.Random(f"{seed}/{split}").shuffle(pairs)
    return [_row(split, left, right) for left, right in pairs[: size or len(pairs)]]


def _row(split: str, left: int, right: int) -> dict[str, Any]:
    row, answer = {"id": f"{left}+{right}", "prompt": f"{left}+{right}="}, str((left + right) % PRIME)
    if split == "worked":
        return {**row, "completion": answer}
    return {**row, "answer": answer, "answer_kind": "exact"} | ({"solutions": [answer]} if split == "solved" else {})
