"""LRHP's data selection on real sets: which pairs of a mixed pool make the best reward model of one kind of preference?

GRAMJAX_DATA=FOLDER python benchmarks/lrhp_selection.py --out DIR [--seeds 0,1,2] [--short] [--summary] [--json FILE]

Pool: four traits of persona, hh_harmless, qa_feedback and mt_mqm, mixed. Target: one trait; TARGET_ROWS of its
training rows, which are not in the pool, and its held-out rows as the test. Every arm chooses `Sizes.most` rows of the
pool (or takes all, or none beside the target rows), trains the same small Bradley-Terry model from stories260K on them
and is judged on the test. Precision is the share of the chosen rows that are of the target trait; subsets are never
shown to a model.
Everything is a gramjax command; what is in DIR is not made again. --short is half the pool, short rows and fewer steps:
minutes a seed on two busy cores; --quick takes a minute and its numbers mean nothing. --summary trains nothing: the
runs that are there.
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

import real_data
import real_data_splits as splits
import reward_models

from gramjax.core import folder, statistics

TARGET = "interest-in-math"
OTHERS = ("hh_harmless", "qa_feedback", "mt_mqm")
TARGET_ROWS = 64
KINDS = {"lrhp": "representation", "lrhp centroid": "representation", "prompt vectors": "prompt",
         "untrained encoder": "untrained"}  # fmt: skip
ARMS = (
    "lrhp", "random", "full pool", "prompt vectors", "lrhp centroid", "target only", "prompt TF-IDF",
    "untrained encoder", "target + random",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done."""

    encoder_steps: int = 120
    steps: int = 100
    batch_size: int = 16
    test: int = 200
    per_trait: int = 200
    per_set: int = 250
    """Rows of each trait and of each other set in the pool."""
    most: int = 200
    """Rows that an arm chooses."""
    longest: int = 0
    """Characters of prompt and both answers of a row in the pool; 0: any."""
    encoder_length: int = 352
    answer_length: int = 224


SHORT = Sizes(encoder_steps=80, steps=40, per_trait=100, per_set=120, most=100, longest=420,
              encoder_length=256, answer_length=160)  # fmt: skip
QUICK = Sizes(2, 2, 4, 20)


def rows_of(data: Path, sizes: Sizes) -> dict[str, splits.Rows]:
    """`pool`, `target` (all training rows of the trait that are not in the pool) and `test`."""
    by_name = {trait: splits.read(data, f"persona/{trait}", "preference", trait) for trait in splits.TRAITS}
    held_out = {row["id"] for rows in by_name.values() for row in rows if splits.crc(row["statement"]) % 5 == 0}
    others = {**splits.parts(data, 0), **reward_models.more_rows(data, 0)}
    out: dict[str, splits.Rows] = {"pool": [], "target": [], "test": []}
    for name in (*splits.TRAITS, *OTHERS):
        most = sizes.per_trait if name in by_name else sizes.per_set
        if name in by_name:
            train = splits.spread({**row, "id": f"{name}-{row['id']}"} for row in by_name[name]
                                  if row["id"] not in held_out)  # fmt: skip
        else:
            train = others[f"{name}_train"]
        train = [row for row in train if not sizes.longest or length(row) <= sizes.longest]
        out["pool"] += train[:most]
        if name == TARGET:
            out["target"] = train[most:]
            out["test"] = splits.spread(row for row in by_name[name] if row["id"] in held_out)
    out["pool"] = splits.spread(out["pool"])
    return out


def length(row: dict[str, Any]) -> int:
    """Characters of the prompt and both answers."""
    return sum(len(message["content"]) for message in row["prompt"]) + splits.answers_length(row)


