"""The programs of the sampler: prefill, insert, decode, resize. Pure functions of device arrays with fixed shapes.

A slot is a row of one batch in which an answer is made. `prefill` reads all of a prompt but its last token into a small
cache; `insert` copies that cache into the slots of every sample of the prompt; `decode` feeds each slot its last token
and draws the next, up to N times, without the host. The last token of a prompt is thus fed by `decode`, which is the
only place that draws.

A program exists per shape: the capacity of the cache is one of a few sizes (`bucket`), and so are prompt lengths.

Shape letters: B slots, S capacity, P prompts of one prefill, T their padded length, N steps of a call, V vocabulary,
M stop tokens, C candidates.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gramjax.core.sharding import DECODING, constrainer
from gramjax.generation.distribution import Knobs, choose, logprobs_of
from gramjax.models import heads
from gramjax.models.model import Model

SMALLEST = 16
"""Shortest padded prompt."""


def bucket(length: int, smallest: int = SMALLEST) -> int:
    """The smallest size that holds `length`: powers of two, so that few programs serve all lengths."""
    return max(smallest, 1 << max(length - 1, 0).bit_length())


@struct.dataclass
class Slots:
    """Everything the device knows of the answers in the making. Arrays are [B] unless said otherwise."""

    cache: Any
    token: jax.Array
    """The token to feed next."""
    active: jax.Array
    count: jax.Array
    """Tokens drawn so far."""
    limit: jax.Array
    keys: jax.Array
    """[B, 2] random key of each answer: of its seed, request and sample, and of nothing else."""
    knobs: Knobs
    stops: jax.Array
    """[B, M] tokens that end the answer; -1 where there are fewer."""
    seen: jax.Array | None
    """[B, V] tokens in prompt or answer; None while no request has a repetition penalty."""
    allowed: jax.Array | None
    """[B, V]; None while no request restricts its tokens."""
    candidates: jax.Array | None
    """[B, C] tokens whose log-probabilities are kept; None while no request asks for them."""


@struct.dataclass
class Arrivals:
    """What the host puts into free slots. Arrays are [B]; only the rows of `fresh` count. Made with numpy."""

    fresh: Any
    row: Any
    """The row of the prefilled cache."""
    token: Any
    limit: Any
    seed: Any
    request: Any
    sample: Any
    knobs: Any
    stops: Any
    seen: Any
    allowed: Any
    candidates: Any


@struct.dataclass
class Drawn:
    """What one call of `decode` drew."""

    tokens: jax.Array
    """[N, B]; of slot b the first `emitted[b]` count."""
    logprobs: jax.Array
    model_logprobs: jax.Array
    candidate_logprobs: jax.Array | None
    """[N, B, C], where the slots have candidates."""
    emitted: jax.Array
    active: jax.Array
    steps: jax.Array


def base_key(seed: jax.Array, request: jax.Array, sample: jax.Array) -> jax.Array:
    """Key data [2] of one answer. The key of its token t is `fold_in(key, t)`."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, request), sample))


def token_keys(keys_B2: jax.Array, count_B: jax.Array) -> jax.Array:
    """The keys [B] for the next token of each answer."""
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2, impl="threefry2x32"), count_B)


@functools.partial(jax.jit, static_argnames=("model", "batch", "capacity", "num_stops", "with_seen", "with_allowed",
                                             "num_candidates"))  # fmt: skip
def empty(
    weights: Any, *, model: Model, batch: int, capacity: int, num_stops: int, with_seen: bool, with_allowed: bool,
    num_candidates: int = 0,
) -> Slots:  # fmt: skip
    """Slots with nothing in them."""
    zeros = jnp.zeros((batch,), jnp.int32)
    ones = jnp.ones((batch,), jnp.float32)
    vocab = lambda used: jnp.zeros((batch, model.config.vocab_size), bool) if used else None  # noqa: E731
    slots = Slots(
        cache=model.init_cache(weights, batch, capacity),
        token=zeros,
        active=zeros > 0,
        count=zeros,
        limit=zeros,
        keys=jnp.zeros((batch, 2), jnp.uint32),
        knobs=Knobs(ones, zeros, ones, ones * 0, ones),
        stops=jnp.full((batch, num_stops), -1, jnp.int32),
        seen=vocab(with_seen),
        allowed=vocab(with_allowed),
        candidates=jnp.zeros((batch, num_candidates), jnp.int32) if num_candidates else None,
    )
    return _pinned(model, slots)


def _pinned(model: Model, slots: Slots) -> Slots:
    """Slots whose rows lie over all axes but `tensor`, and the heads of whose cache and whose tokens lie over that.

    Every program ends with this: what it gives back lies as it came, so that each is compiled once.
    """
    constrain = constrainer(model.mesh, DECODING)

    def lie(values: Any, *axes: str | None) -> Any:
        return jax.tree.map(lambda x: constrain(x, "batch", *(axes or (None,) * (x.ndim - 1))), values)

    layers = lie(slots.cache.layers, "length", "kv_heads", "head_dim")
    cache = lie(slots.cache.replace(layers=None)).replace(layers=layers)
    apart = {"cache": cache, "seen": lie(slots.seen, "vocab"), "allowed": lie(slots.allowed, "vocab")}
    return dataclasses.replace(lie(dataclasses.replace(slots, cache=None, seen=None, allowed=None)), **apart)


