"""GRAM-R2 in the world of hidden permutations: does it learn what the method promises? (check S3)

    python benchmarks/self_training.py --out DIR [--seeds 0,1,2] [--only a,bc,d] [--json FILE]

a   a judge trained on labels alone, on the pairs of R0 of `bc`, which learns rationales
b   accuracy of pseudo-labels: one draw, the vote, and what vote share and probability leave (rounds of `bc`)
c   accuracy of R1 and R2 on held-out pairs against R0's, with few labelled pairs
d   40 % of the prover's training rationales are corrupted: R0 trained on its proofs for labelled pairs, with proof
    selection and without, against a prover that learned from clean rationales

Every run is `gramjax run --config=gram_r2_toy` with overrides, and resumes; a seed changes world, pairs and weights.
Two CPU cores: about five minutes a seed for `bc`, as much again for the rest.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

from gramjax import cli
from gramjax.core import folder
from gramjax.core.statistics import wilson
from gramjax.data.recipes import permutation_world as world

CORRUPT = 0.4
MORE = 2048
"""Pairs of the second comparison of part a."""
PROVED, LABELLED = 2048, 1024
"""Part d: pairs with rationales for the prover, and labelled pairs without."""
TEST = 500
"""Held-out pairs."""


def recipe(where: Path, seed: int, *settings: str) -> dict[str, Any]:
    """`rounds.json` of a recipe: made, or read if it is done."""
    done = where / "rounds.json"
    if not (where / "DONE").exists():
        base = (
            f"--config.seed={seed}",
            f"--config.data.valid=('recipe:permutation_world:valid:{TEST}:{seed}',)",
        )
        code = cli.main(["run", "--config=gram_r2_toy", f"--workdir={where}", *base, *settings])
        if code:
            raise SystemExit(f"{where}: ended with {code}")
    return json.loads(done.read_text("utf-8"))


def sources(seed: int) -> tuple[str, ...]:
    """The rows of the packaged config, of another seed."""
    from gramjax.core import flags

    given = flags.load("gram_r2_toy").recipe
    named = {"rationales": given.rationales, "unlabelled": given.unlabelled}
    return tuple(f"--config.recipe.{name}=('{rows[0]}:{seed}',)" for name, rows in named.items())


def first(found: dict[str, Any]) -> dict[str, Any]:
    """Test numbers of R0."""
    return short(found["rounds"][0]["test"])


def short(test: dict[str, Any]) -> dict[str, Any]:
    """What is reported of a test."""
    curve = {point["votes"]: point["accuracy"] for point in test.get("votes_curve", [])}
    kept = ("accuracy", "accuracy_low", "accuracy_high", "num_pairs", "num_unreadable", "agreement")
    return {name: test.get(name) for name in kept} | {"accuracy_by_votes": curve, "accuracy_one_draw": curve.get(1)}


def part_a(out: Path, seed: int) -> dict[str, Any]:
    """Labels alone, for the comparison with R0 of the rounds at equal N; and both with more pairs."""
    alone = ("--config.recipe.rounds=0", "--config.recipe.final=False")
    labels = "--config.recipe.rationale_source=none"
    more = f"--config.recipe.rationales=('recipe:permutation_world:train:{MORE}:{seed}',)"
    few = recipe(out / f"labels-seed{seed}", seed, *alone, *sources(seed), labels)
    return {
        "labels": first(few),
        "labels_more": first(recipe(out / f"labels-more-seed{seed}", seed, *alone, more, labels)),
        "rationales_more": first(recipe(out / f"rationales-more-seed{seed}", seed, *alone, more)),
    }


def part_bc(out: Path, seed: int) -> dict[str, Any]:
    """The rounds."""
    found = recipe(out / f"rounds-seed{seed}", seed, *sources(seed))
    rounds = []
    for each in found["rounds"]:
        kept = ("round", "num_train", "pseudo_labels", "kept_share", "num_unlabelled", "share_of_a", "filters")
        rounds.append({name: each[name] for name in kept if name in each} | {"test": short(each["test"])})
    seconds = sum(step["seconds"] for step in found["steps"])
    return {"rounds": rounds, "final": short(found["final"]["test"]) if "final" in found else None, "seconds": seconds}


def part_d(out: Path, seed: int) -> dict[str, Any]:
    """Proof selection under corruption."""
    rows = world.rows("train", PROVED + LABELLED, seed)
    plain = [{name: value for name, value in row.items() if name != "rationale"} for row in rows[PROVED:]]
    labelled = write(out / "data" / f"labelled-seed{seed}.jsonl", plain)
    made: dict[str, Any] = {}
    for name, corrupt in (("clean", 0.0), ("corrupt", CORRUPT)):
        given = write(out / "data" / f"{name}-seed{seed}.jsonl", world.rows("train", PROVED, seed, corrupt))
        prover = ""
        for choice in ("score", "first"):
            where = out / f"{name}-{choice}-seed{seed}"
            found = recipe(
                where, seed, "--config.recipe.rounds=0", "--config.recipe.final=False",
                f"--config.recipe.rationales=('{given}',)", f"--config.recipe.labelled=('{labelled}',)",
                f"--config.recipe.proving.choice={choice}", f"--config.recipe.prover={prover}",
            )  # fmt: skip
            prover = prover or str(where / "steps" / "00-prover")
            (proved,) = (where / "steps").glob("*-rules/rows.jsonl")
            made[f"{name}-{choice}"] = first(found) | {
                "kept": found["rounds"][0]["num_train"], "right_flags": right_flags(proved, seed),
            }  # fmt: skip
    lost = {c: made[f"clean-{c}"]["accuracy"] - made[f"corrupt-{c}"]["accuracy"] for c in ("score", "first")}
    return made | {"lost": lost}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def right_flags(path: Path, seed: int) -> float:
    """Share of the flags in rationales that say what is so."""
    hidden, right, total = world.permutation(seed), 0, 0
    for line in path.read_text("utf-8").split("\n"):
        if not line:
            continue
        row = json.loads(line)
        texts = row["rationale"].split("Response A: ")[1].split("\n")[0], row["rationale"].split("Response B: ")[1]
        said = [[word == "yes" for word in text.split("\n")[0].split(" ")] for text in texts]
        true = [world.flags(row["prompt"], response, hidden) for response in row["responses"]]
        for one, two in zip(said, true, strict=True):
            right += sum(a == b for a, b in zip(one, two, strict=False))
            total += len(two)
    return right / max(total, 1)


PARTS = {"a": part_a, "bc": part_bc, "d": part_d}


def means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What must hold, as means over seeds."""

    def over(pick: Any) -> dict[str, Any]:
        values = [pick(run) for run in runs]
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.fmean(values), "sd": sd, "values": values}

    out: dict[str, Any] = {}
    if all("a" in run for run in runs):
        for name in ("labels", "labels_more", "rationales_more"):
            out[f"a_{name}"] = over(lambda r, n=name: r["a"][n]["accuracy"])
            out[f"a_{name}_one_draw"] = over(lambda r, n=name: r["a"][n]["accuracy_one_draw"])
    if all("bc" in run for run in runs):
        for number in range(len(runs[0]["bc"]["rounds"])):
            out[f"c_R{number}"] = over(lambda r, n=number: r["bc"]["rounds"][n]["test"]["accuracy"])
            out[f"c_R{number}_one_draw"] = over(lambda r, n=number: r["bc"]["rounds"][n]["test"]["accuracy_one_draw"])
            if number:
                for kind in ("precision_one_draw", "precision_vote", "precision_kept"):
                    pick = lambda r, n=number, k=kind: r["bc"]["rounds"][n]["pseudo_labels"][k]  # noqa: E731
                    out[f"b_R{number}_{kind}"] = over(pick)
    if all("d" in run for run in runs):
        for name in ("clean-score", "clean-first", "corrupt-score", "corrupt-first"):
            out[f"d_{name}"] = over(lambda r, n=name: r["d"][n]["accuracy"])
        for name in ("score", "first"):
            out[f"d_lost_{name}"] = over(lambda r, n=name: r["d"]["lost"][n])
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, write and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="a,bc,d")
    parser.add_argument("--json", default="", help="where the results go (default: DIR/self_training.json)")
    given = parser.parse_args(argv)
    out, began = given.out.resolve(), time.time()
    parts = given.only.split(",")
    runs = []
    for seed in map(int, given.seeds.split(",")):
        run: dict[str, Any] = {"seed": seed}
        for part in parts:
            run[part] = PARTS[part](out, seed)
        runs.append(run)
    low, high = wilson(0.5 * TEST, TEST)
    results = {
        "command": " ".join(["python", "benchmarks/self_training.py", *sys.argv[1:]]),
        **measure.machine(),
        "seconds": time.time() - began,
        "chance_interval": [low, high],
        "means": means(runs),
        "runs": runs,
    }
    folder.write_json(given.json or out / "self_training.json", results)
    for name, value in results["means"].items():
        print(f"{name:<26}{value['mean']:.3f} ± {value['sd']:.3f}   {' '.join(f'{v:.3f}' for v in value['values'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
