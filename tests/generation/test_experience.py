"""Samples as rows of a batch and back: nothing is lost, nothing changes places, few shapes."""

import dataclasses
import json

import numpy as np
import pytest

from gramjax.generation import experience
from gramjax.generation.experience import Layout, Sample

NAMES = ("advantages", "sampler_logprobs")


def samples(count, seed=0):
    draw = np.random.default_rng(seed)
    out = []
    for number in range(count):
        start, length = draw.integers(1, 6), draw.integers(1, 8)
        tokens = draw.integers(3, 90, start + length).astype(np.int32)
        made = Sample(number, number // 2, number % 2, int(start), tokens, f"text {number}", "stop", 3)
        beside = {name: draw.normal(size=length).astype(np.float32) for name in NAMES}
        out.append(dataclasses.replace(made, rewards=(1.0, float("nan")), **beside))
    return out


@pytest.mark.parametrize("packing", [True, False])
def test_numbers_come_back_to_the_samples_they_belong_to(packing):
    drawn = samples(23)
    layout = Layout(length=24, unit=4, packing=packing, pad_id=0, limit=8)
    batch, plan = layout.batch(drawn, NAMES)
    assert sorted(i for group in plan for i in group) == list(range(23))
    assert len(batch["tokens"]) % 4 == 0 and (len(batch["tokens"]) < 23) == packing
    for name in NAMES:
        for sample, found in zip(drawn, experience.unpack(batch[name], drawn, plan), strict=True):
            np.testing.assert_array_equal(found, getattr(sample, name))
    for sample, found in zip(drawn, experience.unpack(batch["labels"], drawn, plan), strict=True):
        np.testing.assert_array_equal(found, sample.tokens[sample.start :])
    assert batch["loss_mask"].sum() == sum(sample.length for sample in drawn)
    assert batch["example_mask"].sum() == 23


def test_a_batch_without_samples_counts_for_nothing():
    batch, _ = Layout(length=16, unit=2, packing=True, pad_id=0, limit=4).batch([], NAMES)
    assert batch["tokens"].shape[0] == 2
    assert not batch["loss_mask"].any() and not batch["counted"].any() and not batch["example_mask"].any()


def test_rows_are_padded_to_few_sizes():
    found = {experience.sizes(count, 4) for count in range(1, 1000)}
    assert len(found) < 35
    for count in range(1, 1000):
        assert count <= experience.sizes(count, 4) < max(1.25 * count, count + 4) + 1


def test_a_sample_survives_json_exactly():
    (sample,) = samples(1)
    back = experience.from_json(json.loads(json.dumps(experience.as_json(sample))))
    for field in dataclasses.fields(Sample):
        np.testing.assert_equal(getattr(back, field.name), getattr(sample, field.name))
    assert back.tokens.dtype == np.int32 and back.advantages.dtype == np.float32
