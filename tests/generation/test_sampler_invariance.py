"""What an answer may depend on: its request and the model, and nothing else.

One run over requests of every kind is held against fresh forward passes and against the same run under every other
choice: order, slots, steps, refill, how prompts are read. All runs share their compiled programs where they can.
"""

import dataclasses

import numpy as np
import pytest
import reference_sampler as reference
from reference_sampler import SETTINGS, VOCAB, answers, mixed_requests

from gramjax.generation.request import Request, Sampling, Statistics


@pytest.fixture(scope="module")
def run():
    """The answers, and what was counted on the way."""
    statistics = Statistics()
    return answers(mixed_requests(), statistics=statistics), statistics


@pytest.fixture(scope="module")
def base(run):
    return run[0]


def assert_same(found, want):
    """The same answers: tokens to the bit, log-probabilities to 1e-5."""
    assert found.keys() == want.keys()
    for key, a in found.items():
        b = want[key]
        assert a.token_ids == b.token_ids, key
        assert (a.finish_reason, a.stop, a.text) == (b.finish_reason, b.stop, b.text), key
        for name in ("logprobs", "model_logprobs", "candidate_logprobs"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5, err_msg=f"{key} {name}")


# -- against fresh forward passes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "lisa"])
def drawn(request, base):
    """(completion, fresh logits at its places); of the others the short prompts only."""
    short = [r for r in mixed_requests() if len(r.tokens) <= SETTINGS.prefill_length + 1]
    found = [c for c in (base if request.param == "qwen2" else answers(short, request.param)).values() if c.token_ids]
    return list(zip(found, reference.fresh_logits(found, request.param)))


def test_the_requests_are_of_every_kind(base):
    assert {len(c.request.tokens) - 1 > SETTINGS.prefill_length for c in base.values()} == {True, False}
    assert {c.finish_reason for c in base.values()} == {"stop", "length"}
    assert len(base) > 4 * SETTINGS.slots and sum(len(c.token_ids) for c in base.values()) > 200


def test_cached_logits_equal_fresh_ones(drawn):
    """Chunked prefill and decoding against one pass: the log-probability of every token at every position."""
    for completion, logits in drawn:
        want = reference.log_softmax(logits)
        np.testing.assert_allclose(completion.candidate_logprobs, want, atol=2e-5)
        picked = want[np.arange(len(logits)), completion.token_ids]
        np.testing.assert_allclose(completion.model_logprobs, picked, atol=2e-5)


def test_logprobs_are_those_of_the_sampling_distribution(drawn):
    for completion, logits in drawn:
        want = reference.distributions(completion, logits)
        picked = want[np.arange(len(logits)), completion.token_ids]
        np.testing.assert_allclose(completion.logprobs, picked, atol=2e-5, err_msg=str(completion.request))


def test_every_token_follows_from_its_request(drawn):
    """Seed, id, sample and position give the noise; the token is the highest of distribution and noise."""
    for completion, logits in drawn:
        scores = reference.distributions(completion, logits)
        if completion.request.sampling.temperature:
            scores = scores + reference.noise(completion)
        assert scores.argmax(-1).tolist() == completion.token_ids, completion.request


def test_candidates_of_each_request():
    """Requests with none, two and three candidates, and more and more stop tokens, share a batch; each gets its own."""
    kinds = [((), ()), ((7, 2), (1,)), ((39, 0, 1), (1, 2, 3, 4, 5, 6)), ((), (8,))]
    asked = [
        Request([4, i], i, Sampling(max_tokens=3 + 9 * (i < 2)), stop_ids=stop_ids, candidates=candidates)
        for i, (candidates, stop_ids) in enumerate([*kinds, *kinds])
    ]
    found = list(answers(asked).values())
    for completion, logits in zip(found, reference.fresh_logits(found)):
        wanted = completion.request.candidates
        want = reference.log_softmax(logits)[:, list(wanted)] if wanted else np.zeros(0)
        np.testing.assert_allclose(completion.candidate_logprobs, want, atol=2e-5)
        stopped = [token in completion.request.stop_ids for token in completion.token_ids]
        assert not any(stopped[:-1]) and stopped[-1] == (completion.finish_reason == "stop")


