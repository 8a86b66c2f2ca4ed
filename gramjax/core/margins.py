"""Margins of preference pairs: standardised per data set and back, and how well predicted ones agree with true ones."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core.errors import UserError

ALL = "*"
"""Stands for every data set that has no numbers of its own."""

MOST_PAIRS = 1_000_000
"""Pairs of pairs that are compared; of more, so many are drawn."""


@dataclasses.dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of the margins of each data set (`subset`), and over all."""

    subsets: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()

    def numbers(self, subset: Any) -> tuple[float, float]:
        """Mean and scale for a data set: its own, else those over all, else 0 and 1."""
        for name in (str(subset or ""), ALL):
            if name in self.subsets:
                place = self.subsets.index(name)
                return self.means[place], self.scales[place]
        return 0.0, 1.0

    def standard(self, row: Mapping[str, Any]) -> float:
        """The margin of a row in standard deviations from the mean of its data set."""
        mean, scale = self.numbers(row.get("subset"))
        return (margin_of(row) - mean) / scale

    def restored(self, row: Mapping[str, Any], value: float) -> float:
        """The inverse of `standard`, for a value predicted for the row."""
        mean, scale = self.numbers(row.get("subset"))
        return mean + scale * value


def margin_of(row: Mapping[str, Any]) -> float:
    """The column `margin` of a row. Raises UserError naming the row that has none."""
    if row.get("margin") is None:
        raise UserError(f"row {row.get('id')}: margins are learned from a column 'margin' (a number), which is empty")
    return float(row["margin"])


def standardisation(rows: Iterable[Mapping[str, Any]]) -> Standardisation:
    """Mean and standard deviation per data set; where all margins are equal the scale is 1."""
    groups: dict[str, list[float]] = {ALL: []}
    for row in rows:
        groups[ALL].append(margin_of(row))
        groups.setdefault(str(row.get("subset") or ""), []).append(groups[ALL][-1])
    if not groups[ALL]:
        return Standardisation()
    spread = [float(np.std(values)) for values in groups.values()]
    means = tuple(float(np.mean(values)) for values in groups.values())
    return Standardisation(tuple(groups), means, tuple(value if value > 1e-9 else 1.0 for value in spread))


def pearson(one: Any, two: Any) -> float:
    """Linear correlation; 0 where one of the two does not vary."""
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b) / size) if size > 1e-300 else 0.0


def ranks(values: Any) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, place, count = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(one: Any, two: Any) -> float:
    """Rank correlation."""
    return pearson(ranks(one), ranks(two))


def larger_of_two(predicted: Any, true: Any, seed: int = 0) -> float:
    """How often, of two pairs with different true margins, the larger one is told; a tie of predictions counts half."""
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if len(p) * (len(p) - 1) // 2 <= MOST_PAIRS:
        one, two = np.triu_indices(len(p), 1)
    else:
        one, two = np.random.default_rng(seed).integers(0, len(p), (2, MOST_PAIRS))
    differ = t[one] != t[two]
    if not differ.any():
        return 0.5
    agreement = np.sign(p[one] - p[two]) * np.sign(t[one] - t[two])
    return float((agreement[differ] + 1).mean() / 2)


def agreement(predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
    """Spearman, Pearson, mean squared error and larger-of-two accuracy of predicted margins."""
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    return {
        "spearman": spearman(p, t),
        "pearson": pearson(p, t),
        "mse": float(np.mean((p - t) ** 2)),
        "larger_of_two": larger_of_two(p, t),
    }


def order_correlation(first: Any, second: Any) -> float:
    """corr(u(s), -u(s_T)) over both orders of labelled pairs: 1 where the order of the responses plays no part, or the
    same part everywhere (that is what `logit_bias` shows).

    `first` are the order logits with the chosen response first, `second` those of the swapped pairs.
    """
    return pearson(np.concatenate([first, second]), -np.concatenate([second, first]))
