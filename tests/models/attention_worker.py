"""Attention and its gradients on meshes of 8 simulated devices against the plain form on one; prints JSON.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import config, sharding
from gramjax.models import splash
from gramjax.models.attention import attention

B, T, H, K, E = 4, 256, 4, 2, 8
MESHES = {
    "rows and heads": config.MeshSection(data=2, fsdp=2, tensor=2),
    "length": config.MeshSection(data=1, fsdp=2, tensor=2, context=2),
    "heads do not divide": config.MeshSection(data=1, fsdp=2, tensor=4),
}
FORMS = {
    "rows and heads": ("xla", "splash"),
    "length": ("xla", "blocked", "splash"),
    "heads do not divide": ("splash",),
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def arrays() -> tuple[list[np.ndarray], np.ndarray]:
    """Queries, keys, values, weights of the loss, and packed, padded segments that end where no device's part ends."""
    rng = np.random.default_rng(0)
    shapes = ((B, T, H, E), (B, T, K, E), (B, T, K, E), (B, T, H, E))
    rows = ([(1, 100), (2, 100), (0, 56)], [(0, 9), (3, 247)], [(1, 256)], [(1, 120), (2, 16), (3, 120)])
    segments = [np.repeat([name for name, _ in row], [length for _, length in row]) for row in rows]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes], np.stack(segments).astype(np.int32)


def program(form: str, window: int, mesh: jax.sharding.Mesh | None):
    def loss(q, k, v, weight, segments):
        out = attention(q, k, v, segments, segments, None, window, form, mesh)
        return jnp.sum(jnp.where((segments != 0)[..., None, None], weight * out, 0.0))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def main() -> None:
    splash.BLOCKS = (128,)
    (*parts, weight), segments = arrays()
    wanted = {window: program("xla", window, None)(*parts, weight, segments) for window in (0, 50)}
    for name, section in MESHES.items():
        mesh = sharding.make_mesh(section)
        heads = {"heads": ("batch", "length", "heads", None), "kv": ("batch", "length", "kv_heads", None)}
        axes = (heads["heads"], heads["kv"], heads["kv"], heads["heads"], ("batch", "length"))
        placed = [
            jax.device_put(x, jax.sharding.NamedSharding(mesh, sharding.partition(names, x.shape, mesh)))
            for x, names in zip((*parts, weight, segments), axes, strict=True)
        ]
        for form in FORMS[name]:
            for window in (0, 50) if form == "splash" and name == "length" else (50,):
                compiled = program(form, window, mesh).lower(*placed).compile()
                found, want = compiled(*placed), wanted[window]
                pairs = zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True)
                gap = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
                text = compiled.as_text()
                moved = [word for word in COLLECTIVES if f" {word}(" in text or f" {word}-start(" in text]
                print(json.dumps({"mesh": name, "form": form, "window": window, "gap": gap, "moved": moved}))


if __name__ == "__main__":
    main()