# -- against other ways of running -------------------------------------------------------------------------------------

CHOICES = {
    "one slot, one step per call": {"slots": 1, "steps_per_call": 1},
    "more slots, other steps": {"slots": 9, "steps_per_call": 5},
    "four prompts at a time, in one piece": {"prefill_rows": 4, "prefill_length": 64, "refill_share": 1.0},
    "three at a time, long ones alone": {"prefill_rows": 3, "slots": 9, "steps_per_call": 5, "refill_share": 1.0},
    "refill at once": {"refill_share": 0.0},
    "refill when all are done": {"refill_share": 1.0},
}


@pytest.mark.parametrize("name", CHOICES)
def test_how_the_device_is_used_changes_nothing(run, name):
    statistics = Statistics()
    settings = dataclasses.replace(SETTINGS, **CHOICES[name])
    assert_same(answers(mixed_requests(), settings=settings, statistics=statistics), run[0])
    assert statistics.tokens == run[1].tokens and statistics.prompt_tokens == run[1].prompt_tokens
    if "at a time" in name:
        assert statistics.prefills < run[1].prefills


def test_a_batch_equals_one_at_a_time(base):
    """Plain requests too, for which no mask is ever made."""
    alone = {}
    for request in mixed_requests():
        alone |= answers([request])
    assert_same(alone, base)


def test_order_changes_nothing(base):
    """Reversed: the slots get their masks while plain requests are being answered."""
    assert_same(answers(reversed(mixed_requests())), base)


def test_waiting_for_requests_changes_nothing(base):
    def now_and_then():
        for i, request in enumerate(mixed_requests()):
            yield from [None] * (i % 3)
            yield request
        yield None

    assert_same(answers(now_and_then()), base)


def test_samples_share_a_prefill_and_are_those_of_single_requests(base):
    """Sample i of n is the same for every n; the prompt is read once for all of them."""
    request = next(r for r in mixed_requests() if r.sampling.n == 3)
    for n in (1, 2, 6):
        statistics = Statistics()
        asked = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, n=n))
        found = answers([asked], statistics=statistics)
        pieces = -(-(len(request.tokens) - 1) // SETTINGS.prefill_length)
        assert (statistics.prefills, statistics.prompt_tokens) == (pieces, len(request.tokens))
        both = {(request.id, i) for i in range(min(n, 3))}
        assert_same({key: found[key] for key in both}, {key: base[key] for key in both})


@pytest.mark.smoke
def test_samples_ids_and_seeds_differ():
    sampling = Sampling(max_tokens=20, n=6)
    asked = [Request([1, 2, 3], name, sampling, seed) for name, seed in ((0, 0), (1, 0), ("1", 0), (2, 7))]
    assert len({tuple(c.token_ids) for c in answers(asked).values()}) == 24
    again = answers([Request([1, 2, 3], 0, sampling, 0)])
    want = answers(asked)
    assert all(want[key].token_ids == c.token_ids for key, c in again.items())


def test_greedy_ignores_seed_id_and_sample():
    sampling = Sampling(temperature=0.0, max_tokens=12, n=3)
    found = answers([Request([5, 6], name, sampling, seed) for name, seed in (("a", 1), ("b", 2))])
    assert len({tuple(c.token_ids) for c in found.values()}) == 1


def test_other_weights_other_answers():
    """The weights are an argument of every call: nothing of an earlier round is kept, and they are not consumed."""
    network, _, weights = reference.tiny()
    other = {**weights, "norm": -weights["norm"]}
    asked = [Request([1, 2], 0, Sampling(max_tokens=10, temperature=0.0))]
    run = lambda w: [c.token_ids for c in reference.generate(network, w, asked, SETTINGS)]  # noqa: E731
    first = run(weights)
    assert run(other) != first and run(weights) == first
    assert VOCAB == network.config.vocab_size
