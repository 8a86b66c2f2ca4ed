"""Beam search: the likeliest continuations of prompts, over the decoding step of any model.

A `Step` makes logits from one token per beam and a cache, and reorders a cache when beams change places; `begin` and
`advance` are the search, pure functions with fixed shapes that know nothing else of the model. An encoder-decoder hands
in a step of its own and keeps what all beams of a source share (the source's keys and values) out of the cache.
`search` does all of it for a decoder, `BeamSampler` for rows: a prompt is read once for all its beams, and only the
generated part of the cache is moved when they change places.

Scores, candidates and the three kinds of early stopping are those of transformers' beam search: a hypothesis scores its
summed log-probability over its length (end token included) to the power of the length penalty.

Shape letters: B prompts, K beams, N rows of the model (the K beams of a prompt side by side), J beams that are
continued (1 at first, then K), C candidates of a prompt, T capacity in new tokens, P padded prompt, V vocabulary,
M end tokens, D embed.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gramjax.core import checks, progress
from gramjax.core.config import GenerationSection
from gramjax.core.errors import UserError
from gramjax.core.sharding import constrainer
from gramjax.generation import request as requests_of
from gramjax.generation import stops
from gramjax.generation.request import LENGTH, STOP, Completion, Request, Statistics
from gramjax.generation.sample import Watch
from gramjax.generation.sampler import WINDOW, Sampler
from gramjax.generation.slots import bucket
from gramjax.models import heads
from gramjax.models.model import Model

Item = TypeVar("Item")

DEAD = -jnp.inf
EARLY_STOPPING = ("False", "True", "never")
"""Their places are the numbers in `Terms.early_stopping`."""

UNWATCHED = "a beam search has no answer in the making that could be watched"


@struct.dataclass
class Terms:
    """What is asked for each prompt, arrays [B] unless said otherwise. Made with numpy."""

    limit: Any
    """Most new tokens; 0: the row is padding."""
    stops: Any
    """[B, M] tokens that end a hypothesis; -1 where there are fewer."""
    length_penalty: Any
    early_stopping: Any
    """A place in `EARLY_STOPPING`."""
    allowed: Any = None
    """[B, V] the only tokens that may be chosen; None: all."""


@struct.dataclass
class State:
    """The beams that go on, and the hypotheses that ended. Both are ordered, the best first."""

    cache: Any
    tokens: jax.Array
    """[B, K, T]; the first `count` count."""
    logprobs: jax.Array
    """[B, K, T] of each token under the model."""
    scores: jax.Array
    """[B, K] sums of them; -inf: there are fewer beams."""
    done_tokens: jax.Array
    done_logprobs: jax.Array
    done_lengths: jax.Array
    """[B, K]"""
    done_scores: jax.Array
    """[B, K] with the length penalty; -inf: there are fewer hypotheses."""
    open: jax.Array
    """[B] whether a better hypothesis may still come."""
    count: jax.Array
    """[] tokens of every beam."""


def reorder_rows(cache: Any, parents_BK: jax.Array) -> Any:
    """A cache whose arrays have the rows of the model first, with the rows of the chosen beams."""

    def moved(x: jax.Array) -> jax.Array:
        return _taken(x.reshape(*parents_BK.shape, *x.shape[1:]), parents_BK).reshape(x.shape)

    return jax.tree.map(moved, cache)


@dataclasses.dataclass(frozen=True)
class Step:
    """How a model takes one token per beam, and how its cache follows the beams."""

    forward: Callable[[jax.Array, Any], tuple[jax.Array, Any]]
    """`(tokens [N, 1], cache) -> (logits [N, V], cache)`."""
    reorder: Callable[[Any, jax.Array], Any] = reorder_rows
    """`(cache, parents [B, K]) -> cache`: beam k of a prompt goes on from the beam `parents[:, k]` of it."""


# -- the search --------------------------------------------------------------------------------------------------------


def begin(cache: Any, logits_BV: jax.Array, terms: Terms, num_beams: int, capacity: int) -> State:
    """The first token of every beam. `cache` has num_beams equal rows per prompt, `logits_BV` follow the prompts."""
    B = logits_BV.shape[0]
    tokens = jnp.zeros((B, num_beams, capacity), jnp.int32)
    logprobs = jnp.zeros((B, num_beams, capacity), jnp.float32)
    nothing = jnp.full((B, num_beams), DEAD)
    state = State(
        cache, tokens[:, :1], logprobs[:, :1], jnp.zeros((B, 1)), tokens, logprobs,
        jnp.zeros((B, num_beams), jnp.int32), nothing, jnp.asarray(terms.limit) > 0, jnp.zeros((), jnp.int32),
    )  # fmt: skip
    return _grown(state, logits_BV[:, None], terms)[0]


def advance(step: Step, state: State, terms: Terms, steps: Any) -> State:
    """Up to `steps` further tokens, fewer when no prompt is open any more."""

    def more(carry: tuple[jax.Array, State]) -> jax.Array:
        return (carry[0] < steps) & jnp.any(carry[1].open)

    def one(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        i, state = carry
        B, K = state.scores.shape
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, axis=2, keepdims=False)
        logits, cache = step.forward(last.reshape(B * K, 1), state.cache)
        state, parents_BK = _grown(state, logits.reshape(B, K, -1), terms)
        return i + 1, dataclasses.replace(state, cache=step.reorder(cache, parents_BK) if K > 1 else cache)

    return jax.lax.while_loop(more, one, (jnp.zeros((), jnp.int32), state))[1]


def _taken(x_BJ: jax.Array, pick_BK: jax.Array) -> jax.Array:
    """The picked entries of the second axis, prompt by prompt."""
    return jax.vmap(lambda row, pick: row[pick])(x_BJ, pick_BK)


def _grown(state: State, logits_BJV: jax.Array, terms: Terms) -> tuple[State, jax.Array]:
    """The state one token later (its cache as it was), and the beams [B, K] that the new ones go on from.

    There are enough candidates to go on with K beams even if every end token of every beam is among them. A hypothesis
    is finished by a candidate that ends and is one of the K best.
    """
    K, count = state.done_scores.shape[1], state.count + 1
    parent_BC, token_BC, logprob_BC, score_BC = _candidates(state.scores, logits_BJV, terms, K)
    tokens_BCT = _put(_taken(state.tokens, parent_BC), token_BC, state.count)
    logprobs_BCT = _put(_taken(state.logprobs, parent_BC), logprob_BC, state.count)
    at_limit = count >= terms.limit
    ends_BC = jnp.any(token_BC[..., None] == terms.stops[:, None], axis=-1) | at_limit[:, None]

    scores_BK, going_BK = jax.lax.top_k(jnp.where(ends_BC, DEAD, score_BC), K)

    divided_BK = score_BC[:, :K] / _power(count, terms.length_penalty)[:, None]
    new_BK = jnp.where(ends_BC[:, :K] & state.open[:, None], divided_BK, DEAD)
    done_scores, kept_BK = jax.lax.top_k(jnp.concatenate([state.done_scores, new_BK], axis=1), K)

    def kept(old: jax.Array, new: jax.Array) -> jax.Array:
        return _taken(jnp.concatenate([old, new[:, :K]], axis=1), kept_BK)

    full = jnp.all(done_scores > DEAD, axis=1)
    longest = jnp.where((terms.early_stopping == 2) & (terms.length_penalty > 0), terms.limit, count)
    best = scores_BK[:, 0] / _power(longest, terms.length_penalty)
    better = best > jnp.where(full, done_scores[:, -1], DEAD)
    grown = State(
        state.cache,
        _taken(tokens_BCT, going_BK),
        _taken(logprobs_BCT, going_BK),
        scores_BK,
        kept(state.done_tokens, tokens_BCT),
        kept(state.done_logprobs, logprobs_BCT),
        kept(state.done_lengths, jnp.full_like(token_BC, count)),
        done_scores,
        state.open & better & ~(full & (terms.early_stopping == 1)) & ~at_limit,
        count,
    )
    return grown, _taken(parent_BC, going_BK)


def _candidates(
    scores_BJ: jax.Array, logits_BJV: jax.Array, terms: Terms, num_beams: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Beam, token, log-probability and score [B, C] of the best continuations, best first.

    Each beam's best are found first and then merged, so that nothing as large as all logits is sorted or made.
    """
    B, J, V = logits_BJV.shape
    C = (1 + max(terms.stops.shape[1], 1)) * num_beams
    logits = logits_BJV.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if terms.allowed is not None:
        logits = jnp.where(terms.allowed[:, None], logits, DEAD)
    best = min(C, V)
    values, tokens = jax.lax.top_k(logits, best)
    logprobs = values - normaliser
    flat = [x.reshape(B, J * best) for x in (tokens, logprobs, scores_BJ[..., None] + logprobs)]
    score_BC, place_BC = jax.lax.top_k(flat[2], min(C, J * best))
    room = ((0, 0), (0, C - score_BC.shape[1]))
    place_BC = jnp.pad(place_BC, room)
    token_BC, logprob_BC = (_taken(x, place_BC) for x in flat[:2])
    return place_BC // best, token_BC, logprob_BC, jnp.pad(score_BC, room, constant_values=DEAD)


