"""Task adaptation (GRAM, arXiv 2506.14175): how many labels of a new task does a model need, by where it starts?

Each start (a language model, a judge trained without stage 1, GRAM's foundation model ...) is tuned on N labelled pairs
of the task, for every budget N and seed, and judges the same held-out pairs; with budget 0 it judges as it is. The
subsets of one seed are nested: a larger budget adds labels and takes none away.

    s0-64           the 64 pairs of seed 0
    gram-0          the start `gram` as it is
    gram-64-s0      the start `gram` tuned on them, with its evaluation
"""

import copy
import dataclasses
import json
import math
import re
import statistics as plain_statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.core import row_log, statistics
from gramjax.core.errors import UserError
from gramjax.core.recipe import Step

EVAL = "preference"


@dataclasses.dataclass(frozen=True)
class Config:
    """Task, starts, budgets and seeds. `config.phases.NAME`: what differs in the tuning of the start NAME."""

    rows: str = ""
    """Labelled pairs of the task, from which the subsets are drawn; held-out pairs are `config.data.valid`."""
    starts: tuple[str, ...] = ()
    """Where the tunings begin, each `name:path` (a run or Hugging Face folder); `name:` is config.model as it is."""
    budgets: tuple[int, ...] = (0, 1000, 3000, 5000, 7000, 10000)
    """Labelled pairs per tuning, increasing; 0: judge without tuning."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of subsets and tunings."""
    most_steps: int = 0
    """Most steps of a tuning, where `config.train.epochs` would take more; 0: no bound."""


def named(starts: Iterable[str]) -> dict[str, str]:
    """Paths by name of the start. Raises UserError for what is no `name:path`."""
    out: dict[str, str] = {}
    for start in starts:
        name, colon, path = start.partition(":")
        if not colon or not re.fullmatch(r"\w+", name):
            raise UserError(f"config.recipe.starts has {start!r}; each is name:path, the name of letters and digits")
        if name in out:
            raise UserError(f"config.recipe.starts has two called {name!r}")
        out[name] = path
    return out


def check(config: Any, own: Config) -> None:
    """Raise UserError for settings that make no curve."""
    starts = named(own.starts)
    if not own.rows or not starts:
        name = "starts" if own.rows else "rows"
        raise UserError(f"config.recipe.{name} is empty; give the labelled pairs of the task (rows) and the starts")
    if list(own.budgets) != sorted(set(own.budgets)) or not own.budgets or own.budgets[0] < 0 or own.budgets[-1] < 1:
        raise UserError(f"config.recipe.budgets={own.budgets} must increase from 0 or more")
    if not own.seeds or len(set(own.seeds)) < len(own.seeds) or min(own.seeds) < 0:
        raise UserError(f"config.recipe.seeds={own.seeds} must be different numbers, 0 or more")
    if own.most_steps < 0:
        raise UserError(f"config.recipe.most_steps={own.most_steps} must not be negative")
    if own.most_steps and config.train.steps:
        raise UserError("config.recipe.most_steps bounds config.train.epochs; with config.train.steps it has no use")
    if len(config.data.valid) != 1:
        raise UserError(f"config.data.valid has {len(config.data.valid)} sources; give one file of held-out pairs")
    if set(config.evals) != {EVAL} or not config.train.evaluate:
        raise UserError(f"config.evals of this recipe is {EVAL}, and config.train.evaluate True")
    if unknown := sorted(set(config.phases) - set(starts)):
        raise UserError(f"config.phases.{unknown[0]}: the phases of this recipe are its starts, {', '.join(starts)}")
    if bare := [name for name, path in starts.items() if not (path or config.model.path) and own.budgets[0] == 0]:
        raise UserError(f"config.recipe.budgets: the start {bare[0]!r} has no weights; leave out budget 0")


