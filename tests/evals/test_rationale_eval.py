"""The evaluation by drawn rationales: its numbers follow from the rows it writes; nothing unreadable is right."""

import collections
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import written_judge as written  # noqa: E402

from gramjax.core import statistics, voting  # noqa: E402
from gramjax.core.errors import DataError, UserError  # noqa: E402
from gramjax.data import readers  # noqa: E402
from gramjax.data.judge_prompts import in_random_order  # noqa: E402
from gramjax.evals import rationale  # noqa: E402


def rows(count=30):
    found = readers.read(f"recipe:permutation_world:valid:{count}", want="preference").rows
    return [{**row, "subset": "odd" if place % 2 else "even"} for place, row in enumerate(found)]


def run(given=None, sampler=None, n=4, **settings):
    """(metrics, rows written)."""
    given, out = rows() if given is None else given, []
    choices = {name: settings.pop(name) for name in ("order", "overlong", "temperature") if name in settings}
    config = rationale.Config(judging=written.judging(n, **choices), bootstrap_samples=20, **settings)
    metrics = dict(rationale.evaluate(sampler or written.sampler(), given, config, out.append))
    json.dumps([metrics, out], allow_nan=False)
    return metrics, out


def test_numbers_follow_from_the_rows():
    """Everything counted again from the draws alone."""
    metrics, written_rows = run(sampler=written.sampler(unreadable=-1.0), n=5)
    assert [r["id"] for r in written_rows] == [row["id"] for row in rows()]
    right = 0
    for r in written_rows:
        votes = collections.Counter(draw["verdict"] for draw in r["judgements"])
        other = "B" if r["gold"] == "A" else "A"
        if votes[r["gold"]] != votes[other]:
            assert r["correct"] == (votes[r["gold"]] > votes[other]) and not r["tied"]
        right += r["correct"]
        assert (r["votes_a"], r["votes_b"], r["failed"]) == (votes["A"], votes["B"], votes[None])
        readable = [d["probability"] for d in r["judgements"] if d["probability"] is not None]
        of_chosen = [p if r["gold"] == "A" else 1 - p for p in readable]
        assert r["probability"] == pytest.approx(np.mean(of_chosen))
        assert r["score_chosen"] == votes[r["gold"]] / (votes["A"] + votes["B"])
        assert all("<answer>" in draw["reply"] for draw in r["judgements"]), "rationales are kept"
    draws = [draw for r in written_rows for draw in r["judgements"]]
    assert metrics["accuracy"] == right / 30 and metrics["num_draws"] == len(draws) == 150
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == statistics.wilson(right, 30)
    assert metrics["num_unreadable"] == sum(d["verdict"] is None for d in draws) > 10
    assert metrics["unreadable_share"] == metrics["num_unreadable"] / 150
    assert metrics["num_tied"] == sum(r["tied"] for r in written_rows) > 0
    assert metrics["num_tied_by_probability"] + metrics["num_tied_by_coin"] == metrics["num_tied"]
    assert metrics["mean_tokens"] == np.mean([d["tokens"] for d in draws])
    for name, column in (("accuracy_probability", "probability"), ("accuracy_vote_share", "score_chosen")):
        assert metrics[name] == np.mean([r[column] > 0.5 for r in written_rows])
    same = [
        np.mean([a == b for a, b in itertools.combinations([d["verdict"] for d in r["judgements"] if d["verdict"]], 2)])
        for r in written_rows if r["failed"] < 4
    ]  # fmt: skip
    assert metrics["agreement"] == pytest.approx(np.mean(same))
    assert {name: group["num_pairs"] for name, group in metrics["subsets"].items()} == {"even": 15, "odd": 15}
    assert sum(entry["num_pairs"] for entry in metrics["votes_for_chosen"]) == 30


def test_the_letter_says_nothing_about_which_is_chosen():
    """A is the chosen response for about half of the pairs, by seed and id; the judge sees each order as often."""
    _, found = run(rows(60), n=2)
    letters = collections.Counter(r["gold"] for r in found)
    assert 18 < letters["A"] < 42
    assert [r["gold"] for r in found] == [in_random_order(row)["label"] for row in rows(60)]
    assert [r["gold"] for r in run(rows(60), n=1, seed=1)[1]] != [r["gold"] for r in found]
    for r in found:
        assert [d["swapped"] for d in r["judgements"]] in ([True, False], [False, True])
    first = [r["judgements"][0]["swapped"] == (r["gold"] == "B") for r in found]
    assert 18 < sum(first) < 42, "one draw alone shows the chosen response first half of the time"


def test_a_judge_that_takes_the_first():
    """Two votes each way: chance by coin or probability, never consistent, and more votes buy nothing."""
    metrics, found = run(sampler=written.sampler(lean=16.0, content=0.0))
    assert metrics["swap_consistency"] == 0 and metrics["num_tied"] == 30
    assert metrics["position_bias"] == pytest.approx(1, abs=1e-3)
    assert all(r["games"] == [1, -1] and r["score_chosen"] == 0.5 for r in found)
    assert metrics["accuracy_vote_share"] == 0 and {e["accuracy"] for e in metrics["votes_curve"]} == {0.5}
    assert metrics["agreement"] == pytest.approx(1 / 3)
    fixed, _ = run(sampler=written.sampler(lean=16.0, content=0.0), order="fixed")
    letters = np.mean([r["gold"] == "A" for r in found])
    assert fixed["accuracy"] == letters and fixed["agreement"] == 1 and fixed["swap_consistency"] is None
    assert "one order" in fixed["notes"]["position"]


