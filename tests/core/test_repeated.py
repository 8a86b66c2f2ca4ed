"""Statistics of repeated evaluation: against brute force, against simulated graders, against numbers known by hand."""

import itertools
import json
import math

import numpy as np
import pytest

from gramjax.core import repeated, statistics

BETA = np.random.default_rng(1).beta(0.5, 0.5, 30)
"""Thirty problems, most of them nearly always or nearly never solved."""


def graded(p, repeats, generator):
    return generator.random((len(p), repeats)) < np.asarray(p)[:, None]


@pytest.mark.smoke
def test_pass_at_is_the_share_of_subsets_with_a_hit():
    for repeats in (1, 2, 5, 8):
        for correct, j in itertools.product(range(repeats + 1), range(1, repeats + 1)):
            verdicts = [i < correct for i in range(repeats)]
            subsets = [any(chosen) for chosen in itertools.combinations(verdicts, j)]
            assert repeated.pass_at(correct, repeats, j) == pytest.approx(np.mean(subsets), abs=1e-12)
            alike = [len(set(chosen)) == 1 for chosen in itertools.combinations(verdicts, j)]
            assert repeated.unanimous(correct, repeats, j) == pytest.approx(np.mean(alike), abs=1e-12)


def test_pass_at_is_stable_and_bounded():
    """Ten thousand repeats, whose binomials have thousands of digits, against whole numbers."""
    for correct, j in ((1, 5000), (3, 100), (9999, 2), (0, 10000), (10000, 1)):
        exact = 1 - math.comb(10000 - correct, j) * 10**30 // math.comb(10000, j) / 10**30
        assert repeated.pass_at(correct, 10000, j) == pytest.approx(exact, abs=1e-12)
    for j in (0, 5):
        with pytest.raises(ValueError, match=f"pass@{j} needs"):
            repeated.pass_at([1], 4, j)


