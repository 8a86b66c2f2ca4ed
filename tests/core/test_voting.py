"""Votes and proof selection: the binomial curve (V15), denoising of pseudo-labels (V16), equation (5) (V13)."""

import itertools
import math

import numpy as np
import pytest

from gramjax.core import voting

A, B, NONE = 1, -1, 0


def one(verdicts, probability=None, **options):
    """The vote on one pair, as plain values."""
    found = voting.vote([verdicts], None if probability is None else [probability], **options)
    return {name: value[0] for name, value in vars(found).items()}


@pytest.mark.parametrize(
    ("p", "curve"),
    [
        (0.6, {1: 0.600, 3: 0.648, 5: 0.683, 9: 0.733, 15: 0.787, 16: 0.787}),
        (0.7, {1: 0.700, 3: 0.784, 5: 0.837, 9: 0.901, 15: 0.950, 16: 0.950}),
        (0.8, {1: 0.800, 3: 0.896, 5: 0.942, 9: 0.980, 15: 0.996, 16: 0.996}),
    ],
)
def test_the_curve_of_independent_votes(p, curve):
    """V15: the numbers of section 2.6, and the sum itself by listing every outcome."""
    assert {k: round(voting.majority_accuracy(p, k), 3) for k in curve} == curve
    for draws in (1, 2, 5, 6):
        listed = 0.0
        for outcome in itertools.product((0, 1), repeat=draws):
            right = sum(outcome)
            weight = p**right * (1 - p) ** (draws - right)
            listed += weight * (1.0 if 2 * right > draws else 0.5 if 2 * right == draws else 0.0)
        assert voting.majority_accuracy(p, draws) == pytest.approx(listed, abs=1e-9)


@pytest.mark.parametrize("p", [0.05, 0.35, 0.5, 0.77, 1.0])
def test_an_even_number_of_votes_buys_nothing(p):
    """V15, second half."""
    for even in (2, 4, 10, 16):
        assert voting.majority_accuracy(p, even) == pytest.approx(voting.majority_accuracy(p, even - 1), abs=1e-9)


def test_votes_follow_the_curve():
    """The vote itself, ties broken by coin, is as good as the binomial sum says."""
    generator = np.random.default_rng(0)
    for draws in (4, 5):
        drawn = np.where(generator.random((20_000, draws)) < 0.7, A, B)
        share_right = np.mean(voting.vote(drawn).verdict == A)
        assert share_right == pytest.approx(voting.majority_accuracy(0.7, draws), abs=0.012)


TABLE = {
    1: (0.667, {0.6: (1.0, 0.667), 0.8: (1.0, 0.667), 1.0: (1.0, 0.667)}),
    5: (0.730, {0.6: (1.0, 0.730), 0.8: (0.627, 0.812), 1.0: (0.277, 0.884)}),
    9: (0.748, {0.6: (0.772, 0.803), 0.8: (0.336, 0.899), 1.0: (0.144, 0.941)}),
    15: (0.759, {0.6: (0.856, 0.797), 0.8: (0.436, 0.896), 1.0: (0.077, 0.969)}),
}


@pytest.mark.parametrize("draws", TABLE)
def test_vote_and_threshold_denoise(draws):
    """V16: verdicts right with probability p ~ Beta(3, 1.5), a hundred thousand pairs, within 0.005 of section 2.4."""
    generator = np.random.default_rng(draws)
    p = generator.beta(3, 1.5, (100_000, 1))
    votes = voting.vote(np.where(generator.random((len(p), draws)) < p, A, B))
    accuracy, thresholds = TABLE[draws]
    assert np.mean(votes.verdict == A) == pytest.approx(accuracy, abs=0.005)
    for threshold, (kept, right) in thresholds.items():
        passed = votes.share >= threshold
        assert np.mean(passed) == pytest.approx(kept, abs=0.005)
        assert np.mean(votes.verdict[passed] == A) == pytest.approx(right, abs=0.005)


def test_a_vote_by_hand():
    found = one([A, A, B, NONE, A], [0.9, 0.8, 0.3, 0.99, 0.7])
    assert (found["verdict"], found["votes_a"], found["votes_b"], found["failed"]) == (A, 3, 1, 1)
    assert found["share"] == pytest.approx(3 / 5), "a draw without a verdict counts against the share"
    assert found["probability"] == pytest.approx((0.9 + 0.8 + 0.7) / 3), "over the draws that agree"
    assert found["soft"] == pytest.approx(3 / 4) and found["soft_probability"] == pytest.approx(2.7 / 4)
    assert found["agreement"] == pytest.approx(6 / 12), "3 of 6 pairs of votes are alike, in both orders"
    flipped = one([B, B, A, NONE, B], [0.1, 0.2, 0.7, 0.01, 0.3])
    assert flipped["verdict"] == B and flipped["probability"] == pytest.approx(found["probability"])
    assert flipped["soft"] == pytest.approx(1 - found["soft"])


