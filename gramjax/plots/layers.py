"""How specific each layer is to languages, and which were chosen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.layer_scores import NAMES
from gramjax.plots import style
from gramjax.plots.style import Drawn

TITLES = dict(zip(NAMES, (
    "Squared difference of activation probabilities", "Product of the differences in two halves",
    "Squared difference of the share of active neurons", "Squared deviation of the share of active neurons",
    "Squared deviation of the neurons active at a token",
    "Active neurons not in common", "Own active neurons not in common",
    "Language-specific neurons (LAPE)", "1 - language entropy",
), strict=True))  # fmt: skip


def draw(found: Mapping[str, Any], tables: Mapping[str, Any], folder: Path) -> Iterator[Drawn]:
    """Write `layers.png` and `layers.csv` (layer, language, value) from what `layers.json` says."""
    score, names = found["score"], found["languages"]
    others = [name for name in names if name != found["pivot"]]
    values = found["by_language"][score]
    if not any(any(line) for line in values):  # a score without parts by language
        values = found["by_language"]["msd_prob"]
    shown = [values[names.index(name)] for name in others]
    rows = [
        {"layer": layer, "language": name, score: line[layer], "chosen": int(layer in found["layers"])}
        for name, line in zip(others, shown) for layer in range(len(line))
    ]  # fmt: skip
    numbers = style.write_table(folder / "layers.csv", rows)
    layers = len(found["scores"][score])
    size = (min(max(0.32 * layers + 2.2, 5.5), 16.0), 2.6 + 0.3 * len(others))
    arguments = (found["scores"][score], shown, others, found["layers"], TITLES.get(score, score), found["pivot"])
    picture = style.figure(
        _draw, folder / "layers.png", size, *arguments, nrows=2, sharex=True,
        height_ratios=(1.6, 0.4 + 0.3 * len(others)),
    )  # fmt: skip
    caption = (
        f"Above, the score of each layer; below, what each language adds to it, against {found['pivot']}. "
        f"Boxed: the layers chosen by {found['rule']}."
    )
    yield Drawn("layers", "Layers by language", caption, picture, numbers)


def spans(layers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each group of neighbouring layers."""
    out: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if out and out[-1][1] == layer - 1:
            out[-1] = (out[-1][0], layer)
        else:
            out.append((layer, layer))
    return out


def _draw(
    axes: Any, scores: Sequence[float], by_language: Sequence[Sequence[float]], languages: Sequence[str],
    chosen: Sequence[int], title: str, pivot: str,
) -> None:  # fmt: skip
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    bars, heat = axes
    colours = [style.BLUE if layer in chosen else "#c3c8d0" for layer in range(len(scores))]
    bars.bar(range(len(scores)), scores, color=colours, width=0.8)
    bars.set_title(title)
    bars.set_ylabel("score")
    bars.grid(axis="x", visible=False)
    shades = LinearSegmentedColormap.from_list("layers", ["#f7f9fc", style.SKY, style.BLUE, "#00263f"])
    low = min(0.0, min(min(line) for line in by_language))
    image = heat.imshow(by_language, aspect="auto", cmap=shades, vmin=low, interpolation="nearest")
    for first, last in spans(chosen):
        heat.add_patch(Rectangle((first - 0.5, -0.5), last - first + 1, len(languages), fill=False, lw=2.2,
                                 edgecolor=style.RED, clip_on=False, zorder=3))  # fmt: skip
    heat.set_yticks(range(len(languages)), languages)
    heat.grid(False)
    step = max(1, len(scores) // 16)
    heat.set_xticks(range(0, len(scores), step))
    heat.set_xlabel(f"layer (boxed: chosen); each language against {pivot}")
    heat.figure.colorbar(image, ax=heat, pad=0.01, fraction=0.05)
