"""A Bradley-Terry reward model as a whole job: `gramjax train` against TRL's RewardTrainer, start-up apart.

    pip install "gramjax[torch]" trl==1.16.0
    python benchmarks/reward_job.py [--json benchmarks/results/reward_job.json]

The same generated preference pairs and the same small Llama shape (see speed.py; byte-level vocabulary padded to 8192,
scalar head), 4 pairs of 256 tokens a step, float32, AdamW. Both sides read, tokenise, batch, step and log. TRL gets a
word tokeniser of the same length. Medians of the steps are compared; the first step (compilation) is shown apart.
The two jobs run one after the other, in rounds.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

PAIRS, LENGTH, BATCH = 80, 256, 4
SHAPE = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 1408}


def write_rows(path: Path) -> None:
    """Pairs whose prompt and answer have LENGTH - 2 letters: the two special tokens make LENGTH."""
    draw = random.Random(0)
    text = lambda size: "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=size))  # noqa: E731
    with path.open("w") as file:
        for _ in range(PAIRS):
            prompt = text(64)
            row = {"prompt": prompt, "chosen": text(LENGTH - 66), "rejected": text(LENGTH - 66)}
            file.write(json.dumps(row) + "\n")


def gramjax_job(folder: Path) -> None:
    """`gramjax train` on a config file; the times of the steps come from its metrics."""
    from gramjax.jobs import train

    config = folder / "config.py"
    arch = "\n".join(f"    config.model.arch.{name} = {value}" for name, value in SHAPE.items())
    config.write_text(
        "from gramjax.core.config import defaults\n\n\ndef get_config():\n"
        "    config = defaults('bradley_terry')\n"
        f"{arch}\n    config.model.arch.head_dim, config.model.arch.vocab_size = 64, 8192\n"
        "    config.tokenizer.path = 'bytes'\n"
        f"    config.data.train, config.data.max_length = ({str(folder / 'rows.jsonl')!r},), {LENGTH}\n"
        f"    config.train.batch_size, config.train.log_every = {BATCH}, 1\n"
        "    config.train.remat, config.train.scan_layers = 'projections', False\n"
        "    return config\n"
    )
    train.main([f"--config={config}", f"--workdir={folder / 'run'}"])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["perf/step_time"] for line in lines if "perf/step_time" in line]
    tokens = lines[-1].get("num_tokens")
    measure.say(
        {"seconds": seconds, "tokens": tokens, "losses": [line["loss"] for line in lines if "loss" in line][:3]}
    )


def trl_job(folder: Path) -> None:
    """TRL's RewardTrainer with a character tokeniser."""
    import torch
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    letters = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    inner = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=1408,
            num_labels=1,
            pad_token_id=0,
            max_position_embeddings=LENGTH,
        )  # fmt: skip
    )
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    seconds, losses = [], []

    class Clock(TrainerCallback):
        """Time from one step's end to the next."""

        last = 0.0

        def on_train_begin(self, *args: Any, **more: Any) -> None:
            """Start."""
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **more: Any) -> None:
            """Note the time of the step."""
            now = time.perf_counter()
            seconds.append(now - self.last)
            self.last = now

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            """Note the loss."""
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1, max_length=LENGTH,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, learning_rate=1e-5,
            gradient_checkpointing=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    lengths = {len(x) for name in ("chosen_ids", "rejected_ids") for x in trainer.train_dataset[name]}
    measure.say(
        {"seconds": seconds, "lengths": sorted(lengths), "rows": len(trainer.train_dataset), "losses": losses[:3]}
    )


JOBS = {"gramjax": gramjax_job, "trl": trl_job}


def start(name: str) -> dict[str, Any]:
    """Run one job in its own process and folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl")
        own = {**os.environ, "JAX_PLATFORMS": "cpu", "GRAMJAX_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--side", name, "--folder", folder], env=own, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"benchmark: {name} stopped with code {done.returncode}\n{done.stderr[-3000:]}")
        answers = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]
        return {"whole_job_s": round(time.perf_counter() - begin, 2), **answers[0], **answers[1]}


def main() -> None:
    """Both jobs in turn, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        JOBS[given.side](Path(given.folder))
        measure.say({"peak_mib": measure.peak_mib()})
        return
    here = measure.machine()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in JOBS}
    for _ in range(given.rounds):
        for name in JOBS:
            runs[name].append(start(name))
    medians = {name: statistics.median(s for r in found for s in r["seconds"][1:]) for name, found in runs.items()}
    measure.write(
        given.json,
        {
            "what": f"Bradley-Terry training, {BATCH} pairs of {LENGTH} a step, {PAIRS // BATCH} steps",
            "command": " ".join(["python", "benchmarks/reward_job.py", *sys.argv[1:]]),
            **here,
            "median_step_s": {name: round(value, 4) for name, value in medians.items()},
            "speed_of_gramjax_over_trl": round(medians["trl"] / medians["gramjax"], 3),
            "jobs": runs,
        },
    )


if __name__ == "__main__":
    main()
