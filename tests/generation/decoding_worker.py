"""Answers on meshes of simulated devices, and what the decode program does with its cache; prints JSON.

Run as a process of its own, because the number of devices is fixed when JAX starts:
python decoding_worker.py DATA,FSDP,TENSOR,CONTEXT,GATHER ...
"""

import json
import sys

import jax
import numpy as np
import reference_sampler as reference

from gramjax.core import config, sharding
from gramjax.generation import slots
from gramjax.generation.sample import generate
from gramjax.models import model

SLOTS = 8


def short_requests() -> list:
    """Requests of every kind whose prompts are read in one piece, so that few programs are compiled."""
    return [r for r in reference.mixed_requests() if len(r.tokens) <= 17]


def answers(network: model.Model, weights: dict) -> dict[str, list]:
    settings = config.GenerationSection(slots=SLOTS, steps_per_call=8, prefill_length=16)
    found = generate(network, weights, short_requests(), settings)
    return {f"{c.request.id}/{c.sample}": [c.token_ids, c.logprobs] for c in found}


def on_mesh(sizes: list[int], gather: bool) -> dict:
    network, params, _ = reference.tiny()
    mesh = sharding.make_mesh(config.MeshSection(*sizes))
    network = model.build("decoder", network.config, mesh, "float32")
    params = jax.device_put(params, sharding.shardings(network.specs(), mesh))
    weights = network.pack_for_decoding(params, gather)
    before = slots.decode._cache_size()
    out: dict = {"answers": answers(network, weights), "decode programs": slots.decode._cache_size() - before}

    new = slots.empty(
        weights, model=network, batch=SLOTS, capacity=64, num_stops=4, with_seen=True, with_allowed=True,
        num_candidates=reference.VOCAB,
    )  # fmt: skip
    keys = new.cache.layers[0]["k"]
    out["cache shard"] = list(keys.sharding.shard_shape(keys.shape))
    halt, steps, enough = np.zeros(SLOTS, bool), np.int32(8), np.int32(SLOTS)
    program = slots.decode.lower(weights, new, halt, steps, enough, model=network, most=8).compile()
    layers = jax.tree.leaves(new.cache.layers)
    of_one_device = sum(x.nbytes // x.size * int(np.prod(x.sharding.shard_shape(x.shape))) for x in layers)
    out["aliased"] = program.memory_analysis().alias_size_in_bytes / of_one_device
    lines = program.as_text().splitlines()
    out["gathers in layers"] = sum(" all-gather(" in line and "/layer/" in line for line in lines)
    after, drawn = slots.decode(weights, new, halt, steps, enough, model=network, most=8)
    out["cache stays"] = all(
        a.sharding.is_equivalent_to(b.sharding, b.ndim) for a, b in zip(jax.tree.leaves(after.cache.layers), layers)
    )
    out["drawn is whole"] = all(x.is_fully_replicated for x in jax.tree.leaves(drawn))
    return out


if __name__ == "__main__":
    network, _, weights = reference.tiny()
    found = {"one": answers(network, weights)}
    for word in sys.argv[1:]:
        *sizes, gather = map(int, word.split(","))
        found[word] = on_mesh(sizes, bool(gather))
    print(json.dumps(found))
