"""Reward models on real preference data: judges and baselines, every number of docs/results.md.

GRAMJAX_DATA=FOLDER python benchmarks/real_data.py --out DIR [--quick] [--only best,start,grid,longer] [--json FILE]

best   persona: small Bradley-Terry judges from scratch that judge together; who sits in the ensemble is chosen on a
       part of the training rows; then the held-out rows, beside TF-IDF logistic regression on the same training rows
grid   persona from stories260K: objective x stage 1 x label smoothing, three seeds each
longer cells of the grid with 400 steps, seed 0
start  the generative judge in both stages from stories260K and from random weights, on all sets

Every run is `gramjax train` with a config that lies in DIR/configs, and `gramjax evaluate`. A run whose result is in
DIR/results is not made again. Splits: benchmarks/real_data_splits.py. Needs scikit-learn (extra `dev`), two CPU cores
and about half an hour; --quick takes a few minutes and its numbers mean nothing.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics as plain_statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import baselines
import real_data_splits as splits

from gramjax import cli
from gramjax.core import folder, judgements, runtime, statistics
from gramjax.core.config import defaults

SEEDS = (0, 1, 2)
SETS = ("persona", "hh_harmless")
GRID = ("persona",)
"""Sets of the grid: half an hour each on two cores."""
EVERYWHERE = ("persona_test", "hh_harmless_test", "llmbar_natural", "llmbar_neighbor", "pandalm")
KEPT = ("num_pairs", "num_correct", "accuracy", "accuracy_low", "accuracy_high", "accuracy_one_order",
        "swap_consistency", "position_bias", "ece", "brier")  # fmt: skip
JUDGE_PROMPT = "Pick."
OBJECTIVES = {"generative": "generative_preference", "bradley-terry": "bradley_terry"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done; `--quick` shrinks all of it."""

    seeds: tuple[int, ...] = SEEDS
    rows: int = 0
    """Rows per split; 0: all."""
    pretrain_steps: int = 40
    persona_steps: int = 60
    longer_steps: int = 400
    harmless_steps: int = 40
    grid_test: int = 300
    """Held-out rows that the runs of the grid are judged on."""
    everywhere_test: int = 100
    """Rows per set that the runs of `start` are judged on, at length 512."""


QUICK = Sizes((0,), 60, 2, 2, 3, 2, 20, 10)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One stage-2 training from stories260K or from random weights of the same shape."""

    data: str
    start: str
    objective: str
    stage1: bool
    smoothing: float
    seed: int
    steps: int = 0
    """0: those of `Sizes`."""

    @property
    def name(self) -> str:
        """The folder of the run."""
        stage = "stage1" if self.stage1 else "direct"
        longer = f"-steps{self.steps}" if self.steps else ""
        return f"{self.data}-{self.start}-{self.objective}-{stage}-eps{self.smoothing:g}-seed{self.seed}{longer}"


class Work:
    """Where everything lies, and how much of it is made."""

    def __init__(self, out: Path, data: Path, sizes: Sizes) -> None:
        self.out, self.data, self.sizes = out, data, sizes
        self.rows = out / "data"

    def source(self, name: str) -> tuple[str, ...]:
        """A split as `config.data.train` or `valid` wants it."""
        return (str(self.rows / f"{name}.jsonl"),)

    def train(self, name: str, config: Any) -> float:
        """`gramjax train` with this config; returns seconds (0 if it was done already)."""
        run = self.out / "runs" / name
        if (run / "DONE").exists():
            return 0.0
        path = self.out / "configs" / f"{name}.json"
        folder.write_json(path, folder.as_dict(config))
        started = time.perf_counter()
        call(["train", f"--config={path}", f"--workdir={run}"])
        return time.perf_counter() - started

    def result(self, name: str, make: Any) -> dict[str, Any]:
        """The result of a run: read, or made and written."""
        path = self.out / "results" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        found = {"name": name, **make(), "seconds": time.perf_counter() - started}
        folder.write_json(path, found)
        return found


def call(argv: list[str]) -> None:
    """One gramjax command in this process; stops the benchmark if it fails."""
    if code := cli.main(argv):
        raise SystemExit(f"gramjax {' '.join(argv)} ended with {code}")


def short(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation that are reported."""
    return {key: results[key] for key in KEPT if results.get(key) is not None}