def test_ties_go_to_the_more_probable_side_and_then_to_a_coin():
    assert one([A, B], [0.9, 0.2])["verdict"] == A and one([A, B], [0.6, 0.1])["verdict"] == B
    assert one([A, B], [0.9, 0.2])["tied"] and not one([A, B], [0.9, 0.2])["by_coin"]
    names = [str(i) for i in range(400)]
    tied = voting.vote([[A, B]] * 400, identities=names)
    assert tied.by_coin.all() and abs(tied.verdict.mean()) < 0.15, "fair"
    even = voting.vote([[A, B]] * 400, [[0.7, 0.3]] * 400, identities=names)
    assert np.array_equal(even.verdict, tied.verdict), "a mean of one half breaks no tie"
    assert np.array_equal(voting.vote([[A, B]] * 400, identities=names).verdict, tied.verdict)
    assert not np.array_equal(voting.vote([[A, B]] * 400, identities=names, seed=1).verdict, tied.verdict)


def test_pairs_without_a_verdict_have_none():
    found = one([NONE, NONE])
    assert found["verdict"] == NONE and found["share"] == 0 and found["failed"] == 2 and not found["tied"]
    assert math.isnan(found["soft"]) and math.isnan(found["probability"]) and math.isnan(found["agreement"])
    assert voting.codes([["A", "B", None]]).tolist() == [[A, B, NONE]]
    with pytest.raises(ValueError, match="same number of draws"):
        voting.codes([["A"], ["A", "B"]])


def test_votes_as_columns_of_rows():
    votes = voting.vote([[A, A, B], [NONE] * 3, [B, A, NONE]], [[0.9, 0.7, 0.4], [0.5] * 3, [0.1, 0.6, 0.5]])
    one, none, tied = voting.columns(votes)
    assert one["label"] == "A" and one["vote_share"] == pytest.approx(2 / 3) and one["failed"] == 0
    assert one["label_probability"] == pytest.approx(0.8) and one["agreement"] == pytest.approx(1 / 3)
    assert none["label"] is None and none["label_probability"] is None and none["agreement"] is None
    assert tied["label"] == "B" and tied["tied"] and tied["label_probability"] == pytest.approx(0.9)


def test_alternating_orders_cancel_a_judge_that_looks_at_the_place_only():
    names = [str(i) for i in range(300)]
    swapped = voting.presentation(names, 4)
    assert (swapped.sum(1) == 2).all() and (swapped[:, 0] == swapped[:, 2]).all()
    always_first = np.full(swapped.shape, A)
    votes = voting.vote(voting.in_original_order(always_first, swapped))
    assert votes.tied.all() and (votes.soft == 0.5).all()
    odd = voting.in_original_order(np.full((300, 3), A), voting.presentation(names, 3))
    assert abs(voting.vote(odd).verdict.mean()) < 0.2, "the odd draw favours no place on average"
    assert not voting.presentation(names, 3, "fixed").any()
    shares = voting.presentation(names, 4, "random").mean(0)
    assert (np.abs(shares - 0.5) < 0.1).all()
    p = voting.probability_in_original_order([[0.9, 0.9]], [[False, True]])
    np.testing.assert_allclose(p, [[0.9, 0.1]])


class Bigram:
    """A hand-built language model: the next token depends on the previous one and on what the context holds."""

    def __init__(self, size=6, seed=0):
        generator = np.random.default_rng(seed)
        self.table = generator.dirichlet(np.ones(size), size)
        self.size = size

    def probability(self, token, before, context):
        cache = (context.count(token) + 0.1) / (len(context) + 0.1 * self.size) if context else 1 / self.size
        return 0.6 * self.table[before][token] + 0.4 * cache

    def logprobs(self, proof, context):
        return [math.log(self.probability(t, b, context)) for b, t in zip([0, *proof], proof)]


