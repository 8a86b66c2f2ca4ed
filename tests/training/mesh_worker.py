"""Three training steps of every objective on a mesh of simulated devices; prints losses and a checksum as JSON.

Run as a process of its own, because the number of devices is fixed when JAX starts:
python mesh_worker.py DATA FSDP TENSOR CONTEXT [OBJECTIVE ...]
"""

import json
import sys

import jax
import numpy as np
import test_step as cases

from gramjax.core import config, sharding, spec, tree
from gramjax.models import decoder, model
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step


def losses(objective: str, mesh: jax.sharding.Mesh, rank: int = 0) -> dict:
    make_batch = cases.OBJECTIVES[objective][2]
    arch = decoder.Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        heads=("tokens", "score"), lora=config.LoraSection(rank=rank),
    )  # fmt: skip
    handle = model.build("decoder", arch, mesh, "float32", remat="full")
    labels = setup.trained(list(tree.flatten(handle.specs(), is_leaf=spec.is_spec)), cases.ALL, None)
    optim = config.OptimSection(lr=1e-2, warmup_ratio=0.0, eps=1e-4)
    tx = optimizer.build(optim, labels, 10)
    step = make_step(handle, cases.loss_of(objective), tx, labels, optimizer.schedule(optim, 10), 2)
    abstract = setup.abstract_state(handle, labels, tx, mesh)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    draw = jax.jit(lambda key: spec.init_params(handle.specs(), key), out_shardings=places["params"])
    params = draw(jax.random.key(0))
    state = {
        "params": params,
        "opt_state": jax.jit(tx.init, out_shardings=places["opt_state"])(params),
        "step": jax.device_put(np.int32(0), places["step"]),
    }
    reference = cases.second(objective, lambda seed: draw(jax.random.key(seed)))
    in_shardings = (places, None, None)[: 2 + len(reference)]
    jitted = jax.jit(step, donate_argnums=0, in_shardings=in_shardings, out_shardings=(places, None))
    found = []
    for seed in range(3):
        batch = setup.put(mesh, make_batch(16, seed))
        state, metrics = jitted(state, batch, *reference)
        found.append(float(metrics["loss"][0] / metrics["loss"][1]))
    spread = state["params"]["layers"]["000"]["mlp"]["up"].sharding.shard_shape((16, 24))
    total = sum(float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(state["params"]))
    return {"losses": found, "total": total, "shard": list(spread)}


if __name__ == "__main__":
    sizes = [int(x) for x in sys.argv[1:5]]
    mesh = sharding.make_mesh(config.MeshSection(*sizes))
    found = {name: losses(name, mesh) for name in sys.argv[5:] or cases.OBJECTIVES}
    if not sys.argv[5:]:
        found["adapters"] = losses("cross_entropy", mesh, rank=4)
    print(json.dumps(found))