def _put(into_BCT: jax.Array, value_BC: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(into_BCT, value_BC, place, axis=2)


def _power(length: jax.Array, length_penalty_B: jax.Array) -> jax.Array:
    return jnp.asarray(length, jnp.float32) ** length_penalty_B


# -- decoders ----------------------------------------------------------------------------------------------------------


def decoder_step(model: Model, weights: Any, prompt: int) -> Step:
    """The step of a decoder whose cache holds the prompt in its first `prompt` slots, the same for all beams."""

    def forward(tokens_N1: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        out = model.forward(weights, {"tokens": tokens_N1}, cache)
        return heads.logits(weights, out.hidden[:, 0]), out.cache

    def reorder(cache: Any, parents_BK: jax.Array) -> Any:
        def moved(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(x, reorder_rows(x[:, prompt:], parents_BK), prompt, axis=1)

        return cache.replace(layers=jax.tree.map(moved, cache.layers))

    return Step(forward, reorder)


@functools.partial(jax.jit, static_argnames=("model", "capacity"), donate_argnames="cache")
def _read(
    weights: Any, tokens_BT: jax.Array, segments_BT: jax.Array, cache: Any, *, model: Model, capacity: int
) -> tuple[jax.Array, Any]:
    """The hidden state [B, D] after a piece of the prompts, and their cache. Padding (segment 0) stands on the left."""
    if cache is None:
        cache = model.init_cache(weights, tokens_BT.shape[0], capacity)
    out = model.forward(weights, {"tokens": tokens_BT, "segment_ids": segments_BT}, cache)
    return out.hidden[:, -1], out.cache.replace(lengths=cache.lengths + tokens_BT.shape[1])


@functools.partial(jax.jit, static_argnames=("num_beams", "capacity"))
def _begin(weights: Any, hidden_BD: jax.Array, cache: Any, terms: Terms, *, num_beams: int, capacity: int) -> State:
    """The prompts' cache for each of their beams, with room for new tokens; and the first token."""
    cache = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), cache)
    return begin(_roomier(cache, capacity), heads.logits(weights, hidden_BD), terms, num_beams, capacity)


def _roomier(cache: Any, more: int) -> Any:
    """A decoder's cache with that many slots more."""

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))

    return cache.replace(layers=jax.tree.map(padded, cache.layers), segment_ids=padded(cache.segment_ids))


