"""Two layouts of a stack of layers and the function between them.

At rest every layer is its own subtree (`layers/007/...`): names, labels and surgery want single layers. In use,
consecutive layers that are alike (same block kind, same labels) form a *run*: cast to the compute dtype, stacked and
scanned, which keeps programs short. `pack` goes from one to the other. It is differentiable and runs inside the
training step, where the cast makes stacked copies in the compute dtype only, or once per round for decoding.
Runs are cut where trainability changes: a frozen run has no weight gradient, and the frozen runs before the first
trained layer have no backward pass.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gramjax.core import tree
from gramjax.core.errors import UserError

FEW_ROWS = 16
"""Rows of an activation up to which a product with `Rows` is made as matrix times columns."""

REMAT: dict[str, Callable[[], Any]] = {
    "full": lambda: jax.checkpoint_policies.nothing_saveable,
    "projections": lambda: jax.checkpoint_policies.save_only_these_names("projection", "attention"),
}
"""What the backward pass finds saved besides the input of each layer; `none` saves everything.

`projections` leaves out the products that are added to the residual stream: they are the cheapest to make again.
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive like layers, `start` to `stop` (exclusive)."""

    start: int
    stop: int
    kind: str

    @property
    def stacked(self) -> bool:
        """Whether the layers are stacked along a leading axis."""
        return self.stop - self.start > 1


@struct.dataclass
class Packed:
    """A stack in use: the weights of each run, stacked along a new first axis where a run has several layers."""

    trees: tuple[Any, ...]
    runs: tuple[Run, ...] = struct.field(pytree_node=False)


@struct.dataclass
class Seen:
    """What an observer is shown of a layer. What it does not look at is not computed.

    B batch, T query length, S key length, D embed, H heads, F mlp.
    """

    hidden_BTD: jax.Array
    """Input of the attention, after its norm."""
    scores_BHTS: jax.Array
    """Scores of the attention before mask and softmax, float32."""
    visible_BTS: jax.Array
    """Which keys each query sees."""
    gate_BTF: jax.Array
    """The gate of the MLP before its activation."""
    inner_BTF: jax.Array
    """What the MLP's down projection reads."""


@dataclasses.dataclass(frozen=True)
class Observer:
    """Something that watches a pass: layers hand it what they compute, and it keeps what it needs of each."""

    see: Callable[[Seen, Any], tuple[Any, Any]]
    """`see(seen, memory) -> (memory, kept)`, once a layer, in order."""
    memory: Any = ()
    """What it remembers from layer to layer at first; the shapes stay."""


@struct.dataclass
class Rows:
    """A weight with one row per output: the form that a CPU decodes fastest with (`decoder.for_decoding`)."""

    matrix: jax.Array
    """[outputs, inputs], both flattened."""
    outer: tuple[int, ...] = struct.field(pytree_node=False)
    """The output axes."""


def as_rows(weight: jax.Array, contracted: int = 1) -> Rows:
    """A weight stored inputs first (`contracted` input axes) as rows."""
    inner = math.prod(weight.shape[:contracted])
    return Rows(weight.reshape(inner, -1).T, weight.shape[contracted:])


def rows_product(x_RD: jax.Array, matrix_ND: jax.Array) -> jax.Array:
    """x @ matrix.T, [R, N] float32 or wider.

    A few rows are multiplied as columns, matrix times x.T: XLA:CPU then reads each weight once, in order (measured at
    8 rows: 1.3 times as fast as x @ W, near the speed at which one core reads memory).
    """
    kind = jnp.promote_types(x_RD.dtype, jnp.float32)
    if x_RD.shape[0] <= FEW_ROWS:
        return jax.lax.dot_general(matrix_ND, x_RD.T, (((1,), (0,)), ((), ())), preferred_element_type=kind).T
    return jax.lax.dot_general(x_RD, matrix_ND, (((1,), (1,)), ((), ())), preferred_element_type=kind)


def plan_runs(kinds: Sequence[str], signatures: Sequence[Any], scan: bool = True) -> tuple[Run, ...]:
    """Cut the stack wherever the block kind or the signature (labels, shapes) of a layer changes."""
    runs: list[Run] = []
    for i, kind in enumerate(kinds):
        if scan and runs and runs[-1].kind == kind and signatures[i] == signatures[i - 1]:
            runs[-1] = Run(runs[-1].start, i + 1, kind)
        else:
            runs.append(Run(i, i + 1, kind))
    return tuple(runs)


