"""Questions of many requests put together: one thread owns the device and reads what waits, a batch at a time.

A question waits at most `max_wait` seconds for others while the device is idle; while it is busy, what arrives is the
next batch. What may wait is bounded: a request that finds no room is refused at once, not kept.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from gramjax.scoring.reward_model import Question

AHEAD = 4
"""Batches that are taken at once when many wait: among more questions there are more of one length."""

Read = Callable[[Sequence[Question]], list[np.ndarray]]


class Full(Exception):
    """There is no room for the questions of a request; `retry_after` is when there may be, in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The server stops and takes no more."""


@dataclasses.dataclass(eq=False)
class _Request:
    """Questions that came together, and what is known of their answers."""

    questions: list[Question]
    arrived: float
    future: "Future[list[np.ndarray]]"
    values: list[np.ndarray | None]
    taken: int = 0
    left: int = 0


class Batcher:
    """Reads questions in batches of about `batch_size` sequences; `limit` sequences may wait."""

    def __init__(self, read: Read, batch_size: int, max_wait: float, limit: int) -> None:
        self.waiting = 0
        """Sequences that wait, without those that are being read."""
        self.batches = 0
        self.sequences = 0
        self._read, self._batch_size, self._max_wait, self.limit = read, batch_size, max_wait, limit
        self._queue: collections.deque[_Request] = collections.deque()
        self._condition = threading.Condition()
        self._closed = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def submit(self, questions: Sequence[Question]) -> "Future[list[np.ndarray]]":
        """What is read for each question, in order, as a future. Raises Full or Closed; ValueError for more than can
        ever wait."""
        size = _size(questions)
        future: Future[list[np.ndarray]] = Future()
        future.set_running_or_notify_cancel()  # a client that goes away cannot cancel what others wait for too
        if not size:
            future.set_result([np.zeros(0) for _ in questions])
            return future
        if size > self.limit:
            raise ValueError(f"{size} sequences are more than can wait ({self.limit})")
        with self._condition:
            if self._closed:
                raise Closed("the server stops")
            if self.waiting + size > self.limit:
                raise Full(self._retry_after())
            count = len(questions)
            self._queue.append(_Request(list(questions), time.monotonic(), future, [None] * count, left=count))
            self.waiting += size
            self._condition.notify()
        return future

    def close(self) -> None:
        """Read what waits, then stop; nothing is taken any more."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _retry_after(self) -> int:
        """Seconds until what waits should be read."""
        return min(max(1, math.ceil(self.waiting * self._seconds)), 60)

    def _take(self) -> list[tuple[_Request, int]]:
        """The next questions, as (request, place in it); empty when there will be none any more."""
        with self._condition:
            while not self._queue and not self._closed:
                self._condition.wait()
            if not self._queue:
                return []
            ready = self._queue[0].arrived + self._max_wait
            while self.waiting < self._batch_size and not self._closed and (rest := ready - time.monotonic()) > 0:
                self._condition.wait(rest)
            taken: list[tuple[_Request, int]] = []
            size = 0
            while self._queue and size < AHEAD * self._batch_size:
                request = self._queue[0]
                size += len(request.questions[request.taken].sequences)
                taken.append((request, request.taken))
                request.taken += 1
                if request.taken == len(request.questions):
                    self._queue.popleft()
            self.waiting -= size
            return taken

    def _work(self) -> None:
        while taken := self._take():
            # Answers to one prompt are read together only where they came together.
            asked = [_own(request.questions[place], id(request)) for request, place in taken]
            began = time.monotonic()
            try:
                values = self._read(asked)
            except Exception as error:  # these requests fail, the next ones need not
                for request in {id(request): request for request, _ in taken}.values():
                    if not request.future.done():
                        request.future.set_exception(error)
                continue
            self.batches += 1
            self.sequences += _size(asked)
            seconds = (time.monotonic() - began) / max(_size(asked), 1)
            self._seconds = 0.8 * self._seconds + 0.2 * seconds if self._seconds else seconds
            for (request, place), value in zip(taken, values, strict=True):
                request.values[place] = value
                request.left -= 1
                if not request.left and not request.future.done():
                    request.future.set_result([found for found in request.values if found is not None])


def _own(question: Question, request: int) -> Question:
    return dataclasses.replace(question, prompt=f"{request}/{question.prompt}") if question.prompt else question


def _size(questions: Sequence[Question]) -> int:
    return sum(len(question.sequences) for question in questions)
