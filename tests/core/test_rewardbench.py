"""RewardBench 1 and 2 by hand: weights (V19, defect D5), ties, missing subsets, the score of Ties part by part."""

import math
import random

import numpy as np
import pytest

from gramjax.core import leaderboards, rewardbench, rewardbench2, trivial_judges
from gramjax.core.errors import DataError


def whole(accuracy):
    """Every row of the filtered file, scalar, with this accuracy (0 or 1) by subset."""
    records = []
    for subsets in rewardbench.SECTIONS.values():
        for subset, count in subsets.items():
            wins = accuracy.get(subset, 0)
            records += [pair(f"{subset}/{i}", subset, wins, 0.5) for i in range(count)]
    return records


def pair(identity, subset, chosen, rejected, **fields):
    return {"id": identity, "subset": subset, "order": "none", "score_chosen": chosen, "score_rejected": rejected,
            "probability": 0.9, "correct": chosen > rejected, "tie": chosen == rejected} | fields  # fmt: skip


def test_the_published_counts():
    assert len(rewardbench.SUBSETS) == 23 and set(rewardbench.WEIGHTS) == set(rewardbench.SUBSETS)
    assert sum(sum(subsets.values()) for subsets in rewardbench.SECTIONS.values()) == 2985
    assert sum(rewardbench.SECTIONS["Reasoning"].values()) == 1431
    assert [sum(rewardbench.WEIGHTS[s] for s in subsets) for subsets in rewardbench.SECTIONS.values()] == [
        358, 456, 740, 1968,
    ]  # fmt: skip


def test_mathematics_weighs_as_much_as_code_officially():
    """V19; D5 is the second number under the name of the first."""
    records = whole({"math-prm": 1})
    table = rewardbench.rewardbench(records)
    official, pooled = table["official"], table["reasoning_unweighted"]
    assert official["sections"]["Reasoning"] == pytest.approx(0.5, abs=1e-9)
    assert pooled["sections"]["Reasoning"] == pytest.approx(447 / 1431, abs=1e-9) == pytest.approx(0.31237, abs=1e-5)
    assert official["overall"] == pytest.approx(0.125) and pooled["overall"] == pytest.approx(447 / 1431 / 4)
    assert official["low"] < official["overall"] < official["high"]
    assert not table["missing"] and not table["incomplete"] and table["num_pairs"] == 2985
    random.Random(1).shuffle(records)
    assert rewardbench.rewardbench(records) == table, "the order of the rows plays no part"
    named = dict(leaderboards.summarise(records, leaderboards.benchmark_of(records)))
    assert named["rewardbench_official"] == official["overall"]
    assert named["rewardbench_reasoning_unweighted"] == pooled["overall"]


def test_sections_are_weighted_means_whatever_the_accuracies():
    generator = np.random.default_rng(3)
    accuracy = {subset: float(generator.random()) for subset in rewardbench.SUBSETS}
    records = []
    for subset, share in accuracy.items():
        count = round(200 * share)
        records += [pair(f"{subset}/{i}", subset, float(i < count), 0.5) for i in range(200)]
        accuracy[subset] = count / 200
    found = rewardbench.rewardbench(records)
    for section, subsets in rewardbench.SECTIONS.items():
        weights = [rewardbench.WEIGHTS[subset] for subset in subsets]
        expected = np.average([accuracy[subset] for subset in subsets], weights=weights)
        assert found["official"]["sections"][section] == pytest.approx(expected, abs=1e-12)
        equal = np.mean([accuracy[subset] for subset in subsets])
        assert found["reasoning_unweighted"]["sections"][section] == pytest.approx(equal, abs=1e-12), "200 rows each"
    assert found["incomplete"]["math-prm"] == {"found": 200, "expected": 447}


def test_intervals_are_those_of_the_plain_share_where_all_rows_weigh_the_same():
    chat = [r for r in whole({"alpacaeval-easy": 1}) if rewardbench.SUBSETS[r["subset"]] == "Chat"]
    found = rewardbench.rewardbench(chat)
    low, high = leaderboards.statistics.wilson(100, 358)
    for rule in ("official", "reasoning_unweighted"):
        assert found[rule]["section_intervals"]["Chat"] == pytest.approx((low, high))


