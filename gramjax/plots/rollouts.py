"""Figures and tables of reinforcement learning: what the answers were worth, how long they were, what taught nothing.

Made from `metrics.jsonl`, `pass_rates.jsonl` and the tables of completions in `samples/`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError
from gramjax.plots import style
from gramjax.plots.files import RunFiles
from gramjax.plots.page import card, e, percent, table
from gramjax.plots.style import Drawn
from gramjax.plots.training import Entries, series, smooth

PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Reward", (("reward", "all rewards", style.BLUE), ("samples/correct", "share right", style.GREEN))),
    ("Tokens of an answer", (("completions/mean_length", "all", style.BLUE),
                             ("completions/mean_terminated_length", "those that ended", style.SKY))),
    ("Share of answers cut at the limit", (("completions/clipped_ratio", "cut", style.RED),)),
    ("Entropy (nats per token)", (("entropy", "entropy", style.PURPLE),)),
    ("Groups that teach nothing", (("frac_reward_zero_std", "equal rewards", style.INK),
                                   ("groups/easy", "all right", style.GREEN), ("groups/hard", "all wrong", style.RED))),
    ("Distance to the reference (KL, nats per token)", (("kl", "kl", style.ORANGE),)),
    ("Answers learned from", (("samples/trained", "share learned from", style.BLUE),
                              ("samples/correct", "share right", style.GREEN))),
)  # fmt: skip
"""Title and metrics (name, label, colour) of each panel; a panel without values is left out."""

BINS = 10


def is_run(run: RunFiles) -> bool:
    """Whether a run drew its own examples."""
    return any("reward" in entry for entry in run.entries)


def draw_all(run: RunFiles, folder: Path) -> list[Drawn]:
    """The figures of a run of reinforcement learning; none for another run."""
    if not is_run(run):
        return []
    rates = read_pass_rates(run.folder)
    return [figure for figure in (curves(run.entries, folder), histogram(rates, folder)) if figure is not None]


def curves(entries: Entries, folder: Path) -> Drawn:
    """Reward, lengths, entropy, dead groups, distance, and positive and negative samples by step."""
    panels = [(title, [line for line in lines if series(entries, line[0])[0]]) for title, lines in PANELS]
    panels = [(title, lines) for title, lines in panels if lines]
    names = list(dict.fromkeys(name for _, lines in panels for name, _, _ in lines))
    numbers = style.write_table(folder / "rollouts.csv", [{k: x.get(k) for k in ("step", *names)} for x in entries])
    rows = -(-len(panels) // 2)
    size = (9.2, 2.6 * rows)
    path = folder / "rollouts.png"
    picture = style.figure(_draw_curves, path, size, entries, panels, nrows=rows, ncols=2, squeeze=False)
    caption = ("Faint: every logged value; bold: their moving mean. Reward should rise while entropy stays above 0; "
               "groups of equal rewards teach nothing.")  # fmt: skip
    return Drawn("rollouts", "Rollouts", caption, picture, numbers)


def _draw_curves(axes: Any, entries: Entries, panels: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]) -> None:
    flat = axes.flatten()
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, lines) in zip(flat, panels):
        for name, label, colour in lines:
            steps, values = series(entries, name)
            if len(values) >= 20:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
                axis.plot(steps, smooth(values, max(len(values) // 15, 5)), color=colour, label=label)
            else:
                axis.plot(steps, values, color=colour, label=label, marker="o" if len(steps) == 1 else "")
        axis.set_title(title)
        axis.set_xlabel("Optimiser step")
        axis.set_xlim(0, None)
        if title.startswith(("Share", "Groups", "Answers")):
            axis.set_ylim(0, 1.02)
            style.percent(axis.yaxis)
        if len(lines) > 1:
            axis.legend(loc="best")


def read_pass_rates(folder: Path) -> list[tuple[int, list[float]]]:
    """(step, share of right answers of each prompt) of every rollout; the last line of a step counts.

    Raises DataError for a line that is broken, but for a last one that was cut.
    """
    path = folder / "pass_rates.jsonl"
    if not path.is_file():
        return []
    found: dict[int, list[float]] = {}
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[int(record["step"])] = [float(value) for value in record["rates"].values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path} line {number}: {error}") from None
    return sorted(found.items())


def histogram(rates: Sequence[tuple[int, Sequence[float]]], folder: Path) -> Drawn | None:
    """How the pass rates of prompts are spread, over time: dark rows are where most prompts are."""
    if len(rates) < 2:
        return None
    columns = [rates[round(i * (len(rates) - 1) / 59)] for i in range(60)] if len(rates) > 60 else list(rates)
    shares = [shares_of(values) for _, values in columns]
    rows = [{"step": step, **{f"{b / BINS:g}-{(b + 1) / BINS:g}": share[b] for b in range(BINS)}}
            for (step, _), share in zip(columns, shares)]  # fmt: skip
    numbers = style.write_table(folder / "pass_rates.csv", rows)
    picture = style.figure(_draw_histogram, folder / "pass_rates.png", (9.2, 3.2), [s for s, _ in columns], shares)
    caption = ("Prompts by their share of right answers. Those at 0 and at 1 teach nothing; those between are the "
               "uncertain ones that training moves.")  # fmt: skip
    return Drawn("pass_rates", "Pass rates of the prompts", caption, picture, numbers)


def shares_of(values: Sequence[float]) -> list[float]:
    """Share of values in each of `BINS` equal bins of [0, 1]."""
    counts = [0] * BINS
    for value in values:
        counts[min(int(value * BINS), BINS - 1)] += 1
    return [count / max(len(values), 1) for count in counts]


def _draw_histogram(axis: Any, steps: Sequence[int], shares: Sequence[Sequence[float]]) -> None:
    grid = [[column[b] for column in shares] for b in range(BINS)]
    picture = axis.imshow(grid, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1,
                          extent=(steps[0], steps[-1], 0, 1), interpolation="nearest")  # fmt: skip
    axis.grid(False)
    axis.set_xlabel("Optimiser step")
    axis.set_ylabel("Share of right answers")
    axis.figure.colorbar(picture, ax=axis, label="share of prompts")


def headline(run: RunFiles) -> str:
    """The cards on top: reward at the start and at the end, length, dead groups."""
    if not is_run(run):
        return ""
    cards = []
    for name, title, note in (
        ("reward", "Reward", "mean over all answers"), ("samples/correct", "Right answers", "of all drawn"),
        ("completions/mean_length", "Tokens of an answer", ""),
        ("frac_reward_zero_std", "Groups that teach nothing", "equal rewards"),
    ):  # fmt: skip
        _, values = series(run.entries, name)
        if values:
            shown = [percent(v) if name in ("samples/correct", "frac_reward_zero_std") else f"{v:.3g}" for v in values]
            cards.append(card(title, shown[-1], f"{note + ', ' if note else ''}at the start {shown[0]}"))
    return f'<div class="cards">{"".join(cards)}</div>'


def sections(run: RunFiles, most: int = 8) -> str:
    """A table of completions of the last rollout that was kept, with every reward."""
    files = sorted((run.folder / "samples").glob("step_*.parquet")) if is_run(run) else []
    if not files:
        return ""
    rows = read_table(files[-1])
    rewards = [name for name in rows[0] if name.startswith("rewards/")]
    chosen = [rows[round(i * (len(rows) - 1) / max(most - 1, 1))] for i in range(min(most, len(rows)))]
    shown = [
        (row["prompt"], row["completion"], *(row[name] for name in rewards), row["advantage"], row["length"],
         row["finish_reason"]) for row in chosen
    ]  # fmt: skip
    head = ("prompt", "completion", *(name.removeprefix("rewards/") for name in rewards), "advantage", "tokens", "end")
    return f"<h2>Completions at step {e(rows[0]['step'])}</h2>" + table(head, shown)


def read_table(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a table of completions."""
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()
