"""Repeated evaluation: how many problems are solved how often, and how much of the result is luck.

Made from `eval/NAME.json` of an eval with `histogram` and `avg@k`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots import style
from gramjax.plots.page import card, e, percent, table
from gramjax.plots.style import Drawn


def is_repeated(results: Mapping[str, Any]) -> bool:
    """Whether results are those of a repeated evaluation."""
    return "avg@k" in results and "histogram" in results


ASKED = ("sampling", "kind", "column", "after_think", "template", "distractor", "distractor_copies")
"""Settings that change what is asked, how it is answered, or what counts as right; others change the noise only."""


def unlike(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Settings that two evaluations do not share, in words: a difference may come from them and not from the models.

    Empty where they share all, or where one does not tell its settings.
    """
    first, second = (results.get("settings") or {} for results in (one, two))
    pairs = [(name, first[name], second[name]) for name in ASKED if name in first and name in second]
    flat = [
        (f"{name}.{key}", value, b.get(key)) if isinstance(a, Mapping) else (name, a, b)
        for name, a, b in pairs
        for key, value in (a.items() if isinstance(a, Mapping) else [("", None)])
    ]
    return ", ".join(f"{name} {a!r} and {b!r}" for name, a, b in flat if a != b)


def points(value: Any) -> str:
    """A standard error in points, `unknown` for None."""
    return "unknown" if value is None else f"{100 * value:.1f} points"


def headline(results: Mapping[str, Any]) -> str:
    """The cards on top."""
    k = results["k"]
    note = (
        f"{e(results['num_problems'])} problems; standard error {points(results.get('avg@k_sampling_error'))} by "
        f"drawing, {points(results.get('avg@k_question_error'))} by the choice of problems"
    )
    cards = [card(f"avg@{k}", percent(results["avg@k"]), note)]
    cards.append(card(f"maj@{k}", percent(results["maj@k"]), "the answer that most repeats give"))
    if results.get(f"pass@{k}") is not None:
        cards.append(card(f"pass@{k}", percent(results[f"pass@{k}"]), "one of the repeats is right"))
    if results.get("greedy_flip_rate") is not None:
        note = f"greedy verdict differs from most repeats; greedy alone: {percent(results.get('greedy_accuracy'))}"
        cards.append(card("Greedy flips", percent(results["greedy_flip_rate"]), note))
    note = f"of the problems, with {percent(results.get('uncertain_variance_share'))} of the noise"
    cards.append(card("Uncertain", percent(results["uncertain_share"]), note))
    return f'<div class="cards">{"".join(cards)}</div>'


def sections(results: Mapping[str, Any]) -> str:
    """The table by subset and the reasons of wrong answers; nothing for other evals."""
    if not is_repeated(results):
        return ""
    parts = [
        (name, part["num_problems"], percent(part["avg@k"]), points(part["sampling_error"]),
         points(part["standard_error"]))
        for name, part in (results.get("by_subset") or {}).items()
    ]  # fmt: skip
    heads = ("subset", "problems", "avg@k", "error by drawing", "error in all")
    reasons = [(reason, percent(share)) for reason, share in (results.get("reasons") or {}).items()]
    out = ["<h3>By subset</h3>" + table(heads, parts) if parts else ""]
    out.append("<h3>What replies end in</h3>" + table(("reason", "share of replies"), reasons) if reasons else "")
    return "".join(out)


def draw_all(evals: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Drawn]:
    """The histogram of every repeated evaluation with more than one repeat."""
    return [
        histogram(name, results, folder)
        for name, results in evals.items()
        if is_repeated(results) and results["k"] > 1
    ]  # fmt: skip


def histogram(name: str, results: Mapping[str, Any], folder: Path) -> Drawn:
    """Problems by the share of their repeats that are right, the uncertain ones marked."""
    bins = results["histogram"]
    numbers = style.write_table(folder / f"{name}_pass_rates.csv", bins)
    bounds = (results.get("settings") or {}).get("uncertain") or (0.25, 0.75)
    picture = style.figure(_draw, folder / f"{name}_pass_rates.png", (6.4, 3.7), bins, bounds, results)
    caption = (
        f"Problems by the share of {results['k']} answers that were right. Those in the shaded middle are a matter of "
        "luck: most of the difference between two evaluations of the same model comes from them."
    )
    return Drawn("pass_rates", "How often is a problem solved?", caption, picture, numbers)


def _draw(axis: Any, bins: Sequence[Mapping[str, Any]], bounds: Sequence[float], results: Mapping[str, Any]) -> None:
    axis.axvspan(*bounds, color=style.ORANGE, alpha=0.16, linewidth=0, label="uncertain")
    places, width = [entry["from"] for entry in bins], 1 / len(bins)
    counts = [entry["num_problems"] for entry in bins]
    axis.bar(places, counts, width * 0.92, align="edge", color=style.BLUE)
    axis.axvline(results["avg@k"], color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"avg@{results['k']}")
    axis.set_title(f"Pass rates of {results['num_problems']:,} problems")
    axis.set_xlabel("Share of answers that are right")
    axis.set_ylabel("Problems")
    axis.set_xlim(-0.01, 1.01)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    style.percent(axis.xaxis)