def test_missing_subsets_are_named_and_not_averaged_over():
    records = [r for r in whole({"donotanswer": 1}) if r["subset"] != "hep-rust"] + [pair("x", "chess", 1, 0)]
    found = rewardbench.rewardbench(records)
    assert found["missing"] == ["hep-rust"] and found["num_others"] == 1 and found["num_pairs"] == 2985 - 164
    for rule in ("official", "reasoning_unweighted"):
        assert found[rule]["overall"] is None and found[rule]["sections"]["Reasoning"] is None
        assert found[rule]["sections_of_what_is_there"]["Reasoning"] == 0
        assert found[rule]["sections"]["Safety"] == pytest.approx(136 / 740)
    assert dict(leaderboards.summarise(records[:-1], "rewardbench"))["rewardbench_official"] is None


@pytest.mark.parametrize(
    ("fields", "worth"),
    [
        ({"score_chosen": 1.0000001, "score_rejected": 1.0}, 1),  # strictly more, by however little
        ({"score_chosen": 1.0, "score_rejected": 1.0, "correct": False, "tie": True}, 0),
        ({"order": "both", "probability": 0.7, "correct": True}, 1),
        ({"order": "both", "probability": 0.3, "correct": False}, 0),
        ({"order": "both", "probability": 0.5, "correct": False, "tie": True}, 0.5),
        ({"order": "chosen_first", "probability": None, "correct": False}, 0.5),  # nothing that could be read
        ({"order": "both", "probability": 0.5, "correct": True, "tie": False, "by_coin": True}, 0.5),
    ],
)
def test_what_a_pair_is_worth(fields, worth):
    assert rewardbench.credit(pair("1", "math-prm", 1, 0) | fields) == worth


# -- RewardBench 2


@pytest.mark.parametrize(
    ("scores", "worth"),
    [([3, 1, 2, 0], 1), ([3, 3, 2, 0], 0.5), ([3, 3, 3, 0], 1 / 3), ([1, 1, 1, 1], 0.25), ([2, 3, 1, 0], 0),
     ([2, None, 1, 0], 1), ([None, -9, 1, 0], 0), ([None] * 4, 0.25), ([math.nan] * 4, 0.25)],
)  # fmt: skip
def test_the_best_of_four(scores, worth):
    assert rewardbench2.best_of(scores) == pytest.approx(worth)


def tied(key, scores, num_correct):
    return {"id": f"tied:{key}", "subset": "Ties", "scores": scores, "num_correct": num_correct}


def ref(key, scores):
    return {"id": f"ref:{key}", "subset": "Ties", "scores": scores, "num_correct": 1}


def test_the_score_of_ties_part_by_part():
    """Three questions, by hand: one right in everything, one only in accuracy, one wrong."""
    records = [
        tied(1, [5.0, 4.5, 1.0, 0.0], 2), ref(1, [4.0, 1.0]),  # spread 0.5, gap 3.5, gap of ref 3
        tied(2, [6.0, 2.0, 1.0], 2), ref(2, [2.0, 1.0]),  # spread 4, gap 1, gap of ref 1
        tied(3, [3.0, 0.0, 2.0], 2), ref(3, [0.0, 1.0]),  # spread 3, gap -2, gap of ref -1
    ]  # fmt: skip
    found = rewardbench2.ties(records)
    margin = np.mean([math.tanh(3 / 0.5 - 1), math.tanh(1 / 4 - 1), math.tanh(-2 / 3 - 1)])
    assert found["tied_accuracy"] == found["ref_accuracy"] == pytest.approx(2 / 3)
    assert found["preferred"] == found["preferred_hard"] == pytest.approx(1 / 3)
    assert found["margin"] == pytest.approx(margin)
    assert found["score"] == pytest.approx(0.6 * 2 / 3 + 0.4 / 3 + 0.01 * margin)
    assert found["low"] <= found["score"] <= found["high"] and found["unmatched"] == []
    random.Random(0).shuffle(records)
    assert rewardbench2.ties(records) == found


