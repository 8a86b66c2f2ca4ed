"""Compile small programs for TPU slices that are not here and print what they take, as JSON lines.

python slice_worker.py CASE ...      a process of its own: the TPU compiler is loaded before JAX starts
"""

import dataclasses
import json
import sys

from gramjax.core import chips

CASES = {
    "train": ("v5e:4x4", "full", 16),
    "score": ("v5p:4x4x4", "score", 64),
    "decode": ("v5p:8x8x8", "decode", 512),
}
"""Slice, use of the preset, and sequences."""


def compiled(case: str) -> dict:
    from gramjax.core import presets, spec, tree
    from gramjax.models import decoder
    from gramjax.training import budget, planning

    topology, use, count = chips.parse(CASES[case][0]), *CASES[case][1:]
    arch = decoder.Config(
        vocab_size=8192, hidden_size=1024, intermediate_size=2048, num_layers=4, num_heads=8, num_kv_heads=4,
        head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    config = presets.preset(arch, use)
    config.data.max_length = 1024
    if config.job == "train":
        config.train.batch_size = count
    elif config.job == "score":
        config.score.batch_size = count
    else:
        config.generation.slots, config.generation.max_length = count, 1024
    program = planning.build(config, chips.devices(topology))
    found = dataclasses.asdict(budget.read(program, topology))
    specs = tree.flatten(program.network.model.specs(), is_leaf=spec.is_spec)
    counts = {path: leaf.size for path, leaf in specs.items()}
    kernels = program.lower().as_text().count("tpu_custom_call")
    return {**found, "case": case, "parameters": sum(counts.values()), "embedding": counts["embed"], "kernels": kernels}


def over_slices() -> dict:
    """The gradient of one matrix whose rows lie over the chips of two slices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from gramjax.core import collectives, config, sharding

    topology = chips.parse("v5e:4x4").times(2)
    mesh = sharding.make_mesh(config.MeshSection(slices=2, data=2, fsdp=16), chips.devices(topology))
    rows, cut = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec("fsdp"))
    weight = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=rows)
    gradient = jax.jit(jax.grad(lambda weight, x: jnp.sum(jnp.tanh(x @ weight) ** 2)), out_shardings=cut)
    found = collectives.bytes_by_kind(gradient.lower(weight, x).compile().as_text())
    return {"case": "over_slices", "bytes": found, "weight": 4 * 1024 * 512, "chips": topology.count}


if __name__ == "__main__":
    chips.prepare(chips.parse(CASES["train"][0]))
    for name in sys.argv[1:]:
        print(json.dumps(over_slices() if name == "over_slices" else compiled(name)), flush=True)
