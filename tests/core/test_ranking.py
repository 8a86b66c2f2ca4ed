"""Rankings by a judge of pairs (V12): one answer for a score, what circles do, what it costs."""

import numpy as np
import pytest

from gramjax.core import ranking
from gramjax.core.errors import UserError
from gramjax.core.statistics import sigmoid


class Judge:
    """A comparator that counts its calls: by a score per item, or by a table of win probabilities."""

    def __init__(self, score=None, table=None):
        self.score, self.table, self.calls, self.pairs = score, table, 0, []

    def __call__(self, pairs):
        self.calls += 1
        self.pairs += pairs
        if self.table is not None:
            return [self.table[i, j] for i, j in pairs]
        return [float(sigmoid(self.score[i] - self.score[j])) for i, j in pairs]


@pytest.mark.parametrize("method", ranking.METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_a_score_is_followed_by_every_method(method, count):
    """V12: the first is the argmax, the whole order that of the scores, whatever the shuffle."""
    for seed in range(4):
        score = np.random.default_rng(seed).normal(0, 2, count)
        judge = Judge(score)
        found = ranking.rank(count, judge, method, seed)
        assert found.order[0] == np.argmax(score)
        assert found.order == tuple(np.argsort(-score))
        assert found.comparisons == len(judge.pairs) == len(set(judge.pairs)), "no pair is asked about twice"
        assert all(i < j for i, j in judge.pairs)
        top = ranking.rank(count, Judge(score), method, seed, top=1)
        assert top.order == found.order[:1]


def test_what_the_best_item_costs():
    for count in (2, 3, 8, 13):
        score = np.arange(count)
        judges = {method: Judge(score) for method in ranking.METHODS}
        cost = {method: ranking.rank(count, judge, method, top=1).comparisons for method, judge in judges.items()}
        assert cost == {"linear": count - 1, "knockout": count - 1, "round_robin": count * (count - 1) // 2}
        assert judges["linear"].calls == count - 1 and judges["round_robin"].calls == 1
        assert judges["knockout"].calls == int(np.ceil(np.log2(count)))


def test_a_circle_makes_the_scan_depend_on_the_order_and_ties_the_tournament():
    """V12: 0 beats 1 beats 2 beats 0."""
    table = {(0, 1): 0.9, (1, 2): 0.9, (0, 2): 0.1}
    for method in ("linear", "knockout"):
        assert {ranking.rank(3, Judge(table=table), method, seed, top=1).order[0] for seed in range(20)} == {0, 1, 2}
    for seed in range(5):
        assert ranking.rank(3, Judge(table=table), "round_robin", seed).wins == pytest.approx([0.5, 0.5, 0.5])
    firsts = {ranking.rank(3, Judge(table=table), "round_robin", seed).order[0] for seed in range(20)}
    assert firsts == {0, 1, 2}, "equals are ordered by the shuffle, not by their place in the list"


def test_round_robin_is_the_same_for_a_list_in_another_order():
    """Intransitive on purpose: item 0 narrowly loses to 1 but beats the others clearly."""
    names = "abcd"
    wins = {("a", "b"): 0.45, ("a", "c"): 0.9, ("a", "d"): 0.9, ("b", "c"): 0.2, ("b", "d"): 0.4, ("c", "d"): 0.45}

    def ordered(listed):
        def compare(pairs):
            return [wins.get((listed[i], listed[j]), 1 - wins.get((listed[j], listed[i]), 0)) for i, j in pairs]

        return "".join(listed[i] for i in ranking.rank(4, compare, "round_robin").order)

    assert {ordered(listed) for listed in (names, names[::-1], "bdac")} == {"acdb"}


@pytest.mark.parametrize("method", ranking.METHODS)
def test_ties_are_no_wins(method):
    """A judge that never decides: every item equally often first, over the shuffles."""
    firsts = [ranking.rank(3, lambda pairs: [0.5] * len(pairs), method, seed, top=1).order[0] for seed in range(300)]
    assert all(70 < firsts.count(item) < 130 for item in range(3))
    assert ranking.rank(3, lambda pairs: [0.5] * len(pairs), method).wins in ((0.5,) * 3,)


def test_many_rankings_share_batches_and_change_nothing():
    scores = [np.random.default_rng(n).normal(size=n + 1) for n in range(6)]
    calls = []

    def compare(pairs):
        calls.append(len({number for number, _ in pairs}))
        return [float(sigmoid(scores[number][i] - scores[number][j])) for number, (i, j) in pairs]

    for method in ranking.METHODS:
        calls.clear()
        found = ranking.together([ranking.asking(len(s), method, 3, str(n)) for n, s in enumerate(scores)], compare)
        alone = [
            ranking.together([ranking.asking(len(s), method, 3, str(n))],
                             lambda pairs, n=n: compare([(n, pair) for _, pair in pairs]))[0]
            for n, s in enumerate(scores)
        ]  # fmt: skip
        assert found == alone and max(calls) == 5


def test_auto_is_a_tournament_for_short_lists():
    assert ranking.rank(16, Judge(np.arange(16)), top=1).comparisons == 120
    assert ranking.rank(17, Judge(np.arange(17)), top=1).comparisons == 16


def test_wrong_answers_and_names_are_refused():
    with pytest.raises(UserError, match="auto, linear"):
        ranking.rank(3, Judge([1, 2, 3]), "best")
    with pytest.raises(ValueError, match="empty"):
        ranking.rank(0, Judge([]))
    for wrong in (float("nan"), 1.5):
        with pytest.raises(ValueError, match="win probability"):
            ranking.rank(2, lambda pairs, wrong=wrong: [wrong])
    with pytest.raises(ValueError, match="1 pairs .* 0 answers"):
        ranking.rank(2, lambda pairs: [])
