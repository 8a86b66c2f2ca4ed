"""Requests that cannot be answered: who is told what, and before anything is drawn."""

import dataclasses
import math

import numpy as np
import pytest
from reference_sampler import SETTINGS, answers, tiny

from gramjax.core.errors import DataError, UserError
from gramjax.generation.request import Request, Sampling, Statistics, check, number
from gramjax.generation.sample import generate


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"tokens": []}, DataError, "request 'x': the prompt is empty"),
        ({"tokens": np.zeros(0, np.int32)}, DataError, "prompt is empty"),
        ({"tokens": [1, 40]}, DataError, "token 40 is outside the model's vocabulary of 40"),
        ({"tokens": [-1]}, DataError, "token -1 is outside"),
        ({"allowed": (3, 99)}, DataError, "token 99 is outside"),
        ({"candidates": (3, 41)}, DataError, "token 41 is outside"),
        ({"tokens": [1] * 65}, DataError, "65 tokens.*64.*config.generation.max_length"),
        ({"temperature": -0.1}, UserError, "request 'x': config.sampling.temperature is -0.1; it must be from 0"),
        ({"temperature": math.nan}, UserError, "temperature is nan; give a finite number"),
        ({"top_k": -1}, UserError, "top_k is -1"),
        ({"top_k": 2.5}, UserError, "top_k takes a whole number, not 2.5"),
        ({"top_p": 0.0}, UserError, "top_p is 0.0"),
        ({"top_p": 1.01}, UserError, "top_p is 1.01"),
        ({"min_p": 1.5}, UserError, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, UserError, "repetition_penalty is 0.0; it must be above 0"),
        ({"n": 0}, UserError, "sampling.n is 0; it must be from 1"),
        ({"max_tokens": -1}, UserError, "max_tokens is -1"),
        ({"stop_ids": (3, 99)}, UserError, "stop_ids: 99 is no token of a vocabulary of 40"),
        ({"stop": ("a", "")}, UserError, "request 'x': sampling.stop holds an empty text"),
        ({"stop": "abc"}, UserError, "stop takes a tuple of texts, not 'abc'"),
    ],
)
def test_each_problem_has_its_error(changes, error, words):
    own = {name: value for name, value in changes.items() if name in ("tokens", "allowed", "candidates")}
    rest = {name: value for name, value in changes.items() if name not in own}
    request = Request(**{"tokens": [1], "id": "x", "sampling": Sampling(**rest), **own})
    with pytest.raises(error, match=words):
        check(request, 40, 64)


def test_what_is_at_the_limit_is_fine():
    edge = Sampling(0, 0.0, 2**24, 1.0, 1.0, 1e-3, 1, ("x",), (7,), True)
    check(Request([0, 39] * 32, 0, edge, allowed=(39,), candidates=(0,)), 40, 64)
    check(Request(np.array([1, 2], np.int64), "x", Sampling(min_p=0.0, top_p=1e-9)), 40, 64)


@pytest.mark.parametrize(
    "name, value", [("slots", 0), ("steps_per_call", 0), ("prefill_length", 1), ("refill_share", 2.0)]
)
def test_settings_of_the_device_are_looked_at(name, value):
    network, _, weights = tiny()
    with pytest.raises(UserError, match=f"config.generation.{name} is {value}"):
        next(generate(network, weights, [], dataclasses.replace(SETTINGS, **{name: value})))


def test_what_is_no_request_is_said():
    """Only None means that no request is waiting."""
    with pytest.raises(TypeError, match="takes requests, not dict"):
        answers([{"prompt": "hi"}])


def test_the_request_in_question_is_named_and_no_other_is_lost_before_it():
    """A bad request is met when it is taken; answers that were finished by then have been given."""
    network, _, weights = tiny()
    asked = [Request([1], i, Sampling(3)) for i in range(9)] + [Request([99], "bad")]
    statistics = Statistics()
    found = []
    with pytest.raises(DataError, match="request 'bad'"):
        for completion in generate(network, weights, asked, SETTINGS, statistics=statistics):
            found.append(completion.request.id)
    assert found == list(range(statistics.completions)) and len(found) >= 5


def test_numbers_of_ids():
    """32 bits; the same on every machine; text and number do not share one."""
    assert [number(0), number(2**32 + 5), number(-1)] == [0, 5, 2**32 - 1]
    assert number("row 1") == 0x1105E396  # the first bytes of its SHA-256
    assert number("1") != number(1) and len({number(f"row {i}") for i in range(1000)}) == 1000
