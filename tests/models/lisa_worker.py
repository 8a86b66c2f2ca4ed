"""Loss and gradients of layers that share attention on meshes of 4 simulated devices; prints JSON.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import config, sharding, spec, tree
from gramjax.models import decoder, heads, lisa, model

ARCH = decoder.Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8,
    init_scale=0.2, lisa=lisa.LisaSection((2, 3), rank=4),
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 12), dtype=np.int32)


def measured(sizes):
    mesh = sharding.make_mesh(config.MeshSection(*sizes)) if sizes else None
    handle = model.Model(decoder, ARCH, mesh, remat="full")
    params = tree.flatten(spec.init_params(handle.specs(), jax.random.key(0)))
    noise = {path: 0.2 * jax.random.normal(jax.random.key(i), x.shape) for i, (path, x) in enumerate(params.items())}
    params = tree.unflatten({path: x + noise[path] for path, x in params.items()})
    batch = {"tokens": TOKENS}
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(handle.specs(), mesh))
        batch = sharding.place(batch, mesh)

    @jax.jit
    def run(params, batch):
        def loss(params):
            weights = handle.pack(params)
            hidden = handle.forward(weights, batch).hidden
            return heads.cross_entropy(weights, hidden, jnp.roll(batch["tokens"], -1, 1), jnp.ones(TOKENS.shape), 8)

        return jax.value_and_grad(loss)(params)

    value, grads = run(params, batch)
    return float(value), {path: np.asarray(x) for path, x in tree.flatten(grads).items()}


def main():
    want, want_grads = measured(None)
    for sizes in ((1, 4, 1), (1, 2, 2), (1, 2, 1, 2)):
        value, grads = measured(sizes)
        gap = max(float(np.abs(grads[p] - want_grads[p]).max() / np.abs(want_grads[p]).max()) for p in grads)
        print(json.dumps({"mesh": sizes, "loss": [want, value], "gap": gap, "axes": len(jax.devices())}))


if __name__ == "__main__":
    main()
