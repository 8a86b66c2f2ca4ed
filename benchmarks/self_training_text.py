"""GRAM-R2 on real text, end to end: answers that people compared (qa_feedback), a small model from scratch.

GRAMJAX_DATA=FOLDER python benchmarks/self_training_text.py --out DIR [--json FILE]

Two questions in five are held out (crc32). The rationale of a labelled pair says which content words of the set's human
reference each response has, and how many; its conclusion is the people's preference. A third of the other questions
keeps labels and rationales, two thirds are the unlabelled pairs of one round, whose preferences are only counted with.
Everything is `gramjax run`; it resumes. About ten minutes on two cores.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import measure
from real_data_splits import crc

from gramjax import cli
from gramjax.core import flags, folder
from gramjax.core.config import DataSection
from gramjax.data import judge_prompts, readers, tokenizer
from gramjax.data.rationales import Rationale, render_rationale
from gramjax.data.records import read

VOCABULARY = 3000
SHOWN = 8
"""Words of the reference that a rationale names."""
MOST = 110
"""Words of a response; longer pairs are left out."""
STOP = set("a an the of in on at to for and or is was were are be been by with as it its that this from he she his her "
           "they their which who has had have not but also".split())  # fmt: skip


def words(text: str) -> list[str]:
    """Content words, lower case, each once, in order."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return list(dict.fromkeys(word for word in found if word not in STOP and len(word) > 1))


def feedback(response: str, reference: list[str]) -> tuple[str, int]:
    """What a rationale says of a response, and how many words of the reference it has."""
    has = set(words(response))
    shared = [word for word in reference if word in has]
    return ("It mentions " + ", ".join(shared[:SHOWN]) if shared else "It mentions none of it"), len(shared)


def rationale(row: dict[str, Any], reference: str) -> str:
    """The rationale of a labelled pair."""
    wanted = words(reference)
    (one, first), (two, second) = (feedback(response, wanted) for response in row["responses"])
    counts = f"Response A has {first} points, Response B has {second}"
    return render_rationale(Rationale(one, two, counts, row["label"]))


def text(value: Any) -> str:
    """A text column as a string."""
    return value if isinstance(value, str) else value[-1]["content"]


def parts(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by part: `rationales`, `unlabelled`, `test`."""
    source = str(data / "qa_feedback" / "dev.jsonl.gz")
    references = {record["question"]: record["gold"] for _, record in read(source)}
    out: dict[str, list[dict[str, Any]]] = {"rationales": [], "unlabelled": [], "test": []}
    for found in readers.read(source, DataSection(on_bad_row="skip"), "preference").rows:
        row = {name: text(found[name]) for name in ("prompt", "chosen", "rejected")} | {"id": found["id"]}
        row["prompt"] = row["prompt"].rpartition("\n\n")[2]  # the question without its passages
        if max(len(row[side].split()) for side in ("chosen", "rejected")) > MOST:
            continue
        bucket = crc(row["prompt"]) % 5
        if bucket < 2:
            out["test"].append(row)
            continue
        pair = judge_prompts.in_random_order(row)
        if bucket == 2:
            out["rationales"].append({**pair, "rationale": rationale(pair, references[row["prompt"]])})
        else:
            kept = {name: value for name, value in pair.items() if name != "label"}
            out["unlabelled"].append({**kept, "gold": pair["label"]})
    return out


def settings(out: Path, rows: dict[str, list[dict[str, Any]]]) -> Any:
    """The config of the recipe."""
    for name, made in rows.items():
        path = out / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    place = out / "tokenizer"
    if not place.exists():
        pieces = [
            t for row in [*rows["rationales"], *rows["unlabelled"]]
            for t in (row["prompt"], *row["responses"], row.get("rationale", ""))
        ]  # fmt: skip
        prompt = judge_prompts.judge_prompt("", ("", ""), "Judge.")
        tokenizer.train_bpe([*pieces, str(prompt), "Prove.", *"AB"], VOCABULARY).save(place)
    config = flags.load("gram_r2_toy")
    config.tokenizer.path = str(place)
    config.data.valid = (str(out / "data" / "test.jsonl"),)
    config.data.max_length = 640
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 128, 384, 4
    arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.max_position_embeddings = 8, 4, 16, 768
    config.train.batch_size, config.optim.lr, config.optim.weight_decay = 16, 2e-3, 0.1
    config.train.log_every = 25
    config.generation.slots = 64
    recipe = config.recipe
    recipe.rationales = (str(out / "data" / "rationales.jsonl"),)
    recipe.unlabelled = (str(out / "data" / "unlabelled.jsonl"),)
    recipe.rounds = 1
    recipe.rules.min_probability = 0.5  # after so few steps no judge is sure: 0.8 leaves nothing
    recipe.judging.sampling.max_tokens = recipe.proving.sampling.max_tokens = 128
    recipe.judging.sampling.n = recipe.proving.sampling.n = 4
    config.evals.rationale.judging.sampling.max_tokens, config.evals.rationale.judging.sampling.n = 128, 4
    config.evals.rationale.limit = 200
    config.phases.prover.train.steps = 150
    config.phases.judge.train.steps = 150
    config.phases.final.train.steps = 20
    return config


def main() -> int:
    """Run the recipe and keep its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA") or "."))
    parser.add_argument("--json", default="", help="where the results go (default: DIR/self_training_text.json)")
    given = parser.parse_args()
    out = given.out.resolve()
    rows = parts(given.data)
    path = out / "recipe.json"
    folder.write_json(path, folder.as_dict(settings(out, rows)))
    if code := cli.main(["run", f"--config={path}", f"--workdir={out / 'run'}"]):
        return code
    found = json.loads((out / "run" / "rounds.json").read_text("utf-8"))
    sizes = {name: len(made) for name, made in rows.items()}
    results = {"command": " ".join(["python", "benchmarks/self_training_text.py", *sys.argv[1:]]), **measure.machine(),
               "rows": sizes, **found}  # fmt: skip
    folder.write_json(given.json or out / "self_training_text.json", results)
    print(json.dumps({each["name"]: each.get("test_accuracy") for each in [*found["rounds"], found["final"]]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
