"""Seconds per GRPO step (rollout and update) of gramjax against TRL's GRPOTrainer, interleaved in one run.

    python benchmarks/grpo_step.py sums    --trl_python=OTHER/bin/python [--json benchmarks/results/grpo_step_sums.json]
    python benchmarks/grpo_step.py stories --trl_python=OTHER/bin/python \\
        --weights=stories260K.bin --tokenizer=tok512.bin
    python benchmarks/grpo_step.py large   --trl_python=OTHER/bin/python

TRL is no dependency: it lives in an environment of its own (`pip install trl torch`), whose Python is named. Both sides
start from one Hugging Face folder with the same prompts, group size, longest completion, temperature and optimiser, and
do one update per rollout, without a reference model (beta 0); end tokens are left out, so that all completions are as
long as allowed. TRL generates with transformers. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment both
have large pages, and the JSON says so.

--size=PROMPTS,ANSWERS changes the batch: what a framework spends per call shows in small ones, arithmetic in large.
`sums`: the model of configs/grpo_modadd.py, 64 prompts x 8 answers of 4 tokens. `stories`: the 260-thousand-parameter
model of llama2.c, 8 x 8 of 64. `large`: the 32-million-parameter shape of speed.py, 2 x 4 of 64.
"""

import argparse
import json
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

SIZES = {"sums": (64, 8, 4), "stories": (8, 8, 64), "large": (2, 4, 64)}
"""Prompts, answers to each, and tokens of an answer."""

facts: dict[str, Any] = {}

REWARD = '''
import zlib

def even(prompts, completions, **columns):
    """The share of characters with an even code, and a thousandth by the text: no two answers of a group are worth the
    same, or gramjax would have nothing to learn from them and leave its update out."""
    share = [sum(ord(c) % 2 == 0 for c in text) / max(len(text), 1) for text in completions]
    return [value + zlib.crc32(text.encode()) / 2**32 / 1000 for value, text in zip(share, completions)]
'''


def prompts(what: str) -> list[str]:
    """The prompts of both sides."""
    from gramjax.data.recipes import modular_addition, story_beginnings

    made = modular_addition.rows("train") if what == "sums" else story_beginnings.rows("train")
    return [row["prompt"] for row in made]


def config(what: str, folder: Path) -> Any:
    """The config of our side."""
    from gramjax.core import config as configs

    count, group, length = SIZES[what]
    made = configs.defaults("grpo")
    made.model.path = str(folder / "model")
    made.data.train = (str(folder / "prompts.jsonl"),)
    made.data.max_length, made.data.packing = 64, True
    made.reward.functions = (f"{folder / 'reward.py'}:even",)
    made.optim.lr, made.optim.schedule, made.optim.warmup_ratio = 1e-6, "constant", 0.0
    made.train.steps, made.train.remat, made.train.scan_layers = 10_000, "none", False
    made.grpo.prompts_per_step, made.grpo.group_size, made.grpo.completions_every = count, group, 0
    made.sampling.max_tokens, made.sampling.ignore_eos = length, True
    made.generation.slots = min(count * group, 512)
    made.generation.steps_per_call = min(length, 64)
    made.generation.prefill_rows = min(count, 64)
    return made


def gramjax(what: str, folder: Path) -> Callable[[], Any]:
    """A step: the source draws a rollout, the compiled step learns from it."""
    import jax

    from gramjax.core import runtime
    from gramjax.training import setup

    runtime.start()
    run = setup.build_run(config(what, folder))
    held = [setup.first_state(run)[0]]

    def step() -> float:
        batch = run.source.next(held[0]["params"])
        held[0], metrics = run.step(held[0], run.put(batch))
        jax.block_until_ready(held[0])
        about = {name: total / weight for name, (total, weight) in run.source.metrics().items()}
        facts.update(
            tokens=SIZES[what][0] * SIZES[what][1] * about["completions/mean_length"],
            seconds_of_rollout=round(about["time/rollout"], 4), rows=len(batch["tokens"]),
        )  # fmt: skip
        return float(metrics["loss"][0])

    return step


