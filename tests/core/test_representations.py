"""Similarity, selection and probes of vectors, against plain formulas; margins and their agreement."""

import numpy as np
import pytest

from gramjax.core import margins, representations
from gramjax.core.errors import UserError

RNG = np.random.default_rng(0)
POOL, TARGET = RNG.normal(size=(50, 6)) + 3, RNG.normal(size=(7, 6)) + 3.5


def cosines(one, two):
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    return unit(one) @ unit(two).T


@pytest.mark.smoke
def test_scores_are_means_of_the_largest_cosines_after_the_mean_of_the_pool_is_taken_off():
    seen = representations.space(POOL)
    mean = POOL.mean(axis=0)
    plain = cosines(POOL - mean, TARGET - mean)
    np.testing.assert_allclose(
        representations.scores(POOL, TARGET, seen, 3), np.sort(plain, axis=1)[:, -3:].mean(axis=1), atol=1e-5
    )
    np.testing.assert_allclose(representations.scores(POOL, TARGET, seen, 99), plain.mean(axis=1), atol=1e-5)
    unit = (TARGET - mean) / np.linalg.norm(TARGET - mean, axis=1, keepdims=True)
    centred = cosines(POOL - mean, unit.mean(axis=0, keepdims=True))[:, 0]
    np.testing.assert_allclose(representations.scores(POOL, TARGET, seen, 3, centroid=True), centred, atol=1e-5)


def test_small_pieces_give_the_same_scores(monkeypatch):
    seen = representations.space(POOL, shrinkage=0.2)
    whole = [representations.scores(POOL, TARGET, seen, 3, d) for d in ("cosine", "mahalanobis")]
    inside = representations.left_out_scores(TARGET, seen, 3)
    monkeypatch.setattr(representations, "MOST", 9)  # one row at a time
    small = [representations.scores(POOL, TARGET, seen, 3, d) for d in ("cosine", "mahalanobis")]
    np.testing.assert_allclose(whole, small, atol=1e-5)
    np.testing.assert_allclose(inside, representations.left_out_scores(TARGET, seen, 3), atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "mahalanobis"])
@pytest.mark.parametrize("centroid", [False, True])
def test_left_out_scores_are_those_of_a_target_set_without_the_row(distance, centroid):
    seen = representations.space(POOL, shrinkage=0.3 if distance == "mahalanobis" else None)
    found = representations.left_out_scores(TARGET, seen, 3, distance, centroid)
    for i in range(len(TARGET)):
        rest = np.delete(TARGET, i, axis=0)
        alone = representations.scores(TARGET[i : i + 1], rest, seen, 3, distance, centroid)
        np.testing.assert_allclose(found[i], alone[0], atol=1e-4)


def test_deflation_removes_one_direction_and_mahalanobis_distances_are_those_of_the_shrunk_covariance():
    w = np.array([1.0, 2, 0, 0, 0, 0])
    seen = representations.space(POOL, w)
    np.testing.assert_allclose(seen.project(POOL) @ w, 0, atol=1e-4)
    moved = representations.scores(POOL + np.outer(RNG.normal(size=50), w), TARGET, seen, 3)
    np.testing.assert_allclose(moved, representations.scores(POOL, TARGET, seen, 3), atol=1e-4)
    covariance = np.cov(POOL.T, bias=True)
    shrunk = 0.8 * covariance + 0.2 * np.trace(covariance) / 6 * np.eye(6)
    difference = POOL[:, None] - TARGET[None]
    distances = np.sqrt(np.einsum("nmp,pq,nmq->nm", difference, np.linalg.inv(shrunk), difference))
    found = representations.scores(POOL, TARGET, representations.space(POOL, shrinkage=0.2), 1, "mahalanobis")
    np.testing.assert_allclose(found, -distances.min(axis=1), rtol=1e-3)


def greedy(vectors, relevance, count, diversity):
    """The definition, without any bookkeeping."""
    near = np.maximum(vectors @ vectors.T, 0)
    chosen, value = [], lambda s: (1 - diversity) * relevance[s].sum() + diversity * count / len(near) * (
        near[s].max(axis=0).sum() if s else 0.0
    )
    for _ in range(count):
        rest = [i for i in range(len(vectors)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (round(value([*chosen, i]), 9), -i)))
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.4, 1.0])
def test_facility_location_is_greedy_and_without_diversity_the_budget(diversity):
    vectors = representations.unit(RNG.normal(size=(30, 4)))
    relevance = RNG.random(30)
    found = representations.facility_location(vectors, relevance, 8, diversity)
    assert list(found) == greedy(vectors, relevance, 8, diversity)
    if not diversity:
        assert list(found) == list(representations.best(relevance, 8))


