"""A model that is ready to answer, rows as its requests, and answers in the order of what was asked."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from gramjax.core.config import GenerationSection
from gramjax.core.errors import DataError
from gramjax.data.rows import LANGUAGE_MODELING, PROMPT_ONLY, Drop
from gramjax.data.text import Renderer
from gramjax.generation.request import Completion, Request, Sampling, Statistics
from gramjax.generation.sample import Watch, generate, rounds
from gramjax.models.model import Model

T = TypeVar("T")

ROW_TYPES = (PROMPT_ONLY, LANGUAGE_MODELING)
"""Rows that can be continued: a prompt (text or messages), or messages or text themselves."""

WINDOW = 1024
"""Items that may be ahead of the oldest unfinished one (`Sampler.answered`)."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model with weights packed for decoding, its renderer, and its end tokens."""

    model: Model
    weights: Any
    renderer: Renderer
    end_ids: tuple[int, ...]
    settings: GenerationSection

    def decode(self, ids: Any) -> str:
        """Text of an answer, special tokens left out."""
        return self.renderer.tokenizer.decode(ids, skip_special=True)

    def generate(
        self, requests: Iterable[Request | None], statistics: Statistics | None = None, watch: Watch | None = None
    ) -> Iterator[Completion]:
        """`generation.sample.generate` with this model: completions as they finish."""
        return generate(self.model, self.weights, requests, self.settings, self.decode, statistics, watch)

    def answered(
        self,
        items: Iterable[T],
        requests_of: Callable[[T], Sequence[Request]],
        statistics: Statistics | None = None,
        window: int = WINDOW,
        watch: Watch | None = None,
    ) -> Iterator[tuple[T, list[list[Completion]]]]:
        """Every item with the completions of each of its requests (by sample), in the order of the items.

        An item may have no request. Items are taken when slots are free, at most `window` before the oldest that is not
        finished, so that memory does not grow with their number. `watch` is called for every unfinished answer.
        """
        waiting: collections.deque[_Asked[T]] = collections.deque()
        owner: dict[int, tuple[_Asked[T], int]] = {}

        def ask() -> Iterator[Request | None]:
            for item in items:
                made = list(requests_of(item))
                asked = _Asked(item, [[] for _ in made], sum(request.sampling.n for request in made))
                waiting.append(asked)
                for place, request in enumerate(made):
                    if id(request) in owner:  # the same object again: its completions must be told apart
                        request = dataclasses.replace(request)
                    owner[id(request)] = asked, place
                    yield request
                while len(waiting) >= max(window, 1):  # until `ready` has emptied it a little
                    yield None

        def ready() -> Iterator[tuple[T, list[list[Completion]]]]:
            while waiting and not waiting[0].missing:
                asked = waiting.popleft()
                yield asked.item, [sorted(found, key=lambda c: c.sample) for found in asked.completions]

        for finished in rounds(self.model, self.weights, ask(), self.settings, self.decode, statistics, watch):
            for completion in finished:
                asked, place = owner[id(completion.request)]
                asked.completions[place].append(completion)
                asked.missing -= 1
                if len(asked.completions[place]) == completion.request.sampling.n:
                    del owner[id(completion.request)]
            yield from ready()


@dataclasses.dataclass(eq=False)
class _Asked(Generic[T]):
    """An item whose answers are awaited."""

    item: T
    completions: list[list[Completion]]
    missing: int


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row: text or messages."""
    for name in ("prompt", "messages", "text"):
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"row {row.get('id')!r} has no 'prompt', 'messages' or 'text'")


def template_extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives to the chat template beside its messages."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return dict(row.get("chat_template_kwargs") or {}) | tools


def prompt_tokens(row: Mapping[str, Any], renderer: Renderer) -> list[int]:
    """The prompt of a row as it stands before an answer."""
    return renderer.prompt(prompt_of(row), **template_extras(row))


def request(row: Mapping[str, Any], sampler: Sampler, sampling: Sampling, seed: int) -> Request:
    """The request of a row; its `columns` are the row. Raises Drop for a prompt that the length policy refuses."""
    return Request(prompt_tokens(row, sampler.renderer), row["id"], sampling, seed, sampler.end_ids, columns=row)


def requests(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    sampling: Sampling,
    seed: int,
    refused: Callable[[Mapping[str, Any], str], None] | None = None,
) -> Iterator[Request]:
    """A request per row, in order, made when it is asked for.

    A row whose prompt the length policy refuses is given to `refused` with the reason, or raised as a DataError.
    """
    for row in rows:
        try:
            yield request(row, sampler, sampling, seed)
        except Drop as drop:
            if refused is None:
                raise DataError(f"row {row.get('id')!r}: {drop.args[0]} (config.data.max_length)") from None
            refused(row, drop.args[0])
