"""The numbers behind evaluation: identities of both-order scoring (V7-V9, V20), calibration, intervals."""

import math

import numpy as np
import pytest

from gramjax.core import statistics


def logits(count=1000, scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (2, count, 2))


@pytest.mark.parametrize("agg", ["prob", "logit"])
def test_scores_of_the_two_answers_add_up_to_one(agg):
    """V7: r(y|y') + r(y'|y) = 1; exchanging the answers exchanges the two strings."""
    first, second = logits()
    ours = statistics.pair_score(first, second, agg)
    exchanged = statistics.pair_score(second, first, agg)
    np.testing.assert_allclose(ours.score + exchanged.score, 1.0, atol=1e-12)
    np.testing.assert_allclose(ours.margin, -exchanged.margin)


@pytest.mark.parametrize("agg", ["prob", "logit"])
def test_a_constant_on_both_verdicts_changes_nothing(agg):
    """V7, second half: only the difference of the two logits counts."""
    first, second = logits()
    shifted = statistics.pair_score(first + 7.0, second - 11.0, agg)
    np.testing.assert_allclose(shifted.score, statistics.pair_score(first, second, agg).score, atol=1e-12)


@pytest.mark.parametrize("agg", ["prob", "logit"])
def test_averaging_both_orders_cancels_an_additive_position_bias(agg):
    """V8: with quality f ~ N(0, 1) and bias b ~ N(0, 3^2) both orders decide as sign(f); one order does in 60.2 %."""
    generator = np.random.default_rng(0)
    quality, bias = generator.normal(0, 1, 100_000), generator.normal(0, 3, 100_000)
    pair = statistics.margin_score(quality + bias, -quality + bias, agg)
    assert np.array_equal(np.sign(pair.score - 0.5), np.sign(quality))
    np.testing.assert_allclose(pair.bias, bias, atol=1e-12)
    np.testing.assert_allclose(pair.margin, quality, atol=1e-12)
    one_order = np.mean(np.sign(pair.margin_first) == np.sign(quality))
    assert abs(one_order - (0.5 + math.asin(1 / math.sqrt(10)) / math.pi)) < 0.01


def test_softmax_over_the_wrong_axis_is_not_what_we_do():
    """V9, defect D1: softmax over the order axis gives (1/2, 1/2) for zero-sum logits, whatever the model says."""
    margin = np.random.default_rng(0).normal(0, 3, (2, 100))
    zero_sum = np.stack([margin, -margin], axis=-1)  # [order, pair, verdict]
    wrong = np.exp(zero_sum) / np.exp(zero_sum).sum(axis=0)
    np.testing.assert_allclose(wrong.mean(axis=-1), 0.5, atol=1e-12)
    ours = statistics.pair_score(zero_sum[0], zero_sum[1]).score
    assert np.mean(np.abs(ours - 0.5) > 0.1) > 0.5
    assert np.array_equal(ours > 0.5, margin[0] > margin[1])


def test_golden_pair():
    """By hand: margins log 3 and -log 4 give P(first) = 3/4 and 1/5, so r = (3/4 + 4/5) / 2."""
    pair = statistics.margin_score([math.log(3)], [-math.log(4)])
    assert pair.p_first[0] == pytest.approx(0.75) and pair.p_second[0] == pytest.approx(0.2)
    assert pair.score[0] == pytest.approx(0.775) and pair.log_score[0] == pytest.approx(math.log(0.775))
    assert pair.margin[0] == pytest.approx(math.log(12) / 2) and pair.bias[0] == pytest.approx(math.log(3 / 4) / 2)
    assert pair.consistent[0]


def test_extreme_margins_stay_finite():
    for agg in ("prob", "logit"):
        pair = statistics.margin_score([-900.0, 900.0], [900.0, -900.0], agg)
        np.testing.assert_allclose(pair.log_score, [-900.0, 0.0], atol=1e-9)
        np.testing.assert_allclose(pair.score, [0.0, 1.0], atol=1e-12)


def test_ties_and_consistency():
    pair = statistics.margin_score([0.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 2.0])
    assert list(statistics.verdicts(pair.score)) == [0, 0, 1, -1]
    assert list(pair.consistent) == [True, False, True, False]
    assert list(statistics.verdicts([0.5, 0.5 + 9e-7, 0.5 - 9e-7, 0.5 + 2e-6, 0.5 - 2e-6])) == [0, 0, 0, 1, -1]


