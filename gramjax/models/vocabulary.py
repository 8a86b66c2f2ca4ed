"""Passes over the vocabulary: looking tokens up, and sums over all logits that never hold all of them.

Logits exist for `chunk` tokens at a time. On a mesh every device takes its own tokens (`jax.shard_map`): left to the
partitioner, the gradient of the output matrix (2 GiB for Llama-3.1-8B) was summed over all devices once per chunk, and
that of the embedding was made whole on each of them. Numbers are float32. Shape letters: B batch, T length, D embed,
V vocab; N tokens of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gramjax.core.sharding import mesh_axes, partition


@dataclasses.dataclass(frozen=True)
class Place:
    """The mesh axes along which tokens, vocabulary and width are shared; empty: a device has all of them."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of a pass lie on a mesh."""

    mesh: Mesh
    place: Place
    specs: dict[str, PartitionSpec]
    """By kind: `hidden` [B, T, D], `token` [B, T], `matrix` [V, D] or [D, V], `number`."""


def layout_of(mesh: Mesh | None, shape: tuple[int, ...], matrix: jax.Array, tied: bool) -> Layout | None:
    """How a pass over tokens of this shape [B, T] lies on a mesh; None where it is left to the partitioner (one device,
    sizes that do not divide)."""
    if mesh is None or mesh.size == 1:
        return None
    tokens = partition(("batch", "length"), shape, mesh)
    axes = ("vocab", "embed") if tied else ("embed", "vocab")
    where = dict(zip(axes, partition(axes, matrix.shape, mesh), strict=True))
    place = Place(sum(map(mesh_axes, tokens), ()), mesh_axes(where["vocab"]), mesh_axes(where["embed"]))
    whole = {axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1} - set(place.tokens)
    if whole or len(place.width) > 1 or not set(place.width) <= set(place.tokens):
        return None
    matrix_spec = PartitionSpec(*(where[axis] for axis in axes))
    specs = {"hidden": PartitionSpec(*tokens, None), "token": tokens, "matrix": matrix_spec, "number": PartitionSpec()}
    return Layout(mesh, place, specs)


def spread(function: Callable[..., Any], layout: Layout | None, takes: str, gives: Any) -> Callable[..., Any]:
    """`function(place, *arrays)` on every device with its part of the arrays, whose kinds `takes` and `gives` name."""
    if layout is None:
        return functools.partial(function, Place())
    specs = layout.specs
    return jax.shard_map(
        functools.partial(function, layout.place),
        mesh=layout.mesh,
        in_specs=tuple(specs[kind] for kind in takes.split()),
        out_specs=jax.tree.map(lambda kind: specs[kind], gives),
        check_vma=False,
    )


def product(hidden: jax.Array, matrix: jax.Array, tied: bool) -> jax.Array:
    """Logits [..., V] of hidden states [..., D]; the matrix is [V, D] if `tied`, else [D, V]."""
    contract = (((hidden.ndim - 1,), (1 if tied else 0,)), ((), ()))
    return jax.lax.dot_general(hidden, matrix, contract, preferred_element_type=jnp.float32)


# -- tokens to rows of the embedding ----------------------------------------------------------------------------------


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Rows of the embedding [B, T, D]; ids beyond it read its last row.

    Where devices share the width, each looks up its part of the width for the tokens of all of them, and the parts
    change places: neither the table nor its gradient is ever whole.
    """

    def local(place: Place, table: jax.Array, tokens: jax.Array) -> jax.Array:
        if place.width:
            tokens = jax.lax.all_gather(tokens, place.width, axis=0, tiled=True)
        index = tokens - _first(table.shape[0], place)
        rows = table.at[index].get(mode="clip")
        if place.vocab:
            rows = jnp.where(((index >= 0) & (index < table.shape[0]))[..., None], rows, 0)
            rows = jax.lax.psum(rows, place.vocab)
        if place.width:
            rows = jax.lax.all_to_all(rows, place.width[0], split_axis=0, concat_axis=2, tiled=True)
        return rows

    layout = layout_of(mesh, tokens_BT.shape, table_VD, True)
    inside = jnp.clip(tokens_BT, 0, table_VD.shape[0] - 1)
    return spread(local, layout, "matrix token", "hidden")(table_VD, inside)


# -- chunks -----------------------------------------------------------------------------------------------------------


def _chunks(B: int, T: int, chunk: int) -> tuple[int, int]:
    """Number of chunks along the length and their size: the largest divisor of T within the budget."""
    budget = max(chunk // B, 1)
    size = max(d for d in range(1, min(T, budget) + 1) if T % d == 0)
    return T // size, size


def _split(x: jax.Array, count: int, size: int) -> jax.Array:
    """[B, T, ...] to [count, B * size, ...], cutting along the length so that the batch stays sharded."""
    B = x.shape[0]
    parts = x.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)
    return parts.reshape(count, B * size, *x.shape[2:])


def _join(parts: jax.Array, B: int) -> jax.Array:
    """Inverse of `_split`."""
    count, rows = parts.shape[:2]
    size = rows // B
    return parts.reshape(count, B, size, *parts.shape[2:]).swapaxes(0, 1).reshape(B, count * size, *parts.shape[2:])


# -- what a device does with its part of the vocabulary ---------------------------------------------------------------


def _first(size: int, place: Place) -> Any:
    """The id of the first token of this device's part of the vocabulary."""
    return jax.lax.axis_index(place.vocab) * size if place.vocab else 0