@functools.partial(jax.jit, static_argnames=("model", "capacity"), donate_argnames="cache")
def prefill(
    weights: Any, tokens_PT: jax.Array, segments_PT: jax.Array, cache: Any, *, model: Model, capacity: int
) -> Any:
    """The cache of prompts, or of their next pieces when a cache is given. Padding (segment 0) stands on the right."""
    if cache is None:
        cache = model.init_cache(weights, tokens_PT.shape[0], capacity)
    return model.forward(weights, {"tokens": tokens_PT, "segment_ids": segments_PT}, cache).cache


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames="slots")
def insert(slots: Slots, prefix: Any, arrivals: Arrivals, *, model: Model) -> Slots:
    """Put arrivals into their slots: the prefilled cache of each, its settings and its random key."""
    fresh = arrivals.fresh

    def choose_rows(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    def copied(old: jax.Array, new: jax.Array) -> jax.Array:
        part = (slice(None), *(slice(0, size) for size in new.shape[1:]))
        return old.at[part].set(choose_rows(old[part], new[arrivals.row]))

    old = slots.cache.replace(segment_ids=choose_rows(slots.cache.segment_ids, jnp.zeros((), jnp.int32)))
    keys = jax.vmap(base_key)(arrivals.seed, arrivals.request, arrivals.sample)
    masks = {
        name: None if getattr(slots, name) is None else choose_rows(getattr(slots, name), getattr(arrivals, name))
        for name in ("seen", "allowed", "candidates")
    }
    new = Slots(
        cache=jax.tree.map(copied, old, prefix),
        token=choose_rows(slots.token, arrivals.token),
        active=slots.active | fresh,
        count=choose_rows(slots.count, jnp.zeros((), jnp.int32)),
        limit=choose_rows(slots.limit, arrivals.limit),
        keys=choose_rows(slots.keys, keys),
        knobs=jax.tree.map(choose_rows, slots.knobs, arrivals.knobs),
        stops=choose_rows(slots.stops, arrivals.stops),
        **masks,
    )
    return _pinned(model, new)


@functools.partial(jax.jit, static_argnames=("model", "most"), donate_argnames="slots")
def decode(
    weights: Any, slots: Slots, halt_B: jax.Array, steps: jax.Array, enough: jax.Array, *, model: Model, most: int
) -> tuple[Slots, Drawn]:
    """Draw up to `steps` (at most `most`) tokens per active slot, ending early once `enough` slots are free.

    Slots marked in `halt_B` are freed first.
    """
    B = slots.token.shape[0]
    slots = dataclasses.replace(slots, active=slots.active & ~halt_B)
    before = slots.count
    numbers = jnp.zeros((most, B), jnp.float32)
    asked_BC = slots.candidates
    kept = None if asked_BC is None else jnp.zeros((most, *asked_BC.shape), jnp.float32)
    drawn = (jnp.zeros((most, B), jnp.int32), numbers, numbers, kept)

    def more(carry: Any) -> jax.Array:
        i, slots, _ = carry
        return (i < steps) & (jnp.sum(~slots.active) < enough)

    def step(carry: Any) -> Any:
        i, slots, drawn = carry
        active = slots.active
        batch = {"tokens": slots.token[:, None], "segment_ids": active.astype(jnp.int32)[:, None]}
        out = model.forward(weights, batch, slots.cache)
        logits = heads.logits(weights, out.hidden[:, 0], model.mesh)
        keys = lambda: token_keys(slots.keys, slots.count)  # noqa: E731
        choice = choose(logits, slots.knobs, keys, slots.seen, slots.allowed)
        beside = None if asked_BC is None else logprobs_of(logits, asked_BC)
        drawn = jax.tree.map(
            lambda into, row: jax.lax.dynamic_update_index_in_dim(into, row, i, 0),
            drawn, (choice.token, choice.logprob, choice.model_logprob, beside),
        )  # fmt: skip
        count = slots.count + active
        stopped = jnp.any(choice.token[:, None] == slots.stops, axis=1)
        seen = slots.seen
        if seen is not None:  # compared rather than scattered: rows stay on their devices
            seen |= choice.token[:, None] == jnp.arange(seen.shape[1])
        new = dataclasses.replace(
            slots,
            cache=out.cache,
            token=jnp.where(active, choice.token, slots.token),
            active=active & ~stopped & (count < slots.limit),
            count=count,
            seen=seen,
        )
        return i + 1, _pinned(model, new), drawn

    i, slots, drawn = jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), slots, drawn))
    whole = constrainer(model.mesh)  # every process reads all that was drawn
    out = Drawn(*drawn, slots.count - before, slots.active, i)
    return _pinned(model, slots), jax.tree.map(lambda x: whole(x, *(None,) * x.ndim), out)


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def resize(slots: Slots, *, model: Model, capacity: int) -> Slots:
    """The same slots with a cache of another capacity; what lies beyond it is cut."""

    def resized(x: jax.Array) -> jax.Array:
        room = capacity - x.shape[1]
        return jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2)) if room > 0 else x[:, :capacity]

    cache = slots.cache
    layers, segments = jax.tree.map(resized, (cache.layers, cache.segment_ids))
    return _pinned(model, dataclasses.replace(slots, cache=cache.replace(layers=layers, segment_ids=segments)))


def compilations() -> int:
    """Programs compiled so far in this process, for tests and for the curious."""
    programs: tuple[Any, ...] = (empty, prefill, insert, decode, resize)
    return sum(program._cache_size() for program in programs)
