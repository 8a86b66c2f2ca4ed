"""GRAM beside its baselines on real preference data, in and out of distribution: the table of docs/results.md.

GRAMJAX_DATA=FOLDER python benchmarks/reward_models.py --out DIR [--quick] [--only METHOD,...] [--summary] [--json FILE]

methods   gram (stage 1 on the pairs without their labels, then stage 2), generative (stage 2 alone), bradley_terry,
          smoothed (Bradley-Terry, eps 0.1), grm (Bradley-Terry with text regularisation)
sets      persona, hh_harmless, qa_feedback, mt_mqm (which of two translations has the smaller error score)
starts    stories260K and random weights of its shape; three seeds each
test      the held-out rows of the set itself, and llmbar natural and neighbor and pandalm, which no run has seen

Every run is `gramjax train` with a config that lies in DIR/configs, and `gramjax evaluate`; a run whose result is in
DIR/results is not made again, and `--summary` makes none at all but sums up what is there. Rows and splits:
real_data_splits.py and `more_rows` here. Two CPU cores need hours; --quick takes minutes and its numbers
mean nothing.
"""

import argparse
import dataclasses
import json
import os
import statistics as plain_statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import baselines
import real_data
import real_data_splits as splits

from gramjax.core import folder, judgements, statistics

METHODS = {
    "gram": "generative_preference",
    "generative": "generative_preference",
    "bradley_terry": "bradley_terry",
    "smoothed": "bradley_terry",
    "grm": "grm",
}
SETS = ("persona", "hh_harmless", "qa_feedback", "mt_mqm")
STARTS = ("stories260k", "random")
ELSEWHERE = ("llmbar_natural", "llmbar_neighbor", "pandalm")
QA_LONGEST, MT_LONGEST = 600, 240
"""Characters of both answers together (qa_feedback), of source and both translations (mt_mqm): the judge has 512
positions and 512 tokens."""
LENGTHS = {"persona": (256, 112), "hh_harmless": (352, 224), "qa_feedback": (512, 384), "mt_mqm": (352, 256)}
"""Tokens that a judge and a scalar model read in training."""
PAIRS_PER_SOURCE = 6


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done."""

    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 0
    """Rows per split; 0: all."""
    pretrain_steps: int = 60
    steps: int = 100
    batch_size: int = 16
    test: int = 200
    """Held-out rows at most."""
    elsewhere: int = 80
    """Rows at most of each set that no run has seen."""


QUICK = Sizes((0,), 60, 2, 2, 4, 20, 10)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run."""

    method: str
    data: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run."""
        return f"{self.data}-{self.method}-{self.start}-seed{self.seed}"


def more_rows(data: Path, limit: int) -> dict[str, splits.Rows]:
    """Train and test rows of qa_feedback and mt_mqm, split by the question and by the source (bucket 0 is held out)."""
    made: dict[str, splits.Rows] = {"qa_feedback": [], "mt_mqm": []}
    for row in splits.read(data, "qa_feedback/dev", "preference", "qa_feedback"):
        if splits.answers_length(row) <= QA_LONGEST:
            question = splits.first_turn(row).rpartition("\n\n")[2]  # the passages are longer than the model reads
            made["qa_feedback"].append({**row, "prompt": [{"role": "user", "content": question}]})
    for name in ("ende", "zhen"):
        for row in splits.read(data, f"mt_mqm/{name}_dev", "preference", "mt_mqm"):
            if len(splits.first_turn(row)) + splits.answers_length(row) <= MT_LONGEST:
                made["mt_mqm"].append(row)
    out: dict[str, splits.Rows] = {}
    for name, rows in made.items():
        held_out = {row["id"]: splits.crc(splits.first_turn(row)) % 5 == 0 for row in rows}
        out[f"{name}_test"] = splits.spread(row for row in rows if held_out[row["id"]])[: limit or None]
        out[f"{name}_train"] = splits.spread(row for row in rows if not held_out[row["id"]])[: limit or None]
    return out


def config_of(work: real_data.Work, spec: Spec, sizes: Sizes) -> Any:
    """The config of the last (or only) training of a run."""
    config = real_data.stories(work, METHODS[spec.method], spec.start, spec.seed)
    config.data.train = work.source(f"{spec.data}_train")
    config.data.max_length = LENGTHS[spec.data][spec.method not in ("gram", "generative")]
    config.data.overlong = config.evals.preference.overlong = "truncate_prompt_left"
    config.train.batch_size, config.train.steps, config.train.evaluate = sizes.batch_size, sizes.steps, False
    if spec.method in ("gram", "generative"):
        config.objective.label_smoothing = 0.05
    elif spec.method == "smoothed":
        config.objective.label_smoothing = 0.1
    return config


def run(work: real_data.Work, spec: Spec, sizes: Sizes) -> dict[str, Any]:
    """Train and judge the held-out rows of the set and those of the other sets."""

    def make() -> dict[str, Any]:
        config = config_of(work, spec, sizes)
        if spec.method == "gram":
            first = config_of(work, spec, sizes)
            first.objective.stage, first.train.steps = "pretrain", sizes.pretrain_steps
            first.data.overlong = "shorten_responses"
            work.train(f"{spec.name}-stage1", first)
            config.model.path = str(work.out / "runs" / f"{spec.name}-stage1")
            config.model.random_weights = False
        work.train(spec.name, config)
        where = work.out / "runs" / f"{spec.name}-test"
        flags = {
            "model.path": work.out / "runs" / spec.name,
            "data.path": test_rows(work, spec.data, sizes),
            "data.max_length": 512,
            "evals.preference.batch_size": 16,
            "tokenizer.chat_template": "none",
        }
        arguments = [f"--config.{key}={value}" for key, value in flags.items()]
        real_data.call(["evaluate", "--config=evaluate", f"--workdir={where}", *arguments])
        judged = real_data.rows_of(where)
        groups = {row["subset"]: [r for r in judged if r["subset"] == row["subset"]] for row in judged}
        found = {name: real_data.short(dict(judgements.summarise(rows))) for name, rows in groups.items()}
        return {**dataclasses.asdict(spec), "sets": found}

    return work.result(spec.name, make)


def test_rows(work: real_data.Work, data: str, sizes: Sizes) -> Path:
    """The file with the held-out rows of a set and some of every set that no run has seen."""
    path = work.rows / f"judged-{data}.jsonl"
    rows = splits.load(work.rows, f"{data}_test")[: sizes.test]
    rows += [row for name in ELSEWHERE for row in splits.load(work.rows, name)[: sizes.elsewhere]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy per method, training set, start and judged set: mean and sample sd over seeds, Wilson's interval of one
    run with the mean number of right pairs (the rows are the same in every seed, so seeds do not add rows)."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for found in runs:
        for judged, numbers in found["sets"].items():
            place = "own" if judged == found["data"] else judged
            groups.setdefault((found["data"], found["start"], found["method"], place), []).append(numbers)
    out = []
    for (data, start, method, judged), group in sorted(groups.items()):
        right, count = [numbers["num_correct"] for numbers in group], group[0]["num_pairs"]
        low, high = statistics.wilson(sum(right) / len(right), count)
        accuracies = [numbers["accuracy"] for numbers in group]
        row = {"data": data, "start": start, "method": method, "judged": judged, "num_pairs": count}
        row |= {"seeds": len(group), "accuracy": sum(accuracies) / len(group), "low": low, "high": high}
        row["sd"] = plain_statistics.stdev(accuracies) if len(group) > 1 else 0.0
        consistent = [numbers["swap_consistency"] for numbers in group if "swap_consistency" in numbers]
        out.append(row | ({"swap_consistency": sum(consistent) / len(consistent)} if consistent else {}))
    return out


def simple_judges(work: real_data.Work, sizes: Sizes) -> dict[str, Any]:
    """Longest answer, coin, and bag of words trained on the same rows, on the rows that the models were judged on."""
    out: dict[str, Any] = {}
    for data in SETS:
        judged = [json.loads(line) for line in test_rows(work, data, sizes).read_text("utf-8").split("\n") if line]
        fitted = baselines.fit_tfidf(splits.load(work.rows, f"{data}_train"))
        for subset in sorted({row["subset"] for row in judged}):
            rows = [row for row in judged if row["subset"] == subset]
            found = {rule: baselines.count([baselines.RULES[rule](row) for row in rows]) for rule in baselines.RULES}
            out.setdefault(data, {})["own" if subset == data else subset] = found | {
                "tfidf": baselines.count(fitted(rows))
            }
    return out


def markdown(rows: Sequence[dict[str, Any]], simple: dict[str, Any]) -> str:
    """The table of docs/results.md: per training set, methods below each other, judged sets beside each other."""
    places = ("own", "llmbar natural", "llmbar neighbor", "pandalm")
    out = []
    for data in dict.fromkeys(row["data"] for row in rows):
        out += [
            f"**{data}**",
            "",
            f"| method | start | seeds | {' | '.join(places)} |",
            "| --- " * (3 + len(places)) + "|",
        ]
        cells = {(row["start"], row["method"], row["judged"]): row for row in rows if row["data"] == data}
        for start, method in dict.fromkeys(key[:2] for key in cells):
            found = [cells.get((start, method, place)) for place in places]
            texts = ["" if cell is None else f"{cell['accuracy']:.3f} ± {cell['sd']:.3f}" for cell in found]
            own = cells[start, method, "own"]
            texts[0] += f" [{own['low']:.3f}, {own['high']:.3f}]"
            out.append(f"| {method} | {start} | {own['seeds']} | {' | '.join(texts)} |")
        for rule in ("longest", "tfidf"):
            texts = [
                f"{simple[data][place][rule]['accuracy']:.3f}" if place in simple[data] else "" for place in places
            ]
            out.append(f"| {rule} | | | {' | '.join(texts)} |")
        out.append("")
    return "\n".join(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA", "")))
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--summary", action="store_true", help="train nothing: the runs that are there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    sizes = QUICK if arguments.quick else Sizes()
    work = real_data.Work(arguments.out, arguments.data, dataclasses.replace(real_data.Sizes(), rows=sizes.rows))
    splits.write(arguments.data, work.rows, sizes.rows)
    for name, rows in more_rows(arguments.data, sizes.rows).items():
        (work.rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    wanted = [
        Spec(method, data, start, seed)
        for start in STARTS
        for seed in sizes.seeds
        for data in arguments.sets.split(",")
        for method in arguments.only.split(",")
    ]
    if arguments.summary:
        wanted = [spec for spec in wanted if (work.out / "results" / f"{spec.name}.json").exists()]
    runs = [run(work, spec, sizes) for spec in wanted]
    rows = table(runs)
    simple = simple_judges(work, sizes)
    print(markdown(rows, simple))
    found = {
        "command": "python benchmarks/reward_models.py --out DIR",
        "machine": real_data.machine(),
        "sizes": dataclasses.asdict(sizes),
        "table": rows,
        "simple_judges": simple,
        "runs": runs,
    }
    if arguments.json:
        folder.write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