@functools.partial(jax.jit, static_argnames="capacity")
def _widened(state: State, *, capacity: int) -> State:
    """The same state with room for `capacity` new tokens."""
    more = capacity - state.tokens.shape[2]
    names = ("tokens", "logprobs", "done_tokens", "done_logprobs")
    wide = {name: jnp.pad(getattr(state, name), ((0, 0), (0, 0), (0, more))) for name in names}
    return dataclasses.replace(state, cache=_roomier(state.cache, more), **wide)


@functools.partial(jax.jit, static_argnames=("model", "prompt"), donate_argnames="state")
def _advance(
    weights: Any, state: State, terms: Terms, steps: Any, *, model: Model, prompt: int
) -> tuple[State, jax.Array, jax.Array]:
    """`advance` of a decoder, with what the host looks at: `open` and `count`."""
    state = advance(decoder_step(model, weights, prompt), state, terms, steps)
    whole = constrainer(model.mesh)
    return state, whole(state.open, None), state.count


# -- requests in, hypotheses out ---------------------------------------------------------------------------------------


def search(
    model: Model,
    weights: Any,
    requests: Iterable[Request | None],
    settings: GenerationSection = GenerationSection(),
    decode: stops.Decode | None = None,
    statistics: Statistics | None = None,
) -> Iterator[tuple[Request, list[Completion]]]:
    """Each request with its `sampling.n` best hypotheses, best first, in the order of the requests.

    There are fewer where fewer are possible. Prompts are searched `settings.slots // num_beams` at a time; None among
    the requests means that no other is waiting just now. Raises DataError or UserError for a request that cannot be
    answered.
    """
    if problems := checks.problems({"generation": dataclasses.asdict(settings)}):
        raise UserError(problems[0])
    statistics = Statistics() if statistics is None else statistics
    for batch in _batches(model, requests, settings):
        progress.stop_point("a round of the sampler")
        began = time.perf_counter()
        found = _searched(model, weights, batch, settings, decode, statistics)
        statistics.seconds += time.perf_counter() - began
        yield from zip(batch, found)


