"""One look for every figure: colours that colour-blind readers tell apart, quiet axes, labels that can be read.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import runtime

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#AA4499", "#56B4E9"
"""Okabe and Ito's colours. Right is blue and wrong is red in every figure."""
INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # names come from data, and a dollar sign in one is a dollar sign
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure that was written: its title, how to read it (one sentence), its picture and the numbers behind it."""

    name: str
    title: str
    caption: str
    picture: Path
    numbers: Path


def figure(
    draw: Callable[..., None], path: Path, size: tuple[float, float], *arguments: Any, dpi: int = 150, **panels: Any
) -> Path:
    """Write one picture: `draw(axes, *arguments)` with the axes of `Figure.subplots(**panels)`; the format by suffix.

    Raises UserError naming the extra when matplotlib is not installed.
    """
    matplotlib = runtime.need("matplotlib", "plot", "plot")
    import logging

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    logging.getLogger("matplotlib.font_manager").setLevel(
        logging.ERROR
    )  # a font of the list that is missing is no news
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1), dpi=dpi)
        draw(canvas.subplots(**panels), *arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    return path


def percent(axis: Any, decimals: int = 0) -> None:
    """Label an axis of shares in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol=" %"))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The numbers behind a figure as CSV; missing values are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return path
