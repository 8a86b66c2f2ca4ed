"""Training steps and scoring of gramjax against transformers + torch (eager), interleaved in one run.

    pip install "gramjax[torch]"
    python benchmarks/speed.py train [--json benchmarks/results/train.json]
    python benchmarks/speed.py score [--json benchmarks/results/score.json]

Llama shape: vocabulary 8192, width 512, 8 layers, 8 heads, 4 kv heads, mlp 1408, untied head; batch 4 x 512, float32.
`train` is forward, backward, clipping and AdamW; gramjax runs what `gramjax train` runs (`training.setup` from rows to
the compiled step, batches from its pipeline). `score` is a forward pass with a scalar head on the last position.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, MLP, BATCH, LENGTH = 8192, 512, 8, 8, 4, 1408, 4, 512
PEERS = {
    "train": {"torch.compile": 2.00, "Levanter": 3.58, "EasyDeL": 4.06, "MaxText": 4.18, "Tunix": 5.32},
    "score": {"torch.compile": 0.486, "Levanter": 0.62, "EasyDeL": 0.76, "Tunix": 0.77},
}
"""Seconds of the other frameworks, measured once on the same kind of machine, beside the torch eager below; they are
heavy to install and are not run here. Compare through the ratio to torch eager."""
PEERS_TORCH = {"train": 2.14, "score": 0.498}


def rows(path: Path, count: int) -> None:
    """Texts of LENGTH - 2 letters: with the first and the end token, batches without padding."""
    import random

    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps({"text": "".join(draw.choices(letters, k=LENGTH - 2))}) + "\n")


def gramjax_config(folder: Path) -> Any:
    """The training config of the benchmark."""
    from gramjax.core.config import defaults

    config = defaults("cross_entropy")
    config.tokenizer.path = "bytes"
    arch = config.model.arch
    arch.vocab_size, arch.hidden_size, arch.num_layers, arch.intermediate_size = VOCABULARY, WIDTH, LAYERS, MLP
    arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.tie_word_embeddings = HEADS, KV_HEADS, WIDTH // HEADS, False
    rows(folder / "rows.jsonl", 16 * BATCH)
    config.data.train, config.data.max_length = (str(folder / "rows.jsonl"),), LENGTH
    config.train.batch_size, config.train.steps = BATCH, 10_000
    config.train.remat, config.train.scan_layers = "projections", False
    config.optim.lr, config.optim.weight_decay = 1e-4, 0.01
    return config


def gramjax_train() -> Callable[[], Any]:
    """The step of a training job."""
    facts["import_s"] = time.perf_counter()
    import jax

    from gramjax.core import runtime
    from gramjax.training import setup

    runtime.return_large_blocks()
    runtime.start()
    facts["import_s"] = time.perf_counter() - facts["import_s"]
    facts["heavy_modules"] = [name for name in ("torch", "tensorflow", "transformers") if name in sys.modules]
    with tempfile.TemporaryDirectory() as folder:
        run = setup.build_run(gramjax_config(Path(folder)))
    state, _ = setup.first_state(run)
    begin = time.perf_counter()
    compiled = run.step.lower(state, run.put(run.source.batch(0))).compile()
    facts["compile_s"] = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    facts["program_mib"] = {
        "state_and_batch": memory.argument_size_in_bytes / 2**20,
        "donated": memory.alias_size_in_bytes / 2**20,
        "state": sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20,
        "temporaries": memory.temp_size_in_bytes / 2**20,
    }
    runtime.release_memory()
    holder = {"state": state}
    del state

    def step() -> float:
        batch = run.source.next()
        assert int((batch["segment_ids"] != 0).sum()) == BATCH * LENGTH
        holder["state"], metrics = compiled(holder["state"], run.put(batch))
        total, weight = metrics["loss"]
        return float(total) / float(weight)

    return step


def gramjax_score() -> Callable[[], Any]:
    """A forward pass of a reward model."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gramjax.core import runtime, spec
    from gramjax.models import decoder, heads, model

    runtime.start()
    config = decoder.Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=WIDTH // HEADS, intermediate_size=MLP, heads=("score",), tie_word_embeddings=False,
    )  # fmt: skip
    network = model.build("decoder", config)
    weights = network.pack(spec.init_params(network.specs(), jax.random.key(0)), scan=False)
    last = jnp.full((BATCH, 1), LENGTH - 1)

    def score(weights: Any, batch: Any) -> jax.Array:
        return heads.score(weights, heads.take_positions(network.forward(weights, batch).hidden, last))

    draw = np.random.default_rng(0)
    begin = time.perf_counter()
    tokens = draw.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    compiled = jax.jit(score).lower(weights, {"tokens": tokens, "segment_ids": np.ones_like(tokens)}).compile()
    facts["compile_s"] = time.perf_counter() - begin

    def step() -> float:
        tokens = draw.integers(1, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
        return float(np.asarray(compiled(weights, {"tokens": tokens, "segment_ids": np.ones_like(tokens)})).sum())

    return step


def torch_config() -> Any:
    """The same shape for transformers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, intermediate_size=MLP, tie_word_embeddings=False, max_position_embeddings=LENGTH,
        pad_token_id=0, num_labels=1,
    )  # fmt: skip


def torch_train() -> Callable[[], Any]:
    """The usual eager loop."""
    facts["import_s"] = time.perf_counter()
    import torch
    from transformers import LlamaForCausalLM

    facts["import_s"] = time.perf_counter() - facts["import_s"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(torch_config())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, betas=(0.9, 0.95))

    def step() -> float:
        tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH))
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss)

    return step


def torch_score() -> Callable[[], Any]:
    """A forward pass of transformers' reward model."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(torch_config()).eval()

    def step() -> float:
        tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH))
        with torch.no_grad():
            return float(model(tokens, attention_mask=torch.ones_like(tokens)).logits.sum())

    return step


