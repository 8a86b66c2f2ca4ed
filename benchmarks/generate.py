"""Sampling with gramjax against transformers + torch (eager), interleaved in one run.

    pip install "gramjax[torch]"
    python benchmarks/generate.py batch  [--json benchmarks/results/generate_batch.json]
    python benchmarks/generate.py ragged [--json benchmarks/results/generate_ragged.json]

The model of `speed.py` in float32, greedy. `batch`: 8 prompts of 64 tokens, 128 new tokens each. `ragged`: 64 prompts
of 64 tokens whose answers have 8 to 128 tokens (log-uniform): torch makes batches of 8 in order, each as long as its
longest answer; gramjax refills 8 slots.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import measure
from speed import HEADS, KV_HEADS, LAYERS, MLP, VOCABULARY, WIDTH

PROMPT, NEW, BATCH, PROMPTS, SHORTEST = 64, 128, 8, 64, 8
facts: dict[str, Any] = {}


def workload(what: str) -> list[int]:
    """The length of every answer."""
    import numpy as np

    if what == "batch":
        return [NEW] * BATCH
    draw = np.random.default_rng(0).uniform(size=PROMPTS)
    lengths = np.rint(SHORTEST * (NEW / SHORTEST) ** draw).astype(int)
    lengths[0], lengths[1] = SHORTEST, NEW
    return lengths.tolist()


def prompts(count: int, seed: int) -> Any:
    """Random prompts [count, PROMPT]."""
    import numpy as np

    return np.random.default_rng(seed).integers(1, VOCABULARY, (count, PROMPT)).astype(np.int32)


def gramjax(what: str) -> Callable[[], Any]:
    """All answers of the workload, through the sampler."""
    import jax

    from gramjax.core import runtime, spec
    from gramjax.core.config import GenerationSection
    from gramjax.generation import slots
    from gramjax.generation.sample import Request, Sampling, Statistics, generate
    from gramjax.models import decoder, model

    runtime.start()
    config = decoder.Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=WIDTH // HEADS, intermediate_size=MLP, tie_word_embeddings=False,
    )  # fmt: skip
    network = model.build("decoder", config)
    weights = network.pack_for_decoding(spec.init_params(network.specs(), jax.random.key(0)))
    lengths, rounds = workload(what), [0]

    def step() -> float:
        rounds[0] += 1
        asked = [
            Request(row.tolist(), i, Sampling(max_tokens=lengths[i], temperature=0))
            for i, row in enumerate(prompts(len(lengths), rounds[0]))
        ]
        statistics = Statistics()
        done = list(generate(network, weights, asked, GenerationSection(slots=BATCH), statistics=statistics))
        facts.update(
            tokens=statistics.tokens, decode_steps=statistics.steps, slots_in_use=round(statistics.occupancy, 3),
            calls=statistics.calls, programs=slots.compilations(),
        )  # fmt: skip
        return sum(len(completion.token_ids) for completion in done)

    return step


def torch(what: str) -> Callable[[], Any]:
    """The same answers with `model.generate` over padded batches."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, intermediate_size=MLP, tie_word_embeddings=False,
            max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    lengths, rounds = workload(what), [0]

    def step() -> float:
        rounds[0] += 1
        rows, tokens, steps = torch.from_numpy(prompts(len(lengths), rounds[0])).long(), 0, 0
        for start in range(0, len(lengths), BATCH):
            part = rows[start : start + BATCH]
            new = max(lengths[start : start + BATCH])
            with torch.no_grad():
                out = model.generate(
                    part, attention_mask=torch.ones_like(part), max_new_tokens=new, min_new_tokens=new, do_sample=False
                )
            assert out.shape[1] == PROMPT + new
            tokens, steps = tokens + sum(lengths[start : start + BATCH]), steps + new
        facts.update(tokens=tokens, decode_steps=steps, slots_in_use=round(tokens / (steps * BATCH), 3))
        return tokens

    return step


SIDES = {"gramjax": gramjax, "torch": torch}


def compare(what: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both sides interleaved."""
    here = measure.machine()
    with tempfile.TemporaryDirectory() as cold:
        own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cold}
        start = lambda name: measure.Side(name, [sys.executable, __file__, what, "--side", name], own)  # noqa: E731
        results = measure.interleave([start(name) for name in SIDES], rounds, steps)
    ours, theirs = results["gramjax"], results["torch"]
    tokens = ours["tokens"]
    return {
        "what": what,
        "command": " ".join(["python", "benchmarks/generate.py", *sys.argv[1:]]),
        **here,
        "load_after": measure.machine()["load_before"],
        "shape": {"slots": BATCH, "prompt": PROMPT, "width": WIDTH, "layers": LAYERS, "dtype": "float32",
                  "answers": len(workload(what)), "tokens": sum(workload(what))},
        "sides": results,
        "tokens_per_second": {name: round(tokens / side["median_s"], 1) for name, side in results.items()},
        "speed_of_gramjax_over_torch": round(theirs["median_s"] / ours["median_s"], 3),
        "speed_by_min": round(theirs["min_s"] / ours["min_s"], 3),
        "speed_by_cpu_seconds": round(theirs["median_cpu_s"] / ours["median_cpu_s"], 3),
    }  # fmt: skip


def main() -> None:
    """Compare, or be one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("batch", "ragged"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="workloads a round")
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        measure.serve(lambda: SIDES[given.side](given.what), lambda: facts)
        return
    measure.write(given.json, compare(given.what, given.rounds, given.steps))


if __name__ == "__main__":
    main()
