"""A small language model of real text with a deep stack, for experiments that edit its layers.

python benchmarks/text_model.py --out DIR trains it: DIR/rows (train.jsonl, valid.jsonl) and DIR/model (a run folder).
With --size small: DIR/model_small.

Text: tinyshakespeare and WikiText-2's validation text under GRAMJAX_DATA, cut into pieces of whole lines; every
tenth stretch of pieces is held out. Tokens: the 512-piece vocabulary beside stories260K. Twelve layers of width 192,
5 million parameters, about 40 minutes on one core; `small`: eight of width 128, 1.7 million, about 6 minutes.
"""

import argparse
import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FILES = ("text/tinyshakespeare.txt.gz", "text/wikitext2_valid.txt.gz")
PIECE, STRETCH = 750, 20
"""Characters of a piece of text, and pieces that are held out (or not) together."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the model, and how it is trained."""

    folder: str
    arch: dict[str, Any]
    length: int
    steps: int


SIZES = {
    "full": Size("model", {"hidden_size": 192, "intermediate_size": 512, "num_layers": 12, "num_heads": 6,
                           "num_kv_heads": 6}, 512, 700),
    "small": Size("model_small", {"hidden_size": 128, "intermediate_size": 352, "num_layers": 8, "num_heads": 4,
                                  "num_kv_heads": 4}, 256, 500),
}  # fmt: skip
SAME = {"head_dim": 32, "max_position_embeddings": 512, "tie_word_embeddings": True}


def pieces(text: str) -> list[str]:
    """The text cut at line ends into pieces of at least `PIECE` characters."""
    out, current = [], ""
    for line in text.split("\n"):
        current += line.strip(" ") + "\n"
        if len(current) >= PIECE:
            out.append(current.strip("\n"))
            current = ""
    return [piece for piece in out if piece]


def write_rows(data: Path, out: Path) -> None:
    """`out/train.jsonl` and `out/valid.jsonl`: rows with `id` and `text`."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    for name in FILES:
        with gzip.open(data / name, "rt", encoding="utf-8") as file:
            found = pieces(file.read())
        for i, text in enumerate(found):
            part = "valid" if i // STRETCH % 10 == 9 else "train"
            parts[part].append({"id": f"{Path(name).name.split('.')[0]}-{i}", "text": text})
    for part, rows in parts.items():
        (out / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def train(data: Path, out: Path, size: Size, steps: int, seed: int) -> None:
    """Train the model, or go on with it; a model that is done stays as it is."""
    settings = {f"model.arch.{name}": value for name, value in (size.arch | SAME).items()}
    settings |= {
        "tokenizer.path": data / "stories260k" / "tok512.bin", "data.train": f"('{out / 'rows' / 'train.jsonl'}',)",
        "data.valid": f"('{out / 'rows' / 'valid.jsonl'}',)", "data.max_length": size.length, "optim.lr": 2e-3,
        "optim.weight_decay": 0.1, "optim.betas": "(0.9,0.95)", "optim.warmup_ratio": 0.05, "optim.end_lr_ratio": 0.1,
        "train.steps": steps, "train.batch_size": 8, "train.remat": "none", "train.log_every": 20,
        "train.save_every": 100, "train.eval_every": 200, "data.overlong": "truncate_prompt_left", "seed": seed,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "gramjax", "train", "--config=sft", f"--workdir={out / size.folder}", *flags]
    subprocess.run(command, check=True)


def main() -> None:
    """Read the arguments, write the rows, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--steps", type=int, default=0, help="0: 700, or 500 of the small one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = os.environ.get("GRAMJAX_DATA")
    if not data:
        raise SystemExit("set GRAMJAX_DATA to the folder with text/ and stories260k/")
    write_rows(Path(data), arguments.out / "rows")
    size = SIZES[arguments.size]
    train(Path(data), arguments.out, size, arguments.steps or size.steps, arguments.seed)


if __name__ == "__main__":
    main()