SIDES = {
    "train": {"gramjax": gramjax_train, "torch": torch_train},
    "score": {"gramjax": gramjax_score, "torch": torch_score},
}
facts: dict[str, Any] = {}


def compare(what: str, rounds: int, steps: int, threads: int, cold: str) -> dict[str, Any]:
    """Both sides interleaved, then gramjax once more with the compilation cache it has just filled."""
    here = measure.machine()
    own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cold}
    if threads:
        own |= {"NPROC": str(threads), "OMP_NUM_THREADS": str(threads)}
    start = lambda name: measure.Side(name, [sys.executable, __file__, what, "--side", name], own)  # noqa: E731
    results = measure.interleave([start(name) for name in SIDES[what]], rounds, steps)
    warm = measure.interleave([start("gramjax")], 1, 2)["gramjax"]
    ratio = results["torch"]["median_s"] / results["gramjax"]["median_s"]
    ours_over_torch = results["gramjax"]["median_s"] / results["torch"]["median_s"]
    peers = {
        name: {"seconds_then": seconds, "gramjax_is_faster_by": round(seconds / PEERS_TORCH[what] / ours_over_torch, 2)}
        for name, seconds in PEERS[what].items()
    }
    return {
        "what": what,
        "command": " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        **here,
        "load_after": measure.machine()["load_before"],
        "shape": {"batch": BATCH, "length": LENGTH, "width": WIDTH, "layers": LAYERS, "dtype": "float32"},
        "sides": results,
        "gramjax_warm_cache": warm,
        "speed_of_gramjax_over_torch": round(ratio, 3),
        "speed_by_min": round(results["torch"]["min_s"] / results["gramjax"]["min_s"], 3),
        "speed_by_cpu_seconds": round(results["torch"]["median_cpu_s"] / results["gramjax"]["median_cpu_s"], 3),
        "peers_quoted": peers,
    }


def main() -> None:
    """Compare, or be one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--threads", type=int, default=0, help="threads of each side; 0: all cores")
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        measure.serve(SIDES[given.what][given.side], lambda: facts)
        return
    with tempfile.TemporaryDirectory() as cold:
        measure.write(given.json, compare(given.what, given.rounds, given.steps, given.threads, cold))


if __name__ == "__main__":
    main()
