"""What a report shows of the rules of benchmarks: the matrix of RM-Bench as a picture, headline numbers, tables."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.plots import style
from gramjax.plots.page import card, e, percent, table
from gramjax.plots.style import Drawn

Results = Mapping[str, Any]
HEADLINES = {
    "rewardbench_official": "RewardBench",
    "rewardbench_reasoning_unweighted": "RewardBench, GRAM's weights",
    "rewardbench2_overall": "RewardBench 2",
    "rm_bench_overall": "RM-Bench",
    "judgebench_official": "JudgeBench",
    "judgebench_averaged": "JudgeBench, mean of the orders",
    "hhh_mean": "HHH-Alignment",
}


def cards(results: Results) -> str:
    """The headline numbers of the benchmark that the rows belong to."""
    out = []
    for name, title in HEADLINES.items():
        if results.get(name) is not None:
            low, high = results.get(f"{name}_low"), results.get(f"{name}_high")
            note = "" if low is None else f"95 % interval {percent(low)} to {percent(high)}"
            out.append(card(title, percent(results[name]), note))
    return "".join(out)


# -- RM-Bench as a picture


def matrix(results: Results, folder: Path) -> Drawn | None:
    """Accuracy of RM-Bench by style of the chosen and of the rejected answer, over all domains and for each."""
    found = results.get("rm_bench") or {}
    if "matrix" not in found:
        return None
    parts = [("all domains", found)] + [(name, part) for name, part in found["domains"].items()]
    styles = found["styles"]
    numbers = style.write_table(
        folder / "rm_bench.csv",
        [
            {"domain": name, "chosen": styles[i], "rejected": styles[j], "accuracy": part["matrix"][i][j]}
            for name, part in parts
            for i in range(3)
            for j in range(3)
        ],
    )
    size = (2.5 * len(parts) + 0.6, 3.6)
    picture = style.figure(_draw_matrix, folder / "rm_bench.png", size, parts, styles, ncols=len(parts), squeeze=False)
    caption = (
        "RM-Bench: percent of pairs that are right, by how the right answer is written (rows) and the wrong one "
        "(columns). Above the diagonal (hard) the wrong answer is the more elaborate one: a judge of style fails there "
        "and shines below it. Under each name: accuracy of the easy, normal and hard parts."
    )
    return Drawn("rm_bench", "Does style beat content?", caption, picture, numbers)


def _draw_matrix(axes: Any, parts: Sequence[tuple[str, Mapping[str, Any]]], styles: Sequence[str]) -> None:
    for number, (axis, (name, part)) in enumerate(zip(axes.flatten(), parts)):
        values = np.array(part["matrix"], np.float64)
        axis.imshow(values, cmap="RdBu", vmin=0, vmax=1)
        for i in range(3):
            for j in range(3):
                colour = "white" if abs(values[i, j] - 0.5) > 0.33 else style.INK
                axis.text(j, i, f"{100 * values[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=11)
        axis.set_xticks(range(3), styles, rotation=45, ha="right")
        axis.set_yticks(range(3), styles if number == 0 else [""] * 3)
        axis.set_title(f"{name}\n{part['easy']:.2f} · {part['normal']:.2f} · {part['hard']:.2f}", fontsize=10)
        axis.grid(visible=False)
        axis.tick_params(length=0)
        axis.set_xlabel("wrong answer" if number == 0 else "")
    axes.flatten()[0].set_ylabel("right answer")


# -- tables


def sections(results: Results) -> str:
    """The tables of the benchmark, and what the trivial judges achieve."""
    return "".join(_sections(results))


def _sections(results: Results) -> Iterator[str]:
    if found := results.get("rewardbench"):
        yield "<h3>RewardBench</h3>" + _missing(found["missing"])
        rules = (found["official"], found["reasoning_unweighted"])
        rows = [(name, *(_score(rule, name) for rule in rules)) for name in found["official"]["sections"]]
        overall = [_with(rule["overall"], rule["low"], rule["high"]) for rule in rules]
        yield table(("section", "official", "reasoning unweighted (GRAM)"), [*rows, ("overall", *overall)])
        if found["incomplete"]:
            parts = [f"{name} ({part['found']} of {part['expected']})" for name, part in found["incomplete"].items()]
            yield f"<p>Subsets with another number of rows than the benchmark: {e(', '.join(parts))}.</p>"
    if found := results.get("rewardbench2"):
        yield "<h3>RewardBench 2</h3>" + _missing(found["missing"])
        rows = [(name, part["num_lists"], _with(part["score"], part["low"], part["high"]))
                for name, part in found["subsets"].items()]  # fmt: skip
        yield table(("subset", "lists", "score"), rows)
        if found["ties"]:
            ties = {key: value for key, value in found["ties"].items() if isinstance(value, float | None.__class__)}
            yield table(("part of Ties", "value"), [(key.replace("_", " "), value) for key, value in ties.items()])
            if found["ties"]["unmatched"]:
                yield f"<p>Without their partner: {e(', '.join(found['ties']['unmatched'][:10]))}.</p>"
    if (found := results.get("rm_bench")) and found.get("domains"):
        yield "<h3>RM-Bench</h3>"
        levels = ("easy", "normal", "hard")
        rows = [(name, d["num_prompts"], _accuracy(d), *(percent(d[level]) for level in levels))
                for name, d in found["domains"].items()]  # fmt: skip
        mean = _with(found["overall"], found["low"], found["high"])
        rows.append(("mean", found["num_prompts"], mean, *(percent(found[level]) for level in levels)))
        yield table(("domain", "prompts", "accuracy", *levels), rows)
        yield f"<p>{percent(found['overall_safety_mean'])} if the two parts of safety are averaged and not pooled. "
        yield f"Prompts left out because a pair is missing: {e(found['num_incomplete'])}.</p>"
    if found := results.get("judgebench"):
        yield "<h3>JudgeBench</h3>"
        rules = (found["official"], found["averaged"])
        names = list(found["official"]["categories"])
        rows = [(name, *(_accuracy(rule["categories"][name]) for rule in rules)) for name in names]
        rows.append(("all pairs", *(_with(rule["micro"], rule["low"], rule["high"]) for rule in rules)))
        rows.append(("mean of the categories", *(percent(rule["macro"]) for rule in rules)))
        yield table(("category", "official (two games)", "mean of the orders"), rows)
        yield f"<p>Two different verdicts on {percent(found['inconsistent'])} of the pairs.</p>"
    if found := results.get("hhh"):
        yield "<h3>HHH-Alignment</h3>" + _missing(found["missing"])
        rows = [(name, part["num_pairs"], _accuracy(part)) for name, part in found["groups"].items()]
        rows.append(("mean", found["micro"]["num_pairs"], _with(found["mean"], found["low"], found["high"])))
        yield table(("group", "pairs", "accuracy"), rows)
    if found := results.get("trivial_judges"):
        yield "<h3>Judges that do not read</h3><p>What length alone or a coin achieves on the same rows.</p>"
        shown = [name for name in HEADLINES if any(judge.get(name) is not None for judge in found.values())]
        rows = [(name, _accuracy(judge), judge.get("ties"), *(percent(judge.get(key)) for key in shown))
                for name, judge in found.items()]  # fmt: skip
        yield table(("judge", "accuracy", "ties", *(HEADLINES[name] for name in shown)), rows)


def _missing(names: Sequence[str]) -> str:
    return f"<p>No overall score: there are no rows of {e(', '.join(names))}.</p>" if names else ""


def _with(value: float | None, low: float | None, high: float | None) -> str:
    """A share and its interval."""
    return percent(value) if value is None or low is None else f"{percent(value)} ({percent(low)} to {percent(high)})"


def _accuracy(part: Mapping[str, Any]) -> str:
    return _with(part["accuracy"], part["low"], part["high"])


def _score(rule: Mapping[str, Any], section: str) -> str:
    low, high = rule["section_intervals"].get(section, (None, None))
    if rule["sections"][section] is not None:
        return _with(rule["sections"][section], low, high)
    partial = rule["sections_of_what_is_there"].get(section)
    return "–" if partial is None else f"– ({percent(partial)} without the missing subsets)"
