"""How alike the attention of the layers is, what it costs when one shares, and which were chosen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots import style
from gramjax.plots.style import Drawn

NAMES = {"js_same_index": "same head", "js_matched": "best matching of heads"}
COSTS = {"sensitivity_share": "shared as it is", "sensitivity_calibrated": "calibrated"}


def draw(found: Mapping[str, Any], tables: Mapping[str, Any], folder: Path) -> Iterator[Drawn]:
    """Write `similarity.png` and `similarity.csv` (a row per layer) from what `layers.json` says, and, where the matrix
    of all pairs of layers was made, `similarity_matrix.csv`."""
    scores, chosen = found["scores"], found["layers"]
    count = len(scores["js_matched"])
    rows = [{"layer": layer, **{name: values[layer] for name, values in scores.items()}, "chosen": int(layer in chosen)}
            for layer in range(count)]  # fmt: skip
    numbers = style.write_table(folder / "similarity.csv", rows)
    matrix = tables.get("matrix")
    if matrix is not None:
        names = [str(layer) for layer in range(count)]
        lines = [{"layer": name, **dict(zip(names, map(float, line)))} for name, line in zip(names, matrix)]
        style.write_table(folder / "similarity_matrix.csv", lines)
    costs = [name for name in COSTS if name in scores]
    wide = min(max(0.3 * count + 2.5, 5.5), 14.0)
    panels = 2 if costs else 1
    ratios = ((1.0, 1.15) if matrix is not None else (1.0,))[::-1]
    picture = style.figure(
        _draw, folder / "similarity.png", (wide * sum(ratios), 2.7 * panels), scores, chosen, matrix, costs,
        found["max_js"], nrows=panels, ncols=len(ratios), squeeze=False, width_ratios=ratios,
    )  # fmt: skip
    caption = (
        "Jensen-Shannon divergence of the attention of each layer from that of the layer before it, by the number of "
        f"the head and after the best matching of heads; a layer is a candidate below {found['max_js']:g} nats. "
        + ("Below, how much the loss rises when that layer alone shares. " if costs else "")
        + ("Beside it, all pairs of layers. " if matrix is not None else "")
        + f"Marked: the layers chosen by {found['rule']}."
    )
    yield Drawn("similarity", "Similarity of attention", caption, picture, numbers)


def _draw(
    axes: Any, scores: Mapping[str, Sequence[float | None]], chosen: Sequence[int], matrix: Any, costs: Sequence[str],
    max_js: float,
) -> None:  # fmt: skip
    count = len(scores["js_matched"])
    layers = range(1, count)
    top = axes[0][0]
    for (name, label), colour in zip(NAMES.items(), (style.ORANGE, style.BLUE)):
        top.plot(layers, [scores[name][layer] for layer in layers], marker="o", ms=4, color=colour, label=label)
    top.axhline(max_js, color=style.MUTED, lw=1, ls="--")
    top.set_title("Divergence from the layer before")
    top.set_ylabel("nats")
    top.set_ylim(bottom=0)
    _mark(top, chosen)
    top.legend()
    bottom = axes[-1][0]
    if costs:
        width = 0.8 / len(costs)
        for place, (name, colour) in enumerate(zip(costs, (style.ORANGE, style.BLUE))):
            at = [layer + (place - (len(costs) - 1) / 2) * width for layer in layers]
            bottom.bar(at, [scores[name][layer] for layer in layers], width, color=colour, label=COSTS[name])
        bottom.set_title("Rise of the loss when it alone shares")
        bottom.set_ylabel("nats per token")
        bottom.axhline(0, color=style.MUTED, lw=0.8)
        bottom.set_ylim(top=bottom.get_ylim()[1] * 1.3)  # room for the legend
        _mark(bottom, chosen)
        bottom.legend()
    step = max(1, count // 16)
    for axis in (top, bottom):
        axis.set_xticks(range(1, count, step))
        axis.set_xlim(0.4, count - 0.4)
    bottom.set_xlabel("layer (shaded: chosen)")
    if matrix is not None:
        _draw_matrix(axes[:, 1], matrix, chosen)


def _mark(axis: Any, chosen: Sequence[int]) -> None:
    for layer in chosen:
        axis.axvspan(layer - 0.5, layer + 0.5, color=style.SKY, alpha=0.18, lw=0, zorder=0)


def _draw_matrix(column: Any, matrix: Any, chosen: Sequence[int]) -> None:
    """One picture over the whole column of panels: a layer in each row, boxed where it meets the one it would share."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    first = column[0]
    grid = first.get_subplotspec().get_gridspec()
    for axis in column[1:]:
        axis.remove()
    first.set_subplotspec(grid[:, 1])
    shades = LinearSegmentedColormap.from_list("layers", ["#00263f", style.BLUE, style.SKY, "#f7f9fc"])
    image = first.imshow(matrix, cmap=shades, vmin=0.0, interpolation="nearest")
    for layer in chosen:
        first.add_patch(Rectangle((layer - 1.5, layer - 0.5), 1, 1, fill=False, lw=2, edgecolor=style.RED, zorder=3))
    first.grid(False)
    step = max(1, len(matrix) // 16)
    first.set_xticks(range(0, len(matrix), step))
    first.set_yticks(range(0, len(matrix), step))
    first.set_title("All pairs of layers, same head")
    first.set_xlabel("layer (boxed: a chosen one and the layer it shares)")
    first.figure.colorbar(image, ax=first, fraction=0.046, pad=0.03, label="nats")
