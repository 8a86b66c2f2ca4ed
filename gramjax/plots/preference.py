"""Figures of judged pairs: is the confidence earned, do order and length matter, how large are the margins."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.core import statistics
from gramjax.plots import style
from gramjax.plots.style import Drawn

Rows = Sequence[Mapping[str, Any]]
MOST_POINTS = 4000
"""Points of a scatter plot; more are thinned evenly."""
FEW = 5
"""A bin of fewer predictions is drawn faint and does not bend the line."""


def draw_all(rows: Rows, results: Mapping[str, Any], folder: Path, optimum: float | None = None) -> list[Drawn]:
    """Every figure that these rows allow. `optimum` is the margin at which the training loss is smallest, if finite."""
    finite = [row for row in rows if row.get("probability") is not None]
    if not finite:
        return []
    drawn = [
        reliability(results, folder),
        orders(finite, folder),
        margins(finite, folder, optimum),
        lengths(results, folder),
        subsets(results, folder),
    ]
    return [figure for figure in drawn if figure is not None]


def reliability(results: Mapping[str, Any], folder: Path) -> Drawn | None:
    """Accuracy against confidence, for one order and for the average of both."""
    tables = results.get("reliability") or {}
    labels = {"one_order": "one order", "both_orders": "both orders", "scores": "scores"}
    tables = {name: tables[name] for name in labels if name in tables}
    if not tables:
        return None
    numbers = style.write_table(
        folder / "reliability.csv", [{"scores": name} | row for name, table in tables.items() for row in table["bins"]]
    )
    picture = style.figure(
        _draw_reliability,
        folder / "reliability.png",
        (5.2, 5.5),
        [(labels[name], tables[name]) for name in tables],
        nrows=2,
        sharex=True,
        height_ratios=(4, 1),
    )
    caption = (
        "On the dashed line the judge is right as often as it says; below it, it is over-confident; faint: "
        "fewer than five predictions. Bars at the bottom show how many predictions have that confidence."
    )
    return Drawn("reliability", "Is the confidence earned?", caption, picture, numbers)


def _draw_reliability(axes: Any, tables: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    above, below = axes
    above.plot([0.5, 1], [0.5, 1], color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    colours = (style.ORANGE, style.BLUE) if len(tables) > 1 else (style.BLUE,)
    for number, ((label, table), colour) in enumerate(zip(tables, colours)):
        ece = f" (ECE {table['ece']:.3f})" if table["ece"] is not None else ""
        full = [b for b in table["bins"] if b["count"] >= FEW]
        above.plot([b["confidence"] for b in full], [b["accuracy"] for b in full], color=colour, zorder=3 + number)
        above.plot([], [], color=colour, marker="o", label=label + ece)
        for b in (b for b in table["bins"] if b["count"]):
            low, high = statistics.wilson(b["accuracy"] * b["count"], b["count"])
            faint = 1.0 if b["count"] >= FEW else 0.3
            above.plot([b["confidence"]] * 2, [low, high], color=colour, linewidth=1, alpha=0.8 * faint)
            above.plot(b["confidence"], b["accuracy"], "o", color=colour, alpha=faint, zorder=4 + number)
        total = sum(b["count"] for b in table["bins"])
        width = (table["bins"][0]["to"] - table["bins"][0]["from"]) / (len(tables) + 0.35)
        left = [b["from"] + width * (number + 0.175) for b in table["bins"]]
        below.bar(left, [b["count"] / total for b in table["bins"]], width, align="edge", color=colour)
    above.set_title("Accuracy by confidence", pad=26)
    above.set_ylabel("Share right")
    lowest = min((b["accuracy"] for _, t in tables for b in t["bins"] if b["count"] >= FEW), default=0.5)
    above.set_ylim(min(0.4, lowest - 0.1), 1.03)
    above.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=2, columnspacing=1.2)
    below.set_xlim(0.49, 1.01)
    below.set_xlabel("Confidence: probability of the preferred answer")
    below.set_ylabel("Predictions")
    for axis in (above.yaxis, below.yaxis, below.xaxis):
        style.percent(axis)


def orders(rows: Rows, folder: Path) -> Drawn | None:
    """Probability of the chosen answer when it stands first against when it stands second."""
    both = [row for row in rows if row.get("p_first") is not None and row.get("p_second") is not None]
    if not both:
        return None
    points = [
        {"id": r["id"], "shown_first": r["p_first"], "shown_second": 1 - r["p_second"], "correct": r["correct"]}
        for r in both
    ]
    numbers = style.write_table(folder / "orders.csv", points)
    picture = style.figure(_draw_orders, folder / "orders.png", (5.2, 5.5), points)
    caption = (
        "Each dot is a pair. On the diagonal the order of the answers plays no part; bottom right the judge takes "
        "whatever stands first, top left whatever stands second."
    )
    return Drawn("orders", "Does the order matter?", caption, picture, numbers)


def _draw_orders(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    first = np.array([p["shown_first"] for p in points])
    second = np.array([p["shown_second"] for p in points])
    right = np.array([p["correct"] for p in points], bool)
    axis.axhline(0.5, color="#9ca3af", linewidth=0.8)
    axis.axvline(0.5, color="#9ca3af", linewidth=0.8)
    axis.plot([0, 1], [0, 1], color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    thin = max(1, math.ceil(len(points) / MOST_POINTS))
    alpha = float(np.clip(60 / math.sqrt(len(points)) / 2, 0.25, 0.8))
    for mask, colour, label in ((right, style.BLUE, "right on average"), (~right, style.RED, "wrong or tie")):
        x, y = first[mask][::thin], second[mask][::thin]
        label = f"{label} ({mask.sum():,})"
        axis.scatter(x, y, s=22, color=colour, alpha=alpha, linewidths=0, label=label)
    corners = (
        (0.98, 0.53, "right", (first > 0.5) & (second > 0.5), "right twice"),
        (0.02, 0.47, "left", (first <= 0.5) & (second <= 0.5), "wrong twice"),
        (0.98, 0.47, "right", (first > 0.5) & (second <= 0.5), "takes the first"),
        (0.02, 0.53, "left", (first <= 0.5) & (second > 0.5), "takes the second"),
    )
    for x, y, side, mask, text in corners:
        axis.text(
            x, y, f"{text}: {100 * mask.mean():.0f} %", ha=side, va="bottom" if y > 0.5 else "top", fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}, zorder=5,
        )  # fmt: skip
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_title("Probability of the chosen answer in both orders", pad=26)
    axis.set_xlabel("chosen answer shown first")
    axis.set_ylabel("chosen answer shown second")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=2, handletextpad=0.1, columnspacing=1.2)
    for part in (axis.xaxis, axis.yaxis):
        style.percent(part)


def margins(rows: Rows, folder: Path, optimum: float | None = None) -> Drawn:
    """Histogram of margins, right and wrong apart."""
    values = np.array([row["margin"] for row in rows], np.float64)
    right = np.array([row["correct"] for row in rows], bool)
    low, high = np.quantile(values, [0.005, 0.995])
    reach = max(abs(low), abs(high), 1e-3, (optimum or 0) * 1.1)
    edges = np.linspace(-reach, reach, 41)
    clipped = np.clip(values, -reach, reach)
    counts = [np.histogram(clipped[mask], edges)[0] for mask in (right, ~right)]
    numbers = style.write_table(
        folder / "margins.csv",
        [
            {"from": float(a), "to": float(b), "right": int(r), "wrong": int(w)}
            for a, b, r, w in zip(edges[:-1], edges[1:], *counts)
        ],
    )
    shown = optimum if optimum is not None and math.isfinite(optimum) else None
    picture = style.figure(_draw_margins, folder / "margins.png", (6.4, 3.7), edges, counts, values, shown)
    caption = (
        "Margin: how much the model prefers the chosen answer (logit, both orders averaged where there are two). "
        "Mistakes should be few and close to zero; the outermost bars hold everything beyond them."
    )
    return Drawn("margins", "How large are the margins?", caption, picture, numbers)


def _draw_margins(
    axis: Any, edges: np.ndarray, counts: Sequence[np.ndarray], values: np.ndarray, optimum: float | None
) -> None:
    width = edges[1] - edges[0]
    axis.bar(edges[:-1], counts[0], width * 0.92, align="edge", color=style.BLUE, label=f"right ({counts[0].sum():,})")
    axis.bar(
        edges[:-1], counts[1], width * 0.92, align="edge", color=style.RED, bottom=counts[0],
        label=f"wrong or tie ({counts[1].sum():,})",
    )  # fmt: skip
    axis.axvline(0, color=style.INK, linewidth=1)
    if optimum:
        label = f"optimum of the smoothed loss ({optimum:.2f})"
        axis.axvline(optimum, color=style.GREEN, linewidth=1.5, linestyle=(0, (4, 3)), label=label)
    axis.set_title(f"Margins of {len(values):,} pairs (median {np.median(values):.2f})")
    axis.set_xlabel("Margin of the chosen answer")
    axis.set_ylabel("Pairs")
    axis.set_xlim(edges[0] * 1.02, edges[-1] * 1.02)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="best")


def bucket_label(bucket: Mapping[str, Any]) -> str:
    """`-50 to -20 %`, `over 50 %`, `-5 to 5 %` (relative) or the same in characters."""
    relative = bucket.get("unit") != "characters"

    def number(value: float) -> str:
        return f"{value * 100 if relative else value:+.0f}".replace("+0", "0").replace("-", "−")

    unit = " %" if relative else ""
    if bucket["from"] is None:
        return f"below {number(bucket['to'])}{unit}"
    if bucket["to"] is None:
        return f"{number(bucket['from'])}{unit} and over"
    return f"{number(bucket['from'])} to {number(bucket['to'])}{unit}"


def lengths(results: Mapping[str, Any], folder: Path) -> Drawn | None:
    """Accuracy by how much longer the chosen answer is."""
    buckets = results.get("length_buckets") or []
    if not buckets:
        return None
    numbers = style.write_table(folder / "lengths.csv", buckets)
    labels = [bucket_label(bucket).replace(" to ", " to\n").replace(" and", "\nand") for bucket in buckets]
    title = "Accuracy by how much longer the chosen answer is"
    picture = style.figure(_draw_bars, folder / "lengths.png", (6.4, 3.7), labels, buckets, results, title)
    caption = (
        "A judge that likes long answers rises from left to right, however good its mean. Whiskers: 95 % interval; "
        "solid line: all pairs; dashed: chance."
    )
    return Drawn("lengths", "Does length count?", caption, picture, numbers)


def subsets(results: Mapping[str, Any], folder: Path) -> Drawn | None:
    """Accuracy of each subset; None when there is only one."""
    groups = results.get("subsets") or {}
    if len(groups) < 2:
        return None
    ranked = sorted(groups.items(), key=lambda item: -item[1]["accuracy"])[:30]
    numbers = style.write_table(folder / "subsets.csv", [{"subset": name} | group for name, group in groups.items()])
    size = (6.4, 1.5 + 0.32 * len(ranked))
    picture = style.figure(_draw_dots, folder / "subsets.png", size, ranked, results)
    caption = "Accuracy and 95 % interval of each subset; solid line: all pairs; dashed: chance."
    return Drawn("subsets", "Which subsets are hard?", caption, picture, numbers)


def _draw_bars(
    axis: Any, labels: Sequence[str], groups: Sequence[Mapping[str, Any]], results: Mapping[str, Any], title: str
) -> None:
    values = [group["accuracy"] for group in groups]
    errors = [[g["accuracy"] - g["low"] for g in groups], [g["high"] - g["accuracy"] for g in groups]]
    axis.bar(labels, values, 0.62, color=style.SKY)
    axis.errorbar(labels, values, np.maximum(errors, 0), fmt="none", ecolor=style.INK, elinewidth=1.2, capsize=3)
    for place, group in enumerate(groups):
        axis.text(place, 0.02, f"n = {group['num_pairs']:,}", ha="center", va="bottom", fontsize=8)
    axis.axhline(0.5, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    if isinstance(results.get("accuracy"), float):
        axis.axhline(results["accuracy"], color=style.BLUE, linewidth=1.2)
    axis.set_title(title)
    axis.set_ylabel("Accuracy")
    axis.set_ylim(0, 1.05)
    axis.grid(axis="x", visible=False)
    if len(labels) > 5:
        axis.tick_params(axis="x", labelsize=8)
    style.percent(axis.yaxis)


def _draw_dots(axis: Any, ranked: Sequence[tuple[str, Mapping[str, Any]]], results: Mapping[str, Any]) -> None:
    names = [f"{name or '(no name)'}  (n = {group['num_pairs']:,})" for name, group in ranked][::-1]
    groups = [group for _, group in ranked][::-1]
    values = [group["accuracy"] for group in groups]
    errors = [[g["accuracy"] - g["low"] for g in groups], [g["high"] - g["accuracy"] for g in groups]]
    axis.axvline(0.5, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    if isinstance(results.get("accuracy"), float):
        axis.axvline(results["accuracy"], color=style.BLUE, linewidth=1.2)
    axis.errorbar(values, names, xerr=np.maximum(errors, 0), fmt="o", color=style.INK, ecolor=style.MUTED, capsize=3)
    axis.set_title("Accuracy by subset")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="y", visible=False)
    style.percent(axis.xaxis)
