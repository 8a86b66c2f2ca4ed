"""Decoding and prefill of a model with shared attention (LiSA) against the same model without, in one process.

    python benchmarks/lisa_speed.py [--shape small|llama2-7b|llama3-8b] [--json benchmarks/results/lisa_speed.json]

Random weights, one engine: `pack_for_decoding` and `forward` with a cache, as the sampler runs them. For every batch
and context: seconds of some decoding steps from a filled cache, and of reading a prompt of that length, in pieces.
A round runs every side once; a ratio is the median over rounds of plain / shared, with its 10th and 90th percentile.
Beside it stand the bytes that a step must read (weights and cache, with the weights in the dtype that runs) and their
ratio, the bound of the gain where memory decides, and multiply-adds of the layers per token.

`tiny` says whether everything runs, `small` is for two CPU cores; the others are for one accelerator with 80 GB
(bfloat16). `--largest=CONTEXT` looks for the largest batch that fits: tokens per second of each side at its own, the
way the paper measures.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from gramjax.checkpoint import sharing
from gramjax.core import runtime, spec, tree
from gramjax.models import block, decoder, heads, lisa, model

PIECE = 512
"""Tokens of a prompt that are read at once."""

BIG: dict[str, Any] = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "head_dim": 128,
                       "tie_word_embeddings": False}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, which of its layers share, the rank, and what is measured."""

    config: decoder.Config
    shared: int
    rank: int
    dtype: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int


SHAPES = {
    "tiny": Shape(
        decoder.Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=4, head_dim=8),
        2, 4, "float32", (2,), (16,), 2,
    ),
    "small": Shape(
        decoder.Config(vocab_size=4096, hidden_size=512, intermediate_size=1376, num_layers=12, num_heads=8,
                       num_kv_heads=8, head_dim=64, tie_word_embeddings=False),
        8, 10, "float32", (1, 8, 32), (512, 1024), 16,
    ),
    "llama2-7b": Shape(
        decoder.Config(vocab_size=32000, intermediate_size=11008, num_kv_heads=32, **BIG),
        21, 20, "bfloat16", (1, 8, 32), (512, 2048), 64,
    ),
    "llama3-8b": Shape(
        decoder.Config(vocab_size=128256, intermediate_size=14336, num_kv_heads=8, **BIG),
        17, 20, "bfloat16", (1, 8, 32, 64), (512, 2048), 64,
    ),
}  # fmt: skip

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lisa": ("lisa", ()),
    "linear": ("linear", ()),
    "delta": ("delta", ()),
    "share": ("share", ()),
    "cla": ("cla", ()),
}


def sides(shape: Shape, names: list[str]) -> dict[str, model.Model]:
    """The plain model and the variants of it."""
    layers = tuple(range(shape.config.num_layers - shape.shared, shape.config.num_layers))
    configs = {"plain": shape.config}
    for name in names:
        method, settings = VARIANTS[name]
        section = sharing.section_of(layers, method, settings)
        if section.rank and section.shares == "scores":
            section = dataclasses.replace(section, rank=shape.rank)
        configs[name] = dataclasses.replace(shape.config, lisa=section)
    return {name: model.Model(decoder, c, compute_dtype=jnp.dtype(shape.dtype)) for name, c in configs.items()}


def bytes_read(handle: model.Model) -> tuple[int, int]:
    """Bytes of weights that a decoding step reads, and of the cache per past token."""
    width, config = handle.compute_dtype.itemsize, handle.config
    flat = tree.flatten(handle.specs(), is_leaf=spec.is_spec)
    weights = sum(leaf.size for path, leaf in flat.items() if path != "embed" or config.tie_word_embeddings)
    cached = sum(k * e for kind in config.layer_kinds() for k, e in block.cached(config, kind).values())
    return weights * width, cached * width


def multiply_adds(handle: model.Model, context: int) -> int:
    """Of all layers, for one token that sees `context` others: projections, scores, alignment, values."""
    config, total = handle.config, 0
    flat = tree.flatten(handle.specs(), is_leaf=spec.is_spec)
    total += sum(s.size for path, s in flat.items() if path.startswith("layers/") and "align" not in path)
    for kind in config.layer_kinds():
        per_key = config.num_heads * config.head_dim  # values
        if kind.endswith(lisa.SHARED) and config.lisa.shares == "scores":
            per_key += config.num_heads * config.lisa.rank
            per_key += sum(s.size for s in lisa.specs(config).values() if len(s.shape) == 2)
        else:
            per_key += config.num_heads * config.head_dim
        total += context * per_key
    return total


