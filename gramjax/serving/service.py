"""From requests to numbers: texts become questions for the model, what is read becomes rewards and comparisons.

Nothing here knows HTTP beyond the status of a refusal. A judge of pairs never gives a number to an answer alone: it
compares with a reference that the request brings or the server was started with, or the request is refused.
"""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool

from gramjax.core import ranking, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Drop, Text, text_length
from gramjax.generation.judging import Draw
from gramjax.scoring import references
from gramjax.scoring.references import References
from gramjax.scoring.reward_model import Question, RewardModel, difference
from gramjax.serving.batching import Batcher, Closed, Full
from gramjax.serving.guard import Refused

NO_REFERENCE = ("this model judges pairs: it has no score for one answer alone. Give 'reference' in the request, or "
                "start the server with --config.serve.reference=FILE")  # fmt: skip
NO_PROMPT = ("this model needs the prompt apart from the answer: give {\"prompt\": …, \"response\": …} in 'input', or "
             "'prompts' beside 'query'")  # fmt: skip

SHORT = 4096
"""Characters of a request that are rendered at once, without another thread."""


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to be scored; without a prompt the answer holds it."""

    prompt: Text | None
    answer: Text
    reference: Text | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores in the order of the items, and the tokens that were read."""

    scores: list[float]
    num_tokens: int
    drawn_tokens: int = 0
    logs: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """What else is said of each item, by name."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What is known of a pair: the probability that its first answer is better, over both orders and in each (shown
    first, shown second; None where it was not asked or could not be read)."""

    score: float
    first: float | None = None
    second: float | None = None
    calls: int = 0
    """Sequences that were read, or judgements that were drawn."""
    num_tokens: int = 0
    drawn_tokens: int = 0
    draws: tuple[Draw, ...] = ()
    """The judgements, of a judge that writes them."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What `/v1/compare` says."""

    method: str
    order: list[int]
    scores: list[float | None]
    pairs: list[tuple[int, int, Told]]
    judge_calls: int
    num_tokens: int
    drawn_tokens: int = 0


Ask = Callable[[Sequence[tuple[int, int]]], Awaitable[list[Told]]]
"""From pairs of indices to what is known of them."""