def _gathered(matrix: jax.Array, tied: bool, place: Place) -> jax.Array:
    """The matrix with its whole width."""
    return jax.lax.all_gather(matrix, place.width, axis=1 if tied else 0, tiled=True) if place.width else matrix


def _normalisers(logits_NV: jax.Array, place: Place) -> jax.Array:
    """log sum exp over the whole vocabulary, [N]."""
    if not place.vocab:
        return jax.nn.logsumexp(logits_NV, axis=-1)
    top = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits_NV, axis=-1)), place.vocab)
    return jnp.log(_over_vocab(jnp.sum(jnp.exp(logits_NV - top[:, None]), axis=-1), place)) + top


def _picked(logits_NV: jax.Array, labels_N: jax.Array, place: Place) -> jax.Array:
    """The logit of each label, [N]."""
    V = logits_NV.shape[-1]
    index = labels_N - _first(V, place)
    found = jnp.take_along_axis(logits_NV, index[:, None], axis=-1, mode="clip")[:, 0]
    return _over_vocab(jnp.where((index >= 0) & (index < V), found, 0.0), place) if place.vocab else found


def _likeliest(logits_NV: jax.Array, place: Place) -> jax.Array:
    """The token with the largest logit, the first of equals, [N]."""
    found = jnp.argmax(logits_NV, axis=-1)
    if not place.vocab:
        return found
    largest = jnp.max(logits_NV, axis=-1)
    here = largest == jax.lax.pmax(largest, place.vocab)
    found = jnp.where(here, found + _first(logits_NV.shape[-1], place), jnp.iinfo(found.dtype).max)
    return jax.lax.pmin(found, place.vocab)


def _hits(logits_NV: jax.Array, labels_N: jax.Array, place: Place) -> jax.Array:
    """Where in the logits the labels stand, bool [N, V]."""
    column = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1)
    return column == (labels_N - _first(logits_NV.shape[-1], place))[:, None]


def _over_vocab(x: jax.Array, place: Place) -> jax.Array:
    """The sum over the devices that share the vocabulary."""
    return jax.lax.psum(x, place.vocab) if place.vocab else x


def _product_gradients(
    d_logits: jax.Array, hidden: jax.Array, matrix: jax.Array, tied: bool
) -> tuple[jax.Array, jax.Array]:
    """Gradients of one chunk's logits with regard to its hidden states and to the output matrix (float32)."""
    d_hidden = jax.lax.dot_general(
        d_logits, matrix, (((1,), (0 if tied else 1,)), ((), ())), preferred_element_type=jnp.float32
    ).astype(hidden.dtype)
    left, right = (d_logits, hidden) if tied else (hidden, d_logits)
    return d_hidden, jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _reduced(d_matrix: jax.Array, like: jax.Array, tied: bool, place: Place) -> jax.Array:
    """This device's part of the gradient of the matrix, summed over all tokens, in the dtype of the matrix."""
    d_matrix = d_matrix.astype(like.dtype)
    if place.width:
        d_matrix = jax.lax.psum_scatter(d_matrix, place.width, scatter_dimension=1 if tied else 0, tiled=True)
    others = tuple(axis for axis in place.tokens if axis not in place.width)
    return jax.lax.psum(d_matrix, others) if others else d_matrix