def test_coverage_leaves_out_copies():
    vectors = representations.unit(np.array([[1.0, 0.01 * i] for i in range(5)] + [[0.0, 1.0], [-1.0, 0.0]]))
    relevance = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.4])
    spread = representations.facility_location(vectors, relevance, 3, 0.9)
    assert {5, 6} < set(spread) and list(representations.best(relevance, 3)) == [0, 1, 2]


def test_effective_rank_counts_directions():
    turned, _ = np.linalg.qr(RNG.normal(size=(12, 12)))
    points = RNG.normal(size=(4000, 3)) @ turned[:3]
    assert representations.effective_rank(points) == pytest.approx(3, abs=0.02)
    line = np.outer(RNG.normal(size=100), turned[0])
    assert representations.effective_rank(line) == pytest.approx(1, abs=1e-3)


def test_the_plane_is_that_of_the_singular_vectors():
    points, shares = representations.plane(POOL)
    _, values, directions = np.linalg.svd(POOL - POOL.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs((POOL - POOL.mean(axis=0)) @ directions[:2].T), atol=1e-8)
    np.testing.assert_allclose(shares, (values**2 / np.sum(values**2))[:2])


def test_ridge_and_the_probe():
    x = RNG.normal(size=(300, 5)) * np.array([1, 10, 0.1, 1, 0]) + 2
    y = x[:, 0] - 0.3 * x[:, 1] + 5
    np.testing.assert_allclose(representations.ridge(x, y, 1e-9)(x), y, atol=1e-6)
    np.testing.assert_allclose(representations.ridge(x, y, 1e12)(x), np.full(300, y.mean()), atol=1e-3)
    labels = ["a" if value > 2 else "b" for value in x[:, 0]]
    assert representations.probe_accuracy(x, labels) > 0.93
    shuffled = list(RNG.permutation(labels))
    assert 0.35 < representations.probe_accuracy(x, shuffled) < 0.65, "held out: nothing is learned by heart"
    assert representations.probe_accuracy(x, ["a"] * 300) is None


# -- margins -----------------------------------------------------------------------------------------------------------


def test_correlations_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    one = RNG.integers(0, 5, 60)
    two = one + RNG.normal(size=60) * 2
    assert margins.pearson(one, two) == pytest.approx(stats.pearsonr(one, two).statistic)
    assert margins.spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic)
    np.testing.assert_allclose(margins.ranks(one), stats.rankdata(one))
    assert margins.spearman(np.ones(4), two[:4]) == 0


def test_larger_of_two_counts_pairs_of_pairs():
    assert margins.larger_of_two([1, 2, 3], [10, 20, 30]) == 1
    assert margins.larger_of_two([1, 2, 3], [30, 20, 10]) == 0
    assert margins.larger_of_two([1, 1, 1], [1, 2, 3]) == 0.5
    assert margins.larger_of_two([2, 1, 5], [1, 1, 3]) == 1, "pairs with the same true margin do not count"
    predicted, true = RNG.normal(size=(2, 3000))
    assert margins.larger_of_two(predicted, true) == pytest.approx(0.5, abs=0.02)


def test_standardisation_and_back():
    rows = [{"id": str(i), "subset": "ab"[i % 2], "margin": float(i * (1 + i % 2))} for i in range(20)]
    found = margins.standardisation(rows)
    for name in "ab":
        mine = [found.standard(row) for row in rows if row["subset"] == name]
        np.testing.assert_allclose([np.mean(mine), np.std(mine)], [0, 1], atol=1e-9)
    for row in rows:
        assert found.restored(row, found.standard(row)) == pytest.approx(row["margin"])
    unknown = {"id": "x", "subset": "new", "margin": 3.0}
    every = [row["margin"] for row in rows]
    assert found.standard(unknown) == pytest.approx((3 - np.mean(every)) / np.std(every)), "the numbers of all"
    assert margins.Standardisation().standard(unknown) == 3.0
    same = margins.standardisation([{"id": "x", "margin": 2.0}] * 3)
    assert same.scales == (1.0, 1.0)
    with pytest.raises(UserError, match="row q"):
        margins.standardisation([{"id": "q"}])


def test_order_correlation_is_one_for_an_antisymmetric_reader_and_falls_when_orders_disagree():
    u = RNG.normal(size=500) + 1
    assert margins.order_correlation(u, -u) == pytest.approx(1)
    assert margins.order_correlation(u + 5, -u + 5) == pytest.approx(1), "a constant effect is seen elsewhere"
    effect = RNG.normal(size=500)
    assert 0.2 < margins.order_correlation(u + effect, -u + effect) < 0.8
    assert margins.order_correlation(np.full(500, 2.0) + u * 0.01, np.full(500, 2.0) + u * 0.01) < 0
