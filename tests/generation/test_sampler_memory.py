"""What does not grow with the number of prompts: requests taken, device memory, programs; and slots that stay busy."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from reference_sampler import SETTINGS, random_params, tiny

from gramjax.generation import sample, slots
from gramjax.generation.request import Request, Sampling, Statistics
from gramjax.generation.sample import generate
from gramjax.models import model

SHORT = Sampling(max_tokens=3, temperature=0.0)


@pytest.fixture(scope="module")
def long_model():
    """One layer, room for 512 tokens."""
    config = dataclasses.replace(tiny("llama")[0].config, num_layers=1, max_position_embeddings=512)
    network = model.build("decoder", config, None, "float32")
    return network, network.pack_for_decoding(jax.tree.map(lambda x: 0.6 * x, random_params(config)))


def test_requests_are_taken_when_slots_are_free_and_then_forgotten(long_model):
    taken, alive = 0, []

    def endless():
        nonlocal taken
        while True:
            request = Request([taken % 40, 1], taken, dataclasses.replace(SHORT, max_tokens=1 + taken % 5))
            taken += 1
            alive.append(weakref.ref(request))
            yield request
            del request

    network, weights = long_model
    answers = generate(network, weights, endless(), SETTINGS)
    assert taken == 0
    most_bytes = []
    for done in range(1, 301):
        assert next(answers).token_ids
        assert taken <= done + SETTINGS.slots
        if done % 100 == 0:
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2 * SETTINGS.slots
            most_bytes.append(sum(x.nbytes for x in jax.live_arrays()))
    assert most_bytes[0] == most_bytes[1] == most_bytes[2]


def test_requests_without_room_are_not_all_taken_at_once(long_model):
    """Empty answers need no slot, and still come a few at a time."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Request([1], taken, Sampling(max_tokens=0))

    network, weights = long_model
    answers = generate(network, weights, endless(), SETTINGS)
    for done in range(1, 30):
        assert next(answers).token_ids == [] and taken <= done + SETTINGS.slots


def test_no_program_is_compiled_twice(long_model):
    """After one round over the shapes, twenty rounds of other lengths, orders and settings compile nothing."""
    network, weights = long_model
    rng = np.random.default_rng(0)

    def round_of(count):
        for i in range(count):
            most, temperature = int(rng.integers(1, 29)), float(rng.random() * (i % 3))
            length = 1 + i % 33
            yield Request(rng.integers(0, 40, length).tolist(), i, Sampling(most, temperature, n=1 + i % 3), seed=i)

    list(generate(network, weights, round_of(40), SETTINGS))
    before = slots.compilations()
    assert before
    for count in range(5, 25):
        list(generate(network, weights, round_of(count), SETTINGS))
    assert slots.compilations() == before


def test_bucket():
    """Powers of two from the smallest: the only sizes there are."""
    assert [slots.bucket(n) for n in (0, 1, 16, 17, 32, 33, 1000)] == [16, 16, 16, 32, 32, 64, 1024]
    assert slots.bucket(3, 64) == 64 and slots.bucket(65, 64) == 128


def test_the_cache_grows_and_shrinks_and_changes_nothing(long_model, monkeypatch):
    """A long answer makes it grow to 256 in steps; what is left then lives in 64 again. Neighbours do not notice."""
    network, weights = long_model
    settings = dataclasses.replace(SETTINGS, slots=2, steps_per_call=16)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 40, 4).tolist() for _ in range(8)]
    limits = [140, 62, *[40] * 6]  # the second needs 65 places, one more than the smallest cache has
    asked = [Request(prompt, i, Sampling(most)) for i, (prompt, most) in enumerate(zip(prompts, limits))]
    sizes = []
    resize = slots.resize

    def watched(old, *, model, capacity):
        sizes.append(capacity)
        return resize(old, model=model, capacity=capacity)

    monkeypatch.setattr(sample.device, "resize", watched)
    together = {c.request.id: c for c in generate(network, weights, asked, settings)}
    assert sizes == [128, 256, 64]
    assert len(together[0].token_ids) == 140
    for request in asked:
        (alone,) = generate(network, weights, [request], settings)
        assert alone.token_ids == together[request.id].token_ids
        np.testing.assert_allclose(alone.logprobs, together[request.id].logprobs, atol=1e-5)


def test_the_cache_is_updated_in_place(long_model):
    """The slots are given away to every program: the new cache stands where the old one stood."""
    network, weights = long_model
    new = slots.empty(weights, model=network, batch=4, capacity=64, num_stops=4, with_seen=False, with_allowed=False)
    size = sum(x.nbytes for x in jax.tree.leaves(new.cache.layers))
    program = slots.decode.lower(
        weights, new, np.zeros(4, bool), np.int32(8), np.int32(4), model=network, most=8
    ).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    where = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(new.cache.layers)]
    after, _ = slots.decode(weights, new, np.zeros(4, bool), np.int32(8), np.int32(4), model=network, most=8)
    assert all(x.is_deleted() for x in jax.tree.leaves(new.cache.layers))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after.cache.layers)] == where


def test_refill_keeps_the_slots_busy(long_model):
    """Geometric lengths with a mean of a third of the longest: at most 0.6 of the steps of batches that wait."""
    network, weights = long_model
    rng = np.random.default_rng(2)
    lengths = np.minimum(rng.geometric(1 / 10, 48), 30)
    assert 0.2 < lengths.mean() / lengths.max() < 0.35
    asked = [Request([1, 2], i, Sampling(int(n), temperature=0.0)) for i, n in enumerate(lengths)]
    refilled, waiting = Statistics(), Statistics()
    list(generate(network, weights, asked, SETTINGS, statistics=refilled))
    for start in range(0, len(asked), SETTINGS.slots):
        list(generate(network, weights, asked[start : start + SETTINGS.slots], SETTINGS, statistics=waiting))
    assert refilled.tokens == waiting.tokens == lengths.sum()
    assert refilled.steps <= 0.6 * waiting.steps
    assert waiting.steps == lengths.reshape(-1, SETTINGS.slots).max(-1).sum()
    assert refilled.occupancy == pytest.approx(lengths.sum() / (refilled.steps * SETTINGS.slots))
    assert refilled.occupancy > 0.8 > waiting.occupancy
    assert refilled.tokens_per_second == refilled.tokens / refilled.seconds
