"""What the trainer's models say of samples, token by token: log-probabilities, and values where a method has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gramjax.core import tree
from gramjax.models import heads, lora
from gramjax.models.model import Model


def reader(model: Model, temperature: float, own: bool, values: bool) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """The function of (parameters, batch) that gives arrays [R, T]: `old_logprobs` of the policy (`own`; and
    `old_values`, where it learns `values`), or `reference_logprobs` of the reference, which has no adapters."""
    if not own:
        model = dataclasses.replace(model, config=lora.off(model.config), remat="none")

    def numbers(params: Any, batch: Any) -> dict[str, jax.Array]:
        weights = model.pack(params)
        hidden = model.forward(weights, batch).hidden
        logprobs, _ = heads.token_statistics(
            weights, hidden, batch["labels"], model.logit_chunk, temperature, False, model.mesh
        )
        beside = {"old_values": heads.value(weights, hidden)} if own and values else {}
        return {"old_logprobs" if own else "reference_logprobs": logprobs, **beside}

    return numbers


def without_adapters(params: Any) -> Any:
    """The frozen base of a policy with adapters."""
    flat = tree.flatten(params)
    return tree.unflatten({path: leaf for path, leaf in flat.items() if not lora.is_rank_leaf(path)})


def everywhere(values: jax.Array) -> np.ndarray:
    """The whole of an array that may be spread over processes."""
    if values.is_fully_addressable:
        return np.asarray(values)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values, tiled=True))