def test_proof_scores_rank_as_the_bigram_model_does():
    """V13: masked sums over padded token log-probabilities against products of probabilities, one proof at a time."""
    model, generator = Bigram(), np.random.default_rng(1)
    context = [1, 1, 2, 4]
    proofs = [list(generator.integers(0, 6, generator.integers(3, 9))) for _ in range(8)]
    by_hand = []
    for proof in proofs:
        with_context = without = 1.0
        for before, token in zip([0, *proof], proof):
            with_context *= model.probability(token, before, context)
            without *= model.probability(token, before, [])
        by_hand.append(-math.log(with_context) / math.log(without))
    longest = max(map(len, proofs))

    def padded(given, fill):
        rows = [model.logprobs(proof, given) for proof in proofs]
        return np.array([row + [fill] * (longest - len(row)) for row in rows])

    mask = np.array([[1] * len(proof) + [0] * (longest - len(proof)) for proof in proofs])
    scores = voting.proof_score(padded(context, -7.0), padded([], 5.0), mask)
    np.testing.assert_allclose(scores, by_hand, atol=1e-6)
    assert list(np.argsort(scores)) == list(np.argsort(by_hand))
    np.testing.assert_allclose(voting.proof_score(padded([], 0), padded([], 0), mask), -1.0, atol=1e-6)

    sums = [(padded(given, 0) * mask).sum(1) for given in (context, [])]
    found = voting.select_proof(*sums, mask.sum(1))
    usable = [i for i, score in enumerate(by_hand) if score >= -1]
    assert usable and found.index == max(usable, key=by_hand.__getitem__)
    assert [not reason for reason in found.reasons] == [score >= -1 for score in by_hand]


def test_the_examples_of_equation_5():
    np.testing.assert_allclose(voting.proof_score([-50, -5, -60], [-50, -50, -50]), [-1.0, -0.1, -1.2])


def test_bad_proofs_are_not_selected():
    found = voting.select_proof(
        [-60, -0.001, -5, -1, -2], [-50, -0.004, -50, -50, 0], [10] * 5, ["", "", "", "leak", ""]
    )
    assert found.index == 2 and found.reasons == (voting.UNHELPFUL, voting.FLAT, "", "leak", voting.FLAT)
    none = voting.select_proof([-60.0], [-50.0], [10])
    assert none.index is None and none.reasons == (voting.UNHELPFUL,)
    assert voting.select_proof([-50.0, float("nan")], [-50.0, -50.0], [5, 5]).index == 0, "-1 itself is no reason"


def test_expected_accuracy_of_fewer_votes_lists_every_subset():
    """`subset_accuracy` against all subsets of the draws: alike, and as evenly from two orders as can be."""
    draws = ([1, 1, -1, 0, 1], [-1, -1, 0, 1])
    flat = [*draws[0], *draws[1]]

    def share(outcomes):
        return np.mean([1.0 if sum(o) > 0 else 0.5 if sum(o) == 0 and any(o) else 0.0 for o in outcomes])

    def counts(*groups):
        return tuple((g.count(1), g.count(-1), g.count(0)) for g in groups)

    for votes in range(1, len(flat) + 1):
        want = share(itertools.combinations(flat, votes))
        assert voting.subset_accuracy(counts(flat), votes) == pytest.approx(want, abs=1e-12)
        splits = [(a, votes - a) for a in range(6) if 0 <= votes - a <= 4]
        nearest = min(abs(a - b) for a, b in splits)
        wants = [
            share([x + y for x in itertools.combinations(draws[0], a) for y in itertools.combinations(draws[1], b)])
            for a, b in splits if abs(a - b) == nearest
        ]  # fmt: skip
        assert voting.subset_accuracy(counts(*draws), votes) == pytest.approx(np.mean(wants), abs=1e-12)
    with pytest.raises(ValueError, match="10 votes of"):
        voting.subset_accuracy(counts(*draws), 10)


def test_expected_accuracy_meets_the_binomial_curve_and_cancels_a_position():
    """Independent draws: their subsets follow V15 on average. A judge that takes whatever stands first: always 1/2."""
    generator = np.random.default_rng(1)
    right = generator.binomial(9, 0.7, 4000).tolist()
    for votes in (1, 2, 3, 5, 9):
        mean = np.mean([voting.subset_accuracy(((r, 9 - r, 0),), votes) for r in right])
        assert mean == pytest.approx(voting.majority_accuracy(0.7, votes), abs=0.01)
    assert {voting.subset_accuracy(((4, 0, 0), (0, 4, 0)), votes) for votes in range(1, 9)} == {0.5}
    assert voting.subset_accuracy(((0, 0, 3),), 2) == 0, "nothing readable is not half right"
