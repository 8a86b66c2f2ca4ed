"""Answers in the order of what was asked: items with several requests or none, windows, laziness; rows as requests."""

import dataclasses
import itertools

import pytest
from reference_sampler import SETTINGS, tiny

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError
from gramjax.data import tokenizer
from gramjax.data.text import Renderer
from gramjax.generation import sampler as samplers
from gramjax.generation.request import Request, Sampling, Statistics
from gramjax.generation.sampler import Sampler
from gramjax.models import model


@pytest.fixture(scope="module")
def sampler():
    network, _, weights = tiny()
    return Sampler(network, weights, Renderer(tokenizer.load("bytes"), DataSection()), (5,), SETTINGS)


def requests_of(item: int) -> list[Request]:
    """0 to 3 requests per item, with 1 to 3 samples, 0 to 12 tokens long: later items are often done earlier."""
    return [
        Request([1 + item % 30, i], f"{item}/{i}", Sampling(max_tokens=(7 * item + i) % 13, n=1 + (item + i) % 3))
        for i in range((item * item) % 4 if item % 5 else 3)
    ]


def check(answers, items, made=requests_of):
    """Items in order, each with the completions of its requests in order, samples in order."""
    found = list(answers)
    assert [item for item, _ in found] == list(items)
    for item, completions in found:
        assert [[(c.request.id, c.sample) for c in one] for one in completions] == [
            [(request.id, sample) for sample in range(request.sampling.n)] for request in made(item)
        ]
    return {(c.request.id, c.sample): c.token_ids for _, completions in found for one in completions for c in one}


@pytest.mark.smoke
def test_order_and_grouping(sampler):
    statistics = Statistics()
    tokens = check(sampler.answered(range(40), requests_of, statistics), range(40))
    assert statistics.completions == len(tokens) == sum(r.sampling.n for i in range(40) for r in requests_of(i))
    assert {len(requests_of(i)) for i in range(40)} >= {0, 1, 3}
    plain = sampler.generate(r for i in range(40) for r in requests_of(i))
    assert {(c.request.id, c.sample): c.token_ids for c in plain} == tokens


@pytest.mark.parametrize("window", [0, 1, 2, 7])
def test_a_small_window_neither_blocks_nor_changes_anything(sampler, window):
    want = check(sampler.answered(range(40), requests_of), range(40))
    assert check(sampler.answered(range(40), requests_of, window=window), range(40)) == want


def test_items_without_requests(sampler):
    """Any number of them, at any place, in a window of any size, without holding them all."""
    assert list(sampler.answered([], requests_of)) == []
    assert list(sampler.answered("abc", lambda item: ())) == [("a", []), ("b", []), ("c", [])]
    few = lambda item: requests_of(item) if item % 50 == 7 else []  # noqa: E731
    check(sampler.answered(range(200), few, window=3), range(200), few)
    endless = sampler.answered(itertools.count(), lambda item: (), window=3)
    assert [next(endless)[0] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("window", [2, 5, 100])
def test_items_are_taken_late(sampler, window):
    """Never more than the window before the oldest unfinished one, nor more than the slots and its row can hold."""
    taken = 0

    def items():
        nonlocal taken
        for taken in itertools.count(1):  # noqa: B007
            yield taken - 1

    def one(item):
        return [Request([1, item % 40], item, Sampling(max_tokens=40 if item == 0 else 2))]

    answers = sampler.answered(items(), one, window=window)
    assert taken == 0
    for done in range(1, 60):
        assert next(answers)[0] == done - 1
        assert taken <= done - 1 + window
        if done == 1:
            assert taken >= min(window, 20)  # while the long one was made, later ones were
    answers.close()


def test_the_same_request_twice(sampler):
    """One object in two places is answered twice."""
    request = Request([3, 4], "same", Sampling(max_tokens=6, n=2))
    found = list(sampler.answered(range(3), lambda item: [request] * item))
    samples = [[[c.sample for c in one] for one in completions] for _, completions in found]
    assert samples == [[], [[0, 1]], [[0, 1], [0, 1]]]
    assert len({tuple(c.token_ids) for _, completions in found for one in completions for c in one}) == 2


def test_an_error_in_a_request_comes_out(sampler):
    answers = sampler.answered(range(5), lambda item: [Request([1] * (3 - item), item, Sampling(max_tokens=2))])
    with pytest.raises(DataError, match="request 3: the prompt is empty"):
        list(answers)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_text():
    """A sampler with a real tokenizer (bytes), to make requests with: it has no weights."""
    text = tokenizer.load("bytes")
    config = dataclasses.replace(tiny("llama")[0].config, num_layers=1, vocab_size=text.vocab_size)
    network = model.build("decoder", config, None, "float32")
    renderer = Renderer(text, DataSection(max_length=32))
    return Sampler(network, None, renderer, (text.eos_id,), SETTINGS)


def test_rows_are_requests(on_text):
    rows = [
        {"id": "a", "prompt": "hi"},
        {"id": "b", "text": "there"},
        {"id": "c", "prompt": None, "messages": [{"role": "user", "content": "x"}]},
    ]
    made = list(samplers.requests(rows[:2], on_text, Sampling(n=2), 7))
    assert [request.id for request in made] == ["a", "b"] and [request.columns for request in made] == rows[:2]
    assert [on_text.decode(request.tokens) for request in made] == ["hi", "there"]
    assert all(r.seed == 7 and r.sampling.n == 2 and r.stop_ids == on_text.end_ids for r in made)
    assert samplers.prompt_of(rows[2]) == rows[2]["messages"]
    with pytest.raises(DataError, match="row 'd' has no 'prompt'"):
        samplers.prompt_of({"id": "d"})


def test_rows_that_the_length_policy_refuses(on_text):
    rows = [{"id": "a", "prompt": "hi"}, {"id": "b", "prompt": "x" * 100}, {"id": "c", "prompt": "yo"}]
    refused = []
    made = samplers.requests(rows, on_text, Sampling(), 0, lambda row, reason: refused.append((row["id"], reason)))
    assert [request.id for request in made] == ["a", "c"]
    assert len(refused) == 1 and refused[0][0] == "b" and refused[0][1]
    with pytest.raises(DataError, match="row 'b'.*max_length"):
        list(samplers.requests(rows, on_text, Sampling(), 0))
