"""Compile the training step for meshes of 8 simulated devices, run nothing; the compiler's log is what is looked at.

A process of its own, with a compilation cache of its own. Before each mesh its name goes to stderr. What is gathered
along the length of rows, outside of attention and besides segment ids, goes to stdout.
"""

import re
import sys

import jax
import jax.numpy as jnp
import test_step as cases
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gramjax.core import config, sharding, spec, tree
from gramjax.models import decoder, model
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

MESHES = {
    "fsdp 8": config.MeshSection(fsdp=8),
    "fsdp 4, tensor 2": config.MeshSection(fsdp=4, tensor=2),
    "data 2, fsdp 2, context 2": config.MeshSection(data=2, fsdp=2, context=2),
}
GATHERED = re.compile(r" = (\S+) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(")
"""An instruction that moves activations, and the shape of what it gives."""


def say(name: str) -> None:
    print(f"== {name}", file=sys.stderr, flush=True)


def known_case() -> None:
    """What the line is known from: an array that changes from two axes of the mesh to three along one of its own."""
    mesh = sharding.make_mesh(config.MeshSection(data=2, fsdp=2, tensor=2))
    before, after = (NamedSharding(mesh, P(*axes)) for axes in (("fsdp", "tensor"), (None, ("data", "fsdp", "tensor"))))

    def moved(x: jax.Array) -> jax.Array:
        there = jax.lax.with_sharding_constraint(x, before)
        return jax.lax.with_sharding_constraint(jnp.sin(there), after)

    jax.jit(moved).lower(jnp.zeros((16, 16, 16))).compile()


def compile_step(section: config.MeshSection) -> None:
    """Layers that scan and remat, two microbatches, every parameter trained: the step of `gramjax train`."""
    mesh = sharding.make_mesh(section)
    arch = decoder.Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
                          num_kv_heads=2, head_dim=8, heads=("tokens", "score"))  # fmt: skip
    handle = model.build("decoder", arch, mesh, "float32", remat="full")
    labels = setup.trained(list(tree.flatten(handle.specs(), is_leaf=spec.is_spec)), cases.ALL, None)
    tx = optimizer.build(config.OptimSection(), labels, 10)
    state = setup.abstract_state(handle, labels, tx, mesh)
    places = jax.tree.map(lambda x: x.sharding, state)
    for objective in ("cross_entropy", "bradley_terry")[: section.context]:
        batch = cases.OBJECTIVES[objective][2](16)
        where = sharding.batch_shardings(batch, mesh)
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name]) for name, x in batch.items()}
        step = make_step(handle, cases.loss_of(objective), tx, labels, lambda _: 1e-3, 2)
        program = jax.jit(step, donate_argnums=0, out_shardings=(places, None)).lower(state, shapes).compile()
        for line in program.as_text().splitlines():
            found = GATHERED.search(line)
            whole = found and found[1].startswith(("f32", "(f32")) and str(cases.T) in re.findall(r"\d+", found[1])
            if whole and "shard_map" not in line:
                print(line)


if __name__ == "__main__":
    say("known case")
    known_case()
    for name, section in MESHES.items():
        say(name)
        compile_step(section)
