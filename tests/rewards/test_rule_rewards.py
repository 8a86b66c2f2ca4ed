"""Rewards by rules: right answers, words, form, length, repetition; R-13."""

import dataclasses
import math

import numpy as np
import pytest

from gramjax.core import plugins
from gramjax.core.errors import UserError
from gramjax.generation.rewards import Resources
from gramjax.rewards import contains, format, length, repetition, verifiable

RESOURCES = Resources(None, (0,), None, 0, max_tokens=100)


def opened(module, **settings):
    config = module.Config(**settings)
    return config, module.open(config, RESOURCES)


def score(module, texts, lengths=None, settings=None, **columns):
    config, state = opened(module, **(settings or {}))
    ids = [[0] * count for count in lengths or [1] * len(texts)]
    columns = {name: value if isinstance(value, list) else [value] * len(texts) for name, value in columns.items()}
    return module.score(["p"] * len(texts), texts, ids, config=config, opened=state, **columns)


def messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


REPLIES = ["so \\boxed{0.5}", "\\boxed{2}", "it is 1/2", "#### 0.5"]


@pytest.mark.smoke
def test_right_answers():
    assert score(verifiable, REPLIES, answer="\\frac{1}{2}") == [1, 0, 0, 0]
    assert score(verifiable, messages(REPLIES), answer="\\frac{1}{2}") == [1, 0, 0, 0]
    assert score(verifiable, REPLIES, settings={"kind": "number"}, answer=0.5) == [1, 0, 1, 1]
    kinds = ["boxed", "boxed", "number", "choice"]
    assert score(verifiable, [*REPLIES[:3], "(B)"], answer=["1/2", "3", "0.5", "B"], answer_kind=kinds) == [1, 0, 1, 1]
    assert score(verifiable, ["yes", "yes."], settings={"kind": "exact"}, answer="yes") == [1, 0]
    think = ["<think>\\boxed{3}</think>\\boxed{2}", "\\boxed{2}"]
    assert score(verifiable, think, settings={"after_think": True}, answer="2") == [1, 0]


def test_where_right_answers_stand_in_the_rows():
    assert score(verifiable, REPLIES[:2], solution="So $\\boxed{2}$.") == [0, 1]
    assert score(verifiable, REPLIES[:2], answer="2", solution="\\boxed{0.5}") == [0, 1]
    assert score(verifiable, REPLIES[:2], settings={"column": "gold"}, gold=[["7", "1/2"], ["8"]]) == [1, 0]
    assert score(verifiable, REPLIES[:2], answer=["0.5", None]) == [1, None], "without a right answer: not judged"
    with pytest.raises(ValueError, match="the rows have no column 'gold'"):
        score(verifiable, REPLIES, settings={"column": "gold"}, answer="2")
    with pytest.raises(ValueError, match="the rows have none of .'answer', 'solution', 'ground_truth'"):
        score(verifiable, REPLIES)


def test_reasons_are_logged_as_shares():
    logged = {}
    config, state = opened(verifiable)
    columns = {"answer": ["2"] * 4, "log_metric": lambda name, value: logged.update({name: value})}
    verifiable.score(["p"] * 4, REPLIES, [[1]] * 4, config=config, opened=state, **columns)
    assert sum(logged.values()) == 1 and logged["verifier/no_box"] == 0.5
    assert logged["verifier/ok"] == logged["verifier/mismatch"] == 0.25


class Algebra:
    """Stands for math-verify, which has tests of its own."""

    def __init__(self, found):
        self.found, self.asked = found, []

    def check(self, pairs):
        self.asked += pairs
        return [self.found[gold] for gold, _ in pairs]


def test_algebra_has_the_last_word_on_what_the_rules_call_different():
    algebra = Algebra({"x^2-1": True, "x": False, "y": "timeout", "z": "error"})
    golds = [["y", "x^2-1"], "x", ["x", "y"], "z", "(x-1)(x+1)"]
    texts = ["\\boxed{(x-1)(x+1)}"] * 5
    config = verifiable.Config(grader="math_verify")
    found = verifiable.score(["p"] * 5, texts, [[1]] * 5, config=config, opened=algebra, answer=golds)
    assert found == [1, 0, None, None, 1], "a failure is not judged, never wrong"
    assert len(algebra.asked) == 6 and algebra.asked[0] == ("y", "\\boxed{(x-1)(x+1)}")
    numbers = {"answer": ["3", "\\frac13", "x"]}
    asked = Algebra({"x": False})
    fours = ["\\boxed{4}"] * 3
    assert verifiable.score(["p"] * 3, fours, [[1]] * 3, config=config, opened=asked, **numbers) == [0, 0, 0]
    assert [gold for gold, _ in asked.asked] == ["x"], "two numbers need no algebra"
    letter = {"answer": ["B"], "answer_kind": ["choice"]}
    assert verifiable.score(["p"], ["(C)"], [[1]], config=config, opened=algebra, **letter) == [0]


def test_the_real_algebra():
    pytest.importorskip("math_verify", reason="needs the extra math")
    pytest.importorskip("pebble", reason="needs the extra math")
    config = verifiable.Config(grader="math_verify", seconds=30.0)
    checker = verifiable.open(config, dataclasses.replace(RESOURCES, processes=1))
    texts = ["\\boxed{(x-1)(x+1)}", "\\boxed{(x-1)(x+2)}", "none"]
    found = verifiable.score(["p"] * 3, texts, [[1]] * 3, config=config, opened=checker, answer=["x^2-1"] * 3)
    checker.close()
    assert found == [1, 0, 0]


