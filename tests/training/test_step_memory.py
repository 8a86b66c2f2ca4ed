"""What the compiled training step holds: the state is donated whole, and remat saves memory with and without a scan."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gramjax.core import config as configs
from gramjax.core import sharding, spec, tree
from gramjax.models import decoder, model
from gramjax.models.attention import compiler_options
from gramjax.objectives import cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

pytestmark = pytest.mark.optimised

ARCH = decoder.Config(
    vocab_size=64, hidden_size=32, intermediate_size=96, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=16
)
BATCH = {
    name: jax.ShapeDtypeStruct((4, 128), jnp.float32 if name == "loss_mask" else jnp.int32)
    for name in ("tokens", "segment_ids", "positions", "labels", "loss_mask")
}


def compiled_memory(remat: str, scan: bool) -> tuple:
    """The memory analysis of the compiled step, and the abstract state."""
    mesh = sharding.make_mesh(configs.MeshSection(), jax.devices()[:1])
    handle = model.build("decoder", ARCH, mesh, remat=remat, scan_layers=scan)
    labels = tree.labels(list(tree.flatten(handle.specs(), is_leaf=spec.is_spec)), (".*",))
    section = configs.OptimSection()
    tx = optimizer.build(section, labels, 10)
    state = setup.abstract_state(handle, labels, tx, mesh)

    def loss(model, weights, batch):
        return cross_entropy.loss(model, weights, batch, cross_entropy.Config())

    step = make_step(handle, loss, tx, labels, optimizer.schedule(section, 10))
    places = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, None),
        out_shardings=(places, None),
        compiler_options=compiler_options(),
    )
    return jitted.lower(state, BATCH).compile().memory_analysis(), state


@functools.lru_cache
def temporaries(remat: str, scan: bool) -> int:
    return compiled_memory(remat, scan)[0].temp_size_in_bytes


def test_the_state_is_donated_whole():
    memory, state = compiled_memory("full", scan=False)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size  # every parameter and moment is updated where it lies
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 4096  # what else comes out: metrics


@pytest.mark.parametrize("scan", [False, True])
def test_remat_is_not_undone_by_the_compiler(scan):
    assert temporaries("full", scan) < 0.7 * temporaries("none", scan)
