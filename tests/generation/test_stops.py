"""Where an answer ends: stop tokens, stop texts, limits, the caller's wish; to the token and to the letter."""

import dataclasses

import numpy as np
import pytest
from reference_sampler import LENGTH, SETTINGS, answers, ids, letters, tiny

from gramjax.core.errors import UserError
from gramjax.generation import stops
from gramjax.generation.request import Request, Sampling, Statistics
from gramjax.generation.sample import generate

PROMPT = ids("hello")
FREE = Sampling(max_tokens=24, temperature=2.0)


def pairs(token_ids):
    """A `decode` function with two letters per token: stop texts begin and end inside tokens."""
    return "".join(letters([i]) + letters([i * 7 % 38]) for i in token_ids)


@pytest.fixture(scope="module")
def free():
    """Tokens of an answer that nothing ends before its limit; another sampling with the same id begins with them."""
    (found,) = answers([Request(PROMPT, "x", FREE)]).values()
    assert found.finish_reason == "length" and found.stop is None and len(found.token_ids) == 24
    assert found.text == letters(found.token_ids) and len(set(found.text)) > 10
    return found.token_ids


def ask(samplings, decode=letters, statistics=None, settings=SETTINGS, **fields):
    """Completions of requests that differ in their sampling only, in order."""
    asked = [Request(PROMPT, "x", s, columns=i, **fields) for i, s in enumerate(samplings)]
    network, _, weights = tiny()
    found = list(generate(network, weights, asked, settings, decode, statistics))
    return sorted(found, key=lambda c: c.request.columns)


# -- stop texts --------------------------------------------------------------------------------------------------------


def shortest(token_ids, texts, decode):
    """(tokens kept, text, stop text) by looking at every beginning."""
    for kept in range(1, len(token_ids) + 1):
        text = decode(token_ids[:kept])
        hits = sorted((text.index(stop), -len(stop), stop) for stop in texts if stop in text)
        if hits:
            return kept, text[: hits[0][0]], hits[0][2]
    return len(token_ids), decode(token_ids), None


@pytest.mark.parametrize("decode", [letters, pairs])
@pytest.mark.parametrize("steps", [8, 1])
def test_stop_texts_end_an_answer_exactly(free, decode, steps):
    """Every piece of one to five letters of the answer as a stop text, and some that are not in it."""
    text = decode(free)
    texts = [(text[i : i + n],) for n in (1, 2, 5) for i in range(0, len(text) - n, 3)]
    texts += [("never!",), (text[4:6], text[3:6]), ("never!", text[9:13], text[2:4])]
    texts += [(text,), (text + "x",), (text[:1],)]
    statistics = Statistics()
    settings = dataclasses.replace(SETTINGS, steps_per_call=steps)
    found = ask([dataclasses.replace(FREE, stop=s) for s in texts], decode, statistics, settings)
    for stop, completion in zip(texts, found):
        kept, before, hit = shortest(free, stop, decode)
        assert (completion.token_ids, completion.text, completion.stop) == (free[:kept], before, hit), stop
        assert completion.finish_reason == ("stop" if hit else "length")
        assert len(completion.logprobs) == len(completion.model_logprobs) == kept
    kept = sum(len(c.token_ids) for c in found)
    assert statistics.tokens == kept and (statistics.rolled_back > 0) == (steps > 1)
    assert statistics.tokens + statistics.rolled_back <= statistics.slot_steps


@pytest.mark.parametrize(
    "text, texts, want",
    [
        ("abcabc", ["c"], (2, "c")),
        ("abcabc", ["ca", "bc"], (1, "bc")),
        ("abcabc", ["b", "bc", "bca"], (1, "bca")),
        ("abc", ["d"], None),
        ("", ["d"], None),
        ("abc", [], None),
    ],
)
def test_first_stop_text(text, texts, want):
    assert stops.first(text, texts) == want


def test_find_looks_at_new_tokens_only_as_beginnings():
    """A stop text may begin in tokens that were looked at before."""
    assert stops.find(ids("abcd"), 2, ["bc"], letters) == (3, "a", "bc")
    assert stops.find(ids("abcd"), 0, ["d"], letters) == (4, "abc", "d")
    assert stops.find(ids("abcd"), 3, ["x"], letters) is None
    assert stops.find([0, 38, 1], 0, ["ab"], letters) == (3, "", "ab")  # across a special token


@pytest.mark.parametrize(
    "text, texts, want",
    [
        ("hello", [], "hello"),
        ("hello\ufffd", [], "hello"),
        ("hello EN", ["END"], "hello "),
        ("hello END", ["END"], "hello END"),
        ("aaa", ["aab"], "a"),
        ("xabab", ["ababc", "bd"], "x"),
        ("E", ["END"], ""),
        ("", ["END"], ""),
    ],
)
def test_visible_text_is_never_taken_back(text, texts, want):
    assert stops.visible(text, texts) == want


def test_what_is_shown_only_grows(free):
    """Streaming: what `visible` shows of each beginning begins the final text, for stop texts anywhere."""
    text = letters(free)
    for stop in ([], [text[7:10]], [text[20:], text[13:15]]):
        kept, final, _ = shortest(free, stop, letters)
        for n in range(kept):
            shown = stops.visible(letters(free[:n]), stop)
            held_back = max(max(map(len, stop), default=1) - 1, 0)
            assert final.startswith(shown) and len(shown) >= len(letters(free[:n]).rstrip("\ufffd")) - held_back


# -- stop tokens -------------------------------------------------------------------------------------------------------


