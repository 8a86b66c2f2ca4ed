"""What becomes of bad steps, whose loss or gradient is NaN or infinite: they are counted, named, and end the training.

The step itself leaves the state as it was (`training.step`). Here the host learns of it, with the metrics, and so in
every process alike: one bad step is a warning, `config.safety.max_bad_steps` in a row (or the first one, with
`on_bad_step=stop`) are the end.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import tree
from gramjax.core.errors import NotFinite
from gramjax.training.step import BAD_LEAF, BAD_STEPS

SHOWN = 12
"""Rows of a batch that a message names."""

MOST_WARNINGS = 20
"""Bad steps that are told one by one; all are counted."""


def say(text: str) -> None:
    """Print a warning; process 0 speaks for all."""
    if jax.process_index() == 0:
        print(f"gramjax: {text}", file=sys.stderr)


class BadSteps:
    """Sorts out the metrics of bad steps.

    `names(index)` says what the batch of a step held, counted from 0; empty where that is not known any more.
    """

    def __init__(
        self, stop: bool, limit: int, names: Callable[[int], Sequence[str]], warn: Callable[[str], None] = say
    ) -> None:
        self.limit, self.names, self.warn = 1 if stop else limit, names, warn
        self.in_a_row = 0
        self.told = 0

    def good(self, steps: Sequence[tuple[int, Mapping[str, Any]]], params: Any) -> list[dict[str, Any]]:
        """The metrics of the steps that were good, of `(step, metrics)` in order; `params` are those of now.

        Raises NotFinite when too many in a row were bad, or a step whose loss is not finite was not kept back.
        """
        out = []
        for step, metrics in steps:
            rest = {name: pair for name, pair in metrics.items() if name not in (BAD_STEPS, BAD_LEAF)}
            kept_back = BAD_STEPS in metrics
            if not (metrics[BAD_STEPS][0] if kept_back else not math.isfinite(_loss(rest))):
                self.in_a_row = 0
                out.append(rest)
                continue
            self.in_a_row += 1
            told = f"step {step} is bad: {self._about(step, metrics, params)}"
            if not kept_back:
                raise NotFinite(f"{told}; the last checkpoint holds the state before")
            if self.in_a_row >= self.limit:
                many = f"{self.in_a_row} bad steps in a row; " if self.limit > 1 else ""
                weights = first_bad(params)
                where = f"; the weights are bad themselves, first {weights}" if weights else "; the weights are whole"
                raise NotFinite(f"{many}{told}{where}. Nothing of it was saved")
            self.told += 1
            if self.told <= MOST_WARNINGS:
                self.warn(f"warning: {told}; parameters and optimiser stay as they were")
        return out

    def _about(self, step: int, metrics: Mapping[str, Any], params: Any) -> str:
        names = list(self.names(step - 1))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        norm = metrics.get("grad_norm", (1.0, 1.0))[0]
        parts = [f"loss {_loss(metrics):g}", f"gradient norm {float(norm):g}"]
        parts.append(f"batch {step - 1}" + (f" with the rows {', '.join(names[:SHOWN])}{more}" if names else ""))
        leaf = int(metrics[BAD_LEAF][0]) if BAD_LEAF in metrics else -1
        if leaf >= 0:
            parts.append(f"first bad gradient {list(tree.flatten(params))[leaf]}")
        return ", ".join(parts)


def _loss(metrics: Mapping[str, Any]) -> float:
    total, weight = metrics["loss"]
    return float(total) / max(float(weight), 1e-9)


def first_bad(params: Any) -> str:
    """The path of the first parameter with a value that is not finite, or "".

    All processes call it at the same place.
    """
    flat = tree.flatten(params)
    finite = np.asarray(_finite(list(flat.values())))
    return "" if finite.all() else list(flat)[int(np.argmin(finite))]


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