def test_unreadable_replies_are_wrong_and_counted():
    metrics, found = run(rows(8), written.sampler(unreadable=40.0))
    assert (metrics["accuracy"], metrics["num_undecided"], metrics["unreadable_share"]) == (0, 8, 1)
    assert metrics["agreement"] is None and metrics["accuracy_one_draw"] == 0
    assert all(r["label"] is None and r["probability"] is None and not r["correct"] for r in found)
    assert [e["binomial"] for e in metrics["votes_curve"]] == [0] * 4


def test_the_curve_of_votes():
    """One vote: the share of right draws. All of them: the majority, with half of the ties. Beside it the binomial."""
    metrics, found = run(n=5)
    curve = metrics["votes_curve"]
    assert [entry["votes"] for entry in curve] == [1, 2, 3, 4, 5]
    draws = [d["verdict"] == r["gold"] for r in found for d in r["judgements"]]
    by_order = [
        [d["verdict"] == r["gold"] for d in r["judgements"] if d["swapped"] == s] for r in found for s in (0, 1)
    ]
    assert curve[0]["accuracy"] == pytest.approx(np.mean([np.mean(part) for part in by_order]))
    assert abs(curve[0]["accuracy"] - np.mean(draws)) < 0.05 and metrics["accuracy_one_draw"] == curve[0]["accuracy"]
    assert metrics["num_tied"] == 0 and curve[4]["accuracy"] == pytest.approx(metrics["accuracy"])
    for entry in curve:
        assert entry["binomial"] == voting.majority_accuracy(curve[0]["accuracy"], entry["votes"])
    even, records = run(n=4)
    ties = sum(r["tied"] for r in records)
    decided = sum(r["correct"] and not r["tied"] for r in records)
    assert ties > 0 and even["votes_curve"][3]["accuracy"] == pytest.approx((decided + ties / 2) / 30)


def test_the_order_of_rows_and_the_slots_change_nothing():
    reference, found = run()
    other, turned = run(rows()[::-1], written.sampler(slots=3))
    assert [r["id"] for r in turned] == [r["id"] for r in found][::-1]
    for name, value in reference.items():
        assert other[name] == pytest.approx(value, abs=1e-5) if isinstance(value, float) else name in other
    assert [r["correct"] for r in turned[::-1]] == [r["correct"] for r in found]


def test_long_pairs_are_shortened_or_dropped_with_a_count():
    given = rows(4) + [{**rows(1)[0], "id": "long", "chosen": "Out: d f a k " * 30}]
    metrics, found = run(given)
    assert metrics["num_shortened"] == 1 and [r["shortened"] for r in found] == [False] * 4 + [True]
    metrics, found = run(given, overlong="drop")
    assert metrics["num_skipped"] == 1 and len(found) == metrics["num_pairs"] == 4
    (reason,) = metrics["skipped"]
    assert metrics["skipped"][reason] == {"count": 1, "first": "long"} and "max_length 48" in reason
    with pytest.raises(DataError, match="0 of 1 preference pairs can be judged: 1 longer"):
        run(given[-1:], overlong="drop")


def benchmark_rows():
    """Two RM-Bench prompts and a JudgeBench set made of the world's pairs."""
    cells = list(itertools.product(range(3), range(3)))
    matrix = [
        {**row, "id": f"{p}/{i}-{j}", "domain": ("chat", "safety-refuse")[p], "group": str(p), "matrix_id": f"{i}-{j}"}
        for p in range(2) for (i, j), row in zip(cells, rows(18)[9 * p :], strict=False)
    ]  # fmt: skip
    sources = ("mmlu-pro-law", "livebench-math")
    judged = [{**row, "pair_id": row["id"], "source": sources[n % 2]} for n, row in enumerate(rows(12))]
    return matrix, judged


def test_benchmarks_are_counted_by_their_rules():
    matrix, judged = benchmark_rows()
    metrics, found = run(matrix)
    table = metrics["rm_bench"]
    assert table["num_prompts"] == 2 and metrics["rm_bench_overall"] == pytest.approx(metrics["accuracy"])
    for p, domain in enumerate(("chat", "safety")):
        right = np.array([r["correct"] for r in found[9 * p : 9 * p + 9]]).reshape(3, 3)
        assert table["domains"][domain]["matrix"] == right.astype(float).tolist()
    assert "judgebench" not in metrics and "rm_bench" not in run(matrix, benchmark="none")[0]
    metrics, found = run(judged, n=2)
    games = [r["games"] for r in found]
    for r in found:  # one draw in each order: its verdict is the game
        for game, shown_first in zip(r["games"], (True, False)):
            (draw,) = [d for d in r["judgements"] if (d["swapped"] == (r["gold"] == "B")) == shown_first]
            assert game == (1 if draw["verdict"] == r["gold"] else -1)
    assert metrics["judgebench_official"] == np.mean([sum(pair) > 0 for pair in games])
    assert metrics["judgebench_averaged"] == metrics["accuracy_probability"]
    assert set(metrics["judgebench"]["official"]["categories"]) == {"knowledge", "math"}
    with pytest.raises(UserError, match="benchmark judgebench needs"):
        run(matrix, benchmark="judgebench")


def test_a_model_without_a_vocabulary_head_is_refused():
    sampler = written.sampler()
    config = dataclasses.replace(sampler.model.config, heads=("score",))
    without = dataclasses.replace(sampler, model=dataclasses.replace(sampler.model, config=config))
    with pytest.raises(UserError, match="head 'tokens'"):
        run(sampler=without)


def test_logits_are_finite_where_probabilities_are_not_inside():
    assert rationale._logit(1.0) == -rationale._logit(0.0) == pytest.approx(-math.log(1e-12))
    assert rationale._logit(0.75) == pytest.approx(math.log(3)) and rationale._logit(None) is None