@dataclasses.dataclass(frozen=True)
class Served:
    """What every service has: a name, references to compare with, a bound on the texts of a request."""

    name: str
    path: str = ""
    references: References | None = None
    max_items: int = 256

    def check_name(self, given: str | None) -> None:
        """Raise Refused for a request to another model."""
        if given is not None and given not in (self.name, self.path):
            raise Refused(404, f"there is no model {given[:100]!r} here, only {self.name!r}", "model")

    def check_count(self, count: int, what: str) -> None:
        """Raise Refused for more texts than a request may have."""
        if count > self.max_items:
            raise Refused(413, f"{count} texts are more than a request may have ({self.max_items}); split it", what)

    def against(self, item: Item, number: int) -> tuple[Text, Text, Text]:
        """(prompt, answer, reference) of something that a judge is to score. Raises Refused where one is missing."""
        if item.prompt is None:
            if isinstance(item.answer, str):
                raise Refused(400, NO_PROMPT, f"input {number}")
            item = dataclasses.replace(item, prompt=item.answer[:-1], answer=item.answer[-1:])
        prompt, answer, reference = item.prompt, item.answer, item.reference
        if prompt is None or (reference is None and self.references is None):
            raise Refused(400, NO_REFERENCE, "reference")
        try:
            if reference is None and self.references is not None:
                reference = self.references.of_prompt(prompt)
            assert reference is not None
            return prompt, answer, references.same_form(answer, reference)
        except Drop as drop:
            raise Refused(400, f"input {number}: {drop}; {NO_REFERENCE}", "reference") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service(Served):
    """A reward model behind a queue."""

    model: RewardModel
    batcher: Batcher
    special_tokens: bool = False

    @property
    def max_length(self) -> int:
        """Longest text, in tokens."""
        return self.model.renderer.section.max_length

    @property
    def kind(self) -> str:
        """`score`, `judge` or `implicit`."""
        return self.model.kind

    @property
    def judges(self) -> bool:
        """Whether the model can only compare."""
        return self.kind == "judge"

    @property
    def writes(self) -> bool:
        """Whether it writes what it thinks."""
        return False

    @property
    def programs(self) -> int:
        """Compiled so far."""
        return self.model.programs

    def warm_up(self) -> int:
        """Compile every shape; how many programs there are."""
        return self.model.warm_up()

    async def score(self, items: Sequence[Item], most: int = 0) -> Scored:
        """The score of every item: its reward, or a judge's probability that it beats its reference.

        `most` is a limit of tokens for this request. Raises Refused with the first item that has no score.
        """
        asked = await self.ask_all(items, most)
        values = await self.read(asked)
        if self.judges:
            found = [self.model.comparison(q, value).score for q, value in zip(asked, values, strict=True)]
        else:
            found = [self.model.reward(q, value).value for q, value in zip(asked, values, strict=True)]
        return Scored([finite(score) for score in found], count_tokens(asked))

    async def ask_all(self, items: Sequence[Item], most: int = 0) -> list[Question]:
        """The questions about items. Raises Refused. Long texts are rendered on another thread, so that others are
        answered meanwhile; for short ones that costs more than it gives."""

        def made() -> list[Question]:
            return [self.ask(item, number, most) for number, item in enumerate(items)]

        length = sum(text_length(text) for item in items for text in (item.prompt, item.answer, item.reference) if text)
        return made() if length <= SHORT else await run_in_threadpool(made)

    def ask(self, item: Item, number: int, most: int = 0) -> Question:
        """The question about an item. Raises Refused."""
        if not self.judges:
            alone = item.prompt is None and isinstance(item.answer, str)
            if alone and self.model.kind == "implicit":
                raise Refused(400, NO_PROMPT, f"input {number}")
            markup = alone and self.special_tokens
            return self.rendered(lambda: self.model.ask_reward((item.prompt, item.answer), markup), number, most)
        pair = self.against(item, number)
        return self.rendered(lambda: self.model.ask_pair(pair), number, most)

    def rendered(self, make: Callable[[], Question], number: int, most: int = 0) -> Question:
        """The question, or the reason why there is none as a Refused."""
        try:
            question = make()
        except (DataError, UserError) as error:
            raise Refused(400, f"input {number}: {error}") from None
        limit = min(most or self.max_length, self.max_length)
        if not question.sequences or (most and question.num_tokens > most):
            count = question.num_tokens
            if count > limit:
                raise Refused(400, f"input {number}: {count} tokens are more than {limit}; it is not shortened")
            raise Refused(400, f"input {number}: {question.reason}")
        return question

    async def read(self, asked: Sequence[Question]) -> list[np.ndarray]:
        """What the model says of the questions. Raises Refused when there is no room."""
        with admission():
            return await asyncio.wrap_future(self.batcher.submit(asked))

    async def compare(self, prompt: Text, responses: Sequence[Text], swap: bool, method: str, top: int) -> Ranked:
        """Put responses in order. Raises Refused."""
        if self.judges:

            async def ask(pairs: Sequence[tuple[int, int]]) -> list[Told]:
                return await self.told(prompt, responses, pairs, "both" if swap else "first")

            return await tournament(len(responses), ask, method, top)
        if method != "auto" or not swap:
            raise Refused(400, "'method' and 'swap' are for judges of pairs; this model gives a score to each response")
        items = [Item(prompt, response) for response in responses]
        asked = await self.ask_all(items)
        values = await self.read(asked)
        scores = [finite(self.model.reward(q, value).value) for q, value in zip(asked, values, strict=True)]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: top or None]
        pairs = [(0, 1, Told(difference(*scores).score))] if len(scores) == 2 else []
        return Ranked("score", order, list(scores), pairs, len(scores), count_tokens(asked))

    def ask_pairs(
        self, prompt: Text, responses: Sequence[Text], pairs: Sequence[tuple[int, int]], shown: str
    ) -> list[Question]:
        """The questions about pairs of responses. Raises Refused."""
        return [
            self.rendered(lambda i=i, j=j: self.model.ask_pair((prompt, responses[i], responses[j]), shown), i)  # type: ignore[misc]
            for i, j in pairs
        ]

    async def told(
        self, prompt: Text, responses: Sequence[Text], pairs: Sequence[tuple[int, int]], shown: str
    ) -> list[Told]:
        """What the judge says of pairs of responses. Raises Refused."""
        asked = await run_in_threadpool(self.ask_pairs, prompt, responses, pairs, shown)
        values = await self.read(asked)
        out = []
        for question, value in zip(asked, values, strict=True):
            said = self.model.comparison(question, value)
            first = None if math.isnan(said.margin_first) else said.p_first
            second = None if math.isnan(said.margin_second) else 1 - said.p_second
            out.append(Told(finite(said.score), first, second, len(question.sequences), count_tokens([question])))
        return out