def test_dual_order_rule_of_judgebench():
    """V20: (right, right) and (right, tie) count; one right and one wrong, two ties and (none, tie) do not."""
    first, second = np.array([1, 1, 1, 0, 0, -1]), np.array([1, 0, -1, 0, 1, -1])
    assert list(statistics.dual_order_correct(first, second)) == [True, True, False, False, True, False]


def test_an_always_first_judge_is_never_right():
    """V20: 0 % under the dual rule and under strict averaging, 100 % inconsistent."""
    pair = statistics.margin_score(np.full(10, 5.0), np.full(10, 5.0))
    assert not np.any(statistics.verdicts(pair.score) > 0) and not np.any(pair.consistent)
    one, two = statistics.verdicts(pair.p_first), -statistics.verdicts(pair.p_second)
    assert not np.any(statistics.dual_order_correct(one, two))


def test_the_coin_is_fair_and_belongs_to_the_row():
    heads = [statistics.coin(0, f"row-{i}") for i in range(4000)]
    assert abs(np.mean(heads) - 0.5) < 0.03 and heads[7] == statistics.coin(0, "row-7")
    assert abs(np.corrcoef(heads, [statistics.coin(1, f"row-{i}") for i in range(4000)])[0, 1]) < 0.06
    assert abs(np.corrcoef(heads[1:], heads[:-1])[0, 1]) < 0.06


def test_bad_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"\[pairs, 2\]"):
        statistics.pair_score(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="prob or logit"):
        statistics.margin_score([1.0], [1.0], "mean")


def test_ece_and_brier_by_hand():
    """Four predictions of confidence 0.9, three right: |0.75 - 0.9|; two of 0.6, one right: |0.5 - 0.6|."""
    score = np.array([0.9, 0.9, 0.9, 0.1, 0.6, 0.4])
    assert statistics.ece(score) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert statistics.brier(score) == pytest.approx((3 * 0.01 + 0.81 + 0.16 + 0.36) / 6)
    result = statistics.reliability(score, bins=10)
    assert result.count.sum() == 6 and result.count[7] == 4 and result.count[1] == 2
    assert np.isnan(result.accuracy[0])


def test_ece_of_calibrated_and_of_knowing_nothing():
    assert statistics.ece(np.full(8, 0.5)) == 0.0  # ties are half right: saying "do not know" is calibrated
    generator = np.random.default_rng(1)
    p = generator.uniform(0.5, 1.0, 200_000)
    calibrated = np.where(generator.uniform(size=p.size) < p, p, 1 - p)
    assert statistics.ece(calibrated) < 0.005
    assert statistics.ece(statistics.sigmoid(3 * np.log(calibrated / (1 - calibrated)))) > 0.05
    assert math.isnan(statistics.ece([])) and math.isnan(statistics.brier([]))


def test_every_prediction_falls_in_one_bin():
    score = np.linspace(0, 1, 1001)
    assert statistics.reliability(score, 7).count.sum() == 1001


def test_wilson_interval():
    """Reference: 8 of 10 gives (0.4902, 0.9433) (Brown, Cai and DasGupta 2001); the ends never leave [0, 1]."""
    np.testing.assert_allclose(statistics.wilson(8, 10), (0.49016, 0.94332), atol=1e-4)
    np.testing.assert_allclose(statistics.wilson(0, 10), (0.0, 0.27753), atol=1e-4)
    assert statistics.wilson(10, 10)[1] == pytest.approx(1.0) and statistics.wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_covers_like_the_normal_interval_and_ignores_order():
    values = np.random.default_rng(0).normal(0.7, 0.5, size=400)
    low, high = statistics.bootstrap(values, 4000, seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01) and high == pytest.approx(
        values.mean() + half, abs=0.01
    )
    assert statistics.bootstrap(values[::-1], 4000, seed=1) == (low, high)
    assert statistics.bootstrap(values, 4000, seed=2) != (low, high)
    assert all(math.isnan(v) for v in statistics.bootstrap([], 100))


def test_paired_bootstrap_uses_the_pairing():
    """Two runs that differ on 30 of 1000 examples, always in favour of the first: clear when paired."""
    two = (np.random.default_rng(0).uniform(size=1000) < 0.6).astype(float)
    one = two.copy()
    one[np.flatnonzero(two == 0)[:30]] = 1.0
    result = statistics.paired_bootstrap(one, two, 2000)
    assert result.mean == pytest.approx(0.03) and 0.015 < result.low < 0.03 < result.high < 0.045
    assert result.p_value <= 0.001
    same = statistics.paired_bootstrap(one, one, 200)
    assert same.mean == 0.0 and same.p_value == 1.0
    with pytest.raises(ValueError, match="differ in number"):
        statistics.paired_bootstrap(one, two[:-1])
