"""The report of a run: one HTML file that needs nothing beside it, for a person who was not there.

It is made from the files of the run folder alone, so it can be made again at any time, also of a run that is still
going. Everything that came out of a file is escaped.
"""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import comparison as comparison_of_rows
from gramjax.core import goodput, repeated
from gramjax.core.errors import UserError
from gramjax.core.writer import duration
from gramjax.plots import (
    adaptation,
    benchmarks,
    best_of_n,
    files,
    preference,
    repeats,
    rollouts,
    rounds,
    rounds_page,
    training,
)
from gramjax.plots.files import RunFiles
from gramjax.plots.page import STYLE, card, e, link, percent, picture, table
from gramjax.plots.style import Drawn


def write_report(run_folder: str | Path, other: str | Path | None = None, output: str | Path | None = None) -> Path:
    """Write `RUN/report.html` (or `output`), with the figures also in `RUN/plots/`; returns its path.

    With a second run the report compares the two. Without matplotlib the report is written with tables only and says
    so. Raises UserError when a folder holds no run, DataError for a broken file in it.
    """
    run = files.read_run(run_folder)
    second = None if other is None else files.read_run(other)
    if second is not None and (run.rounds is None) != (second.rounds is None):
        recipe, single = (run, second) if second.rounds is None else (second, run)
        raise UserError(f"{recipe.folder} holds a recipe and {single.folder} a single run; compare two of one kind")
    missing = ""
    drawn: list[Drawn] = []
    try:
        drawn = draw(run, second)
    except UserError as error:
        missing = str(error)
    page = Path(output) if output else run.folder / "report.html"
    text = render(run, drawn, second, missing, page.parent)
    new = page.with_name(page.name + ".new")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(text, "utf-8")
    new.replace(page)
    return page


def draw(run: RunFiles, second: RunFiles | None = None, folder: Path | None = None) -> list[Drawn]:
    """Write every figure that the files of a run allow to `plots/`, with the numbers behind each beside it."""
    folder = folder or run.folder / "plots"
    drawn: list[Drawn | None] = []
    if second is not None:
        drawn.append(training.overlay(run.entries, second.entries, folder, two_names(run, second)))
        if run.rounds is not None and second.rounds is not None:
            drawn.append(rounds.overlay(run.rounds, second.rounds, folder, two_names(run, second)))
    if run.rounds is not None:
        drawn += rounds.draw_all(run.rounds, folder)
    drawn += adaptation.draw_all(run.rounds, folder) + best_of_n.draw_all(run.evals, folder)
    drawn += rollouts.draw_all(run, folder) + repeats.draw_all(run.evals, folder)
    for name, rows in run.rows.items():
        if rows and "probability" in rows[0]:
            target = folder if name == "preference" else folder / name
            drawn += preference.draw_all(rows, run.evals[name], target, optimum(run.config))
            drawn.append(benchmarks.matrix(run.evals[name], target))
    for name, phase in run.phases.items():
        drawn.append(training.curves(phase.entries, folder, name))
    drawn.append(training.curves(run.entries, folder, title="Training, last phase" if run.phases else "Training"))
    return [figure for figure in drawn if figure is not None]


def optimum(config: Mapping[str, Any]) -> float | None:
    """The finite margin at which a label-smoothed loss is smallest, log((1 - eps) / eps); None without smoothing."""
    objective = config.get("objective") or {}
    eps = objective.get("label_smoothing") or 0.0
    if objective.get("smoothing_convention") == "uniform":
        eps /= 2
    return math.log((1 - eps) / eps) if 0 < eps < 0.5 else None


def two_names(run: RunFiles, second: RunFiles) -> tuple[str, str]:
    """Names that tell two runs apart."""
    return (run.name, second.name) if run.name != second.name else (str(run.folder), str(second.folder))


# --- HTML


