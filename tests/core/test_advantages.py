"""Advantages: known numbers of every estimator, exact zeros of dead groups, expected gradients, returns, lengths."""

import dataclasses
import itertools
import math

import golden_rollout as golden
import numpy as np
import pytest

from gramjax.core import advantages as worth
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection, RewardSection


def section(**settings):
    return GrpoSection(**settings)


def estimate(rewards, groups=None, lengths=None, scores=(), **settings):
    """Advantages of one reward function in groups of three."""
    rewards = np.asarray(rewards, np.float64)
    groups = np.arange(rewards.shape[-1]) // 3 if groups is None else groups
    lengths = np.full(rewards.shape[-1], 2) if lengths is None else lengths
    extra = {name: settings.pop(name) for name in ("greedy", "kl", "offline", "weights") if name in settings}
    return worth.estimate(rewards, groups, lengths, section(**settings), **extra)


KNOWN = [
    ({}, [1.154699, -0.577349, -0.577349, 0.577349, 0.577349, -1.154699, 0, 0, 0]),
    ({"advantage": "grpo"}, [1.154699, -0.577349, -0.577349, 0.577349, 0.577349, -1.154699, 0, 0, 0]),
    ({"advantage": "rloo"}, [1, -0.5, -0.5, 0.5, 0.5, -1, 0, 0, 0]),
    ({"advantage": "batch", "advantage_epsilon": 1e-4},
     [1.333067, -0.666534, -0.666534, 0.666534, 0.666534, -1.333067, 0, 0, 0]),
    ({"loss": "dr_grpo"}, [2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3, 0, 0, 0]),
    ({"advantage": "gpg"}, np.array([2, -1, -1, 1, 1, -2, 0, 0, 0]) / 3 * 9 / 6),
    ({"advantage": "opo"}, [1 - 2 / 6, -2 / 6, -2 / 6, 1 - 6 / 9, 1 - 6 / 9, -6 / 9, 0, 0, 0]),
    ({"advantage": "passk"}, [1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ({"advantage": "remax", "greedy": [0, 0, 0, 1, 1, 1, 0, 0, 0]}, [1, 0, 0, 0, 0, -1, 1, 1, 1]),
    ({"std_floor": 2.0}, np.array([2, -1, -1, 1, 1, -2, 0, 0, 0]) / 6),
]  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize(("settings", "want"), KNOWN)
def test_known_numbers(settings, want):
    """Of the golden rollout; every token of an answer has the advantage of the answer."""
    made = estimate(golden.REWARDS, lengths=golden.LENGTHS, **settings)
    np.testing.assert_allclose(made.values, want, atol=1.5e-6)
    for value, tokens, length in zip(made.values, made.per_token, golden.LENGTHS, strict=True):
        np.testing.assert_array_equal(tokens, np.full(length, value))
    assert list(made.rewards) == list(golden.REWARDS)
    np.testing.assert_allclose(made.std[::3], [math.sqrt(1 / 3), math.sqrt(1 / 3), 0], atol=1e-12)


def test_a_second_best_answer_is_what_the_best_one_is_measured_by():
    made = estimate([0.2, 0.9, 0.5, 0.1, 0.1, 0.4], advantage="passk")
    np.testing.assert_allclose(made.values, [0, 0.4, 0, 0, 0, 0.3], atol=1e-6)


@pytest.mark.parametrize("name", worth.GROUP)
def test_the_order_of_answers_and_the_numbers_of_groups_do_not_matter(name):
    rng = np.random.default_rng(0)
    rewards, groups, lengths = rng.normal(size=12), np.arange(12) // 4, rng.integers(1, 9, 12)
    want = estimate(rewards, groups, lengths, advantage=name).values
    order = rng.permutation(12)
    got = estimate(rewards[order], np.array([70, -3, 8])[groups[order]], lengths[order], advantage=name).values
    np.testing.assert_allclose(got, want[order], rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "batch", "unscaled", "rloo", "opo", "gpg", "passk"])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1.3, 0.7, 0.1, -1e6])
