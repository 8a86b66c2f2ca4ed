"""Length buckets: every sequence once, few shapes, right padding that is marked as such."""

import itertools

import numpy as np
import pytest

from gramjax.data import buckets


def test_every_sequence_once_and_no_bucket_too_short():
    sizes = np.random.default_rng(0).integers(1, 300, 500)
    plan = buckets.plan(sizes, 32)
    assert sorted(i for _, indices in plan for i in indices) == list(range(500))
    assert all(sizes[indices].max() <= length for length, indices in plan)
    assert len({length for length, _ in plan}) <= buckets.MOST_LENGTHS
    assert buckets.plan([], 32) == []


def test_the_batch_that_is_not_full_is_the_shortest_one():
    plan = buckets.plan([200, 20, 10, 22, 30], 4)
    assert [(length, list(indices)) for length, indices in plan] == [(16, [2]), (208, [1, 3, 4, 0])]


def test_the_lengths_that_are_chosen_pad_least():
    """Against every choice of as many lengths."""
    generator = np.random.default_rng(1)
    for most in (1, 2, 3):
        needed = sorted(int(n) for n in generator.integers(1, 40, 9) * 16)
        padded = lambda chosen, needed=needed: sum(min(c for c in chosen if c >= n) for n in needed)  # noqa: E731
        every = itertools.combinations(sorted(set(needed)), min(most, len(set(needed))))
        least = min(padded(chosen) for chosen in every if chosen[-1] == needed[-1])
        assert padded(buckets._lengths(needed, most)) == least


def test_a_given_bucket_without_a_full_batch_joins_the_next():
    plan = buckets.plan([10, 10, 20, 20, 200], 4, (16, 24, 256))
    assert [(length, list(indices)) for length, indices in plan] == [(24, [0, 1, 2, 3]), (256, [4])]


def test_given_lengths_are_used_and_must_suffice():
    assert [length for length, _ in buckets.plan([5, 60], 1, (64, 8))] == [8, 64]
    with pytest.raises(ValueError, match="65 tokens is longer"):
        buckets.plan([65], 1, (64,))


def test_padding_is_marked():
    batch = buckets.pad([np.array([7, 8, 9]), np.array([5])], 4, 3)
    assert batch["tokens"].tolist() == [[7, 8, 9, 0], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch["ends"].tolist() == [[2], [0], [0]] and batch["example_mask"].tolist() == [[1.0], [1.0], [0.0]]
    assert batch["positions"].tolist()[0] == [0, 1, 2, 3]


def test_given_shapes_are_filled_with_the_fewest_tokens():
    """Against every way to fill them by length; each sequence once, in rows that are long enough."""
    generator, sizes, padded = np.random.default_rng(2), (1, 2, 4), (16, 32, 64)

    def least(left, overhead):
        if not left:
            return 0
        length = next(p for p in padded if p >= left[0])
        return min(rows * length + overhead + least(left[rows:], overhead) for rows in sizes)

    for overhead in (0, 40):
        lengths = generator.integers(1, 65, 9)
        found = buckets.cover(lengths, sizes, padded, overhead)
        assert sorted(i for _, _, indices in found for i in indices) == list(range(9))
        assert all(lengths[indices].max() <= length and len(indices) <= rows for length, rows, indices in found)
        assert {rows for _, rows, _ in found} <= set(sizes) and {length for length, _, _ in found} <= set(padded)
        cost = sum(length * rows + overhead for length, rows, _ in found)
        assert cost == least(sorted(map(int, lengths), reverse=True), overhead)
    assert buckets.cover([], sizes, padded) == []
    with pytest.raises(ValueError, match="65 tokens is longer than the longest bucket, 64"):
        buckets.cover([65], sizes, padded)