class Selection:
    """One seed: the encoder, the vectors, the arms."""

    def __init__(self, work: real_data.Work, sizes: Sizes, seed: int) -> None:
        self.work, self.sizes, self.seed = work, sizes, seed
        self.place = work.out / f"seed{seed}"
        self.place.mkdir(parents=True, exist_ok=True)
        rows = splits.load(work.rows, "target")
        start = seed * TARGET_ROWS % (len(rows) - TARGET_ROWS)
        self.target = write(self.place / "target.jsonl", rows[start : start + TARGET_ROWS])

    def command(self, verb: str, name: str, config: str, **flags: Any) -> Path:
        """A gramjax command, unless its folder is done."""
        where = self.place / name
        if not (where / "DONE").exists():
            given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
            real_data.call([verb, f"--config={config}", f"--workdir={where}", f"--config.seed={self.seed}", *given])
        return where

    def encoder(self) -> Path:
        """The LRHP encoder, trained on the pool."""
        config = real_data.stories(self.work, "preference_representation", "stories260k", self.seed)
        config.evals = {}
        config.data.train = (str(self.work.rows / "pool.jsonl"),)
        config.data.max_length = self.sizes.encoder_length
        config.data.overlong = "shorten_responses"
        config.train.batch_size, config.train.steps = self.sizes.batch_size, self.sizes.encoder_steps
        return self.trained("encoder", config)

    def vectors_facts(self, kind: str) -> dict[str, Any]:
        """What `embed_preferences` says of the vectors of the pool: order accuracy (chance 0.5), subset probe."""
        path = self.place / f"vectors-{kind}-pool" / "summary.json"
        return {"seed": self.seed, "kind": kind} | json.loads(path.read_text("utf-8")) if path.exists() else {}

    def trained(self, name: str, config: Any) -> Path:
        """`gramjax train` with this config."""
        config.train.evaluate, config.seed = False, self.seed
        path = self.place / f"{name}.config.json"
        folder.write_json(path, folder.as_dict(config))
        return self.command("train", name, str(path))

    def embedded(self, kind: str, what: str) -> Path:
        """The vectors of `pool` or `target`."""
        source = self.work.rows / "pool.jsonl" if what == "pool" else self.target
        model: dict[str, Any] = {"model__path": self.place / "encoder"}
        if kind != "representation":
            stories = self.work.data / "stories260k"
            model = {"model__path": stories / "stories260K.bin", "tokenizer__path": stories / "tok512.bin"}
        extra: dict[str, Any] = {"annotator__kind": "prompt"} if kind == "prompt" else {}
        if kind == "untrained":
            extra = {"annotator__untrained": True}
        return self.command(
            "annotate", f"vectors-{kind}-{what}", "embed_preferences", data__path=source,
            data__max_length=self.sizes.encoder_length, data__max_overlong_share=1.0, tokenizer__chat_template="none",
            **model, **extra,
        )  # fmt: skip

    def chosen(self, arm: str) -> list[Path]:
        """The files that an arm trains on."""
        pool = self.work.rows / "pool.jsonl"
        if arm in ("full pool", "target only"):
            return [pool if arm == "full pool" else self.target]
        if arm in ("random", "target + random"):
            made = self.command("select_data", "chosen-random", "select_data:random_rows", data__path=pool,
                                selection__most=self.sizes.most)  # fmt: skip
            return [made / "rows.jsonl", *([self.target] if arm != "random" else [])]
        name = f"chosen-{arm.replace(' ', '-')}"
        if arm == "prompt TF-IDF":
            flags = {"data__path": pool, "selection__most": self.sizes.most, "selection__target": self.target}
            made = self.command("select_data", name, "select_data:prompt_tfidf", **flags)
            return [made / "rows.jsonl"]
        kind = KINDS[arm]
        vectors, target = self.embedded(kind, "pool"), self.embedded(kind, "target")
        made = self.command(
            "select_data", name, "select_preferences", data__path=vectors / "rows.jsonl",
            selection__most=self.sizes.most, selection__vectors=vectors, selection__target_vectors=target,
            selection__scoring="centroid" if arm == "lrhp centroid" else "neighbours",
        )  # fmt: skip
        return [made / "rows.jsonl"]

    def arm(self, name: str) -> dict[str, Any]:
        """Precision of the choice and accuracy of the reward model that it makes."""

        def make() -> dict[str, Any]:
            files = self.chosen(name)
            rows = [json.loads(line) for path in files for line in path.read_text("utf-8").split("\n") if line]
            config = real_data.stories(self.work, "bradley_terry", "stories260k", self.seed)
            config.data.train, config.data.max_length = tuple(map(str, files)), self.sizes.answer_length
            config.data.overlong = "truncate_prompt_left"
            config.train.batch_size, config.train.steps = self.sizes.batch_size, self.sizes.steps
            run = self.trained(f"reward-{name.replace(' ', '-')}", config)
            where = self.place / f"test-{name.replace(' ', '-')}"
            flags = {"model.path": run, "data.path": self.work.rows / "test.jsonl", "data.max_length": 512,
                     "tokenizer.chat_template": "none", "evals.preference.limit": self.sizes.test}  # fmt: skip
            given = [f"--config.{key}={value}" for key, value in flags.items()]
            real_data.call(["evaluate", "--config=evaluate", f"--workdir={where}", *given])
            found = real_data.short(json.loads((where / "eval" / "preference.json").read_text("utf-8")))
            share = sum(row["subset"] == TARGET for row in rows) / len(rows)
            return {"arm": name, "seed": self.seed, "rows": len(rows), "precision": share, **found}

        return self.work.result(self.result_of(name).stem, make)

    def result_of(self, name: str) -> Path:
        """Where the result of an arm lies."""
        return self.work.out / "results" / f"seed{self.seed}-{name.replace(' ', '-')}.json"