def test_a_group_of_equal_rewards_is_worth_exactly_nothing(name, constant):
    """... whatever the rewards are, beside a group that is worth something."""
    rewards = np.concatenate([np.full(7, np.float32(constant)), [0, 1, 0, 0, 1, 0, 2]])
    made = estimate(rewards, np.arange(14) // 7, advantage=name)
    assert not np.any(made.values[:7]) and np.any(made.values[7:])
    assert np.all(made.dead[:7]) and not np.any(made.dead[7:])


@pytest.mark.parametrize(("constant", "wrong"), [(1.3, 0.106), (0.7, 0.056), (0.1, 0.0074)])
def test_why_equality_is_tested_and_not_left_to_a_small_epsilon(constant, wrong):
    """The textbook formula in float32 gives rewards that are all equal an advantage."""
    rewards = np.full(7, constant, np.float32)
    total = np.float32(0)
    for reward in rewards:
        total += reward
    off = rewards - total / np.float32(7)
    textbook = off / (np.sqrt(np.sum(off * off) / np.float32(6)) + np.float32(1e-6))
    assert abs(textbook[0]) == pytest.approx(wrong, rel=0.01)
    assert not np.any(estimate(rewards, np.zeros(7), advantage="grpo").values)


def test_answers_that_nobody_judged_are_worth_nothing_and_count_for_nothing():
    nan = float("nan")
    made = estimate([1, 0, nan, nan, nan, nan, 1, 1, nan])
    np.testing.assert_allclose(made.values, [0.70710578, -0.70710578, 0, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert made.judged.tolist() == [True, True, False, False, False, False, True, True, False]
    assert made.dead.tolist() == [False] * 6 + [True, True, False]
    two = estimate([[1, 0, nan], [nan, 2, 3]], weights=[1.0, 0.5])
    np.testing.assert_allclose(two.rewards, [1, 1, 1.5])


def test_what_is_refused():
    with pytest.raises(UserError, match="reward second of answer 1 is inf; rewards must be finite"):
        worth.combine([[0, 0], [1, math.inf]], (), ("first", "second"))
    with pytest.raises(UserError, match="function_weights: 3 weights for 2 reward functions"):
        worth.combine(np.zeros((2, 2)), (1, 2, 3))
    with pytest.raises(UserError, match="config.grpo.group_size to at least 2"):
        estimate([1, 0, 1], [0, 0, 1])
    with pytest.raises(UserError, match="config.grpo.advantage='gae'"):
        estimate([1, 0, 1], advantage="gae")


def test_normalising_before_the_sum_lets_a_rare_reward_of_any_scale_speak():
    """Both functions order the answers with the same strength though one is a hundred times the other."""
    scores = np.array([[0, 0, 1, 1, 0, 0], [100, 0, 0, 0, 0, 100.0]])
    made = estimate(scores, aggregate="normalize_then_sum")
    own = [golden.scaled(row, np.arange(6) // 3) for row in scores]
    want = own[0] + own[1]
    np.testing.assert_allclose(made.values, (want - want.mean()) / (want.std(ddof=1) + 1e-6), atol=1e-5)
    scaled = estimate(scores * [[1.0], [0.01]], aggregate="normalize_then_sum", advantage_epsilon=0.0)
    exact = estimate(scores, aggregate="normalize_then_sum", advantage_epsilon=0.0)
    np.testing.assert_allclose(scaled.values, exact.values, atol=1e-6)
    dead = estimate([[1, 1, 1, 0, 1, 1], [5, 5, 5, 7, 7, 7.0]], aggregate="normalize_then_sum")
    assert dead.dead.tolist() == [True] * 3 + [False] * 3


def test_a_baseline_of_the_policys_own_answers():
    """A solution from elsewhere is compared with what the policy wrote and does not move its mean."""
    rewards, offline = [1, 0.5, 0.0, 0.25], [1, 0, 0, 0]
    mixed = estimate(rewards, np.zeros(4), offline=offline).values
    apart = estimate(rewards, np.zeros(4), offline=offline, offline_baseline="on_policy").values
    own = np.array([0.5, 0, 0.25])
    np.testing.assert_allclose(apart, (np.array(rewards) - own.mean()) / own.std(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(mixed, golden.scaled(np.array(rewards), np.zeros(4)), rtol=1e-5)


LOGITS = np.array([0.3, -0.2, 0.5, 0.0, -0.7])
CORRECT = np.array([1, 1, 0, 0, 0], bool)


def expected_gradients(size=3):
    """Of right and of wrong answers in groups of `size`, over all outcomes, in float64; the policy's probabilities."""
    p = np.exp(LOGITS) / np.sum(np.exp(LOGITS))
    outcomes = np.array(list(itertools.product(range(5), repeat=size)))
    rewards = CORRECT[outcomes].astype(np.float64).reshape(-1)
    table = worth.Groups.of(np.repeat(np.arange(len(outcomes)), size), np.ones(len(rewards), bool))
    settings = section(advantage_epsilon=0.0)
    values = worth._values("grpo", rewards, table, table, np.ones(len(rewards)), settings, None)
    rounded = worth.estimate(rewards, table.number, np.ones(len(rewards)), settings).values
    np.testing.assert_array_equal(rounded, np.where(table.equal(rewards), 0, values).astype(np.float32))
    weights = (values * np.repeat(np.prod(p[outcomes], axis=1), size))[:, None] * (np.eye(5)[outcomes.reshape(-1)] - p)
    return weights[rewards == 1].sum(axis=0), weights[rewards == 0].sum(axis=0), p


def test_right_and_wrong_answers_push_in_one_direction():
    """E[g_pos] = c grad P / P and E[g_neg] = c grad P / (1 - P), on every logit (the ratio is (1 - P) / P)."""
    positive, negative, p = expected_gradients()
    success = p[CORRECT].sum()
    np.testing.assert_allclose(positive / negative, (1 - success) / success, rtol=1e-9)
    assert positive[0] / negative[0] == pytest.approx(1.4503928, abs=1e-7)
    slope = p * (CORRECT - success)
    n = np.arange(4)
    chance = np.array([math.comb(3, k) * success**k * (1 - success) ** (3 - k) for k in n])
    c = np.sum(chance * np.sqrt(n * (3 - n) * 2 / 3))
    np.testing.assert_allclose(positive, c * slope / success, rtol=1e-9)
    np.testing.assert_allclose(negative, c * slope / (1 - success), rtol=1e-9)


def test_distance_in_the_reward_before_normalisation_makes_advantages_of_noise():
    """What the released code did to groups of equal rewards; by default they are exactly 0."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(500, 3000, 64)
    drift = [rng.normal(0, 0.05, size=length) for length in lengths]
    rewards, groups = np.repeat([1.0, 0.0], 32), np.arange(64) // 8
    settings = {"kl": drift, "kl_in": "reward", "beta": 1e-3}
    noise = estimate(rewards, groups, lengths, kl_before_normalisation=True, **settings).values
    assert np.sqrt(np.mean(np.square(noise))) > 0.8
    assert not np.any(estimate(rewards, groups, lengths).values)
    after = estimate(rewards, groups, lengths, **settings)
    penalty = 1e-3 * np.array([d.sum() for d in drift])
    want = -(penalty - penalty.reshape(8, 8).mean(axis=1).repeat(8))
    np.testing.assert_allclose(after.values, want, rtol=1e-5, atol=1e-9)
    assert np.all(after.dead) and np.abs(after.values).max() < 0.02


def test_reinforce_whitens_what_is_still_to_come_over_all_tokens():
    rewards, lengths = [1.0, 0.0, float("nan"), 2.0], [3, 1, 2, 2]
    kl = [np.array([0.1, 0.2, 0.3]), np.array([0.5]), np.array([9.0, 9.0]), np.array([0.0, -0.4])]
    made = estimate(rewards, [0, 1, 2, 3], lengths, advantage="reinforce++", kl=kl, beta=0.5, kl_in="reward")
    returns = np.array([1 - 0.3, 1 - 0.25, 1 - 0.15, -0.25, 2 + 0.2, 2 + 0.2])
    want = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    got = np.concatenate([made.per_token[i] for i in (0, 1, 3)])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not np.any(made.per_token[2]) and made.values[2] == 0
    assert made.values[0] == pytest.approx(want[:3].mean(), rel=1e-5)


def test_reinforce_with_a_baseline_is_whitened_over_tokens():
    made = estimate(golden.REWARDS, lengths=golden.LENGTHS, advantage="reinforce++_baseline")
    tokens = np.repeat(golden.centred(), golden.LENGTHS)
    want = (golden.centred() - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(made.values[:6], want[:6], rtol=1e-5)
    assert not np.any(made.values[6:])  # a dead group stays dead


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.97, 0.95)])
def test_generalised_advantages_are_sums_of_surprises(gamma, gae_lambda):
    """A_t = sum_l (gamma lambda)^l (r + gamma V' - V) at t + l; returns are A + V."""
    rng = np.random.default_rng(0)
    lengths = [4, 1, 6]
    rewards = [rng.normal(size=n) for n in lengths]
    values = [rng.normal(size=n) for n in lengths]
    got, returns = worth.generalised(rewards, values, gamma, gae_lambda)
    plain = []
    for r, v in zip(rewards, values, strict=True):
        after = [*v[1:], 0.0]
        delta = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        plain.append([
            sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))
        ])  # fmt: skip
    flat = np.concatenate(plain)
    np.testing.assert_allclose(np.concatenate(got), (flat - flat.mean()) / flat.std(ddof=1), atol=1e-5)
    np.testing.assert_allclose(np.concatenate(returns), flat + np.concatenate(values), atol=1e-5)
    if gamma == gae_lambda == 1:  # returns are sums of rewards, whatever the values
        np.testing.assert_allclose(returns[2], np.cumsum(rewards[2][::-1])[::-1], atol=1e-5)


def test_generalised_advantages_leave_out_what_nobody_judged():
    rewards = worth.token_rewards([1.0, float("nan"), 0.0], [2, 3, 1])
    assert [r.tolist() for r in rewards] == [[0, 1], [0, 0, 0], [0]]
    values = [np.full(2, 0.5), np.full(3, 9.0), np.full(1, 0.25)]
    some, _ = worth.generalised(rewards, values, judged=[True, False, True])
    want, _ = worth.generalised([rewards[0], rewards[2]], [values[0], values[2]])
    np.testing.assert_array_equal(np.concatenate([some[0], some[2]]), np.concatenate(want))
    assert not np.any(some[1])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_penalties_are_those_of_the_golden_rollout(kind):
    for i in range(9):
        numbers = np.array([golden.numbers(i, t) for t in range(golden.LENGTHS[i])])
        np.testing.assert_allclose(
            worth.kl_penalty(numbers[:, 0], numbers[:, 2], kind), golden.distances(kind, i), atol=1e-12
        )


STUDY = RewardSection(relative_length=True)
LENGTHS = np.array([1000, 2000, 3000, 5000, 2500, 800, 900, 1200])


def shortened(correct, lengths=LENGTHS, settings=STUDY):
    """Rewards with the relative length reward, and what it did."""
    correct = np.asarray(correct, np.float64)
    made = worth.relative_length(correct, lengths, np.zeros(len(correct)), settings)
    return correct + made.bonus, made


def test_known_numbers_of_the_relative_length_reward():
    """Short right answers gain, long ones lose, and a long right one may have a negative advantage."""
    rewards, made = shortened([1, 1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_allclose(rewards, [2, 1.428571, 0.5, 0.5, 0.5, 2, 0, 2], atol=1e-6)
    assert made.clipped.tolist() == [True, False, True, True, True, True, False, True]
    got = estimate(rewards, np.zeros(8)).values
    want = [1.064576, 0.376365, -0.741977, -0.741977, -0.741977, 1.064576, -1.344162, 1.064576]
    np.testing.assert_allclose(got, want, atol=1e-5)
    plain = estimate([1, 1, 1, 1, 1, 1, 0, 1], np.zeros(8)).values
    np.testing.assert_allclose(plain, [0.353552] * 6 + [-2.474867, 0.353552], atol=1e-5)
    rewards, made = shortened(np.ones(8), np.array([1000, 1200, 1100, 900, 1000, 1000, 1000, 1000]))
    np.testing.assert_allclose(rewards[:5], [1.05, 0.65, 0.85, 1.25, 1.05], atol=1e-9)
    got = estimate(rewards, np.zeros(8)).values
    np.testing.assert_allclose(got[:5], [0.282036, -1.974255, -0.846109, 1.410182, 0.282036], atol=1e-5)
    assert made.bonus.sum() == pytest.approx(0, abs=1e-12)  # as long as no bound is met


def test_groups_that_the_relative_length_reward_leaves_alone():
    at = np.array([1, 1, 1, 1, 1, 1, 0, 0])  # exactly the threshold of 0.75
    assert shortened(at)[1].active.all() and np.any(shortened(at)[1].bonus)
    below = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    assert not shortened(below)[1].active.any() and not np.any(shortened(below)[1].bonus)
    assert not np.any(shortened(np.zeros(8))[1].bonus)
    assert not np.any(shortened(np.ones(8), np.full(8, 700))[1].bonus)
    low = dataclasses.replace(STUDY, relative_length_threshold=0.1)
    assert not np.any(shortened([1, 0, 0, 0, 0, 0, 0, 0], settings=low)[1].bonus)  # a single right answer
    close = dataclasses.replace(STUDY, relative_length_min_spread=4201.0)
    assert not shortened(at, settings=close)[1].active.any()
    unknown = np.where(at == 0, np.nan, at)  # those that nobody judged are not wrong
    assert shortened(unknown)[1].bonus[6:].tolist() == [0, 0]


def test_the_deviation_makes_any_spread_of_lengths_as_loud_unless_it_has_a_floor():
    near, _ = shortened(np.ones(4), np.array([1000, 1005, 1010, 1020]))
    far, _ = shortened(np.ones(4), np.array([1000, 1050, 1100, 1200]))
    loud = [estimate(r, np.zeros(4), advantage_epsilon=0.0).values for r in (near, far)]
    np.testing.assert_allclose(loud[0], loud[1], rtol=1e-5)
    quiet = [np.abs(estimate(r, np.zeros(4), std_floor=0.1).values).max() for r in (near, far)]
    assert quiet[0] < 0.3 < quiet[1]


DIFFICULTIES = {
    (1, 1): (0.400, 0.222, 0.118), (0.5, 0.5): (0.547, 0.393, 0.280),
    (0.3, 0.3): (0.659, 0.535, 0.434), (0.8, 0.3): (0.623, 0.490, 0.387),
}  # fmt: skip


@pytest.mark.parametrize("shape", DIFFICULTIES)
def test_the_share_of_answers_that_teach_nothing(shape):
    """Measured on draws of prompts of known difficulty: within three standard errors of theory, and of its table."""
    rng = np.random.default_rng(0)
    p = rng.beta(*shape, size=4000)
    for size, known in zip((4, 8, 16), DIFFICULTIES[shape], strict=True):
        groups = np.repeat(np.arange(len(p)), size)
        correct = (rng.random(len(groups)) < p[groups]).astype(np.float64)
        lengths = np.where(correct == 1, 10, 30)
        made = worth.estimate(correct, groups, lengths, section())
        found = worth.dead_statistics(made, groups, lengths, correct)
        share = {name: total / weight for name, (total, weight) in found.items()}
        chance = worth.dead_probability(p, size)
        error = math.sqrt(np.sum(chance * (1 - chance))) / len(p)
        assert abs(share["zero_adv/samples"] - chance.mean()) < 3 * error
        assert share["frac_reward_zero_std"] == pytest.approx(share["zero_adv/samples"])
        assert abs(chance.mean() - known) < 3 * chance.std() / math.sqrt(len(p)) + 0.0005
        right = correct.reshape(-1, size).mean(axis=1)
        assert share["groups/easy"] == pytest.approx(np.mean(right == 1))
        assert share["groups/hard"] == pytest.approx(np.mean(right == 0))
        assert share["groups/mixed"] == pytest.approx(1 - share["zero_adv/samples"])
        dead = np.repeat((right == 0) | (right == 1), size)
        assert share["zero_adv/tokens"] == pytest.approx(lengths[dead].sum() / lengths.sum())


def test_equal_rewards_are_not_idle_where_no_groups_are_compared():
    """REINFORCE++ learns from a prompt that is always answered right, beside one that never is."""
    correct, groups = np.array([1.0, 1, 0, 0]), np.array([0, 0, 1, 1])
    shares = {}
    for name in ("grpo", "reinforce++"):
        made = estimate(correct, groups, advantage=name)
        found = worth.dead_statistics(made, groups, [1, 1, 3, 3], correct)
        shares[name] = {key: found[key][0] / found[key][1] for key in ("frac_reward_zero_std", "zero_adv/tokens")}
    assert shares["grpo"] == {"frac_reward_zero_std": 1, "zero_adv/tokens": 1}
    assert shares["reinforce++"] == {"frac_reward_zero_std": 1, "zero_adv/tokens": 0}
