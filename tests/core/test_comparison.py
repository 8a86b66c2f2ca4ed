"""Two evaluations against each other: rows matched by id, unmatched ones said, noise called noise."""

import random

import pytest

from gramjax.core import comparison, statistics


def rows(right, prefix="r"):
    return [{"id": f"{prefix}{n}", "correct": bool(value)} for n, value in enumerate(right)]


def test_rows_are_matched_by_id_in_any_order():
    one, two = rows([1, 1, 1, 0] * 50), rows([1, 0, 0, 0] * 50)
    found = comparison.compare(one, two)
    assert found.difference.mean == 0.5 and found.difference.num_pairs == 200 and found.clear
    shuffled = random.Random(0).sample(two, len(two))
    assert comparison.compare(one, shuffled) == found
    back = comparison.compare(two, one).difference
    assert back.mean == -0.5 and back.low == pytest.approx(-found.difference.high, abs=0.03)
    direct = statistics.paired_bootstrap([1, 1, 1, 0] * 50, [1, 0, 0, 0] * 50)
    assert found.difference == direct


def test_unmatched_rows_are_counted_and_said():
    one, two = rows([1] * 30), rows([1] * 20) + rows([0] * 5, "other")
    found = comparison.compare(one, two)
    assert (found.difference.num_pairs, found.only_first, found.only_second) == (20, 10, 5)
    said = found.said("A", "B")
    assert "on 20 pairs" in said and "left out: 10 only by A, 5 only by B" in said
    assert comparison.compare(one, rows([1], "other")) is None and comparison.compare([], []) is None


def test_noise_is_called_noise():
    generator = random.Random(1)
    coins = [rows([generator.random() < 0.7 for _ in range(300)]) for _ in range(2)]
    found = comparison.compare(*coins)
    assert not found.clear and "may be noise" in found.said("A", "B") and found.difference.p_value > 0.05
    same = comparison.compare(coins[0], coins[0])
    assert same.difference.mean == same.difference.low == same.difference.high == 0 and not same.clear
    assert same.difference.p_value == 1


def test_the_same_change_is_clear_when_paired_and_not_when_it_is_drowned():
    """Ten rows better and none worse: a paired comparison sees it, whatever the accuracy of both."""
    better = comparison.compare(rows([1] * 160 + [0] * 140), rows([1] * 150 + [0] * 150))
    assert better.clear and better.difference.mean == pytest.approx(10 / 300)
    low, high = statistics.wilson(160, 300)
    assert low < 150 / 300 < high, "the intervals of both overlap"


def test_lists_count_by_their_worth():
    """RewardBench 2: shares of a win count, lists of Ties do not count by themselves."""
    one = [{"id": "a", "results": 0.5}, {"id": "b", "results": 1.0}, {"id": "tied:1", "results": None}]
    found = comparison.compare(one, [row | {"results": row["results"] and 0.25} for row in one])
    assert found.difference.num_pairs == 2 and found.difference.mean == pytest.approx(0.5)