def score(completion: Completion) -> float:
    """What a hypothesis is ranked by: its summed log-probability over its length to the power of the penalty."""
    length = max(len(completion.logprobs), 1)
    return sum(completion.model_logprobs) / length**completion.request.sampling.length_penalty


def _longest(model: Model, settings: GenerationSection) -> int:
    return settings.max_length or model.config.max_position_embeddings


def _batches(
    model: Model, requests: Iterable[Request | None], settings: GenerationSection
) -> Iterator[list[Request]]:
    """Requests of as many beams, as many as are searched at once."""
    batch: list[Request] = []
    for request in requests:
        if request is not None:
            requests_of.check(request, model.config.vocab_size, _longest(model, settings))
            if request.candidates:
                raise UserError(f"request {request.id!r}: a beam search keeps no log-probabilities of candidates")
            if batch and request.sampling.num_beams != batch[0].sampling.num_beams:
                yield batch
                batch = []
            batch.append(request)
        if batch and (request is None or len(batch) >= settings.slots // batch[0].sampling.num_beams):
            yield batch
            batch = []
    if batch:
        yield batch


def _searched(
    model: Model,
    weights: Any,
    batch: Sequence[Request],
    settings: GenerationSection,
    decode: stops.Decode | None,
    statistics: Statistics,
) -> list[list[Completion]]:
    """The hypotheses of a few requests that are searched together."""
    num_beams = batch[0].sampling.num_beams
    terms = _terms(model, batch, settings)
    limit = int(terms.limit.max())
    prompt = bucket(max(len(request.tokens) for request in batch))
    tokens, segments = np.zeros((2, len(terms.limit), prompt), np.int32)
    for row, request in enumerate(batch):
        tokens[row, prompt - len(request.tokens) :], segments[row, prompt - len(request.tokens) :] = request.tokens, 1
        statistics.prompt_tokens += len(request.tokens)
    segments[len(batch) :, -1] = 1
    hidden = cache = None
    piece = min(prompt, bucket(settings.prefill_length))
    for start in range(0, prompt, piece):
        part = slice(start, start + piece)
        hidden, cache = _read(weights, tokens[:, part], segments[:, part], cache, model=model, capacity=prompt)
        statistics.prefills += 1
    capacity = bucket(min(1 + settings.steps_per_call, limit))
    state = _begin(weights, hidden, cache, terms, num_beams=num_beams, capacity=capacity)
    del cache
    count, is_open = 1, limit > 1
    while is_open:
        needed = bucket(min(count + settings.steps_per_call, limit))
        if needed > capacity:
            capacity, state = needed, _widened(state, capacity=needed)
        before = count
        state, left, made = _advance(
            weights, state, terms, np.int32(settings.steps_per_call), model=model, prompt=prompt
        )
        count, is_open = int(made), bool(np.any(jax.device_get(left)))
        statistics.calls += 1
        statistics.steps += count - before
        statistics.slot_steps += (count - before) * len(terms.limit) * num_beams
    return _completions(batch, terms, state, decode, statistics)


def _terms(model: Model, batch: Sequence[Request], settings: GenerationSection) -> Terms:
    """What the requests ask for. Rows are filled up to a power of two, or to as many as are searched at once."""
    most = max(settings.slots // batch[0].sampling.num_beams, 1)
    rows = min(bucket(len(batch), 1), most)
    ends = [_end_tokens(request) for request in batch]
    terms = Terms(
        limit=np.zeros(rows, np.int32),
        stops=np.full((rows, max(map(len, ends))), -1, np.int32),
        length_penalty=np.ones(rows, np.float32),
        early_stopping=np.zeros(rows, np.int32),
        allowed=np.ones((rows, model.config.vocab_size), bool) if any(r.allowed for r in batch) else None,
    )
    for row, request in enumerate(batch):
        sampling = request.sampling
        terms.limit[row] = min(sampling.max_tokens, _longest(model, settings) - len(request.tokens))
        terms.stops[row, : len(ends[row])] = ends[row]
        terms.length_penalty[row] = sampling.length_penalty
        terms.early_stopping[row] = EARLY_STOPPING.index(sampling.early_stopping)
        if request.allowed:
            terms.allowed[row] = False
            terms.allowed[row, np.asarray(request.allowed)] = True
    return terms


def _end_tokens(request: Request) -> tuple[int, ...]:
    own = () if request.sampling.ignore_eos else request.stop_ids
    return tuple(dict.fromkeys((*own, *request.sampling.stop_ids)))


def _completions(
    batch: Sequence[Request], terms: Terms, state: State, decode: stops.Decode | None, statistics: Statistics
) -> list[list[Completion]]:
    """The hypotheses as completions; a request with room for no token has one that is empty."""
    done = (state.done_tokens, state.done_logprobs, state.done_lengths, state.done_scores)
    tokens, logprobs, lengths, scores = jax.device_get(done)
    out: list[list[Completion]] = []
    for row, request in enumerate(batch):
        found = []
        for rank in range(request.sampling.n):
            if scores[row, rank] == DEAD and (rank or terms.limit[row]):
                break
            length = int(lengths[row, rank])
            ids, values = tokens[row, rank, :length].tolist(), logprobs[row, rank, :length].tolist()
            stop = ids[-1] if ids and ids[-1] in _end_tokens(request) else None
            text = decode(ids if stop is None else ids[:-1]) if decode else ""
            reason = LENGTH if stop is None else STOP
            found.append(Completion(request, rank, ids, values, list(values), [], reason, stop, text))
            statistics.tokens += length
        statistics.completions += len(found)
        out.append(found)
    return out


def compilations() -> int:
    """Programs compiled so far in this process, for tests and for the curious."""
    programs: tuple[Any, ...] = (_read, _begin, _widened, _advance)
    return sum(program._cache_size() for program in programs)


@dataclasses.dataclass(frozen=True)
class BeamSampler(Sampler):
    """A Sampler whose completions are the `sampling.n` best hypotheses of a beam search, best first."""

    def generate(
        self, requests: Iterable[Request | None], statistics: Statistics | None = None, watch: Watch | None = None
    ) -> Iterator[Completion]:
        """The hypotheses of all requests, in their order. There is no answer in the making to watch."""
        if watch is not None:
            raise UserError(UNWATCHED)
        for _, found in search(self.model, self.weights, requests, self.settings, self.decode, statistics):
            yield from found

    def answered(
        self,
        items: Iterable[Item],
        requests_of: Callable[[Item], Sequence[Request]],
        statistics: Statistics | None = None,
        window: int = WINDOW,
        watch: Watch | None = None,
    ) -> Iterator[tuple[Item, list[list[Completion]]]]:
        """Every item with the hypotheses of each of its requests, in the order of the items."""
        if watch is not None:
            raise UserError(UNWATCHED)
        waiting: collections.deque[tuple[Item, int, list[list[Completion]]]] = collections.deque()

        def ask() -> Iterator[Request | None]:
            for item in items:
                made = list(requests_of(item))
                waiting.append((item, len(made), []))
                yield from made
                if len(waiting) >= window:
                    yield None

        def ready() -> Iterator[tuple[Item, list[list[Completion]]]]:
            while waiting and len(waiting[0][2]) == waiting[0][1]:
                item, _, found = waiting.popleft()
                yield item, found

        for _, found in search(self.model, self.weights, ask(), self.settings, self.decode, statistics):
            yield from ready()  # items without a request
            waiting[0][2].append(found)
            yield from ready()
        yield from ready()
