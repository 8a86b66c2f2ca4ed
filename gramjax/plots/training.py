"""Figures of how a run went: loss, accuracy, learning rate and speed by step; two runs over each other."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots import style
from gramjax.plots.style import Drawn

Entries = Sequence[Mapping[str, Any]]
SPEED = "perf/tokens_per_sec_per_device"
PANELS = (
    ("loss", "Loss", style.BLUE),
    ("accuracy", "Accuracy on training batches", style.GREEN),
    ("margin", "Margin on training batches", style.ORANGE),
    ("learning_rate", "Learning rate", style.PURPLE),
    (SPEED, "Tokens per second and device", style.SKY),
)
"""Metrics that get a panel where a run has them, in order; at most four are drawn."""


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def series(entries: Entries, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, without the entries that lack it."""
    found = [(e["step"], float(e[name])) for e in entries if isinstance(e.get(name), int | float)]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Exponential moving mean with the bias of its start removed."""
    out, mean, weight, keep = [], 0.0, 0.0, 1 - 2 / (span + 1)
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def curves(entries: Entries, folder: Path, phase: str = "", title: str = "Training") -> Drawn | None:
    """Loss, accuracy, learning rate and throughput over the steps; None when nothing was logged."""
    panels = [panel for panel in PANELS if series(entries, panel[0])[0]]
    if any(name == "accuracy" for name, _, _ in panels):
        panels = [panel for panel in panels if panel[0] != "margin"]
    panels = panels[:4]
    if not panels:
        return None
    name = f"training_{phase}" if phase else "training"
    keep = [n for n, _, _ in panels] + sorted({k for e in entries for k in e if k.endswith("/accuracy")})
    numbers = style.write_table(folder / f"{name}.csv", [{k: e.get(k) for k in ("step", *keep)} for e in entries])
    columns = len(panels) if len(panels) < 4 else 2
    rows = math.ceil(len(panels) / columns)
    size = (9.2 if columns > 1 else 5.2, 2.8 * rows)
    picture = style.figure(
        _draw_curves, folder / f"{name}.png", size, entries, panels, nrows=rows, ncols=columns, squeeze=False
    )
    title = f"Training, phase {phase}" if phase else title
    held_out = any(k.endswith("/accuracy") for e in entries for k in e) and any(n == "accuracy" for n, _, _ in panels)
    caption = "Faint: every logged value; bold: their moving mean. Loss should fall and level off"
    caption += "; dots are evaluations on held-out pairs." if held_out else "."
    return Drawn(name, title, caption, picture, numbers)


def _draw_curves(axes: Any, entries: Entries, panels: Sequence[tuple[str, str, str]]) -> None:
    flat = axes.flatten()
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, title, colour) in zip(flat, panels):
        steps, values = series(entries, name)
        axis.set_title(title)
        noisy = name in ("loss", "accuracy", "margin", SPEED) and len(values) >= 20
        if noisy:
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axis.plot(steps, smooth(values, max(len(values) // 15, 5)), color=colour)
        else:
            axis.plot(steps, values, color=colour, marker="o" if len(steps) == 1 else "")
        if name == "accuracy":
            for number, key in enumerate(sorted({k for e in entries for k in e if k.endswith("/accuracy")})):
                held_steps, held = series(entries, key)
                mark = (style.RED, style.INK, style.PURPLE)[number % 3]
                label = f"held out ({key.split('/')[1]})"
                axis.plot(held_steps, held, "o", color=mark, markersize=6, label=label, clip_on=False, zorder=4)
                axis.legend(loc="best")
            lowest = min([*values, *(v for e in entries for k, v in e.items() if k.endswith("/accuracy"))])
            axis.set_ylim(max(min(lowest - 0.03, 0.45), 0), 1.02)
            style.percent(axis.yaxis)
        elif name == SPEED:
            axis.set_ylim(0, max(values) * 1.15)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        elif name == "learning_rate":
            top = max(values)
            power = math.floor(math.log10(top) + 0.1) if top > 0 else 0
            axis.set_ylim(0, top * 1.1 or 1)
            axis.yaxis.set_major_formatter(lambda value, _, power=power: f"{value / 10.0**power:.4g}")
            axis.set_title(f"{title} (× 10{str(power).translate(RAISED)})" if power else title)
        axis.set_xlim(0, max(steps) * 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("Optimiser step")


def overlay(
    one: Entries, two: Entries, folder: Path, names: tuple[str, str] = ("first run", "second run")
) -> Drawn | None:
    """Losses of two runs over each other, and their difference: equal where a resumed run repeats another exactly.

    None when the runs have no step in common.
    """
    first, second = (dict(zip(*series(entries, "loss"))) for entries in (one, two))
    steps = sorted(first.keys() & second.keys())
    if not steps:
        return None
    rows = [{"step": s, names[0]: first.get(s), names[1]: second.get(s)} for s in sorted(first.keys() | second.keys())]
    numbers = style.write_table(folder / "overlay.csv", rows)
    largest = max(abs(first[s] - second[s]) for s in steps)
    picture = style.figure(
        _draw_overlay,
        folder / "overlay.png",
        (9.2, 4.2),
        (first, second, steps, names),
        nrows=2,
        sharex=True,
        height_ratios=(3, 1),
    )
    verdict = "every loss is equal, bit for bit" if largest == 0 else f"the largest difference is {largest:.3g}"
    caption = f"Loss of both runs at the same steps, and the second minus the first: over {len(steps)} steps {verdict}."
    return Drawn("overlay", "Two runs over each other", caption, picture, numbers)


def _draw_overlay(axes: Any, data: tuple[dict[int, float], dict[int, float], list[int], tuple[str, str]]) -> None:
    first, second, steps, names = data
    above, below = axes
    above.plot(list(first), list(first.values()), color=style.SKY, linewidth=5, alpha=0.6, label=names[0])
    above.plot(list(second), list(second.values()), color=style.INK, linewidth=1.2, label=names[1])
    above.set_title("Loss")
    above.legend(loc="upper right")
    gaps = [second[s] - first[s] for s in steps]
    below.axhline(0, color=style.MUTED, linewidth=0.8)
    below.plot(steps, gaps, color=style.RED, linewidth=1.2)
    if not any(gaps):
        below.set_ylim(-1, 1)
        below.set_yticks([0])
    below.set_title("Second minus first")
    below.set_xlabel("Optimiser step")
