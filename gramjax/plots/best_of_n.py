"""Proxy and oracle of the chosen response against the divergence from the policy: over-optimisation, where it begins.

Made from `eval/best_of_n.json` alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots import style
from gramjax.plots.page import table
from gramjax.plots.style import Drawn

EVAL = "best_of_n"
COLUMNS = ("n", "kl", "num_lists", "proxy", "proxy_low", "proxy_high", "oracle", "oracle_low", "oracle_high",
           "oracle_mean", "oracle_best", "oracle_share", "num_comparisons")  # fmt: skip
HEADS = {"kl": "KL", "num_lists": "lists", "oracle_mean": "oracle, random", "oracle_best": "oracle, best",
         "oracle_share": "share of the best", "num_comparisons": "comparisons per list"}  # fmt: skip


def points(evals: Mapping[str, Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The sizes of the curve, empty where there is no such evaluation."""
    return evals.get(EVAL, {}).get("points") or ()


def sections(evals: Mapping[str, Mapping[str, Any]]) -> str:
    """The curve as a table; nothing where there is none."""
    found = points(evals)
    columns = [name for name in COLUMNS if any(point.get(name) is not None for point in found)]
    rows = [[point.get(name) for name in columns] for point in found]
    heads = [HEADS.get(name, name.replace("_", ", ")) for name in columns]
    return f"<h2>Best of n</h2>{table(heads, rows)}" if rows else ""


def draw_all(evals: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Drawn]:
    """The curve, where there is more than one size."""
    found = points(evals)
    if len(found) < 2:
        return []
    numbers = style.write_table(folder / "best_of_n.csv", found)
    gold = any(point.get("oracle") is not None for point in found)
    panels = {"ncols": 2 if gold else 1, "sharex": True, "squeeze": False}
    size = (9.2 if gold else 5.2, 3.9)
    picture = style.figure(_draw, folder / "best_of_n.png", size, found, gold, **panels)
    caption = (
        "What the best of n is worth to the model that chose it (proxy), with 95 % intervals over the lists. "
        "The axis is how far choosing moves away from the policy: log n − (n − 1) / n."
    )
    if gold:
        caption += (
            " Right: what it is truly worth; dashed, the best response among the n, dotted, a random one. A proxy that "
            "rises while the oracle falls is over-optimised."
        )
    return [Drawn("best_of_n", "What is the best of n worth?", caption, picture, numbers)]


def _draw(axes: Any, found: Sequence[Mapping[str, Any]], gold: bool) -> None:
    panels = list(axes.flatten())
    for axis, name, colour in zip(panels, ("proxy", "oracle"), (style.ORANGE, style.BLUE)):
        shown = [point for point in found if point.get(name) is not None]
        places = [point["kl"] for point in shown]
        axis.plot(places, [point[name] for point in shown], color=colour, marker="o", label=name, zorder=3)
        ends = [(point["kl"], point[f"{name}_low"], point[f"{name}_high"]) for point in shown]
        known = [end for end in ends if end[1] is not None and end[2] is not None]
        if known:
            axis.fill_between(*zip(*known), color=colour, alpha=0.16, linewidth=0)
        axis.set_title("The model's own score of its choice" if name == "proxy" else "The true score of the choice")
        axis.set_xlabel("Divergence from the policy, nats (below: n)")
        axis.set_xticks(places, [f"{point['kl']:.2f}\n{point['n']}" for point in shown], fontsize=8)
        axis.set_xlim(places[0] - 0.05 * places[-1], places[-1] * 1.05)
    if gold:
        last = panels[1]
        for name, line, label in (("oracle_best", (0, (4, 3)), "best of them"), ("oracle_mean", (0, (1, 2)), "random")):
            drawn = [(point["kl"], point[name]) for point in found if point.get(name) is not None]
            last.plot(*zip(*drawn), color=style.MUTED, linestyle=line, linewidth=1.2, label=label) if drawn else None
        last.legend(loc="best")