@contextlib.contextmanager
def admission() -> Iterator[None]:
    """What a queue says when it takes no more, as the answer of the server."""
    try:
        yield
    except Full as full:
        raise Refused(429, str(full), Retry_After=str(full.retry_after)) from None
    except Closed as closed:
        raise Refused(503, str(closed)) from None
    except ValueError as error:
        raise Refused(413, str(error)) from None


async def tournament(count: int, ask: Ask, method: str, top: int) -> Ranked:
    """Let a judge compare pairs until the order is known. Raises Refused."""
    if count == 2 and method != "auto":
        raise Refused(400, "'method' is for more than two responses", "method")
    asking = ranking.asking(count, method, top=top)
    judged: list[tuple[int, int, Told]] = []
    answers: list[float] | None = None
    while True:
        try:
            pairs = asking.send(answers)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as stop:
            found: ranking.Ranking = stop.value
            break
        said = await ask(pairs)
        judged += [(i, j, one) for (i, j), one in zip(pairs, said, strict=True)]
        answers = [one.score for one in said]
    name = "pair" if count == 2 else found.method
    calls, tokens, drawn = (sum(getattr(one, what) for _, _, one in judged)
                            for what in ("calls", "num_tokens", "drawn_tokens"))  # fmt: skip
    return Ranked(name, list(found.order), list(found.wins), judged, calls, tokens, drawn)


def verdict(probability: float) -> str:
    """`A`, `B` or `tie`."""
    if abs(probability - 0.5) <= statistics.TIE:
        return "tie"
    return "A" if probability > 0.5 else "B"


def judged(a: int, b: int, said: Told, texts: bool = False) -> dict[str, Any]:
    """A pair as it is answered; what was not asked is null. With `texts` also what a judge wrote."""
    sides = [None if p is None else verdict(p) for p in (said.first, said.second)]
    out: dict[str, Any] = {
        "a": a, "b": b, "p_a": said.score, "p_a_shown_first": said.first, "p_a_shown_second": said.second,
        "verdict": verdict(said.score), "consistent": None if None in sides else sides[0] == sides[1],
    }  # fmt: skip
    if texts:
        out["rationale"] = rationale(said)
        out["judgements"] = [
            {"text": draw.reply, "a_shown": "second" if draw.swapped else "first", "verdict": draw.verdict,
             "p_a": None if math.isnan(draw.probability) else draw.probability} for draw in said.draws
        ]  # fmt: skip
    return out


def rationale(said: Told) -> str | None:
    """What was written for the verdict: of the judgements that agree with it, the surest one's; None without one."""
    agreeing = [draw for draw in said.draws if draw.verdict == verdict(said.score)]
    sure = {"A": lambda p: p, "B": lambda p: 1 - p}
    known = [(sure[draw.verdict or "A"](draw.probability), draw) for draw in agreeing]
    best = max(known, key=lambda pair: -1.0 if math.isnan(pair[0]) else pair[0], default=None)
    return None if best is None else best[1].reply


def count_tokens(asked: Sequence[Question]) -> int:
    """Tokens of all sequences."""
    return sum(len(sequence.tokens) for question in asked for sequence in question.sequences)


def finite(value: float) -> float:
    """The value. Raises Refused (500) for what is no number: weights that are broken."""
    if not math.isfinite(value):
        raise Refused(500, "the model gave no finite number")
    return value
