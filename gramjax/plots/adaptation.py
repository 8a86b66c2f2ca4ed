"""The curves of task adaptation: accuracy and margin by number of labels, one line per start. From `rounds.json`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots import style
from gramjax.plots.page import percent, table
from gramjax.plots.style import Drawn

COLOURS = (style.MUTED, style.ORANGE, style.BLUE, style.GREEN, style.PURPLE, style.RED, style.SKY)
"""Colour of a start by its place; the first is what the others are compared with."""


def curves(state: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The starts that have a point, empty where this is another recipe."""
    if (state or {}).get("recipe") != "adaptation_curve":
        return []
    return [curve for curve in (state or {}).get("curves") or () if curve.get("points")]


def sections(state: Mapping[str, Any] | None) -> str:
    """Tables: every point with its interval, and the area under each curve."""
    found = curves(state)
    if not found:
        return ""
    rows, areas = [], []
    for curve in found:
        for point in curve["points"]:
            gap = point.get("minus_first")
            difference = None
            if gap:
                difference = f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
            rows.append((curve["name"], point["budget"], percent(point["accuracy"]), _spread(point["accuracy_sd"]),
                         f"{percent(point['low'])} to {percent(point['high'])}", len(point["runs"]),
                         point.get("swap_consistency"), difference))  # fmt: skip
        if curve.get("area_log") is not None:
            areas.append((curve["name"], percent(curve["area_log"]), _spread(curve["area_log_sd"]),
                          percent(curve["area_linear"]), _spread(curve["area_linear_sd"]),
                          curve["area_seeds"]))  # fmt: skip
    head = ("start", "labels", "accuracy", "sd over seeds", "95 % interval", "runs", "swap consistency",
            f"minus {found[0]['name']}, points")  # fmt: skip
    out = f"<h2>Adaptation</h2>{table(head, rows)}"
    if areas:
        heads = ("start", "over log(1 + N / N1)", "sd over seeds", "over N", "sd over seeds", "seeds")
        out += f"<h3>Area under the curve, as a mean accuracy</h3>{table(heads, areas)}"
    return out


def _spread(value: Any) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def draw_all(state: Mapping[str, Any] | None, folder: Path) -> list[Drawn]:
    """The curves in one picture, `adaptation.png`."""
    found = curves(state)
    if not found:
        return []
    names = ("budget", "accuracy", "accuracy_sd", "low", "high", "num_pairs", "swap_consistency", "margin")
    rows = [{"start": c["name"]} | {name: point.get(name) for name in names} for c in found for point in c["points"]]
    numbers = style.write_table(folder / "adaptation.csv", rows)
    picture = style.figure(_draw, folder / "adaptation.png", (7.2, 4.4), found)
    caption = (
        "Accuracy on held-out pairs of the task after tuning on N labels of it, mean over the seeds. Whiskers: 95 % "
        "interval of the held-out pairs (the same for all); small dots: seeds; dashed: chance."
    )
    out = [Drawn("adaptation", "How many labels does the task need?", caption, picture, numbers)]
    if any(row["margin"] is not None for row in rows):
        drawn = style.figure(_draw_margins, folder / "adaptation_margin.png", (7.2, 3.8), found)
        caption = (
            "Mean margin by which the right answer of a held-out pair is preferred: the logit of a judge, the "
            "difference of two rewards of a scalar model. 0: undecided. Small dots: seeds."
        )
        out.append(Drawn("adaptation_margin", "How sure does it become?", caption, drawn, numbers))
    return out


def _places(found: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Where each budget stands on the logarithmic axis."""
    budgets = sorted({point["budget"] for curve in found for point in curve["points"]})
    unit = min((budget for budget in budgets if budget), default=1)
    return {budget: math.log1p(budget / unit) for budget in budgets}


def _draw_margins(axis: Any, found: Sequence[Mapping[str, Any]]) -> None:
    place = _places(found)
    for number, curve in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        points = [point for point in curve["points"] if point.get("margin") is not None]
        axis.plot([place[p["budget"]] for p in points], [p["margin"] for p in points], color=colour, marker="o",
                  label=curve["name"], zorder=3)  # fmt: skip
        seeds = [(place[p["budget"]], run["margin"]) for p in points for run in p["runs"] if len(p["runs"]) > 1]
        axis.scatter(*zip(*seeds), s=9, color=colour, alpha=0.6, linewidths=0) if seeds else None
    axis.axhline(0.0, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axis.set_xticks(list(place.values()), [f"{budget:,}" for budget in place])
    axis.set_xlabel("Labelled pairs of the task (logarithmic)")
    axis.set_ylabel("Mean margin on held-out pairs")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=4)


def _draw(axis: Any, found: Sequence[Mapping[str, Any]]) -> None:
    place = _places(found)
    budgets = list(place)
    step = (place[budgets[-1]] - place[budgets[0]] or 1.0) * 0.012
    for number, curve in enumerate(found):
        colour, shift = COLOURS[number % len(COLOURS)], (number - (len(found) - 1) / 2) * step
        points = curve["points"]
        places = [place[point["budget"]] + shift for point in points]
        means = [point["accuracy"] for point in points]
        reach = [[m - p["low"] for m, p in zip(means, points)], [p["high"] - m for m, p in zip(means, points)]]
        axis.plot(places, means, color=colour, marker="o", label=curve["name"], zorder=3)
        axis.errorbar(places, means, reach, ecolor=colour, elinewidth=1.1, capsize=3, fmt="none", alpha=0.7)
        for x, point in zip(places, points):
            seeds = [run["accuracy"] for run in point["runs"]]
            axis.scatter([x] * len(seeds), seeds, s=9, color=colour, alpha=0.6, linewidths=0) if len(
                seeds
            ) > 1 else None
    axis.axhline(0.5, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axis.set_xticks(list(place.values()), [f"{budget:,}" for budget in budgets])
    axis.set_xlabel("Labelled pairs of the task (logarithmic)")
    axis.set_ylabel("Accuracy on held-out pairs")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=4)
    style.percent(axis.yaxis)
