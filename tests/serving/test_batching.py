"""Requests put together: order, waiting, room, failures, and the end."""

import threading

import numpy as np
import pytest

from gramjax.data.branches import Tokens
from gramjax.scoring.reward_model import Question
from gramjax.serving.batching import AHEAD, Batcher, Closed, Full


def question(value, sequences=1, prompt=""):
    return Question((Tokens(np.array([value], np.int32)),) * sequences, prompt=prompt, num_tokens=1)


class Reader:
    """Says the token of each question; holds still while `gate` is closed."""

    def __init__(self):
        self.seen, self.gate = [], threading.Event()
        self.started = threading.Event()
        self.gate.set()

    def __call__(self, asked):
        self.started.set()
        self.gate.wait()
        self.seen.append(list(asked))
        if any(q.sequences[0].tokens[0] < 0 for q in asked):
            raise RuntimeError("broken")
        return [np.array([q.sequences[0].tokens[0]], np.float64) for q in asked]


def values(future):
    return [float(value[0]) for value in future.result(timeout=60)]


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def held(reader):
    """A batcher whose first batch does not end: what is submitted now waits."""
    reader.gate.clear()
    batcher = Batcher(reader, 4, 0.0, 10)
    first = batcher.submit([question(0)])
    assert reader.started.wait(60)
    yield batcher
    reader.gate.set()
    assert values(first) == [0]
    batcher.close()


@pytest.mark.smoke
def test_what_waits_is_read_together_and_everybody_gets_his_own(reader, held):
    futures = [held.submit([question(10 * n + k) for k in range(n)]) for n in (1, 2, 3)]
    assert held.waiting == 6
    reader.gate.set()
    assert [values(f) for f in futures] == [[10], [20, 21], [30, 31, 32]]
    assert [len(batch) for batch in reader.seen] == [1, 6] and held.waiting == 0
    assert (held.batches, held.sequences) == (2, 7)


def test_at_most_some_batches_are_taken_at_once(reader):
    reader.gate.clear()
    batcher = Batcher(reader, 2, 0.0, 100)
    first = batcher.submit([question(0)])
    assert reader.started.wait(60)
    rest = batcher.submit([question(n) for n in range(1, 2 * AHEAD + 4)])
    reader.gate.set()
    assert values(first) == [0] and values(rest) == list(range(1, 2 * AHEAD + 4))
    assert [len(batch) for batch in reader.seen] == [1, 2 * AHEAD, 3]
    batcher.close()


def test_a_request_waits_for_others_while_there_is_room_in_the_batch(reader):
    """With an hour to wait, the first three answers come only when the fourth request fills the batch."""
    batcher = Batcher(reader, 4, 3600.0, 10)
    futures = [batcher.submit([question(n)]) for n in range(3)]
    assert not any(f.done() for f in futures) and not reader.seen
    futures.append(batcher.submit([question(3)]))
    assert [values(f) for f in futures] == [[0], [1], [2], [3]] and len(reader.seen) == 1
    batcher.close()


def test_no_room_is_said_at_once_and_ends(reader, held):
    held.submit([question(1, sequences=2) for _ in range(5)])
    with pytest.raises(Full) as full:
        held.submit([question(1)])
    assert full.value.retry_after >= 1
    with pytest.raises(ValueError, match="11 sequences are more than can wait"):
        held.submit([question(1)] * 11)
    reader.gate.set()
    while held.waiting:
        pass
    assert values(held.submit([question(7)])) == [7]


def test_a_failure_reaches_those_who_asked_and_nobody_else(reader, held):
    bad = held.submit([question(-1)])
    reader.gate.set()
    with pytest.raises(RuntimeError, match="broken"):
        bad.result(timeout=60)
    assert values(held.submit([question(5)])) == [5]


def test_answers_to_one_prompt_are_read_together_only_within_a_request(reader, held):
    futures = [held.submit([question(n, prompt="p"), question(n + 1, prompt="p"), question(n + 2)]) for n in (1, 5)]
    reader.gate.set()
    assert [values(f) for f in futures] == [[1, 2, 3], [5, 6, 7]]
    prompts = [q.prompt for q in reader.seen[1]]
    assert prompts[0] == prompts[1] and prompts[3] == prompts[4] and prompts[0] != prompts[3]
    assert prompts[2] == prompts[5] == ""


def test_what_waits_is_read_before_the_end(reader):
    reader.gate.clear()
    batcher = Batcher(reader, 1, 0.0, 100)
    futures = [batcher.submit([question(n)]) for n in range(9)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    reader.gate.set()
    closing.join(60)
    assert not closing.is_alive() and [values(f) for f in futures] == [[n] for n in range(9)]
    with pytest.raises(Closed):
        batcher.submit([question(1)])
    assert batcher.submit([]).result() == []