def cast(leaf: jax.Array, dtype: Any) -> jax.Array:
    """A weight in the compute dtype; norm scales and the one-column heads stay as they are at rest (float32)."""
    matrix = leaf.ndim >= 2 and leaf.shape[-1] > 1
    return leaf.astype(dtype) if matrix and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def pack(
    params: Mapping[str, Any],
    kinds: Sequence[str],
    dtype: Any,
    labels: Mapping[str, str] | None = None,
    scan: bool = True,
) -> dict[str, Any]:
    """Weights in use from parameters at rest: every subtree called `layers` becomes a `Packed` stack.

    `labels` (path to `train` or `freeze`) cuts the runs where trainability changes; `scan=False` leaves every layer
    on its own, so that nothing is copied.
    """
    out: dict[str, Any] = {}
    for name, value in params.items():
        if name != "layers":
            out[name] = jax.tree.map(lambda leaf: cast(leaf, dtype), value)
            continue
        layers = [value[key] for key in sorted(value)]
        signatures = []
        for key, layer in zip(sorted(value), layers):
            flat = tree.flatten(layer)
            label = tuple(labels[f"layers/{key}/{path}"] for path in flat) if labels else ()
            signatures.append((label, tuple((path, leaf.shape) for path, leaf in flat.items())))
        runs = plan_runs(kinds, signatures, scan)
        out[name] = Packed(tuple(_stack(layers[run.start : run.stop], dtype) for run in runs), runs)
    return out


def _stack(layers: Sequence[Any], dtype: Any) -> Any:
    if len(layers) == 1:
        return jax.tree.map(lambda leaf: cast(leaf, dtype), layers[0])
    return jax.tree.map(lambda *leaves: jnp.stack([cast(leaf, dtype) for leaf in leaves]), *layers)


def unpack(packed: Packed) -> dict[int, Any]:
    """The layers of a stack in use, one by one."""
    out = {}
    for tree_of_run, run in zip(packed.trees, packed.runs, strict=True):
        for offset, layer in enumerate(range(run.start, run.stop)):
            out[layer] = jax.tree.map(lambda x: x[offset], tree_of_run) if run.stacked else tree_of_run  # noqa: B023
    return out


BlockFunction = Callable[[Any, Any, Any, str], tuple[Any, Any]]
"""`block(weights, carry, cache, kind) -> (carry, out)`."""


def _layer(block: BlockFunction, kind: str, carry: Any, weights_and_cache: tuple[Any, Any]) -> tuple[Any, Any]:
    weights, cache = weights_and_cache
    return block(weights, carry, cache, kind)


def _as_it_is(carry: Any, kind: str) -> Any:
    return carry


def apply(
    block: BlockFunction,
    packed: Packed,
    carry: Any,
    caches: tuple | None = None,
    remat: str = "none",
    enter: Callable[[Any, str], Any] = _as_it_is,
) -> tuple[Any, tuple]:
    """Run what is carried from layer to layer through all of them; returns it and what they put out, an entry per run.

    `caches` holds one layer cache per run, stacked like the weights of the run, and so is what a run puts out.
    `remat` names a policy. `enter(carry, kind)` makes of what one run leaves what the next, of this kind, takes.
    """
    if remat not in ("none", *REMAT):
        raise UserError(f"config.train.remat={remat!r} is not one of none, {', '.join(REMAT)}")
    outs = []
    for index, run in enumerate(packed.runs):
        cache = caches[index] if caches is not None else None
        carry = enter(carry, run.kind)
        layer: Callable[..., Any] = functools.partial(_layer, block, run.kind)
        if remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[remat](), prevent_cse=not run.stacked)
        if run.stacked:
            carry, out = jax.lax.scan(layer, carry, (packed.trees[index], cache))
        else:
            carry, out = layer(carry, (packed.trees[index], cache))
        outs.append(out)
    return carry, tuple(outs)


def by_layer(outs: Sequence[Any], runs: Sequence[Run]) -> Any:
    """What the runs put out as one tree, stacked along a first axis of layers."""
    whole = [out if run.stacked else jax.tree.map(lambda leaf: leaf[None], out) for out, run in zip(outs, runs)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *whole)