def render(run: RunFiles, drawn: Sequence[Drawn], second: RunFiles | None, missing: str, beside: Path) -> str:
    """The whole page."""
    title = files.config_name(run) or run.name
    state = '<span class="badge">done</span>' if run.done else '<span class="badge open">not finished</span>'
    if not run.entries and run.rounds is None:
        state = ""
    parts = [
        f"<h1>{e(title)}{state}</h1>",
        f'<p class="muted">{e(str(run.folder))} · report of {time.strftime("%Y-%m-%d %H:%M")}</p>',
        "" if run.rounds is None else rounds_page.headline(run.rounds),
        rollouts.headline(run),
        "".join(headline(results) for results in run.evals.values()),
        what_ran(run),
        comparison(run, second) if second is not None else "",
    ]
    if missing:
        parts.append(f"<h2>Figures</h2><p>There are none: {e(missing)}</p>")
    if drawn:
        pictures = "".join(picture(figure, beside) for figure in drawn)
        parts.append(f'<h2>Figures</h2><div class="figures">{pictures}</div>')
    if run.rounds is not None:
        parts.append(rounds_page.sections(run.rounds))
    parts += [adaptation.sections(run.rounds), best_of_n.sections(run.evals), rollouts.sections(run)]
    parts += [training_table(run), times(run), evaluation(run), data(run), environment(run), where(run, beside)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{e(title)} · gramjax</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def headline(results: Mapping[str, Any]) -> str:
    """The cards on top: what the run is worth."""
    if repeats.is_repeated(results):
        return repeats.headline(results)
    if "accuracy" not in results:
        return ""
    low, high = results.get("accuracy_low"), results.get("accuracy_high")
    count = f"{e(results['num_lists'])} lists" if "num_lists" in results else f"{e(results.get('num_pairs'))} pairs"
    note = f"95 % interval {percent(low)} to {percent(high)}, {count}"
    cards = [card("Accuracy", percent(results["accuracy"]), note), benchmarks.cards(results)]
    if results.get("swap_consistency") is not None:
        cards.append(card("Swap consistency", percent(results["swap_consistency"]), "same answer in both orders"))
    if results.get("position_bias") is not None:
        note = "0: none; +1: always the first answer"
        cards.append(card("Position bias", f"{results['position_bias']:+.3f}", note))
    if results.get("ece") is not None:
        before = results.get("ece_one_order")
        note = f"one order alone: {before:.3f}" if before is not None else "0: as often right as it says"
        cards.append(card("Calibration error", f"{results['ece']:.3f}", note))
    if results.get("mean_reward") is not None:
        note = f"rewards from {e(results.get('min_reward'))} to {e(results.get('max_reward'))}"
        cards.append(card("Margin", e(results.get("margin")), note))
    return f'<div class="cards">{"".join(cards)}</div>'


def what_ran(run: RunFiles) -> str:
    """Command, method and the settings that were changed on the command line."""
    command = [str(word) for word in run.environment.get("command") or []]
    if command:
        command[0] = Path(command[0]).name.replace("__main__.py", "gramjax")
    objective = run.config.get("objective") or {}
    stages = [*run.phases.values(), run] if run.phases else [run]
    methods = []
    for stage in stages:
        chosen = stage.config.get("objective") or {}
        label = " · ".join(str(v) for v in (chosen.get("name"), chosen.get("stage")) if v)
        if label:
            methods.append(label)
    facts = [("method", " → ".join(methods))] if methods else []
    facts += [("label smoothing", objective["label_smoothing"])] if objective.get("label_smoothing") else []
    flat = files.flat(run.config)
    for name, setting in (
        ("start weights" if run.entries else "model", "model.path"),
        ("training rows", "data.train"),
        ("held-out rows", "data.valid"),
        ("judged rows", "data.path"),
        ("recipe", "recipe.name"),
        ("rows with rationales", "recipe.rationales"),
        ("labelled rows", "recipe.labelled"),
        ("unlabelled rows", "recipe.unlabelled"),
        ("seed", "seed"),
    ):
        value = flat.get(setting)
        if value not in (None, "", [], ()):
            facts.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    facts += [(f"config.{k}", f"{v} (command line)") for k, v in files.flat(run.overrides).items()]
    shown = f"<pre>{e(shlex.join(command))}</pre>" if command else ""
    return f"<h2>What ran</h2>{shown}{table(('setting', 'value'), facts)}" if shown or facts else ""


def training_table(run: RunFiles) -> str:
    """First, middle and last log events of every phase."""
    out = []
    names = ("step", "epoch", "loss", "accuracy", "margin", "learning_rate", "num_tokens", training.SPEED)
    heads = {"learning_rate": "learning rate", "num_tokens": "tokens", training.SPEED: "tokens / s / device"}
    for name, phase in [*run.phases.items(), ("", run)]:
        logged = [entry for entry in phase.entries if "loss" in entry]
        if not logged:
            continue
        places = sorted({round(i * (len(logged) - 1) / 5) for i in range(6)})
        columns = [n for n in names if any(n in logged[p] for p in places)]
        rows = [[logged[p].get(n) for n in columns] for p in places]
        title = f"<h3>Phase {e(name)}</h3>" if name else ("<h3>Last phase</h3>" if run.phases else "")
        out.append(title + table([heads.get(n, n) for n in columns], rows))
    return f"<h2>Training</h2>{''.join(out)}" if out else ""


def times(run: RunFiles) -> str:
    """Where the wall time of every phase went, over all its starts, and how many steps were bad."""
    out = []
    for name, phase in [*run.phases.items(), ("", run)]:
        rows = goodput.table(phase.entries)
        if not rows:
            continue
        last = next(entry for entry in reversed(phase.entries) if f"{goodput.PREFIX}share" in entry)
        title = f"<h3>Phase {e(name)}</h3>" if name else ("<h3>Last phase</h3>" if run.phases else "")
        starts = int(last.get(f"{goodput.PREFIX}starts") or 1)
        bad = int(sum(entry.get("bad_steps") or 0 for entry in phase.entries))
        notes = [f"{starts} starts"] * (starts > 1) + [f"{bad} bad steps were skipped"] * (bad > 0)
        note = f"<p>{e(', '.join(notes))}</p>" if notes else ""
        out.append(title + note + table(("time in", "", "share"), [(what, duration(s), f"{share:.1%}")
                                                                  for what, s, share in rows]))  # fmt: skip
    return f"<h2>Where the time went</h2>{''.join(out)}" if out else ""


def evaluation(run: RunFiles) -> str:
    """All numbers of every eval, its tables by subset and length, and its most confident mistakes."""
    out = []
    for name, results in run.evals.items():
        out.append(f"<h2>Evaluation: {e(name)}</h2>")
        numbers = [(k, v) for k, v in results.items() if v is None or isinstance(v, int | float | str)]
        half = -(-len(numbers) // 2)
        pairs = [(*numbers[i], *(numbers[i + half] if i + half < len(numbers) else ("", ""))) for i in range(half)]
        out.append(table(("metric", "value", "metric", "value"), pairs))
        out += [benchmarks.sections(results), repeats.sections(results)]
        out += [f"<p>{e(note)}</p>" for note in (results.get("notes") or {}).values()]
        heads = ("pairs", "right", "ties", "accuracy", "95 % interval")
        groups = results.get("subsets") or {}
        if len(groups) > 1:
            out.append("<h3>By subset</h3>" + table(("subset", *heads), [(k, *_group(g)) for k, g in groups.items()]))
        buckets = results.get("length_buckets") or []
        if buckets:
            unit = "relative length" if buckets[0].get("unit") != "characters" else "characters"
            first = f"chosen longer by ({unit})"
            rows = [(preference.bucket_label(b), *_group(b)) for b in buckets]
            out.append("<h3>By length difference</h3>" + table((first, *heads), rows))
        out.append(mistakes(run.rows.get(name) or []))
    return "".join(out)


def _group(group: Mapping[str, Any]) -> tuple[Any, ...]:
    interval = f"{percent(group['low'])} to {percent(group['high'])}"
    return group["num_pairs"], group["num_correct"], group["ties"], percent(group["accuracy"]), interval


def mistakes(rows: Sequence[Mapping[str, Any]], most: int = 5) -> str:
    """The pairs that the model got wrong with most confidence."""
    wrong = [r for r in rows if r.get("probability") is not None and not r.get("correct")]
    wrong = sorted(wrong, key=lambda r: r["probability"])[:most]
    if not wrong:
        return ""
    cells = [(r["id"], r["subset"] or None, percent(r["probability"]), r["margin"], r.get("num_tokens")) for r in wrong]
    head = ("id", "subset", "probability of the chosen answer", "margin", "tokens")
    return "<h3>Most confident mistakes</h3>" + table(head, cells)


def data(run: RunFiles) -> str:
    """Rows, examples, and what was left out and why, for training and for each evaluation."""
    out = []
    for name, phase in [*run.phases.items(), ("", run)]:
        counts = phase.data
        if counts:
            label = f"phase {name}" if name else "training"
            dropped = counts.get("dropped") or {}
            lost = [(reason, found[0], found[1]) for reason, found in dropped.items()]
            out.append(f"<p>{e(label)}: {e(counts.get('rows'))} rows, {e(counts.get('examples'))} examples.</p>")
            out.append(table(("left out because", "rows", "first"), lost))
    for name, results in run.evals.items():
        total = results.get("num_pairs", results.get("num_rows"))
        unread = sum(found["count"] for found in (results.get("dropped_rows") or {}).values())
        text = f"{e(name)}: {e(total)} used, {e((results.get('num_skipped') or 0) + unread)} left out"
        text += f", {e(results['num_shortened'])} shortened to fit" if results.get("num_shortened") else ""
        out.append(f"<p>{text}.</p>")
        skipped = (results.get("dropped_rows") or {}) | (results.get("skipped") or {})
        lost = [(reason, found["count"], found["first"]) for reason, found in skipped.items()]
        out.append(table(("left out because", "rows", "first"), lost))
    return f"<h2>Data</h2>{''.join(out)}" if out else ""


def environment(run: RunFiles) -> str:
    """Versions and devices."""
    known = run.environment
    if not known:
        return ""
    rows = [(k, known[k]) for k in ("gramjax", "commit", "python", "system", "cpus") if known.get(k)]
    devices = known.get("devices") or {}
    if devices:
        rows.append(("devices", f"{devices.get('count')} × {devices.get('kind')} ({devices.get('backend')})"))
    rows += [(name, version) for name, version in (known.get("versions") or {}).items() if version]
    rows += [(name, value) for name, value in (known.get("variables") or {}).items()]
    return f"<h2>Environment</h2>{table(('', ''), [(k, str(v)) for k, v in rows])}"


def where(run: RunFiles, beside: Path) -> str:
    """Links to what the run left."""
    names = (
        "config.json", "overrides.json", "env.json", "data.json", "metrics.jsonl", files.ROUNDS, "steps", "eval",
        "plots", "checkpoints",
    )  # fmt: skip
    found = [run.folder / name for name in names if (run.folder / name).exists()]
    found += sorted((run.folder / "eval").glob("*.json*"))
    return "<h2>Files</h2><p>" + " · ".join(link(path, beside) for path in found) + "</p>" if found else ""


def comparison(run: RunFiles, second: RunFiles) -> str:
    """Both runs beside each other, and the paired difference of their accuracies on the pairs that both judged."""
    names, verdicts = two_names(run, second), compared(run, second)
    out = ["<h2>Comparison</h2>"]
    for name in run.evals.keys() & second.evals.keys():
        one, two = run.evals[name], second.evals[name]
        keys = [k for k in one if k in two and isinstance(one[k], int | float) and isinstance(two[k], int | float)]
        if said := verdicts.get(name):
            out.append(f"<p><b>{e(name)}</b>: {e(said)}.</p>")
        keys = [k for k in keys if not k.endswith(("_low", "_high")) and k not in ("step", "accuracy_micro")]
        rows = [(k, float(one[k]), float(two[k]), float(one[k]) - float(two[k])) for k in keys]
        out.append(table(("metric", *names, "difference"), rows))
    if run.rounds is not None and second.rounds is not None:
        out.append(rounds_page.comparison(run.rounds, second.rounds, names))
    before, after = files.flat(run.config), files.flat(second.config)
    changed = [(k, before.get(k), after.get(k)) for k in {**before, **after} if before.get(k) != after.get(k)]
    shown = [(f"config.{k}", str(a), str(b)) for k, a, b in changed]
    out.append("<h3>Settings that differ</h3>" + (table(("setting", *names), shown) or "<p>None.</p>"))
    return "".join(out)


def compare_runs(run_folder: str | Path, other: str | Path) -> dict[str, str]:
    """`compared` of two folders."""
    return compared(files.read_run(run_folder), files.read_run(other))


def compared(run: RunFiles, second: RunFiles) -> dict[str, str]:
    """By eval that both runs have: the paired difference of their accuracies (by repeats, of avg@k) in words."""
    out = {}
    for name in run.evals:
        if name in second.evals:
            one, two = run.rows.get(name) or [], second.rows.get(name) or []
            if all(rows and "verdicts" in rows[0] for rows in (one, two)):
                by_repeats = repeated.compare_rows(one, two)
                if by_repeats is not None:
                    other = repeats.unlike(run.evals[name], second.evals[name])
                    asked = f"; not asked in the same way: {other}" if other else ""
                    out[name] = by_repeats.said(*two_names(run, second)) + asked
                continue
            found = comparison_of_rows.compare(one, two)
            if found is not None:
                unit = "lists" if "num_lists" in run.evals[name] else "pairs"
                out[name] = found.said(*two_names(run, second), unit=unit)
    return out