def write(path: Path, rows: splits.Rows) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per arm: mean and sample sd over seeds, Wilson's interval of one run with the mean number of right pairs."""
    out = []
    for arm in ARMS:
        group = [run for run in runs if run["arm"] == arm]
        if group:
            accuracies = [run["accuracy"] for run in group]
            low, high = statistics.wilson(sum(run["num_correct"] for run in group) / len(group), group[0]["num_pairs"])
            out.append({
                "arm": arm, "seeds": len(group), "rows": group[0]["rows"],
                "num_pairs": group[0]["num_pairs"],
                "precision": sum(run["precision"] for run in group) / len(group),
                "accuracy": sum(accuracies) / len(group),
                "sd": plain_statistics.stdev(accuracies) if len(group) > 1 else 0.0, "low": low, "high": high,
            })  # fmt: skip
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA", "")))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--summary", action="store_true", help="train nothing: the runs that are there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    sizes = QUICK if arguments.quick else SHORT if arguments.short else Sizes()
    work = real_data.Work(arguments.out, arguments.data, real_data.Sizes())
    work.rows.mkdir(parents=True, exist_ok=True)
    made = rows_of(arguments.data, sizes)
    for name, rows in made.items():
        write(work.rows / f"{name}.jsonl", rows)
    runs, facts_of_vectors = [], []
    for seed in map(int, arguments.seeds.split(",")):
        selection = Selection(work, sizes, seed)
        if not arguments.summary:
            selection.encoder()
        runs += [selection.arm(name) for name in ARMS if not arguments.summary or selection.result_of(name).exists()]
        facts_of_vectors += [told for kind in ("representation", "untrained", "prompt")
                             if (told := selection.vectors_facts(kind))]  # fmt: skip
    chance = sum(row["subset"] == TARGET for row in made["pool"]) / len(made["pool"])
    found = table(runs)
    print(f"pool {len(made['pool']):,} rows, {chance:.3f} of them of the target; test {len(made['test']):,} rows")
    for line in found:
        print(f"| {line['arm']} | {line['rows']} | {line['precision']:.3f} | {line['accuracy']:.3f} ± {line['sd']:.3f} "
              f"[{line['low']:.3f}, {line['high']:.3f}] | {line['seeds']} |")  # fmt: skip
    if arguments.json:
        command = f"python benchmarks/lrhp_selection.py --out DIR{' --short' * arguments.short}"
        facts: dict[str, Any] = {"command": command, "machine": real_data.machine()}
        facts |= {"sizes": dataclasses.asdict(sizes), "target": TARGET, "share_of_target_in_pool": chance}
        folder.write_json(arguments.json, {**facts, "table": found, "vectors": facts_of_vectors, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