def common(objective: str, seed: int) -> Any:
    """What all configs share."""
    config = defaults(objective, evals=("preference",))
    config.seed = seed
    config.tokenizer.chat_template = "none"
    config.data.judge_prompt = JUDGE_PROMPT
    config.data.max_overlong_share = 1.0
    config.train.remat = "none"
    config.train.log_every = 20
    config.train.keep = 1
    config.log.tensorboard = False
    config.evals.preference.batch_size = 64
    return config


# -- the best judge on persona ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """A small scalar judge."""

    layers: int = 2
    width: int = 64
    vocabulary: int = 2000
    """Ids of its byte-level BPE."""
    lr: float = 2e-3
    weight_decay: float = 0.1
    smoothing: float = 0.0


JUDGES: dict[str, Settings] = {
    "2 layers": Settings(),
    "wide": Settings(layers=1, width=256, vocabulary=6000, lr=1e-3),
}
ENSEMBLES: dict[str, tuple[str, ...]] = {"2 layers": ("2 layers",), "wide": ("wide",), "both": tuple(JUDGES)}
"""Which judges sit together, with one member of each kind per seed."""


def train_tokenizer(work: Work, vocabulary: int) -> str:
    """A byte-level BPE from the questions of the persona training rows."""
    place = work.out / f"tokenizer-{vocabulary}"
    if not (place / "tokenizer.json").exists():
        from gramjax.data import tokenizer

        texts = [splits.first_turn(row) for row in splits.load(work.rows, "persona_train")]
        tokenizer.train_bpe([*texts, "User: ", "\n\nAssistant: ", "Yes", "No"], vocabulary).save(place)
    return str(place)


