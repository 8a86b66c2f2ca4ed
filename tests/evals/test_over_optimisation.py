"""GRAM's check S5: a proxy that can be exploited loses what it promises, a debiased judge of pairs does not.

Every response has a true score g and an exploitable feature; the proxy is g + noise whose spread grows with the
feature, so that the largest proxies are the most exaggerated ones. The judge of pairs weighs each response by how far
its proxy can be trusted, E[g | proxy, feature], and leans to whatever stands first; both orders are averaged.
"""

import numpy as np
import pytest

from gramjax.core import ranking, statistics
from gramjax.evals import best_of_n

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
LISTS = 3000


@pytest.fixture(scope="module")
def world():
    """True scores, proxies, and the judge's worth of every response [lists, 128]."""
    rng = np.random.default_rng(0)
    gold, feature, noise = rng.normal(size=(3, LISTS, SIZES[-1]))
    spread = np.exp(1.5 * feature)
    proxy = gold + spread * noise
    return gold, proxy, proxy / (1 + spread**2)


def best(score, size):
    """Where the largest of the first `size` scores stands."""
    return np.argmax(score[:, :size], axis=1)


def curve(score, value):
    """Mean value of what a score chooses, by size."""
    return np.array([value[np.arange(LISTS), best(score, size)].mean() for size in SIZES])


def judge(worth, bias=3.0):
    """Win probabilities by a judge that leans to the first, both orders averaged (equation 4)."""

    def compare(pairs):
        margins = np.array([worth[i] - worth[j] for i, j in pairs])
        return list(statistics.margin_score(margins + bias, -margins + bias).score)

    return compare


def test_the_proxy_is_over_optimised_and_the_judge_of_pairs_is_not(world):
    gold, proxy, worth = world
    promised, kept, debiased = curve(proxy, proxy), curve(proxy, gold), curve(worth, gold)
    assert np.all(np.diff(promised) > 0), "the proxy rises with every doubling ..."
    peak = int(np.argmax(kept))
    assert 0 < peak < len(SIZES) - 1 and kept[peak] - kept[-1] > 0.1, "... and what it is worth falls after a while"
    assert np.all(np.diff(debiased) > 0) and debiased[-1] > kept.max() + 0.5
    assert debiased[-1] > 0.6 * curve(gold, gold)[-1], "it follows the true score"


@pytest.mark.parametrize("method", ranking.METHODS)
def test_the_choice_of_the_judge_does_not_depend_on_its_lean_or_on_the_way_of_asking(world, method):
    _, _, worth = world
    for number in range(20):
        found = ranking.rank(16, judge(worth[number]), method, seed=number, top=1)
        assert found.order[0] == np.argmax(worth[number, :16])


def test_one_order_of_a_leaning_judge_chooses_worse(world):
    """Without the average the lean decides: the scan keeps what it had."""
    gold, _, worth = world

    def one_order(number):
        return lambda pairs: [float(statistics.sigmoid(worth[number, i] - worth[number, j] + 3.0)) for i, j in pairs]

    chosen = [ranking.rank(16, one_order(number), "linear", number, top=1).order[0] for number in range(300)]
    kept = np.mean([gold[number, item] for number, item in enumerate(chosen)])
    assert kept < curve(worth, gold)[SIZES.index(16)] - 0.3


def test_the_axis_is_the_divergence_from_the_policy():
    """log n - (n - 1) / n: published values, and the divergence of the law of the best from that of one sample."""
    table = {1: 0.0, 4: 0.636, 16: 1.835, 64: 3.175, 128: 3.860, 405: 5.006}
    for count, value in table.items():
        assert ranking.kl(count) == pytest.approx(value, abs=6e-4)
        # the rank u of the best of n has density n u^(n-1), that of one sample is uniform
        u = (np.arange(1_000_000) + 0.5) / 1_000_000
        log_ratio = np.log(count) + (count - 1) * np.log(u)
        assert ranking.kl(count) == pytest.approx(np.mean(np.exp(log_ratio) * log_ratio), abs=1e-6)


def test_the_curve_of_the_evaluation_says_where_it_turned(world):
    """`summarise` on these choices: peak, loss and axis."""
    gold, proxy, _ = world
    records = []
    for number in range(800):
        selections = []
        for size in SIZES:
            item = int(np.argmax(proxy[number, :size]))
            seen = gold[number, :size]
            selections.append({"n": size, "selected": item, "proxy": proxy[number, item], "oracle": seen[item],
                               "oracle_mean": seen.mean(), "oracle_best": seen.max(),
                               "num_comparisons": 0})  # fmt: skip
        counts = dict.fromkeys(("num_comparisons", "num_sequences", "num_proxy_sequences", "num_judged",
                                "num_consistent", "shortened", "reference_given"), 0)  # fmt: skip
        records.append({"num_responses": SIZES[-1], "selections": selections, **counts})
    found = dict(best_of_n.summarise(records, samples=50))
    oracle = [point["oracle"] for point in found["points"]]
    assert found["oracle_peak_n"] == SIZES[int(np.argmax(oracle))] < SIZES[-1]
    assert found["oracle_lost"] == pytest.approx(max(oracle) - oracle[-1]) and found["proxy_gain"] > 0
    assert [point["kl"] for point in found["points"]] == [ranking.kl(size) for size in SIZES]
    assert found["oracle_share"] == pytest.approx(
        (oracle[-1] - gold[:800].mean()) / (gold[:800].max(axis=1).mean() - gold[:800].mean())
    )
