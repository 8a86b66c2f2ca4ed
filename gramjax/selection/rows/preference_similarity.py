"""Keep the rows whose vectors lie near those of a small target set (LRHP, preference data selection).

Vectors come from `gramjax annotate --config=embed_preferences`, for the pool and for the target set; which baseline
this is depends on them alone: representations of a trained or an untrained encoder, hidden-state differences, prompts.
The mean of the pool is subtracted; a row scores the mean cosine to its nearest `neighbours` in the target set.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import representations
from gramjax.core.errors import UserError
from gramjax.data.rows import Tally
from gramjax.data.vectors import Vectors

ROW_TYPES = ("preference", "pair_unlabelled")
FEATURES = ("vectors", "target_vectors")
LESS, REDUNDANT = "less similar to the target set", "similar to the target set, but to chosen rows too"


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose vectors, how they are compared, and how many rows are kept."""

    vectors: str = ""
    """Folder with the vectors of the pool (the rows of config.data.path)."""
    target_vectors: str = ""
    """Folder with the vectors of the target set."""
    scoring: str = "neighbours"
    """Similarity to the nearest members of the target set (`neighbours`) or to their mean (`centroid`)."""
    neighbours: int = 8
    """How many members count."""
    distance: str = "cosine"
    """`cosine`, or `mahalanobis` (minus the distance under the covariance of the pool)."""
    shrinkage: float = 0.1
    """Of `mahalanobis`: weight of a multiple of the identity in the covariance."""
    deflate: bool = False
    """Drop the component along the order direction first (only representations have one)."""
    mode: str = "budget"
    """`budget`: the `most` best; `adaptive`: those as similar as the target set to itself; `diverse`: `most` of the
    best, spread out."""
    most: int = 0
    """Rows that are kept; `adaptive`: at most (0: all that pass)."""
    quantile: float = 0.05
    """Of `adaptive`: the threshold is this quantile of the leave-one-out scores inside the target set."""
    diversity: float = 0.5
    """Of `diverse`: weight of covering the candidates against being similar to the target set (0: as `budget`)."""
    candidates: int = 4
    """Of `diverse`: candidates, as multiples of `most`."""

    def __post_init__(self) -> None:
        for name, words in {
            "scoring": ("neighbours", "centroid"),
            "distance": ("cosine", "mahalanobis"),
            "mode": ("budget", "adaptive", "diverse"),
        }.items():
            if getattr(self, name) not in words:
                raise UserError(f"config.selection.{name} is {getattr(self, name)!r}; choose one of {', '.join(words)}")
        for name, good, needed in (
            ("neighbours", self.neighbours >= 1, "at least 1"),
            ("shrinkage", 0 < self.shrinkage <= 1, "above 0 and at most 1"),
            ("most", self.most >= 0, "at least 0"),
            ("quantile", 0 <= self.quantile <= 1, "from 0 to 1"),
            ("diversity", 0 <= self.diversity <= 1, "from 0 to 1"),
            ("candidates", self.candidates >= 1, "at least 1"),
        ):
            if not good:
                raise UserError(f"config.selection.{name} is {getattr(self, name)}; it must be {needed}")
        if self.mode == "diverse" and self.distance != "cosine":
            raise UserError("config.selection.mode=diverse covers by cosine: leave config.selection.distance")


def select(
    rows: Sequence[Mapping[str, Any]], features: Mapping[str, Vectors], config: Config, seed: int = 0
) -> tuple[list[dict[str, Any]], Tally]:
    """The rows that are kept, in order, with their `similarity`. Raises UserError for vectors that do not belong
    together, and for modes with a budget when `most` is not set."""
    for name in FEATURES:
        if name not in features:
            raise UserError(f"give --config.selection.{name}=FOLDER, where annotate --config=embed_preferences wrote")
    pool = features["vectors"].of([str(row["id"]) for row in rows], config.vectors)
    target, direction = features["target_vectors"].matrix, None
    if pool.shape[1] != target.shape[1]:
        raise UserError(f"the vectors of the pool are {pool.shape[1]} wide, those of the target set {target.shape[1]}")
    if len(target) < 2:
        raise UserError(f"the target set has {len(target)} vectors; give at least 2")
    if config.mode != "adaptive" and not config.most:
        raise UserError(f"config.selection.mode={config.mode} needs config.selection.most, the rows to keep")
    if config.deflate:
        direction = features["vectors"].order_direction
        if direction is None:
            raise UserError("config.selection.deflate: these vectors have no order direction (only representations do)")
    values, chosen = choose(pool, target, config, direction)
    kept, dropped = set(map(int, chosen)), Tally()
    least = min((values[i] for i in kept), default=np.inf)
    for i, row in enumerate(rows):
        if i not in kept:
            dropped.add(LESS if values[i] <= least or config.mode != "diverse" else REDUNDANT, str(row["id"]))
    return [{**rows[i], "similarity": float(values[i])} for i in sorted(kept)], dropped


def choose(
    pool: np.ndarray, target: np.ndarray, config: Config, direction: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The score of every vector of the pool, and the indices that are kept, best first (`diverse`: as chosen)."""
    shrinkage = config.shrinkage if config.distance == "mahalanobis" else None
    seen = representations.space(pool, direction, shrinkage)
    how = (config.neighbours, config.distance, config.scoring == "centroid")
    values = representations.scores(pool, target, seen, *how)
    if config.mode == "budget":
        return values, representations.best(values, config.most)
    if config.mode == "adaptive":
        threshold = np.quantile(representations.left_out_scores(target, seen, *how), config.quantile)
        count = int(np.sum(values >= threshold))
        return values, representations.best(values, min(count, config.most) if config.most else count)
    places = representations.best(values, config.candidates * config.most)
    vectors = representations.prepared(pool[places], seen, config.distance)
    spread = representations.facility_location(vectors, values[places], config.most, config.diversity)
    return values, places[spread]