def trl(what: str, folder: Path) -> Callable[[], Any]:
    """A step of GRPOTrainer.train, which runs in a thread and waits for its turn between two steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    count, group, length = SIZES[what]
    space: dict[str, Any] = {}
    exec((folder / "reward.py").read_text(), space)  # written by this program
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    settings = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=count * group, num_generations=group,
        max_completion_length=length, temperature=1.0, beta=0.0, learning_rate=1e-6, lr_scheduler_type="constant",
        max_steps=10_000, logging_steps=10_000, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, adam_beta2=0.95, disable_tqdm=True,
        generation_kwargs={"min_new_tokens": length},
    )  # fmt: skip
    turn: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn.get()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            done.put(float(state.global_step))

    trainer = GRPOTrainer(
        model=model, reward_funcs=space["even"], args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Gate()],
    )  # fmt: skip
    threading.Thread(target=trainer.train, daemon=True).start()

    def step() -> float:
        turn.put(True)
        value = done.get()
        lengths = trainer._metrics["train"]["completions/mean_length"]
        facts.update(tokens=count * group * lengths[-1])
        return value

    return step


def prepare(what: str, folder: Path, weights: str, tokenizer: str) -> None:
    """The folder that both sides start from: a model, prompts, a reward."""
    import jax

    from gramjax.checkpoint import huggingface
    from gramjax.core import config as configs
    from gramjax.core import spec
    from gramjax.training import setup

    made = configs.defaults("cross_entropy")
    arch = made.model.arch
    if what == "stories":
        made.model.path, made.tokenizer.path = weights, tokenizer
    elif what == "sums":
        made.tokenizer.path = "bytes"
        arch.hidden_size, arch.intermediate_size, arch.num_layers = 64, 256, 2
        arch.num_heads, arch.num_kv_heads, arch.head_dim = 4, 4, 16
    else:
        from speed import HEADS, KV_HEADS, LAYERS, MLP, VOCABULARY, WIDTH

        made.tokenizer.path = "bytes"
        arch.vocab_size, arch.hidden_size, arch.intermediate_size, arch.num_layers = VOCABULARY, WIDTH, MLP, LAYERS
        arch.num_heads, arch.num_kv_heads, arch.head_dim = HEADS, KV_HEADS, WIDTH // HEADS
        arch.tie_word_embeddings = False
    network = setup.open_network(made)
    if network.source is None:
        params = spec.init_params(network.model.specs(), jax.random.key(0))
    else:
        params = setup.load_for_use(network)
    network.renderer.tokenizer.save(folder / "tokenizer")
    huggingface.save(folder / "model", params, network.model.config, folder / "tokenizer")
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(what)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "reward.py").write_text(REWARD)


def command(given: argparse.Namespace) -> str:
    """The command without the places of this machine."""
    words = ["python", "benchmarks/grpo_step.py", given.what, "--trl_python=OTHER/bin/python"]
    if given.what == "stories":
        words += ["--weights=stories260K.bin", "--tokenizer=tok512.bin"]
    words += [f"--size={given.size}"] if given.size else []
    return " ".join([*words, f"--rounds={given.rounds}", f"--steps={given.steps}"])


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Both sides interleaved."""
    here = measure.machine()
    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as shared:
        folder = Path(shared)
        prepare(given.what, folder, given.weights, given.tokenizer)
        own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cold, "HF_HUB_OFFLINE": "1"}
        root = str(Path(__file__).parent.parent)
        start = lambda name, python: measure.Side(  # noqa: E731
            name,
            [python, __file__, given.what, "--side", name, "--folder", shared, "--size", given.size],
            {**own, "PYTHONPATH": root},
        )
        sides = [start("gramjax", sys.executable), start("trl", given.trl_python)]
        results = measure.interleave(sides, given.rounds, given.steps)
    ours, theirs = results["gramjax"], results["trl"]
    count, group, length = SIZES[given.what]
    return {
        "what": given.what,
        "command": command(given),
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        **here,
        "load_after": measure.machine()["load_before"],
        "shape": {"prompts": count, "group_size": group, "max_tokens": length, "dtype": "float32"},
        "sides": results,
        "tokens_per_second": {name: round(side["tokens"] / side["median_s"], 1) for name, side in results.items()},
        "speed_of_gramjax_over_trl": round(theirs["median_s"] / ours["median_s"], 3),
        "speed_by_min": round(theirs["min_s"] / ours["min_s"], 3),
        "share_of_rollout": round(ours["seconds_of_rollout"] / ours["median_s"], 3),
    }


def main() -> None:
    """Compare, or be one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(SIZES))
    parser.add_argument("--trl_python", default=sys.executable, help="a Python that has trl and torch")
    parser.add_argument("--weights", default="", help="stories: weights of llama2.c")
    parser.add_argument("--tokenizer", default="", help="stories: tokenizer of llama2.c")
    parser.add_argument("--size", default="", help="PROMPTS,ANSWERS of a step instead of the ones above")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.size:
        count, group = map(int, given.size.split(","))
        SIZES[given.what] = (count, group, SIZES[given.what][2])
    if given.side:
        side = {"gramjax": gramjax, "trl": trl}[given.side]
        measure.serve(lambda: side(given.what, Path(given.folder)), lambda: facts)
        return
    measure.write(given.json, compare(given))


if __name__ == "__main__":
    main()
