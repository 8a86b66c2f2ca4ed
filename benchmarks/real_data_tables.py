"""Print the tables of docs/results.md from the results of benchmarks/real_data.py.

python benchmarks/real_data_tables.py RESULTS.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def interval(numbers: dict[str, Any]) -> str:
    """Accuracy with its Wilson interval."""
    low, high = (numbers.get(k, numbers.get(f"accuracy_{k}")) for k in ("low", "high"))
    return f"{numbers['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def number(value: float | None, deviation: float | None = None) -> str:
    """A number with its deviation over seeds, or a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def best(results: dict[str, Any]) -> str:
    """The persona judges: ensembles tried on the validation part, and the held-out rows."""
    made = results["best"]
    final, gap = made["ensemble"], made["ensemble"]["minus_tfidf"]
    single = lambda names: ", ".join(f"{made['members'][name]['accuracy']:.3f}" for name in names)  # noqa: E731
    tried = [[label, interval(run), single(run["members"])] for label, run in made["validation"].items()]
    tried.append(["TF-IDF logistic regression", interval(made["validation_tfidf"]), ""])
    difference = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    rows = [
        [f"gramjax, ensemble `{made['chosen_on_validation']}`", interval(final), number(final["ece"]), difference],
        ["its members alone", single(final["members"]), "", ""],
        ["TF-IDF logistic regression", interval(made["tfidf"]), "", ""],
    ]
    judged = next(iter(made["validation"].values()))["num_pairs"]
    first = table(["ensemble", f"validation ({judged})", "its members alone"], tried)
    second = table(["judge", f"held out ({made['tfidf']['num_pairs']})", "ECE", "minus TF-IDF, paired"], rows)
    return f"{first}\n\n{second}"


def baselines(results: dict[str, Any]) -> str:
    """Baselines on every evaluation set."""
    names = list(next(iter(results["baselines"].values())))
    rows = [
        [name.replace("_", " "), str(found["longest"]["num_pairs"]), *(interval(found[n]) for n in names)]
        for name, found in results["baselines"].items()
    ]
    return table(["set", "pairs", *names], rows)


def start(results: dict[str, Any]) -> str:
    """Judges by start and training set, on every set."""
    sets = list(results["start"][0]["sets"])
    rows = []
    for run in results["start"]:
        label = f"{run['objective']}{', stage 1' if run['stage1'] else ''}, eps {run['smoothing']:g}"
        rows.append([run["start"], run["data"], label, *(interval(run["sets"][s]) for s in sets)])
    return table(["start", "trained on", "judge", *sets], rows)


def grid(results: dict[str, Any]) -> str:
    """Objective x stage 1 x smoothing, mean and deviation over seeds."""
    rows = []
    for c in results["grid_cells"]:
        rows.append(
            [
                c["data"],
                c["objective"],
                "yes" if c["stage1"] else "no",
                f"{c['smoothing']:g}",
                number(c["accuracy"], c["accuracy_sd"]),
                f"[{c['low']:.3f}, {c['high']:.3f}]",
                number(c.get("accuracy_one_order"), c.get("accuracy_one_order_sd")),
                number(c.get("swap_consistency"), c.get("swap_consistency_sd")),
                number(c["ece"], c["ece_sd"]),
                str(c["seeds"]),
            ]
        )
    head = ["set", "objective", "stage 1", "eps", "accuracy", "Wilson 95 %", "one order", "swap consistency", "ECE"]
    return table([*head, "seeds"], rows)


def longer(results: dict[str, Any]) -> str:
    """Cells of the grid with more steps."""
    rows = [
        [
            r["objective"],
            "yes" if r["stage1"] else "no",
            str(r["steps"]),
            interval(r),
            number(r.get("swap_consistency")),
        ]
        for r in results["longer"]
    ]
    return table(["objective", "stage 1", "steps", "accuracy", "swap consistency"], rows)


def main(argv: Sequence[str]) -> int:
    """Print every table that the results have."""
    results = json.loads(Path(argv[0]).read_text("utf-8"))
    for name, show in (("baselines", baselines), ("best", best), ("start", start), ("grid", grid), ("longer", longer)):
        if name in results:
            print(f"\n## {name}\n\n{show(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
