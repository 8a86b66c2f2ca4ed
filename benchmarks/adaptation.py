"""Task adaptation on real pairs: the curve of docs/results.md.

GRAMJAX_DATA=FOLDER python benchmarks/adaptation.py --out DIR [--seeds 0,1,2] [--lr 1e-3] [--json FILE]

The task is judging answers about an interest (persona: mathematics, science); two other traits make the starts, all
from stories260K: `base` (the language model as it is), `judge` (GRAM's stage 2 on the other traits) and `gram` (stage 1
on their pairs without labels, then the same). Statements of the task are split as in real_data_splits.py. Then
`gramjax run --config=adaptation` draws the curve. What is in DIR is not made again. Two CPU cores, half an hour.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import real_data_splits as splits
from real_data import machine

from gramjax import cli
from gramjax.core import flags, folder
from gramjax.core.config import defaults

OTHERS, TASK = splits.TRAITS[:2], splits.TRAITS[2:]
STEPS = {"stage1": 200, "stage2": 600}
BUDGETS = (0, 64, 256, 1024)


def write_rows(data: Path, out: Path) -> dict[str, int]:
    """`OUT/other.jsonl` for the starts, `task.jsonl` to adapt to and `held_out.jsonl` to judge; returns their sizes."""
    out.mkdir(parents=True, exist_ok=True)
    of = {trait: splits.read(data, f"persona/{trait}", "preference", trait) for trait in splits.TRAITS}
    task = [row for trait in TASK for row in of[trait]]
    parts = {
        "other": [row for trait in OTHERS for row in of[trait]],
        "task": [row for row in task if splits.crc(row["statement"]) % 5],
        "held_out": [row for row in task if splits.crc(row["statement"]) % 5 == 0],
    }
    for name, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in splits.spread(rows))
        (out / f"{name}.jsonl").write_text(text, "utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def settings(config: Any, data: Path) -> Any:
    """What every training and judgement shares."""
    config.model.path = str(data / "stories260k" / "stories260K.bin")
    config.tokenizer.path, config.tokenizer.chat_template = str(data / "stories260k" / "tok512.bin"), "none"
    config.data.judge_prompt, config.data.max_overlong_share = "Pick.", 1.0
    config.data.max_length, config.data.overlong = 240, "truncate_prompt_left"
    config.evals.preference.batch_size, config.evals.preference.overlong = 64, "truncate_prompt_left"
    config.optim.lr, config.train.batch_size, config.train.remat = 1e-3, 16, "none"
    config.train.log_every, config.train.keep, config.log.tensorboard = 20, 1, False
    return config


def start(out: Path, data: Path, name: str) -> str:
    """Train a start on the other traits, if it is not there; returns its folder."""
    run = out / "starts" / name
    if not (run / "DONE").exists():
        config = settings(defaults("generative_preference", evals=("preference",)), data)
        config.data.train, config.data.valid = (str(out / "other.jsonl"),), (str(out / "held_out.jsonl"),)
        phases = {
            "stage1": {
                "objective": {"stage": "pretrain"},
                "train": {"steps": STEPS["stage1"], "evaluate": False},
                "data": {"train": ()},
            },
            "stage2": {"train": {"steps": STEPS["stage2"]}},
        }
        config.phases.update(phases if name == "gram" else {"stage2": phases["stage2"]})
        call(["train", f"--config={written(out, name, config)}", f"--workdir={run}"])
    return str(run)


def written(out: Path, name: str, config: Any) -> Path:
    """The config as a file."""
    path = out / "configs" / f"{name}.json"
    folder.write_json(path, folder.as_dict(config))
    return path


def call(argv: list[str]) -> None:
    """One gramjax command in this process; stops the benchmark if it fails."""
    if code := cli.main(argv):
        raise SystemExit(f"gramjax {' '.join(argv)} ended with {code}")


def main(argv: Sequence[str] | None = None) -> int:
    """Starts, then the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA") or "."))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the tunings (that of the starts is 1e-3)")
    parser.add_argument("--json", type=Path, help="where the numbers go (default: DIR/adaptation.json)")
    given = parser.parse_args(argv)
    if not (given.data / "persona").is_dir():
        parser.error("set GRAMJAX_DATA (or --data) to the folder that holds persona/ and stories260k/")
    out, data, began = given.out.resolve(), given.data.resolve(), time.perf_counter()
    counts = write_rows(data, out)
    base = str(data / "stories260k" / "stories260K.bin")
    starts = (f"base:{base}", f"judge:{start(out, data, 'judge')}", f"gram:{start(out, data, 'gram')}")
    config = settings(flags.load("adaptation"), data)
    config.recipe.rows, config.data.valid = str(out / "task.jsonl"), (str(out / "held_out.jsonl"),)
    config.recipe.starts, config.recipe.budgets = starts, BUDGETS
    config.recipe.seeds = tuple(int(seed) for seed in given.seeds.split(","))
    config.train.epochs, config.recipe.most_steps, config.optim.lr = 4.0, 100, given.lr
    call(["run", f"--config={written(out, 'curve', config)}", f"--workdir={out / 'curve'}"])
    found = json.loads((out / "curve" / "rounds.json").read_text("utf-8"))
    results = {
        "machine": machine(),
        "rows": counts,
        "starts": STEPS,
        "lr": given.lr,
        "seconds": time.perf_counter() - began,
    }
    curves = [{key: value for key, value in curve.items() if key != "path"} for curve in found["curves"]]
    folder.write_json(given.json or out / "adaptation.json", results | found | {"curves": curves})
    return 0


if __name__ == "__main__":
    sys.exit(main())