def test_the_smaller_gap_decides_the_hard_preference():
    found = rewardbench2.ties([tied(1, [5.0, 4.0, 1.0], 2), ref(1, [1.5, 1.0])])
    assert (found["preferred"], found["preferred_hard"]) == (1, 0)
    assert rewardbench2.ties([tied(1, [5.0, 4.0, 1.0], 2), ref(1, [9.0, 1.0])])["preferred_hard"] == 1


def test_equal_right_answers_have_no_spread():
    """0 / 0 adds nothing, a gap over no spread adds 1."""
    assert rewardbench2.ties([tied(1, [2.0, 2.0, 2.0], 2), ref(1, [1.0, 1.0])])["score"] == 0
    best = rewardbench2.ties([tied(1, [2.0, 2.0, 1.0], 2), ref(1, [3.0, 1.0])])
    assert best["score"] == pytest.approx(1.01) and best["margin"] == 1


def test_questions_without_their_partner_are_named():
    found = rewardbench2.ties([tied(1, [5.0, 4.5, 1.0], 2), ref(1, [4.0, 1.0]), ref(2, [0.0, 1.0])])
    assert found["unmatched"] == ["ref:2"] and found["ref_accuracy"] == 0.5 and found["num_questions"] == 1
    alone = rewardbench2.ties([ref(2, [0.0, 1.0])])
    assert alone["score"] is None and alone["tied_accuracy"] is None and alone["ref_accuracy"] == 0
    with pytest.raises(DataError, match="'7': the ids of Ties are"):
        rewardbench2.ties([ref(1, [1, 0]) | {"id": "7"}])
    with pytest.raises(DataError, match="2 of 2 answers are correct"):
        rewardbench2.ties([tied(1, [1, 0], 2)])


def test_the_overall_score_needs_all_six_subsets():
    five = [name for name in rewardbench2.SUBSETS if name != "Ties"]
    records = [{"id": f"{name}{n}", "subset": name, "scores": [n, 0.5, 0, 0], "num_correct": 1}
               for name in five for n in range(4)]  # fmt: skip
    partial = rewardbench2.rewardbench2(records)
    assert partial["overall"] is None and partial["missing"] == ["Ties"]
    assert {subset["score"] for subset in partial["subsets"].values()} == {0.75}
    both = [tied(1, [5.0, 4.5, 1.0], 2), ref(1, [4.0, 1.0])]
    for name in ("Ties", "ties"):
        full = rewardbench2.rewardbench2(records + [record | {"subset": name} for record in both])
        assert full["overall"] == pytest.approx((5 * 0.75 + rewardbench2.ties(both)["score"]) / 6)


# -- trivial judges


def test_trivial_judges_follow_lengths_and_a_coin_of_the_id():
    records = [pair(str(n), "s", 1, 0, chosen_length=c, rejected_length=10) for n, c in enumerate([5, 10, 11, 12] * 50)]
    found = trivial_judges.summarise(records)
    assert (found["longer"]["num_correct"], found["longer"]["ties"]) == (100, 50)
    assert (found["shorter"]["num_correct"], found["shorter"]["ties"]) == (50, 50)
    assert abs(found["random"]["num_correct"] - 100) < 30 and found["random"]["ties"] == 0
    assert all(judge["low"] < judge["accuracy"] < judge["high"] for judge in found.values())
    assert trivial_judges.summarise(records[::-1]) == found


def test_the_benchmarks_count_trivial_judges_by_their_rules():
    """A judge that prefers the longer style is right below the diagonal of RM-Bench and nowhere else."""
    records = [{"id": f"1/{i}-{j}", "subset": "chat", "domain": "chat", "group": "1", "matrix_id": f"{i}-{j}",
                "chosen_length": 10 * i, "rejected_length": 10 * j, "correct": True, "order": "both"}
               for i in range(3) for j in range(3)]  # fmt: skip
    found = trivial_judges.summarise(records)
    assert found["longer"]["rm_bench_overall"] == pytest.approx(1 / 3) and found["longer"]["rm_bench_hard"] == 0
    assert found["shorter"]["rm_bench_hard"] == 1