def steps(config: Any, workdir: Path) -> list[Step]:
    """Starts as they are, then the subsets, then the tunings, small budgets first."""
    own = configs.section(config.recipe, Config, "recipe")
    check(config, own)
    starts = named(own.starts)
    out: list[Step] = []

    def add(name: str, verb: str, step: ConfigDict) -> str:
        out.append(Step(f"{len(out):03d}-{name}", verb, step))
        return str(workdir / "steps" / out[-1].name)

    tuned = [budget for budget in own.budgets if budget]
    for name, path in starts.items() if own.budgets[0] == 0 else ():
        add(f"{name}-0", "evaluate", _judging(config, path))
    subsets = {}
    for budget in tuned:
        for seed in own.seeds:
            folder = add(f"s{seed}-{budget}", "select_data", _subset(config, own, budget, seed))
            subsets[budget, seed] = str(Path(folder) / row_log.ROWS)
    for budget in tuned:
        for seed in own.seeds:
            for name, path in starts.items():
                add(f"{name}-{budget}-s{seed}", "train",
                    _tuning(config, own, name, path, subsets[budget, seed], budget, seed))  # fmt: skip
    return out


def _begin_at(config: ConfigDict, folder: str) -> None:
    """Let a step take the weights of a run or folder; an empty name leaves config.model as it is."""
    if folder:
        config.model.path, config.model.step, config.model.random_weights = folder, 0, False
        config.model.arch = configs.as_config(configs.plugins.load("models", config.model.kind).Config())


def _judging(config: Any, path: str) -> ConfigDict:
    """A start judges the held-out pairs as it is."""
    step = configs.for_rows("evaluate", ("model", "tokenizer", "data", "mesh", "log"))
    for section in ("model", "tokenizer", "data", "mesh", "log"):
        step[section] = copy.deepcopy(config[section])
    step.evals, step.seed = copy.deepcopy(config.evals), config.seed
    step.data.path, step.data.train, step.data.valid = config.data.valid[0], (), ()
    _begin_at(step, path)
    return step


def _subset(config: Any, own: Config, budget: int, seed: int) -> ConfigDict:
    step = configs.for_rows("select_data", ("data",))
    step.data = copy.deepcopy(config.data)
    step.data.path, step.data.train, step.data.valid, step.seed = own.rows, (), (), seed
    configs.with_plugin(step, "selection", "selection/rows", "nested_subset")
    step.selection.size = budget
    return step


def _tuning(config: Any, own: Config, name: str, path: str, rows: str, budget: int, seed: int) -> ConfigDict:
    step = configs.defaults(config.objective.name)
    for section in (*configs.TRAINING, "objective", "evals"):
        step[section] = copy.deepcopy(config[section])
    step.seed, step.data.train, step.data.path = seed, (rows,), ""
    _begin_at(step, path)
    step.update(config.phases.get(name, ConfigDict()))
    needed = math.ceil(step.train.epochs * budget / step.train.batch_size)
    if own.most_steps and needed > own.most_steps:
        step.train.steps = own.most_steps
    return step


# -- what came out -----------------------------------------------------------------------------------------------------


def summarise(config: Any, workdir: Path) -> dict[str, Any]:
    """The curves as far as they are there: accuracy by start and budget, and the area under each."""
    own = configs.section(config.recipe, Config, "recipe")
    folders = {step.name.partition("-")[2]: workdir / "steps" / step.name for step in steps(config, workdir)}
    curves: list[dict[str, Any]] = []
    first: dict[int, dict[str, float]] = {}
    for name, path in named(own.starts).items():
        points, right = [], {}
        for budget in own.budgets:
            places = [f"{name}-0"] if budget == 0 else [f"{name}-{budget}-s{seed}" for seed in own.seeds]
            runs = {i: found for i, place in enumerate(places) if (found := _judged(folders[place]))}
            if runs:
                points.append(_point(budget, [own.seeds[i] if budget else None for i in runs], list(runs.values())))
                right[budget] = _right([folders[places[i]] for i in runs])
        curve = {"name": name, "path": path, "points": points}
        if curves:
            _compare(points, right, first)
        first = first if curves else right
        curves.append(curve | _areas(points, own))
    return {"recipe": "adaptation_curve", "budgets": list(own.budgets), "seeds": list(own.seeds), "curves": curves}


