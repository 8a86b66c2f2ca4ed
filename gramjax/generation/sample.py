"""The sampler: requests in, completions out as they finish, at constant memory in the number of requests.

    weights = model.pack_for_decoding(params)
    for completion in generate(model, weights, requests): ...

A fixed number of slots is decoded together; a slot is refilled when its answer ends (continuous batching), the samples
of a request share one prefill, and what is drawn depends on the request alone: not on its slot, its neighbours, the
number of slots or of devices. Best-of-n, voting, rollouts, annotators and serving are built on this one function.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import checks, progress
from gramjax.core.config import GenerationSection
from gramjax.core.errors import UserError
from gramjax.generation import request as requests_of
from gramjax.generation import slots as device
from gramjax.generation import stops
from gramjax.generation.distribution import Knobs
from gramjax.generation.request import ABORT, LENGTH, STOP, Completion, Request, Sampling, Statistics
from gramjax.models.model import Model

__all__ = ["Answer", "Completion", "Request", "Sampling", "Statistics", "generate", "rounds"]

SMALLEST_CAPACITY = 64
END = object()
KNOBS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclasses.dataclass
class Answer:
    """A completion in the making, as `watch` sees it."""

    request: Request
    sample: int
    limit: int
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    model_logprobs: list[float] = dataclasses.field(default_factory=list)
    candidate_logprobs: list[list[float]] = dataclasses.field(default_factory=list)
    checked: int = 0
    """Tokens known to hold no stop text."""

    def need(self, steps: int) -> int:
        """Slots of the cache in use after that many further steps."""
        return len(self.request.tokens) - 1 + min(len(self.token_ids) + steps, self.limit)


Watch = Callable[[Answer], bool | None]
"""Called for every unfinished answer after each call of the device; False ends the answer (`abort`)."""


def generate(
    model: Model,
    weights: Any,
    requests: Iterable[Request | None],
    settings: GenerationSection = GenerationSection(),
    decode: stops.Decode | None = None,
    statistics: Statistics | None = None,
    watch: Watch | None = None,
) -> Iterator[Completion]:
    """Completions of all requests, each as soon as it is finished.

    `weights` come from `model.pack_for_decoding`. Requests are taken from the iterable when slots are free; None in it
    means that none is waiting just now. `decode` (ids to text) is needed for stop texts and for `Completion.text`.
    Raises DataError or UserError for a request that cannot be answered.
    """
    for finished in rounds(model, weights, requests, settings, decode, statistics, watch):
        yield from finished


def rounds(
    model: Model,
    weights: Any,
    requests: Iterable[Request | None],
    settings: GenerationSection = GenerationSection(),
    decode: stops.Decode | None = None,
    statistics: Statistics | None = None,
    watch: Watch | None = None,
) -> Iterator[list[Completion]]:
    """`generate` call by call: what finished in each call of the device, or nothing.

    For a caller whose requests wait for something other than a completion.
    """
    if problems := checks.problems({"generation": dataclasses.asdict(settings)}):
        raise UserError(problems[0])
    statistics = Statistics() if statistics is None else statistics
    sampler = _Sampler(model, weights, iter(requests), settings, decode, statistics, watch)
    while True:
        progress.stop_point("a round of the sampler")
        began = time.perf_counter()
        finished = sampler.advance()
        statistics.seconds += time.perf_counter() - began
        yield finished
        if sampler.done:
            return


class _Sampler:
    """The host's side: who sits in which slot, and what waits."""

    def __init__(
        self,
        model: Model,
        weights: Any,
        requests: Iterator[Request | None],
        settings: GenerationSection,
        decode: stops.Decode | None,
        statistics: Statistics,
        watch: Watch | None,
    ) -> None:
        self.model, self.weights, self.requests, self.settings = model, weights, requests, settings
        self.decode, self.statistics, self.watch = decode, statistics, watch
        self.longest = settings.max_length or model.config.max_position_embeddings
        self.rows = settings.prefill_rows or (1 if jax.default_backend() == "cpu" else 8)
        self.answers: list[Answer | None] = [None] * settings.slots
        self.halt = np.zeros(settings.slots, bool)
        self.returned: collections.deque[Request] = collections.deque()
        """Requests that were taken, checked, and have to wait a little."""
        self.dry = False
        self.prefix: Any = None
        self.ready: collections.deque[tuple[Answer, int]] = collections.deque()
        """Answers whose prompt is in `prefix`, and in which row."""
        self.slots: device.Slots | None = None
        self.capacity = 0
        self.finished: list[Completion] = []

    @property
    def done(self) -> bool:
        """Nothing is in the making and nothing will come."""
        return self.dry and not self.returned and not self.ready and not any(self.answers)

    def advance(self) -> list[Completion]:
        """Refill, one call of the device, and what finished."""
        self.refill()
        if any(self.answers):
            self.run()
        finished, self.finished = self.finished, []
        return finished

    # -- requests in --------------------------------------------------------------------------------------------------

    def next_request(self) -> Request | None:
        """The next request that needs a slot, or None when there is none now."""
        if self.returned:
            return self.returned.popleft()
        while not self.dry and len(self.finished) < self.settings.slots:
            found = next(self.requests, END)
            if found is END:
                self.dry = True
            if found is END or found is None:
                return None
            if not isinstance(found, Request):
                raise TypeError(f"the sampler takes requests, not {type(found).__name__}")
            requests_of.check(found, self.model.config.vocab_size, self.longest)
            if found.sampling.num_beams > 1:
                raise UserError(f"request {found.id!r} asks for beams (sampling.num_beams): use generation.beam")
            if found.sampling.stop and self.decode is None:
                raise UserError("sampling.stop needs a `decode` function: stop texts are looked for in text")
            if self.limit(found):
                return found
            for sample in range(found.sampling.n):
                self.finish(Answer(found, sample, 0), LENGTH)
        return None

    def limit(self, request: Request) -> int:
        """Most tokens that may be drawn for a request."""
        return min(request.sampling.max_tokens, self.longest - len(request.tokens))

    def refill(self) -> None:
        """Fill the free slots, as far as there are requests."""
        while free := [b for b, answer in enumerate(self.answers) if answer is None]:
            if not self.ready and not self.read_prompts(len(free)):
                return
            arrivals = [(b, *self.ready.popleft()) for b in free[: len(self.ready)]]
            self.put(arrivals)
            if not self.ready:
                self.prefix = None

    def read_prompts(self, free: int) -> bool:
        """Prefill the next prompts, as many as the free slots can use; False when none is waiting."""
        batch: list[Request] = []
        while len(batch) < self.rows and sum(r.sampling.n for r in batch) < free:
            found = self.next_request()
            if found is None:
                break
            batch.append(found)
            if self.padded(found) > self.settings.prefill_length:
                break
        if not batch:
            return False
        # A long prompt is read alone, and so are a few that would leave most rows of the program empty.
        long = self.padded(batch[-1]) > self.settings.prefill_length
        alone = 2 * len(batch) <= self.rows or (long and len(batch) == 1)
        keep = 1 if alone else len(batch) - long
        self.returned.extendleft(reversed(batch[keep:]))
        batch = batch[:keep]
        rows = 1 if len(batch) == 1 else self.rows
        capacity = max(self.padded(request) for request in batch)
        tokens, segments = np.zeros((2, rows, capacity), np.int32)
        for row, request in enumerate(batch):
            prefix = request.tokens[:-1]
            tokens[row, : len(prefix)], segments[row, : len(prefix)] = prefix, 1
            self.ready.extend((Answer(request, s, self.limit(request)), row) for s in range(request.sampling.n))
            self.statistics.prompt_tokens += len(request.tokens)
        piece = min(capacity, device.bucket(self.settings.prefill_length))
        self.prefix = None
        for start in range(0, max(max(len(r.tokens) for r in batch) - 1, 1), piece):
            part = slice(start, start + piece)
            self.prefix = device.prefill(
                self.weights, tokens[:, part], segments[:, part], self.prefix, model=self.model, capacity=capacity
            )
            self.statistics.prefills += 1
        return True

    def padded(self, request: Request) -> int:
        """The length that a prompt is padded to for its prefill."""
        return device.bucket(len(request.tokens) - 1)

    def put(self, arrivals: list[tuple[int, Answer, int]]) -> None:
        """Let answers begin: (slot, answer, row of the prefilled cache) of each."""
        for b, answer, _ in arrivals:
            self.answers[b] = answer
            self.halt[b] = False
        self.fit(arrivals)
        assert self.slots is not None
        B, V = self.settings.slots, self.model.config.vocab_size
        integers = {name: np.zeros(B, np.int32) for name in ("row", "token", "limit")}
        unsigned = {name: np.zeros(B, np.uint32) for name in ("seed", "request", "sample")}
        fresh = np.zeros(B, bool)
        knobs: dict[str, Any] = {name: np.zeros(B, np.float32) for name in KNOBS}
        knobs["top_k"] = np.zeros(B, np.int32)
        stop_ids = np.full(self.slots.stops.shape, -1, np.int32)
        seen = None if self.slots.seen is None else np.zeros((B, V), bool)
        allowed = None if self.slots.allowed is None else np.ones((B, V), bool)
        for b, answer, row in arrivals:
            request = answer.request
            fresh[b] = True
            integers["row"][b], integers["token"][b], integers["limit"][b] = row, request.tokens[-1], answer.limit
            unsigned["seed"][b], unsigned["sample"][b] = request.seed % 2**32, answer.sample
            unsigned["request"][b] = requests_of.number(request.id)
            for name, values in knobs.items():
                values[b] = getattr(request.sampling, name)
            found = _stop_ids(request)
            stop_ids[b, : len(found)] = found
            if seen is not None and request.sampling.repetition_penalty != 1:
                seen[b, np.asarray(request.tokens)] = True
            if allowed is not None and request.allowed:
                allowed[b] = False
                allowed[b, np.asarray(request.allowed)] = True
        beside = None if self.slots.candidates is None else np.zeros(self.slots.candidates.shape, np.int32)
        if beside is not None:
            for b, answer, _ in arrivals:
                beside[b, : len(answer.request.candidates)] = answer.request.candidates
        record = device.Arrivals(
            fresh=fresh, knobs=Knobs(**knobs), stops=stop_ids, seen=seen, allowed=allowed, candidates=beside,
            **integers, **unsigned,
        )  # fmt: skip
        self.slots = device.insert(self.slots, self.prefix, record, model=self.model)

    def fit(self, arrivals: list[tuple[int, Answer, int]]) -> None:
        """Make the slots what the arrivals need: a large enough cache, room for their stop tokens, their masks."""
        wanted = [answer.request for _, answer, _ in arrivals]
        num_stops = device.bucket(max(len(_stop_ids(r)) for r in wanted), 4)
        with_seen = any(r.sampling.repetition_penalty != 1 for r in wanted)
        with_allowed = any(r.allowed for r in wanted)
        smallest = max(self.padded(r) for r in wanted)
        num_candidates = max(len(r.candidates) for r in wanted)
        if self.slots is None:
            self.capacity = self.wanted_capacity(smallest)
            self.slots = device.empty(
                self.weights, model=self.model, batch=self.settings.slots, capacity=self.capacity,
                num_stops=num_stops, with_seen=with_seen, with_allowed=with_allowed, num_candidates=num_candidates,
            )  # fmt: skip
            return
        B, V = self.settings.slots, self.model.config.vocab_size
        have = self.slots.stops.shape[1]
        if num_stops > have:
            stops_BM = jnp.pad(self.slots.stops, ((0, 0), (0, num_stops - have)), constant_values=-1)
            self.slots = dataclasses.replace(self.slots, stops=stops_BM)
        if with_seen and self.slots.seen is None:
            self.slots = dataclasses.replace(self.slots, seen=jnp.zeros((B, V), bool))
        if with_allowed and self.slots.allowed is None:
            self.slots = dataclasses.replace(self.slots, allowed=jnp.ones((B, V), bool))
        if num_candidates > (0 if self.slots.candidates is None else self.slots.candidates.shape[1]):
            self.slots = dataclasses.replace(self.slots, candidates=self.widened(num_candidates))
        self.resize(smallest)

    def widened(self, count: int) -> jax.Array:
        """The candidates of the slots with room for `count` of them."""
        assert self.slots is not None
        old = self.slots.candidates
        if old is None:
            return jnp.zeros((self.settings.slots, count), jnp.int32)
        return jnp.pad(old, ((0, 0), (0, count - old.shape[1])))

    # -- the device ---------------------------------------------------------------------------------------------------

    def wanted_capacity(self, smallest: int = 0) -> int:
        """The cache that the next call needs."""
        steps = self.settings.steps_per_call
        need = max((answer.need(steps) for answer in self.answers if answer), default=0)
        return device.bucket(max(need, smallest), SMALLEST_CAPACITY)

    def resize(self, smallest: int = 0) -> None:
        """Let the cache grow to what is needed, and shrink when it is four times that."""
        assert self.slots is not None
        wanted = self.wanted_capacity(smallest)
        if wanted > self.capacity or 4 * wanted <= self.capacity:
            self.slots = device.resize(self.slots, model=self.model, capacity=wanted)
            self.capacity = wanted

    def run(self) -> None:
        """One call of the device, and what the host makes of it."""
        self.resize()
        settings, answers = self.settings, self.answers
        B = settings.slots
        waiting = bool(self.ready) or bool(self.returned) or not self.dry
        enough = max(1, min(B, int(np.ceil(settings.refill_share * B)))) if waiting else B
        free = sum(answer is None for answer in answers)
        enough = B if free >= enough else enough
        self.slots, out = device.decode(
            self.weights, self.slots, self.halt, np.int32(settings.steps_per_call), np.int32(enough),
            model=self.model, most=settings.steps_per_call,
        )  # fmt: skip
        out = jax.device_get(out)
        steps = int(out.steps)
        self.statistics.calls += 1
        self.statistics.steps += steps
        self.statistics.slot_steps += steps * B
        for b, answer in enumerate(answers):
            if answer is None:
                continue
            emitted = int(out.emitted[b])
            answer.token_ids += out.tokens[:emitted, b].tolist()
            answer.logprobs += out.logprobs[:emitted, b].tolist()
            answer.model_logprobs += out.model_logprobs[:emitted, b].tolist()
            if answer.request.candidates:
                count = len(answer.request.candidates)
                answer.candidate_logprobs += out.candidate_logprobs[:emitted, b, :count].tolist()
            if self.ended(answer, bool(out.active[b])):
                answers[b] = None
                self.halt[b] = True

    # -- completions out ----------------------------------------------------------------------------------------------

    def ended(self, answer: Answer, active: bool) -> bool:
        """Whether an answer is finished; if so, its completion is kept."""
        sampling = answer.request.sampling
        if sampling.stop and self.decode is not None:
            hit = stops.find(answer.token_ids, answer.checked, sampling.stop, self.decode)
            if hit is not None:
                kept, text, stop = hit
                self.statistics.rolled_back += len(answer.token_ids) - kept
                lists: tuple[list[Any], ...] = (
                    answer.token_ids, answer.logprobs, answer.model_logprobs, answer.candidate_logprobs
                )  # fmt: skip
                for values in lists:
                    del values[kept:]
                self.finish(answer, STOP, stop, text)
                return True
            answer.checked = len(answer.token_ids)
        if not active:
            last = answer.token_ids[-1]
            stopped = last in _stop_ids(answer.request)
            self.finish(answer, STOP if stopped else LENGTH, last if stopped else None)
            return True
        if self.watch is not None and self.watch(answer) is False:
            self.finish(answer, ABORT)
            return True
        return False

    def finish(self, answer: Answer, reason: str, stop: int | str | None = None, text: str | None = None) -> None:
        """Keep the completion of an answer."""
        if text is None and self.decode is not None:
            text = self.decode(answer.token_ids[:-1] if isinstance(stop, int) else answer.token_ids)
        self.statistics.completions += 1
        self.statistics.tokens += len(answer.token_ids)
        self.finished.append(
            Completion(
                answer.request,
                answer.sample,
                answer.token_ids,
                answer.logprobs,
                answer.model_logprobs,
                answer.candidate_logprobs,
                reason,
                stop,
                text or "",
            )  # fmt: skip
        )


def _stop_ids(request: Request) -> tuple[int, ...]:
    own = () if request.sampling.ignore_eos else request.stop_ids
    return tuple(dict.fromkeys((*own, *request.sampling.stop_ids)))
