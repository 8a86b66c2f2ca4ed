"""A judge that writes its reasons, behind a queue: judgements are drawn when they are asked for (GRAM-R2).

What one request is answered does not depend on the others: the random numbers of a pair come from its texts and the
seed, so the same question has the same answer, alone or under load.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from gramjax.data.rows import Text
from gramjax.generation import judging, slots
from gramjax.generation.judging import Judged, Judging
from gramjax.generation.request import Statistics
from gramjax.generation.sampler import Sampler
from gramjax.serving.batching import Closed, Full
from gramjax.serving.guard import Refused
from gramjax.serving.service import Item, Ranked, Scored, Served, Told, admission, tournament

Triple = tuple[Text, Text, Text]
"""Prompt and two responses."""

RETRY_SECONDS = 5


@dataclasses.dataclass(eq=False)
class _Asked:
    """A pair that waits for its judgements, or is being judged."""

    row: dict[str, Any]
    settings: Judging
    future: "Future[Judged]"


class Drawer:
    """Draws judgements; one thread owns the sampler. Pairs that come while it draws join as slots become free.

    `limit` pairs may wait.
    """

    def __init__(self, sampler: Sampler, limit: int, seed: int = 0) -> None:
        self.batches = 0
        self.limit = limit
        self._sampler, self._seed = sampler, seed
        self._queue: collections.deque[_Asked] = collections.deque()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pairs that wait."""
        return len(self._queue)

    def submit(self, pairs: Sequence[Triple], settings: Judging) -> "list[Future[Judged]]":
        """The judgements of each pair, as futures; one that cannot be shown to the model has Refused. Raises Full or
        Closed; ValueError for more than can ever wait."""
        if len(pairs) > self.limit:
            raise ValueError(f"{len(pairs)} pairs are more than can wait ({self.limit})")
        asked = [_Asked(row_of(pair), settings, Future()) for pair in pairs]
        with self._condition:
            if self._closed:
                raise Closed("the server stops")
            if len(self._queue) + len(asked) > self.limit:
                raise Full(RETRY_SECONDS)
            for one in asked:
                one.future.set_running_or_notify_cancel()
                self._queue.append(one)
            self._condition.notify()
        return [one.future for one in asked]

    def close(self) -> None:
        """Judge what waits, then stop."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if not self._queue:
                    return
                settings = self._queue[0].settings
            self._draw(settings)

    def _draw(self, settings: Judging) -> None:
        """Judge what waits with these settings, and what comes meanwhile."""
        taken: dict[int, _Asked] = {}

        def rows() -> Iterator[dict[str, Any]]:
            while True:
                with self._condition:
                    if not self._queue or self._queue[0].settings != settings:
                        return
                    asked = self._queue.popleft()
                taken[id(asked.row)] = asked
                yield asked.row

        def refuse(row: Any, reason: str) -> None:
            taken.pop(id(row)).future.set_exception(Refused(400, f"the pair cannot be judged: {reason}"))

        try:
            for row, judged in judging.judge(rows(), self._sampler, settings, self._seed, refuse, Statistics()):
                taken.pop(id(row)).future.set_result(judged)
        except Exception as error:  # these requests fail, the next ones need not
            for asked in taken.values():
                asked.future.set_exception(error)
        self.batches += 1


def row_of(pair: Triple) -> dict[str, Any]:
    """The pair as a row; its id, from which its random numbers come, is a digest of its texts."""
    prompt, *responses = pair
    name = hashlib.sha256(json.dumps(pair, sort_keys=True).encode()).hexdigest()[:32]
    return {"id": name, "prompt": prompt, "responses": responses}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenService(Served):
    """A judge with rationales. `votes` says how judgements become a number (`judging.SCORES`)."""

    sampler: Sampler
    batcher: Drawer
    judging: Judging
    votes: str = "probability"
    kind: str = "rationale"
    judges: bool = True
    writes: bool = True
    special_tokens: bool = False

    @property
    def max_length(self) -> int:
        """Longest prompt of the judge, in tokens."""
        return judging.room(self.sampler, self.judging)

    @property
    def programs(self) -> int:
        """Compiled so far."""
        return slots.compilations()

    def warm_up(self) -> int:
        """Compile most of what judgements need, with the shortest and the longest pair; how many programs there are."""
        most = min(self.judging.sampling.max_tokens, self.sampler.settings.steps_per_call + 1)
        sampling = dataclasses.replace(self.judging.sampling, max_tokens=most)
        brief = dataclasses.replace(self.judging, overlong="shorten_responses", sampling=sampling)
        for count in (1, self.max_length // 4, self.max_length):
            for one in self.batcher.submit([("a", "a " * count, "b " * count)], brief):
                with contextlib.suppress(Refused):  # it does not fit beside the instruction; real ones will say so
                    one.result()
        return self.programs

    async def score(self, items: Sequence[Item], most: int = 0) -> Scored:
        """The probability that every item beats its reference. Raises Refused.

        Without a readable verdict it is 1/2; `logs` has the share of unreadable judgements of each item.
        """
        if most:
            raise Refused(400, "'max_length' is for models that score a text alone", "max_length")
        told = await self.ask([self.against(item, number) for number, item in enumerate(items)], self.judging)
        lost = [sum(draw.verdict is None for draw in one.draws) / len(one.draws) for one in told]
        tokens, drawn = sum(one.num_tokens for one in told), sum(one.drawn_tokens for one in told)
        return Scored([one.score for one in told], tokens, drawn, {"unreadable": lost})

    async def compare(self, prompt: Text, responses: Sequence[Text], swap: bool, method: str, top: int) -> Ranked:
        """Put responses in order. Raises Refused."""
        settings = self.judging if swap else dataclasses.replace(self.judging, order="fixed")

        async def ask(pairs: Sequence[tuple[int, int]]) -> list[Told]:
            return await self.ask([(prompt, responses[i], responses[j]) for i, j in pairs], settings)

        return await tournament(len(responses), ask, method, top)

    async def ask(self, pairs: Sequence[Triple], settings: Judging) -> list[Told]:
        """What the judge says of pairs. Equal responses are a tie, for which nothing is drawn. Raises Refused."""
        differing = [number for number, (_, one, other) in enumerate(pairs) if one != other]
        with admission():
            waiting = self.batcher.submit([pairs[number] for number in differing], settings)
        found = await asyncio.gather(*map(asyncio.wrap_future, waiting), return_exceptions=True)
        told = [Told(0.5) for _ in pairs]
        for number, judged in zip(differing, found, strict=True):
            if isinstance(judged, BaseException):
                raise judged
            told[number] = self.told(judged)
        return told

    def told(self, judged: Judged) -> Told:
        """The pair in numbers: both orders weigh the same, and without a readable verdict it is even."""
        values = judged.values(self.votes)
        score = judged.over_orders(values)
        sides: list[float | None] = []
        for turned in (False, True):
            known = [v for v, draw in zip(values, judged.draws, strict=True)
                     if draw.swapped == turned and not math.isnan(v)]  # fmt: skip
            sides.append(float(sum(known) / len(known)) if known else None)
        return Told(
            0.5 if math.isnan(score) else float(score), sides[0], sides[1], len(judged.draws), judged.prompt_tokens,
            sum(draw.tokens for draw in judged.draws), judged.draws,
        )  # fmt: skip