def test_the_rules_of_the_study_decide_alone_and_ask_algebra_last():
    config = verifiable.Config(grader="deepscaler")
    algebra = Algebra({"x^2-1": True, "\\sqrt{2}": "timeout", "a": False})
    golds = ["\\frac{1}{2}", "2", "x^2-1", "\\sqrt2", ["a", "b"]]
    answers = ["\\frac{2}{4}", "2.0", "(x-1)(x+1)", "1.41", "b"]
    texts = [f"\\boxed{{{answer}}}" for answer in answers]
    found = verifiable.score(["p"] * 5, texts, [[1]] * 5, config=config, opened=algebra, answer=golds)
    assert found == [0, 1, 1, None, 1], "2/4 is no answer to 1/2 there, whatever our own rules say"
    assert [gold for gold, _ in algebra.asked] == ["x^2-1", "\\sqrt{2}"]


def test_words():
    texts = ["A tree and a BIRD.", "a street, a bird", "tree", ""]
    assert score(contains, texts, settings={"words": ("tree",)}) == [1, 0, 1, 0]
    assert score(contains, messages(texts), settings={"words": ("tree", "bird")}) == [1, 0, 0, 0]
    assert score(contains, texts, [5, 5, 6, 5], {"words": ("tree",), "max_tokens": 5}) == [1, 0, 0, 0]
    more = ["bird", ["bird", "street"], [], "x"]
    assert score(contains, texts, settings={"column": "words"}, words=more) == [1, 1, 1, 0]
    assert score(contains, ["eine Tür!", "C++ (new)"], settings={"column": "w"}, w=["tür", "c++"]) == [1, 1]
    with pytest.raises(UserError, match="give words or a column"):
        opened(contains)


def test_form():
    good = ["<think>why</think> 4", " <think>\nso\nthen\n</think>\n\n4\n", "<think></think>4"]
    bad = ["4", "<think>why</think>", "<think>why</think> ", "why</think> 4", "<think>a</think>b</think>c",
           "<think>a<think>b</think>c", "x <think>a</think> 4"]  # fmt: skip
    assert score(format, good + bad) == [1] * len(good) + [0] * len(bad)
    assert score(format, messages(good)) == [1] * len(good)
    assert score(format, ["12\n", "12", "a12"], settings={"pattern": r"\d+\s?"}) == [1, 1, 0]
    with pytest.raises(UserError, match="config.rewards.format.pattern: .*unterminated"):
        opened(format, pattern="(")


def by_length(lengths, **settings):
    return score(length, ["x"] * len(lengths), lengths, settings)


def test_overlong_punishment_in_tokens():
    """R-13: 0 up to T - c, linear to -1 at T, -1 beyond."""
    limits = {"kind": "overlong", "limit": 100, "cache": 20}
    assert by_length([1, 79, 80, 85, 90, 100, 101, 500], **limits) == [0, 0, 0, -0.25, -0.5, -1, -1, -1]
    assert by_length([75, 100], kind="overlong") == [0, -1], "by default a quarter of config.sampling.max_tokens"
    config, state = opened(length, **limits)
    long_text = length.score(["p"], ["x" * 9999], [[0] * 80], config=config, opened=state)
    assert long_text == [0], "tokens count, not characters"


def test_lengths_near_a_target_and_short_ones():
    assert by_length([0, 5, 10, 15, 20, 99], kind="target", target=10) == [0, 0.5, 1, 0.5, 0, 0]
    found = by_length([0, 50, 100, 200], kind="cosine", shortest=1.0, longest=0.5)
    assert found == pytest.approx([1, 0.75, 0.5, 0.5])
    assert by_length([25], kind="cosine") == pytest.approx([(1 + math.cos(math.pi / 4)) / 2])


def test_wrong_answers_may_be_paid_for_length():
    settings = {"kind": "cosine", "shortest": 1.0, "longest": 0.5, "wrong": (-1.0, -0.5)}
    texts, lengths = ["\\boxed{2}", "\\boxed{3}"] * 2, [0, 0, 100, 100]
    assert score(length, texts, lengths, settings, answer="2") == pytest.approx([1, -1, 0.5, -0.5])
    assert score(length, texts, lengths, settings, answer=[None, "2", "2", "2"])[0] is None
    for settings, message in (({"cache": 101}, "cache=101"), ({"target": 0}, "target=0"), ({"kind": "long"}, "kind"),
                              ({"wrong": (1.0, 2.0)}, "with kind=cosine"), ({"limit": -1}, "limit=-1")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            opened(length, **settings)


def test_repetition():
    """`most` (1 - unique / all) n-grams: three of the usual form, forty of the study's."""
    assert repetition.repeated("a b c A B C", 3) == pytest.approx(1 / 4)
    assert repetition.repeated("a b", 3) == repetition.repeated("", 3) == repetition.repeated("a b c d", 3) == 0
    words = " ".join(f"w{i}" for i in range(50))
    texts = ["so it goes " * 10, "it all differs here", words + " " + words, ""]
    grams = [1 - 3 / 28, 0, 1 - 50 / 98, 0]
    np.testing.assert_allclose(score(repetition, texts), [-share for share in grams])
    study = {"n": 40, "most": -2.0, "only_wrong": True}
    twice = f"{words} {words}"
    found = score(repetition, [words, twice + " \\boxed{5}", twice + " \\boxed{4}"], settings=study, answer="4")
    np.testing.assert_allclose(found, [0, -2 * (1 - 51 / 62), 0])
    assert score(repetition, ["a b c a b c"], settings={"only_wrong": True, "column": "gold"}, gold=["1"]) == [-0.25]
    for settings in ({"n": 0}, {"most": 0.5}):
        with pytest.raises(UserError, match="config.rewards.repetition"):
            opened(repetition, **settings)


@pytest.mark.parametrize("name", plugins.names("rewards"))
def test_every_reward_has_a_weight(name):
    assert plugins.load("rewards", name).Config().weight == 1.0