def test_stop_tokens(free):
    """The token is kept, its text is not; the earliest counts; it may be the first or the last that is allowed."""
    first = {token: free.index(token) + 1 for token in free}
    cases = [(free[0],), (free[5], free[3]), (free[-1],), (1000, -1, free[7]), tuple(range(40))]
    for stop_ids in cases:
        kept = min(first[token] for token in stop_ids if token in first)
        known = tuple(token for token in stop_ids if 0 <= token < 40)  # a setting that never stops is refused
        for fields in ({"stop_ids": stop_ids}, {"sampling": known}):
            sampling = dataclasses.replace(FREE, stop_ids=fields.get("sampling", ()))
            (found,) = ask([sampling], stop_ids=fields.get("stop_ids", ()))
            assert (found.token_ids, found.stop, found.finish_reason) == (free[:kept], free[kept - 1], "stop")
            assert found.text == letters(free[: kept - 1])
    last = dataclasses.replace(FREE, max_tokens=first[free[9]], stop_ids=(free[9],))
    assert ask([last])[0].finish_reason == "stop"
    short = dataclasses.replace(last, max_tokens=first[free[9]] - 1)
    assert ask([short])[0].finish_reason == "length"


def test_ignore_eos_goes_on_after_the_tokenizers_end_token_only(free):
    end, other = free[2], next(token for token in free[5:] if token not in free[:5])
    on = dataclasses.replace(FREE, ignore_eos=True)
    a, b = ask([on, dataclasses.replace(on, stop_ids=(other,))], stop_ids=(end,))
    assert (a.token_ids, a.finish_reason) == (free, "length")
    assert (b.token_ids, b.stop) == (free[: free.index(other) + 1], other)


def test_stop_text_and_stop_token_whichever_comes_first(free):
    text = letters(free)
    early, late = dataclasses.replace(FREE, stop=(text[2:4],)), dataclasses.replace(FREE, stop=(text[-3:-1],))
    end = next(token for token in free[5:] if token not in free[:5])
    a, b = ask([early, late], stop_ids=(end,))
    assert (a.stop, a.token_ids, a.text) == (text[2:4], free[:4], text[:2])
    assert (b.stop, b.token_ids) == (end, free[: free.index(end) + 1])


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_limits():
    """max_tokens, and what the model has room for after the prompt; an answer may be empty."""
    rng = np.random.default_rng(0)
    sizes = [(5, 1), (5, 0), (LENGTH, 9), (LENGTH - 1, 9), (LENGTH - 3, 9), (1, 100), (16, 48), (17, 1)]
    asked = [
        Request(rng.integers(0, 40, length).tolist(), i, Sampling(most, n=2))
        for i, (length, most) in enumerate(sizes)
    ]
    statistics = Statistics()
    found = answers(asked, statistics=statistics)
    for i, (length, most) in enumerate(sizes):
        for sample in range(2):
            c = found[i, sample]
            count = min(most, LENGTH - length)
            assert len(c.token_ids) == len(c.logprobs) == len(c.text) + c.token_ids.count(38) == count
            assert (c.finish_reason, c.stop) == ("length", None)
    assert statistics.completions == 16 and statistics.tokens == sum(len(c.token_ids) for c in found.values())
    assert statistics.prompt_tokens == sum(length for length, most in sizes if min(most, LENGTH - length))


def test_max_length_of_the_settings_counts_prompt_and_answer():
    settings = dataclasses.replace(SETTINGS, max_length=20)
    found = answers([Request([1] * n, n, Sampling(50)) for n in (1, 12, 20)], settings=settings)
    assert [len(found[n, 0].token_ids) for n in (1, 12, 20)] == [19, 8, 0]


def test_stop_texts_need_text():
    with pytest.raises(UserError, match="decode"):
        answers([Request([1], 0, Sampling(stop=("x",)))], decode=None)


# -- the caller's wish -------------------------------------------------------------------------------------------------


def test_abort(free):
    """An answer that `watch` ends is a beginning of itself; its neighbours and successors do not notice."""
    asked = [Request(PROMPT, f"row {i}", dataclasses.replace(FREE, max_tokens=30, n=2)) for i in range(5)]
    want = answers(asked)
    lengths = {}

    def watch(answer):
        key = answer.request.id, answer.sample
        lengths.setdefault(key, []).append(len(answer.token_ids))
        if key in (("row 0", 1), ("row 3", 0)):
            return len(answer.token_ids) < 15
        return None

    found = answers(asked, watch=watch)
    assert {key for key, c in found.items() if c.finish_reason == "abort"} == {("row 0", 1), ("row 3", 0)}
    for key, c in found.items():
        whole = want[key]
        assert c.token_ids == whole.token_ids[: len(c.token_ids)] and len(c.logprobs) == len(c.token_ids)
        assert (len(c.token_ids) < 30) == (c.finish_reason == "abort") and c.text == letters(c.token_ids)
        assert sorted(set(lengths[key])) == lengths[key] and lengths[key][-1] <= len(c.token_ids)


def test_an_aborted_answer_is_not_waited_for():
    """Its slot is free at once: 8 steps, and 4 for the neighbour to end."""
    asked = [Request(PROMPT, i, Sampling(most)) for i, most in enumerate((48, 12))]
    statistics = Statistics()
    found = answers(asked, statistics=statistics, watch=lambda answer: answer.request.id != 0)
    assert [len(found[i, 0].token_ids) for i in range(2)] == [8, 12]
    assert statistics.steps == 12
