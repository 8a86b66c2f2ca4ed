"""Beginnings of children's stories, for models that tell such stories: prompts for reinforcement learning.

`Once upon a time, there was a little dog named Max.` - an opening, a quality, somebody and a name. The names of
`valid` do not occur in `train`.

Splits: `train`, `valid`: prompts (`id`, `prompt`). Nothing is said about what should follow: a reward says that.
"""

import hashlib
import random
from typing import Any

from gramjax.core.errors import UserError

OPENINGS = ("Once upon a time, there was a {} named {}.", "One day, a {} named {} went for a walk.",
            "There was a {} named {}.", "In a small house lived a {} named {}.")  # fmt: skip
QUALITIES = ("little", "big", "happy", "brave", "kind", "shy", "clever", "sleepy")
WHO = ("boy", "girl", "dog", "cat", "bird", "bear", "rabbit", "mouse", "frog", "duck")
NAMES = {
    "train": ("Tom", "Lily", "Max", "Sue", "Ben", "Mia", "Sam", "Anna", "Tim", "Lucy", "Jack", "Sara"),
    "valid": ("Bob", "Amy", "Leo", "Jane", "Spot", "Molly"),
}
SPLITS = {"train": 512, "valid": 128}
"""Splits and their default sizes."""

VERSION = hashlib.sha256(f"1{OPENINGS}{QUALITIES}{WHO}{NAMES}".encode()).hexdigest()
"""Names the generator in the fingerprint of a run's data."""


def rows(split: str = "train", size: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Generated prompts of a split, all different, in a seeded order. Raises UserError for an unknown split or more
    rows than exist."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r} (there are: {', '.join(SPLITS)})")
    all_of_them = [
        opening.format(f"{quality} {who}", name)
        for opening in OPENINGS for quality in QUALITIES for who in WHO for name in NAMES[split]
    ]  # fmt: skip
    size = size or SPLITS[split]
    if size > len(all_of_them):
        raise UserError(f"recipe story_beginnings: {split} has {len(all_of_them)} rows, {size} asked")
    chosen = random.Random(f"{seed}/{split}").sample(all_of_them, size)
    return [{"id": f"{split}-{i}", "prompt": prompt} for i, prompt in enumerate(chosen)]