def test_pass_at_is_unbiased():
    p, generator = np.array([0.05, 0.3, 0.9]), np.random.default_rng(0)
    found = np.mean([repeated.pass_at(graded(p, 8, generator).sum(1), 8, 4) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(found, 1 - (1 - p) ** 4, atol=0.02)


@pytest.mark.parametrize("repeats", [1, 4, 16, 64])
def test_run_to_run_deviation_is_the_formula(repeats):
    """E-7: two hundred evaluations of simulated graders. The mean over a few hundred more sharpens the estimate."""
    generator = np.random.default_rng(repeats)
    runs = [graded(BETA, repeats, generator) for _ in range(200)]
    means = [repeated.average(run).mean for run in runs]
    formula = repeated.expected_error(BETA, repeats)
    assert np.std(means) == pytest.approx(formula, rel=0.1)
    if repeats > 1:
        estimated = np.sqrt(np.mean([repeated.average(run).sampling_error ** 2 for run in runs]))
        assert estimated == pytest.approx(formula, rel=0.02), "what one run says of itself, without bias"


def test_thirty_problems_of_beta_difficulty():
    """The table everybody should know: points of noise of one evaluation with 1, 4, 16 and 64 repeats."""
    found = [round(100 * repeated.expected_error(BETA, repeats), 1) for repeats in (1, 4, 16, 64)]
    assert found == [6.2, 3.1, 1.6, 0.8]
    draws = np.random.default_rng(0).beta(0.5, 0.5, (2000, 30))
    mean = np.mean([repeated.expected_error(p, 1) ** 2 for p in draws])
    assert mean == pytest.approx(1 / 8 / 30, rel=0.01), "E p(1-p) = 1/8 for Beta(1/2, 1/2)"


def test_errors_of_drawing_and_of_problems():
    """Their squares add up to that of both; the error of the problems does not shrink with k."""
    generator = np.random.default_rng(0)
    p = generator.beta(0.5, 0.5, 400)
    true = math.sqrt(np.var(p, ddof=1) / len(p))
    for repeats in (2, 8, 32):
        found = repeated.average(graded(p, repeats, generator))
        assert found.total_error**2 == pytest.approx(found.sampling_error**2 + found.question_error**2)
        assert found.question_error == pytest.approx(true, rel=0.1)
    assert repeated.average([[1, 0], [1, 0]]).question_error == 0, "differences between problems smaller than noise"
    one = repeated.average([[1], [0], [0], [1]])
    assert one.mean == 0.5 and math.isnan(one.sampling_error) and math.isnan(one.question_error)
    assert one.total_error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert math.isnan(repeated.average([[1, 0]]).total_error)


def test_majority_of_answers():
    answers = [
        ["7", "7", "3"], ["3", "3", "7"], ["7", "3", "5"], [None, None, "7"], [None] * 3, ["7", "3", None],
    ]  # fmt: skip
    verdicts = [[a == "7" for a in given] for given in answers]
    expected = [1, 0, 1 / 3, 1, 0, 1 / 2]
    np.testing.assert_allclose(repeated.majority(answers, verdicts), expected)
    turned = repeated.majority([row[::-1] for row in answers], [row[::-1] for row in verdicts])
    np.testing.assert_allclose(turned, expected)
    assert repeated.majority([["7", "7"]], [[True, False]]) == [0.5], "equal answers, different verdicts: their mean"


def test_majority_beats_the_mean_where_wrong_answers_scatter():
    """A right answer of probability 0.4 against ten wrong ones of 0.06: the vote finds it, one answer does not."""
    generator = np.random.default_rng(0)
    answers = generator.choice(11, (200, 64), p=[0.4] + [0.06] * 10).tolist()
    verdicts = np.array(answers) == 0
    assert repeated.majority(answers, verdicts).mean() > 0.99 and abs(verdicts.mean() - 0.4) < 0.02


def test_greedy_flips():
    np.testing.assert_allclose(repeated.flips([1, 0, 1, 0], [[1, 1], [1, 1], [0, 0], [0, 0]]), [0, 1, 1, 0])
    np.testing.assert_allclose(repeated.flips([1, 0], [[1, 0], [0, 1]]), [0.5, 0.5])
    generator = np.random.default_rng(0)
    p, repeats = 0.45, 15
    most = sum(math.comb(repeats, c) * p**c * (1 - p) ** (repeats - c) for c in range(8, 16))
    expected = most * (1 - p) + (1 - most) * p
    found = repeated.flips(generator.random(20000) < p, graded([p] * 20000, repeats, generator)).mean()
    assert found == pytest.approx(expected, abs=0.01) and expected > 0.45


def test_uncertain_problems_and_their_share_of_the_noise():
    verdicts = [[1] * 8, [0] * 8, [1] * 4 + [0] * 4, [1, 1] + [0] * 6, [1] * 7 + [0]]
    mask = repeated.uncertain(verdicts)
    assert mask.tolist() == [False, False, True, False, False], "a rate on a bound is not inside"
    noise = np.array([0, 0, 1 / 4, 3 / 16, 7 / 64])
    assert repeated.share_of_variance(verdicts, mask) == pytest.approx(noise[2] / noise.sum())
    assert repeated.uncertain(verdicts, 0.1, 0.9).sum() == 3
    assert math.isnan(repeated.share_of_variance([[1, 1]], [False]))


def test_bins_hold_rates_exactly():
    """3 of 10 is 0.3 and stands in the bin from 0.3, which floating-point edges would deny."""
    verdicts = [[i < c for i in range(10)] for c in range(11)]
    assert repeated.histogram(verdicts).tolist() == [1] * 9 + [2]
    assert repeated.histogram([[1, 0, 0]]).tolist() == [0, 0, 0, 1] + [0] * 6


def test_entropies():
    assert repeated.entropy([[1, 0], [1, 1]]) == pytest.approx(math.log(2) / 2) and repeated.entropy([[1, 1]]) == 0
    assert repeated.answer_entropy([["a", "b", "c", None], ["a"] * 4]) == pytest.approx(math.log(4) / 2)


def test_the_meter_of_groups_without_an_advantage():
    """E-4: prompts with known rates; groups of eight among sixteen repeats, against mean p^8 + (1-p)^8."""
    generator = np.random.default_rng(0)
    p = generator.beta(1, 1, 3000)
    found = repeated.unanimous(graded(p, 16, generator).sum(1), 16, 8)
    expected = np.mean(p**8 + (1 - p) ** 8)
    assert abs(found.mean() - expected) < 3 * np.std(found) / math.sqrt(len(p))
    assert expected == pytest.approx(2 / 9, abs=0.02)


def test_the_summary():
    answers = [["1", "1", "2", None], ["5", "6", "7", "8"], ["9"] * 4]
    verdicts = [[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]
    found = dict(repeated.summarise(verdicts, answers, greedy=[0, 0, 1], group_size=2))
    json.dumps(found, allow_nan=False)
    assert (found["num_problems"], found["k"]) == (3, 4)
    assert found["avg@k"] == found["avg@4"] == found["pass@1"] == pytest.approx(7 / 12)
    assert found["maj@k"] == found["maj@4"] == pytest.approx((1 + 1 / 4 + 1) / 3)
    assert found["pass@4"] == 1 and found["pass@2"] == pytest.approx((5 / 6 + 1 / 2 + 1) / 3) and "pass@3" not in found
    assert found["greedy_accuracy"] == pytest.approx(1 / 3)
    assert found["greedy_flip_rate"] == pytest.approx(0.5 / 3) and found["greedy_flip_ties"] == 1
    assert found["uncertain_share"] == pytest.approx(1 / 3)
    assert (found["never_solved_share"], found["always_solved_share"]) == (0, pytest.approx(1 / 3))
    assert sum(entry["num_problems"] for entry in found["histogram"]) == 3
    assert found["avg@k_low"] < found["avg@k"] < found["avg@k_high"]
    assert found["zero_advantage@2"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    alone = dict(repeated.summarise([[1]], [["1"]], pass_j=(1,)))
    json.dumps(alone, allow_nan=False)
    assert alone["avg@k_standard_error"] is None and alone["avg@k_sampling_error"] is None and alone["avg@k_low"] < 0.3
    never = dict(repeated.summarise([[0] * 4] * 5, [[None] * 4] * 5))
    assert (never["avg@k_low"], never["avg@k_high"]) == statistics.wilson(0, 5), "five failures are no certainty"
    assert str(never["verdict_entropy"]) == str(never["answer_entropy"]) == "0.0"
    assert "greedy_flip_rate" not in alone
    for bad in ([[1, 0], [1]], [], [[]]):
        with pytest.raises(ValueError, match="repeats"):
            dict(repeated.summarise(bad, []))


def test_intervals_hold_the_truth():
    """Of sets of problems drawn anew, about 95 % of the intervals hold the mean of all problems."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(300):
        found = dict(repeated.summarise(graded(generator.beta(0.5, 0.5, 40), 4, generator), [[0] * 4] * 40))
        held += found["avg@k_low"] <= 0.5 <= found["avg@k_high"]
    assert 0.92 < held / 300 < 0.98


# -- two runs ----------------------------------------------------------------------------------------------------------


def rows(verdicts, prefix="q", gold="7"):
    return [{"id": f"{prefix}{n}", "gold": gold, "verdicts": list(map(bool, row))} for n, row in enumerate(verdicts)]


def test_the_error_of_a_difference_is_that_of_repeated_comparisons():
    generator = np.random.default_rng(0)
    p, better = BETA, np.clip(BETA + 0.05, 0, 1)
    found = [
        repeated.compare(graded(better, 16, generator), graded(p, 4, generator), samples=10) for _ in range(300)
    ]  # fmt: skip
    formula = math.hypot(repeated.expected_error(better, 16), repeated.expected_error(p, 4))
    assert np.std([c.difference.mean for c in found]) == pytest.approx(formula, rel=0.1)
    assert np.sqrt(np.mean([c.error**2 for c in found])) == pytest.approx(formula, rel=0.03)


def test_the_same_model_twice_is_noise():
    """Of a hundred pairs of runs of one model about five differ by more than chance allows at 5 %."""
    generator = np.random.default_rng(0)
    called = [
        repeated.compare(graded(BETA, 16, generator), graded(BETA, 16, generator), samples=200).verdict
        for _ in range(100)
    ]
    assert called.count(repeated.NOISE) >= 90
    said = repeated.compare(graded(BETA, 8, generator), graded(BETA, 8, generator)).said("A", "B")
    assert "(8 repeats)" in said and ("may be noise" in said or "more than luck" in said)


def test_a_difference_can_be_clear_on_these_problems_only():
    """Some problems much better, others much worse: repeats show it again, other problems need not."""
    p = np.tile([0.1, 0.5, 0.9, 0.5], 8)
    change = np.where(np.arange(32) < 20, 0.4, -0.4)
    generator = np.random.default_rng(0)
    found = repeated.compare(graded(np.clip(p + change, 0, 1), 64, generator), graded(p, 64, generator))
    assert (
        found.verdict == repeated.THESE
        and abs(found.z) > 3
        and "other problems may say otherwise" in (found.said("A", "B"))
    )
    clear = repeated.compare(graded(np.clip(p + 0.2, 0, 1), 64, generator), graded(p, 64, generator))
    assert clear.verdict == repeated.CLEAR and clear.p_value < 1e-6 and "clear difference" in clear.said("A", "B")
    back = repeated.compare(graded(p, 64, generator), graded(np.clip(p + 0.2, 0, 1), 64, generator))
    assert back.z < -3 and back.verdict == repeated.CLEAR


def test_one_repeat_knows_no_noise_of_the_draws():
    found = repeated.compare([[1]] * 30 + [[0]] * 30, [[1]] * 30 + [[0]] * 30)
    assert found.verdict == repeated.NOISE and math.isnan(found.z) and "unknown with one repeat" in found.said("A", "B")
    assert repeated.compare([[1]] * 30, [[0]] * 30).verdict == repeated.CLEAR
    certain = repeated.compare([[1, 1]] * 20, [[0, 0]] * 20)
    assert certain.z == math.inf and certain.p_value == 0 and certain.verdict == repeated.CLEAR


def test_rows_are_matched_by_id_and_gold_answer():
    one = rows([[1, 1], [0, 1], [1, 0]]) + rows([[1, 1]], "mine")
    two = rows([[0, 0], [0, 1], [1, 0]])[::-1] + rows([[0, 0]] * 2, "theirs")
    found = repeated.compare_rows(one, two)
    assert found.difference.mean == pytest.approx(1 / 3) and found.difference.num_pairs == 3
    assert found.left_out == ("1 only in the first", "2 only in the second")
    assert found.said("A", "B").endswith("left out: 1 only in the first, 2 only in the second")
    other = repeated.compare_rows(one, [two[0] | {"gold": "8"}, *two[1:]])
    assert other.difference.num_pairs == 2 and "1 with another gold answer" in other.left_out
    assert repeated.compare_rows(one, rows([[1, 1]], "x")) is None