def best_judge(work: Work, settings: Settings, train: str, valid: str, seed: int) -> Any:
    """The config of a Bradley-Terry judge from scratch with these settings."""
    config = common("bradley_terry", seed)
    config.tokenizer.path = train_tokenizer(work, settings.vocabulary)
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = settings.width, 2 * settings.width, settings.layers
    arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.init_scale = 4, 4, settings.width // 4, 0.06
    config.data.train, config.data.valid = work.source(train), work.source(valid)
    config.data.max_length, config.data.overlong = 48, "truncate_prompt_left"  # the boilerplate of long questions goes
    config.evals.preference.overlong = ""
    config.objective.label_smoothing = settings.smoothing
    config.optim.betas, config.optim.weight_decay, config.optim.lr = (0.9, 0.98), settings.weight_decay, settings.lr
    config.train.batch_size = 8 if work.sizes.rows else 64
    config.train.epochs = 6.0 if not work.sizes.rows else 1.0
    return config


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The judged pairs that a run left."""
    text = (run / "eval" / "preference.rows.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def ensemble(work: Work, name: str, members: Sequence[str], data: str) -> dict[str, Any]:
    """`gramjax evaluate` of several runs together; returns its numbers."""
    where = work.out / "runs" / name
    runs = [str(work.out / "runs" / member) for member in members]
    flags = {
        "model.path": runs[0],
        "ensemble.members": repr(tuple(runs[1:])),
        "data.path": work.source(data)[0],
        "data.overlong": "truncate_prompt_left",
        "evals.preference.overlong": "",
        "tokenizer.chat_template": "none",
    }
    call(["evaluate", "--config=evaluate", f"--workdir={where}", *(f"--config.{k}={v}" for k, v in flags.items())])
    return short(json.loads((where / "eval" / "preference.json").read_text("utf-8")))


def best(work: Work) -> dict[str, Any]:
    """Choose who sits in the ensemble on the validation part, train it on all training rows, read the held-out rows."""

    def member(label: str, train: str, valid: str, seed: int) -> str:
        name = f"best-{label.replace(' ', '-')}-{train}-seed{seed}"

        def make() -> dict[str, Any]:
            work.train(name, best_judge(work, JUDGES[label], train, valid, seed))
            results = json.loads((work.out / "runs" / name / "eval" / "preference.json").read_text("utf-8"))
            return {"settings": dataclasses.asdict(JUDGES[label]), "seed": seed, **short(results)}

        work.result(name, make)
        return name

    def together(label: str, train: str, valid: str) -> dict[str, Any]:
        members = [member(kind, train, valid, seed) for kind in ENSEMBLES[label] for seed in work.sizes.seeds]
        name = f"best-ensemble-{label.replace(' ', '-')}-{valid}"
        return work.result(name, lambda: {"members": members, **ensemble(work, name, members, valid)})

    tried = {label: together(label, "persona_fit", "persona_valid") for label in ENSEMBLES}
    winner = max(tried, key=lambda label: tried[label]["accuracy"])
    final = together(winner, "persona_train", "persona_test")
    test, train = splits.load(work.rows, "persona_test"), splits.load(work.rows, "persona_train")
    margins = baselines.fit_tfidf(train)(test)
    right = dict(zip([row["id"] for row in test], margins > 0, strict=True))
    judged = rows_of(work.out / "runs" / final["name"])
    paired = statistics.paired_bootstrap([r["correct"] for r in judged], [right[r["id"]] for r in judged])
    tfidf = baselines.count(margins)
    valid = baselines.fit_tfidf(splits.load(work.rows, "persona_fit"))(splits.load(work.rows, "persona_valid"))
    singles = {name: work.result(name, dict) for trial in (*tried.values(), final) for name in trial["members"]}
    return {
        "chosen_on_validation": winner,
        "validation": tried,
        "validation_tfidf": baselines.count(valid),
        "members": singles,
        "ensemble": final | {"minus_tfidf": dataclasses.asdict(paired)},
        "tfidf": tfidf,
        "reaches_interval": final["accuracy"] >= tfidf["low"],
    }


# -- from stories260K -------------------------------------------------------------------------------------------------


def stories(work: Work, objective: str, start: str, seed: int) -> Any:
    """A config that begins at stories260K, or at random weights of its shape."""
    config = common(objective, seed)
    config.model.path = str(work.data / "stories260k" / "stories260K.bin")
    config.model.random_weights = start == "random"
    config.tokenizer.path = str(work.data / "stories260k" / "tok512.bin")
    config.optim.lr = 1e-3
    config.train.batch_size = 16 if not work.sizes.rows else 4
    return config


def pretrained(work: Work, start: str, seed: int) -> str:
    """Stage 1 on unlabelled pairs of self_instruct answers; returns the run folder."""
    name = f"stage1-{start}-seed{seed}"

    def make() -> dict[str, Any]:
        config = stories(work, "generative_preference", start, seed)
        config.objective.stage = "pretrain"
        config.data.train = work.source("self_instruct_unlabelled")
        config.data.max_length, config.data.overlong = 384, "shorten_responses"
        config.train.steps, config.train.evaluate = work.sizes.pretrain_steps, False
        work.train(name, config)
        lines = (work.out / "runs" / name / "metrics.jsonl").read_text("utf-8").split("\n")
        losses = [entry["loss"] for entry in (json.loads(line) for line in lines if line) if "loss" in entry]
        return {"seed": seed, "start": start, "first_loss": losses[0], "last_loss": losses[-1]}

    work.result(name, make)
    return str(work.out / "runs" / name)


def judge(work: Work, spec: Spec) -> dict[str, Any]:
    """One stage-2 run and its held-out rows."""

    def make() -> dict[str, Any]:
        config = stories(work, OBJECTIVES[spec.objective], spec.start, spec.seed)
        if spec.stage1:
            config.model.path, config.model.random_weights = pretrained(work, spec.start, spec.seed), False
        persona = spec.data == "persona"
        config.data.train, config.data.valid = work.source(f"{spec.data}_train"), work.source(f"{spec.data}_test")
        if spec.objective == "generative":
            config.data.max_length = 240 if persona else 352
        else:
            config.data.max_length = 112 if persona else 192
        config.data.overlong = config.evals.preference.overlong = "truncate_prompt_left"
        config.evals.preference.limit = work.sizes.grid_test
        config.objective.label_smoothing = spec.smoothing
        config.train.steps = spec.steps or (work.sizes.persona_steps if persona else work.sizes.harmless_steps)
        work.train(spec.name, config)
        results = json.loads((work.out / "runs" / spec.name / "eval" / "preference.json").read_text("utf-8"))
        return {**dataclasses.asdict(spec), "num_skipped": results["num_skipped"], **short(results)}

    return work.result(spec.name, make)


def grid(work: Work) -> list[dict[str, Any]]:
    """Objective x stage 1 x smoothing x seed."""
    return [
        judge(work, Spec(data, "stories260k", objective, stage1, smoothing, seed))
        for data in GRID
        for seed in work.sizes.seeds
        for objective in OBJECTIVES
        for stage1 in (False, True)
        for smoothing in (0.0, 0.1)
    ]


def longer(work: Work) -> list[dict[str, Any]]:
    """Cells of the grid with many more steps, seed 0: does a judge that was at chance learn?"""
    cells = [("generative", False), ("generative", True), ("bradley-terry", False)]
    return [judge(work, Spec("persona", "stories260k", o, s, 0.0, 0, work.sizes.longer_steps)) for o, s in cells]


def everywhere(work: Work, spec: Spec) -> dict[str, Any]:
    """Judge the rows of every set with a trained run, with the room that its positions have."""

    def make() -> dict[str, Any]:
        judge(work, spec)
        rows = [r for name in EVERYWHERE for r in splits.load(work.rows, name)[: work.sizes.everywhere_test]]
        path = work.rows / "everywhere.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        where = work.out / "runs" / f"{spec.name}-everywhere"
        run = work.out / "runs" / spec.name
        flags = {"model.path": run, "data.path": path, "data.max_length": 512, "tokenizer.chat_template": "none"}
        call(["evaluate", "--config=evaluate", f"--workdir={where}", *(f"--config.{k}={v}" for k, v in flags.items())])
        judged = rows_of(where)
        groups = {row["subset"]: [r for r in judged if r["subset"] == row["subset"]] for row in judged}
        return {
            **dataclasses.asdict(spec),
            "sets": {k: short(dict(judgements.summarise(v))) for k, v in groups.items()},
        }

    return work.result(f"{spec.name}-everywhere", make)


def start(work: Work) -> list[dict[str, Any]]:
    """Both stages from pretrained and from random weights, judged on all sets (seed 0)."""
    specs = [Spec(data, begin, "generative", True, 0.1, 0) for data in SETS for begin in ("stories260k", "random")]
    specs += [Spec(data, "stories260k", "bradley-terry", False, 0.0, 0) for data in SETS]
    return [everywhere(work, spec) for spec in specs]


# -- baselines, report ------------------------------------------------------------------------------------------------


def all_baselines(work: Work) -> dict[str, Any]:
    """Longest answer, coin and bag of words (trained on persona for persona, on hh_harmless for the other sets)."""
    out: dict[str, Any] = {}
    fitted = {data: baselines.fit_tfidf(splits.load(work.rows, f"{data}_train")) for data in SETS}
    for name in EVERYWHERE:
        rows = splits.load(work.rows, name)
        out[name] = {
            rule: baselines.count([baselines.RULES[rule](row) for row in rows]) for rule in ("longest", "random")
        }
        out[name]["tfidf"] = baselines.count(fitted["persona" if name == "persona_test" else "hh_harmless"](rows))
    return out


def cells(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The grid with seeds put together: mean, sample sd over seeds, and Wilson's interval of all judged pairs."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[k] for k in ("data", "objective", "stage1", "smoothing")), []).append(run)
    out = []
    for (data, objective, stage1, smoothing), group in groups.items():
        low, high = statistics.wilson(np.mean([r["num_correct"] for r in group]), group[0]["num_pairs"])
        cell = {"data": data, "objective": objective, "stage1": stage1, "smoothing": smoothing, "seeds": len(group)}
        for key in ("accuracy", "accuracy_one_order", "swap_consistency", "ece"):
            values = [r[key] for r in group if key in r]
            if values:
                cell[key] = float(np.mean(values))
                cell[f"{key}_sd"] = plain_statistics.stdev(values) if len(values) > 1 else 0.0
        out.append(cell | {"num_pairs": group[0]["num_pairs"], "low": low, "high": high})
    return out


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").split("\n") if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: runtime.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
        },
        "commit": runtime.git_commit(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA") or "."))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="best,start,grid,longer")
    parser.add_argument("--json", type=Path, help="where the results go (default: DIR/real_data.json)")
    arguments = parser.parse_args(argv)
    if not (arguments.data / "persona").is_dir():
        parser.error("set GRAMJAX_DATA (or --data) to the folder that holds persona/, hh_harmless/, ...")
    work = Work(arguments.out.resolve(), arguments.data.resolve(), QUICK if arguments.quick else Sizes())
    counts = splits.write(work.data, work.rows, work.sizes.rows)
    results: dict[str, Any] = {
        "machine": machine(),
        "command": f"python benchmarks/real_data.py --out DIR{' --quick' if arguments.quick else ''}",
        "sizes": dataclasses.asdict(work.sizes),
        "rows": counts,
        "baselines": all_baselines(work),
    }
    path = arguments.json or work.out / "real_data.json"
    if path.exists():  # parts made by an earlier call stay
        results = json.loads(path.read_text("utf-8")) | results
    for part in arguments.only.split(","):
        made: Any = {"best": best, "grid": grid, "start": start, "longer": longer}[part](work)
        results[part] = made
        if part == "grid":
            results["grid_cells"] = cells(made)
        folder.write_json(path, results)
        print(f"{part}: written to {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