# -- the sum of cross-entropies ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(
    hidden_BTD: jax.Array,
    matrix: jax.Array,
    labels_BT: jax.Array,
    mask_BT: jax.Array,
    tied: bool,
    chunk: int,
    mesh: Mesh | None = None,
) -> jax.Array:
    """See `heads.cross_entropy`; the mask is float32."""

    def local(place: Place, hidden_BTD: jax.Array, matrix: jax.Array, *rest: jax.Array) -> jax.Array:
        B, T, _ = hidden_BTD.shape
        count, size = _chunks(B, T, chunk)
        matrix = _gathered(matrix, tied, place)

        def step(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
            hidden, labels, mask = part
            return total + _chunk_loss(hidden, matrix, labels, mask, tied, place)[0], None

        parts = tuple(_split(x, count, size) for x in (hidden_BTD, *rest))
        total = jax.lax.scan(step, jnp.zeros((), jnp.float32), parts)[0]
        return jax.lax.psum(total, place.tokens) if place.tokens else total

    layout = layout_of(mesh, labels_BT.shape, matrix, tied)
    return spread(local, layout, "hidden matrix token token", "number")(hidden_BTD, matrix, labels_BT, mask_BT)


def _chunk_loss(
    hidden: jax.Array, matrix: jax.Array, labels: jax.Array, mask: jax.Array, tied: bool, place: Place
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss sum of one chunk, its logits and their log-normalisers."""
    out = product(hidden, matrix, tied)
    normaliser = _normalisers(out, place)
    return jnp.sum(mask * (normaliser - _picked(out, labels, place))), out, normaliser


def _cross_entropy_forward(hidden_BTD, matrix, labels_BT, mask_BT, tied, chunk, mesh):
    def local(place, hidden_BTD, part_of_matrix, labels_BT, mask_BT):
        B, T, _ = hidden_BTD.shape
        count, size = _chunks(B, T, chunk)
        matrix = _gathered(part_of_matrix, tied, place)

        def step(carry, part):
            total, d_matrix = carry
            hidden, labels, mask = part
            loss, out, normaliser = _chunk_loss(hidden, matrix, labels, mask, tied, place)
            probabilities = jnp.exp(out - normaliser[:, None])
            d_out = ((probabilities - _hits(out, labels, place)) * mask[:, None]).astype(hidden.dtype)
            d_hidden, d_part = _product_gradients(d_out, hidden, matrix, tied)
            return (total + loss, d_matrix + d_part), d_hidden

        parts = tuple(_split(x, count, size) for x in (hidden_BTD, labels_BT, mask_BT))
        start = (jnp.zeros((), jnp.float32), jnp.zeros(matrix.shape, jnp.float32))
        (total, d_matrix), d_hidden = jax.lax.scan(step, start, parts)
        total = jax.lax.psum(total, place.tokens) if place.tokens else total
        return total, _join(_over_vocab(d_hidden, place), B), _reduced(d_matrix, matrix, tied, place)

    layout = layout_of(mesh, labels_BT.shape, matrix, tied)
    run = spread(local, layout, "hidden matrix token token", ("number", "hidden", "matrix"))
    total, d_hidden, d_matrix = run(hidden_BTD, matrix, labels_BT, mask_BT)
    return total, (d_hidden, d_matrix)


def _cross_entropy_backward(tied, chunk, mesh, saved, cotangent):
    d_hidden, d_matrix = saved
    scale = lambda x: (x * cotangent).astype(x.dtype)  # noqa: E731
    return scale(d_hidden), scale(d_matrix), None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


# -- numbers of every token -------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def token_statistics(
    hidden_BTD: jax.Array,
    matrix: jax.Array,
    labels_BT: jax.Array,
    tied: bool,
    chunk: int,
    temperature: float,
    entropy: str,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies; `entropy` is `off` (zeros), `value` (a constant) or `gradient`."""
    return _statistics_forward(hidden_BTD, matrix, labels_BT, tied, chunk, temperature, entropy, mesh)[0]


def _statistics_forward(hidden_BTD, matrix, labels_BT, tied, chunk, temperature, entropy, mesh):
    def local(place, hidden_BTD, part_of_matrix, labels_BT):
        B, T = labels_BT.shape
        count, size = _chunks(B, T, chunk)
        matrix = _gathered(part_of_matrix, tied, place)

        def step(_, part):
            hidden, labels = part
            out = product(hidden, matrix, tied) / temperature
            normaliser = _normalisers(out, place)
            picked = _picked(out, labels, place)
            if entropy == "off":
                return None, (picked - normaliser, jnp.zeros_like(normaliser), normaliser)
            logp = out - normaliser[:, None]
            entropies = -_over_vocab(jnp.sum(jnp.exp(logp) * logp, axis=-1), place)
            return None, (picked - normaliser, entropies, normaliser)

        parts = (_split(hidden_BTD, count, size), _split(labels_BT, count, size))
        return tuple(_join(x, B) for x in jax.lax.scan(step, None, parts)[1])

    layout = layout_of(mesh, labels_BT.shape, matrix, tied)
    run = spread(local, layout, "hidden matrix token", ("token",) * 3)
    logprobs, entropies, normalisers = run(hidden_BTD, matrix, labels_BT)
    return (logprobs, entropies), (hidden_BTD, matrix, labels_BT, normalisers, entropies)


def _statistics_backward(tied, chunk, temperature, entropy, mesh, saved, cotangents):
    def local(place, hidden_BTD, part_of_matrix, *rest):
        B, T, _ = hidden_BTD.shape
        count, size = _chunks(B, T, chunk)
        matrix = _gathered(part_of_matrix, tied, place)

        def step(d_matrix, part):
            hidden, labels, normaliser, d_logprob, entropies, d_entropy = part
            logp = product(hidden, matrix, tied) / temperature - normaliser[:, None]
            p = jnp.exp(logp)
            d_out = (_hits(logp, labels, place) - p) * d_logprob[:, None]
            if entropy == "gradient":
                d_out -= p * (logp + entropies[:, None]) * d_entropy[:, None]
            d_out = (d_out / temperature).astype(hidden.dtype)
            d_hidden, d_part = _product_gradients(d_out, hidden, matrix, tied)
            return d_matrix + d_part, d_hidden

        parts = tuple(_split(x, count, size) for x in (hidden_BTD, *rest))
        d_matrix, d_hidden = jax.lax.scan(step, jnp.zeros(matrix.shape, jnp.float32), parts)
        return _join(_over_vocab(d_hidden, place), B), _reduced(d_matrix, matrix, tied, place)

    hidden_BTD, matrix, labels_BT, normaliser_BT, entropy_BT = saved
    layout = layout_of(mesh, labels_BT.shape, matrix, tied)
    run = spread(local, layout, "hidden matrix token token token token token", ("hidden", "matrix"))
    d_hidden, d_matrix = run(
        hidden_BTD, matrix, labels_BT, normaliser_BT, cotangents[0], entropy_BT, cotangents[1]
    )
    return d_hidden, d_matrix, None


token_statistics.defvjp(_statistics_forward, _statistics_backward)


def predictions(
    hidden_BTD: jax.Array, matrix: jax.Array, tied: bool, labels_BT: jax.Array, chunk: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """See `heads.predictions`."""

    def local(place: Place, hidden_BTD: jax.Array, matrix: jax.Array, labels_BT: jax.Array) -> tuple[jax.Array, ...]:
        B, T = labels_BT.shape
        count, size = _chunks(B, T, chunk)
        matrix = _gathered(matrix, tied, place)

        def step(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
            hidden, labels = part
            out = product(hidden, matrix, tied)
            hit = _likeliest(out, place) == labels
            return None, (_picked(out, labels, place) - _normalisers(out, place), hit.astype(jnp.float32))

        _, found = jax.lax.scan(step, None, (_split(hidden_BTD, count, size), _split(labels_BT, count, size)))
        return tuple(_join(x, B) for x in found)

    layout = layout_of(mesh, labels_BT.shape, matrix, tied)
    return spread(local, layout, "hidden matrix token", ("token", "token"))(hidden_BTD, matrix, labels_BT)


def divergence(
    states: tuple[jax.Array, jax.Array],
    matrices: tuple[tuple[jax.Array, bool], tuple[jax.Array, bool]],
    mask_BT: jax.Array,
    temperature: float,
    chunk: int,
    mesh: Mesh | None = None,
) -> jax.Array:
    """See `heads.divergence`: of the model and the reference, their hidden states and (matrix, tied)."""
    (ours, tied), (theirs, tied_theirs) = matrices
    layout, other = (layout_of(mesh, mask_BT.shape, *matrix) for matrix in matrices)
    if layout is None or other is None or layout.place.vocab != other.place.vocab:
        layout, place_theirs = None, Place()
    else:
        layout = dataclasses.replace(layout, specs={**layout.specs, "theirs": other.specs["matrix"]})
        place_theirs = other.place

    def local(place: Place, *arrays: jax.Array) -> jax.Array:
        hidden_ours, hidden_theirs, matrix_ours, matrix_theirs, mask = arrays
        B, T = mask.shape
        count, size = _chunks(B, T, chunk)
        matrix_ours = _gathered(matrix_ours, tied, place)
        matrix_theirs = _gathered(matrix_theirs, tied_theirs, place_theirs)

        def logp(hidden: jax.Array, matrix: jax.Array, tied: bool) -> jax.Array:
            out = product(hidden, matrix, tied) / temperature
            return out - _normalisers(out, place)[:, None]

        @jax.checkpoint
        def step(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
            ours, theirs = logp(part[0], matrix_ours, tied), logp(part[1], matrix_theirs, tied_theirs)
            return total + jnp.sum(part[2] * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)), None

        parts = tuple(_split(x, count, size) for x in (hidden_ours, hidden_theirs, mask))
        total, _ = jax.lax.scan(step, jnp.zeros((), jnp.float32), parts)
        axes = place.tokens + place.vocab
        return jax.lax.psum(total, axes) if axes else total

    run = spread(local, layout, "hidden hidden matrix theirs token", "number")
    return temperature**2 * run(*states, ours, theirs, mask_BT)
