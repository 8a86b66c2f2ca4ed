"""Two evaluations of the same rows: is the difference of their accuracies more than noise? NumPy only."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core import statistics

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The paired difference of two evaluations, and the rows that only one of them has."""

    difference: statistics.Difference
    """Of the first less the second, over the rows that both have."""
    only_first: int
    only_second: int

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference is on one side of zero."""
        return self.difference.low > 0 or self.difference.high < 0

    def said(self, first: str, second: str, what: str = "accuracy", unit: str = "pairs") -> str:
        """The comparison in words."""
        found = self.difference
        verdict = "clear difference" if self.clear else "no clear difference: it may be noise"
        left = [f"{count:,} only by {name}" for count, name in ((self.only_first, first), (self.only_second, second))
                if count]  # fmt: skip
        return (
            f"on {found.num_pairs:,} {unit} that both judged, the {what} of {first} minus that of {second} is "
            f"{100 * found.mean:+.1f} points, 95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f} (paired "
            f"bootstrap, p = {found.p_value:.3g}): {verdict}" + (f"; left out: {', '.join(left)}" if left else "")
        )


def worth(row: Row) -> float | None:
    """What a judged row adds to the accuracy; None for one that does not count by itself."""
    value = row["correct"] if "correct" in row else row.get("results")
    return None if value is None else float(value)


def compare(one: Sequence[Row], two: Sequence[Row], samples: int = 10000, seed: int = 0) -> Comparison | None:
    """Paired bootstrap over the rows that both evaluations hold, matched by id; None without one."""
    first, second = (
        {str(row["id"]): value for row in rows if "id" in row and (value := worth(row)) is not None}
        for rows in (one, two)
    )
    both = [identity for identity in first if identity in second]
    if not both:
        return None
    difference = statistics.paired_bootstrap(
        [first[identity] for identity in both], [second[identity] for identity in both], samples, seed
    )
    return Comparison(difference, len(first) - len(both), len(second) - len(both))
