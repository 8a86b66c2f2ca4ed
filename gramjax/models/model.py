"""The handle that jobs give to objectives and evals: a network, its config, and how it is to be run."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gramjax.core import plugins
from gramjax.core.sharding import DECODING, RULES, constrainer, platform, shardings
from gramjax.models import lora, stack


@dataclasses.dataclass(frozen=True)
class Model:
    """A network bound to its config, mesh and choices of execution; it holds no weights."""

    module: ModuleType
    config: Any
    mesh: Mesh | None = None
    compute_dtype: Any = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = True
    logit_chunk: int = 1024

    def specs(self) -> dict[str, Any]:
        """The declaration of every parameter."""
        return self.module.specs(self.config)

    def pack(self, params: Any, labels: Any = None, scan: bool | None = None) -> Any:
        """Weights in use from parameters at rest (`stack.pack`)."""
        scan = self.scan_layers if scan is None else scan
        return stack.pack(params, self.config.layer_kinds(), self.compute_dtype, labels, scan)

    def pack_for_decoding(self, params: Any, gather: bool = True) -> Any:
        """Weights in use for sampling, made once per round: every layer on its own, in the backend's best layout.

        `gather` copies them to all devices of `data` and `fsdp` (they stay spread over `tensor`), so that a step that
        makes one token needs no gathering of weights. Adapters are merged into their matrices.
        """
        params = lora.merge(params, self.config)
        if gather and self.mesh is not None and self.mesh.size > 1:
            params = jax.device_put(
                params, shardings(self.module.specs(lora.off(self.config)), self.mesh, {**RULES, "embed": ()})
            )
        return self.module.for_decoding(self.pack(params, scan=False))

    def init_cache(self, weights: Any, batch: int, length: int) -> Any:
        """An empty cache of `length` tokens for `batch` rows, in the compute dtype."""
        return self.module.init_cache(weights, self.config, batch, length, self.compute_dtype)

    def forward(self, weights: Any, batch: Any, cache: Any = None, observer: stack.Observer | None = None) -> Any:
        """`Output.hidden` [batch, length, embed] and `Output.cache` for a batch of tokens.

        With an `observer`, `Output.observed` holds what it kept of every layer.
        """
        constrain = constrainer(self.mesh, RULES if cache is None else DECODING)
        return self.module.forward(
            weights, self.config, batch, cache, constrain, self.attention, self.remat, observer, self.mesh
        )


def build(kind: str, config: Any, mesh: Mesh | None = None, compute_dtype: str = "auto", **choices: Any) -> Model:
    """A Model by the name of its file; `compute_dtype` auto is bfloat16 on accelerators and float32 on a CPU."""
    if compute_dtype == "auto":
        compute_dtype = "float32" if platform(mesh) == "cpu" else "bfloat16"
    return Model(plugins.load("models", kind), config, mesh, jnp.dtype(compute_dtype), **choices)