def _judged(folder: Path) -> dict[str, Any]:
    """The results of an evaluation; nothing before there are any."""
    path = folder / "eval" / f"{EVAL}.json"
    done = path.is_file() and ((folder / "DONE").exists() or not (folder / "checkpoints").exists())
    return json.loads(path.read_text("utf-8")) if done else {}


KEPT = ("accuracy", "num_pairs", "swap_consistency", "ece", "margin")
"""What is kept of an evaluation; `margin` is the mean logit (or difference of rewards) for the right answer."""


def _point(budget: int, seeds: Sequence[int | None], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One budget: the mean over the seeds. All seeds judge the same pairs, so the interval is that of one of them."""
    accuracies = [found["accuracy"] for found in results]
    pairs = min(found["num_pairs"] for found in results)
    low, high = statistics.wilson(plain_statistics.fmean(accuracies) * pairs, pairs)
    out = {
        "budget": budget,
        "accuracy": plain_statistics.fmean(accuracies),
        "accuracy_sd": plain_statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "low": low,
        "high": high,
        "num_pairs": pairs,
        "runs": [
            {"seed": seed, **{key: found.get(key) for key in KEPT}} for seed, found in zip(seeds, results, strict=True)
        ],
    }
    for name in ("swap_consistency", "margin"):
        if known := [found[name] for found in results if found.get(name) is not None]:
            out[name] = plain_statistics.fmean(known)
    return out


def _right(folders: Sequence[Path]) -> dict[str, float]:
    """How often each held-out pair was judged right, by id, over the seeds."""
    found: dict[str, list[bool]] = {}
    for folder in folders:
        for line in (folder / "eval" / f"{EVAL}.rows.jsonl").read_text("utf-8").split("\n"):
            if line:
                row = json.loads(line)
                found.setdefault(row["id"], []).append(bool(row["correct"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _compare(
    points: Sequence[dict[str, Any]], right: dict[int, dict[str, float]], first: dict[int, dict[str, float]]
) -> None:
    """Add to each point the paired difference to the first start, on the pairs that both judged."""
    for point in points:
        own, other = right[point["budget"]], first.get(point["budget"], {})
        both = [name for name in own if name in other]
        if both:
            found = statistics.paired_bootstrap([own[name] for name in both], [other[name] for name in both], 2000)
            point["minus_first"] = {"mean": found.mean, "low": found.low, "high": found.high, "num_pairs": len(both)}


def _areas(points: Sequence[dict[str, Any]], own: Config) -> dict[str, Any]:
    """Mean area over the seeds whose curve is whole, over both axes."""
    by_budget = {point["budget"]: {run["seed"]: run["accuracy"] for run in point["runs"]} for point in points}
    whole = [
        [by_budget[budget][seed if budget else None] for budget in own.budgets]
        for seed in own.seeds
        if all((seed if budget else None) in by_budget.get(budget, {}) for budget in own.budgets)
    ]
    if not whole or len(own.budgets) < 2:
        return {}
    out: dict[str, Any] = {"area_seeds": len(whole)}
    for scale in ("log", "linear"):
        values = [area(own.budgets, accuracies, scale) for accuracies in whole]
        out[f"area_{scale}"] = plain_statistics.fmean(values)
        out[f"area_{scale}_sd"] = plain_statistics.stdev(values) if len(values) > 1 else None
    return out


def area(budgets: Sequence[int], accuracies: Sequence[float], scale: str = "log") -> float:
    """Area under a curve by trapezoids, divided by its width: a mean accuracy.

    The axis is N (`linear`) or log(1 + N / N1) with N1 the smallest budget above 0 (`log`), which gives each doubling
    about the same room and the labels before N1 no more than that.
    """
    unit = min(budget for budget in budgets if budget)
    places = [math.log1p(budget / unit) if scale == "log" else float(budget) for budget in budgets]
    widths = [after - before for before, after in zip(places, places[1:])]
    heights = [(before + after) / 2 for before, after in zip(accuracies, accuracies[1:])]
    return sum(w * h for w, h in zip(widths, heights, strict=True)) / sum(widths)
