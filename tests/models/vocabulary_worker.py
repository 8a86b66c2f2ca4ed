"""Passes over the vocabulary on meshes of 8 simulated devices against one device; prints the worst difference as JSON.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gramjax.core import config, sharding
from gramjax.models import heads

B, T, D = 8, 16, 8
CASES = {
    "rows, length, vocabulary": (config.MeshSection(data=1, fsdp=2, context=2, tensor=2), True, 24),
    "columns": (config.MeshSection(data=1, fsdp=2, context=2, tensor=2), False, 24),
    "the vocabulary does not divide": (config.MeshSection(data=1, fsdp=1, context=1, tensor=8), True, 20),
}
"""Mesh, whether the matrix has a row per token, and size of the vocabulary."""


def weights(key: jax.Array, tied: bool, vocab: int) -> dict[str, jax.Array]:
    matrix = jax.random.normal(key, (vocab, D))
    return {"embed": matrix} if tied else {"lm_head": matrix.T}


def put(weights: dict[str, jax.Array], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    axes = {"embed": ("vocab", "embed"), "lm_head": ("embed", "vocab")}
    return {
        name: jax.device_put(x, NamedSharding(mesh, sharding.partition(axes[name], x.shape, mesh)))
        for name, x in weights.items()
    }


def differences(mesh: jax.sharding.Mesh, tied: bool, vocab: int) -> dict[str, float]:
    """The largest difference of the log-probabilities, hits, divergences and gradients of `divergence`."""
    keys = jax.random.split(jax.random.key(0), 5)
    ours, theirs = (weights(key, tied, vocab) for key in keys[:2])
    states = [jax.random.normal(key, (B, T, D)) for key in keys[2:4]]
    labels = jax.random.randint(keys[4], (B, T), 0, vocab)
    labels = labels.at[:, ::2].set(jnp.argmax(heads.logits(ours, states[0]), -1)[:, ::2])
    mask = (labels % 3 > 0).astype(jnp.float32)

    def hits(weights, hidden, mesh):
        return heads.predictions(weights, hidden, labels, 4, mesh)

    def distance(ours, hidden, theirs, mesh):
        return heads.divergence(ours, hidden, theirs, states[1], mask, 1.5, 4, mesh)

    gradient = jax.jit(jax.value_and_grad(distance, (0, 1)), static_argnums=3)
    wanted = jax.jit(hits, static_argnums=2)(ours, states[0], None), gradient(ours, states[0], theirs, None)
    rows = jax.device_put(states[0], NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "context")))
    given = put(ours, mesh), rows, put(theirs, mesh), mesh
    found = jax.jit(hits, static_argnums=2)(*given[:2], mesh), gradient(*given)
    apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), found, wanted)
    (logprobs, hit), (value, (d_matrix, d_hidden)) = apart
    assert 0.3 < float(jnp.mean(wanted[0][1])) < 0.7
    return {"logprobs": logprobs, "hits": hit, "divergence": value, "hidden": d_hidden, **d_matrix}


if __name__ == "__main__":
    print(json.dumps({name: differences(sharding.make_mesh(mesh), *rest) for name, (mesh, *rest) in CASES.items()}))