def decoding(handle: model.Model, weights: Any, batch: int, context: int, steps: int) -> Callable[[], Any]:
    """A function that makes `steps` tokens for every row after `context` others, and waits for them."""
    cache = handle.init_cache(weights, batch, context + steps)
    full = jnp.broadcast_to(jnp.arange(context + steps) < context, (batch, context + steps)).astype(jnp.int32)
    start = jnp.full((batch,), context, jnp.int32)

    def run(weights: Any, cache: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        cache = cache.replace(segment_ids=full, lengths=start, positions=start)

        def step(_: Any, carry: Any) -> Any:
            cache, tokens = carry
            out = handle.forward(weights, {"tokens": tokens}, cache)
            logits = heads.logits(weights, out.hidden[:, 0])
            return out.cache, jnp.argmax(logits, axis=-1)[:, None].astype(jnp.int32)

        return jax.lax.fori_loop(0, steps, step, (cache, tokens))

    compiled = jax.jit(run, donate_argnums=1)
    held = [cache]

    def call() -> None:
        held[0], tokens = compiled(weights, held[0], jnp.ones((batch, 1), jnp.int32))
        jax.block_until_ready(tokens)

    return call


def reading(handle: model.Model, weights: Any, batch: int, context: int) -> Callable[[], Any]:
    """A function that reads a prompt in pieces and waits for the logits of its last token."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, handle.config.vocab_size, (batch, context)), jnp.int32)

    @jax.jit
    def run(weights: Any, tokens: jax.Array) -> jax.Array:
        cache = handle.init_cache(weights, batch, context)
        for start in range(0, context, PIECE):
            out = handle.forward(weights, {"tokens": tokens[:, start : start + PIECE]}, cache)
            cache = out.cache
        return heads.logits(weights, out.hidden[:, -1])

    return lambda: jax.block_until_ready(run(weights, tokens))


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, one after the other in each round; two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Per side: median seconds, and how many times faster than plain in the same round."""
    out = {}
    for name, times in seconds.items():
        gains = [a / b for a, b in zip(seconds["plain"], times)]
        low, high = np.percentile(gains, [10, 90])
        out[name] = {"seconds": round(statistics.median(times), 5), "gain": round(statistics.median(gains), 3),
                     "gain_10": round(float(low), 3), "gain_90": round(float(high), 3)}  # fmt: skip
    return out


def accounted(handles: dict[str, model.Model], batch: int, context: int) -> dict[str, dict[str, float]]:
    """Bytes and multiply-adds of a decoding step by side, and the gain they allow."""
    plain = bytes_read(handles["plain"])
    out = {}
    for name, handle in handles.items():
        weights, cached = bytes_read(handle)
        out[name] = {
            "weight_mib": round(weights / 2**20, 2), "cache_bytes_per_token": cached,
            "bytes_gain": round((plain[0] + batch * context * plain[1]) / (weights + batch * context * cached), 3),
            "multiply_add_gain": round(
                multiply_adds(handles["plain"], context) / multiply_adds(handle, context), 3),
        }  # fmt: skip
    return out


def fits(handle: model.Model, weights: Any, batch: int, context: int, steps: int) -> bool:
    """Whether a batch can be decoded without running out of memory."""
    try:
        decoding(handle, weights, batch, context, steps)()
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        return False
    return True


def largest(handle: model.Model, weights: Any, context: int, steps: int, unit: int = 8) -> int:
    """The largest batch, a multiple of `unit`, that fits."""
    low, high = 0, unit
    while fits(handle, weights, high, context, steps):
        low, high = high, high * 2
    while high - low > unit:
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(handle, weights, middle, context, steps) else (low, middle)
    return low


def main() -> None:
    """Measure every batch and context; with a big shape the largest batches too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--variants", default="lisa,linear,delta", help="names, by commas")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--grid", default="", help="such as 1x512,8x1024 (batch, context); default: of the shape")
    parser.add_argument("--largest", type=int, default=0, help="context to look for the largest batch at; 0: do not")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    runtime.start()
    shape, about = SHAPES[arguments.shape], measure.machine()
    handles = sides(shape, arguments.variants.split(","))
    weights = {}
    for name, handle in handles.items():
        params = spec.init_params(handle.specs(), jax.random.key(0), handle.compute_dtype)
        weights[name] = handle.pack_for_decoding(params)
        del params
    results: dict[str, Any] = {
        "command": f"python benchmarks/lisa_speed.py --shape {arguments.shape}", "machine": about,
        "device": jax.devices()[0].device_kind, "dtype": shape.dtype, "layers": shape.config.num_layers,
        "shared": shape.shared, "rank": shape.rank, "rounds": arguments.rounds, "grid": [],
    }  # fmt: skip
    points = [tuple(map(int, point.split("x"))) for point in arguments.grid.split(",") if point]
    for batch, context in points or [(batch, context) for batch in shape.batches for context in shape.contexts]:
        found: dict[str, Any] = {"batch": batch, "context": context, "steps": shape.steps}
        found["accounted"] = accounted(handles, batch, context)
        calls = {n: decoding(handles[n], weights[n], batch, context, shape.steps) for n in handles}
        found["decode"] = ratios(interleaved(calls, arguments.rounds))
        del calls
        calls = {n: reading(handles[n], weights[n], batch, context) for n in handles}
        found["prefill"] = ratios(interleaved(calls, max(arguments.rounds // 3, 3)))
        results["grid"].append(found)
        for name in handles:
            print(f"batch {batch:>3} context {context:>5}  {name:<7} decode x{found['decode'][name]['gain']:<6} "
                  f"(bytes x{found['accounted'][name]['bytes_gain']})  prefill x{found['prefill'][name]['gain']}",
                  flush=True)  # fmt: skip
    if arguments.largest:
        results["largest"] = {}
        for name in handles:
            batch = largest(handles[name], weights[name], arguments.largest, shape.steps)
            call = decoding(handles[name], weights[name], batch, arguments.largest, shape.steps)
            seconds = statistics.median(interleaved({"plain": call}, 5)["plain"])
            rate = round(batch * shape.steps / seconds, 1)
            results["largest"][name] = {"context": arguments.largest, "batch": batch, "tokens_per_second": rate}
            print(f"largest batch of {name}: {batch}, {rate} tokens/s", flush=True)
    measure.write(arguments.json, results)


if __name__ == "__main__":
    main()
