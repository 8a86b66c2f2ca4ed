"""A map of vectors: their first two principal axes, coloured by subset."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.core import representations
from gramjax.plots import style
from gramjax.plots.style import Drawn

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.SKY)
MOST_POINTS = 4000
"""Points that are drawn; more are thinned evenly. The numbers hold all of them."""
OTHERS = "others"


def draw(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray, folder: Path) -> Drawn:
    """Write `map.png` and `map.csv` (id, subset and both coordinates of every row)."""
    points, shares = representations.plane(vectors)
    if points.shape[1] < 2:
        points, shares = np.pad(points, ((0, 0), (0, 1))), np.pad(shares, (0, 1))
    subsets = [str(row.get("subset") or "") for row in rows]
    numbers = style.write_table(
        folder / "map.csv",
        [{"id": r["id"], "subset": s, "x": x, "y": y} for r, s, (x, y) in zip(rows, subsets, points, strict=True)],
    )
    names = grouped(subsets)
    picture = style.figure(_draw, folder / "map.png", (6.0, 5.5), points, np.array(names), shares)
    caption = (
        "Each dot is a pair, placed by the two directions along which the vectors differ most; pairs near each other "
        "express a similar preference as the model sees it. Colours: where a pair is from."
    )
    return Drawn("map", "Preferences on a map", caption, picture, numbers)


def grouped(subsets: Sequence[str]) -> list[str]:
    """The subset of each row; beyond as many subsets as there are colours, the smaller ones together."""
    counts = {name: subsets.count(name) for name in dict.fromkeys(subsets)}
    shown = sorted(counts, key=lambda name: (-counts[name], name))
    kept = set(shown if len(shown) <= len(COLOURS) else shown[: len(COLOURS) - 1])
    return [name if name in kept else OTHERS for name in subsets]


def _draw(axis: Any, points: np.ndarray, names: np.ndarray, shares: np.ndarray) -> None:
    shown = sorted(set(names), key=lambda name: (name == OTHERS, -np.sum(names == name), name))
    thin = max(1, math.ceil(len(points) / MOST_POINTS))
    alpha = float(np.clip(30 / math.sqrt(len(points)), 0.25, 0.8))
    order = np.random.default_rng(0).permutation(len(points))[::thin]  # no subset lies on top of all others
    colours = dict(zip(shown, COLOURS))
    axis.scatter(
        points[order, 0], points[order, 1], s=14, alpha=alpha, linewidths=0, c=[colours[n] for n in names[order]]
    )
    for name in shown if len(shown) > 1 else []:
        axis.scatter([], [], s=26, color=colours[name], label=f"{name or 'no subset'} ({np.sum(names == name):,})")
    axis.set_title("Preference representations", pad=12 + 14 * math.ceil(len(shown) / 2) * (len(shown) > 1))
    axis.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of the variance)")
    axis.set_ylabel(f"second principal axis ({100 * shares[1]:.0f} %)")
    axis.set_aspect("equal", adjustable="datalim")
    if len(shown) > 1:
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=2, handletextpad=0.1, columnspacing=1.2)
