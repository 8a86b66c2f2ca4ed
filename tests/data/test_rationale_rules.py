"""Rules of a self-training round (V17): one bad fixture per rule is rejected for that rule; a good one passes."""

import math

import pytest

from gramjax.core import voting
from gramjax.core.errors import UserError
from gramjax.data import rationale_rules as rules_of
from gramjax.data import rationales
from gramjax.data.rationale_rules import Rules

GOOD = rationales.render_rationale(
    rationales.rationale("Adds the numbers.\nSays so.", "Subtracts them.", "Only Response A did what was asked.", "A")
)


def words(text):
    return len(text.split())


def reason(reply, label="A", **settings):
    return rules_of.broken(reply, label, Rules(**settings), words)


def test_a_good_rationale_passes():
    assert reason(GOOD) == "" and reason(f"{GOOD}\n", max_tokens=words(GOOD)) == ""
    free = GOOD.replace("Response A: ", "The first: ").replace("Response A is better.", "I prefer Response A.")
    assert reason(free) == "", "a model need not write the rendered form inside the sections"


BAD = {
    rules_of.TOO_LONG: GOOD.replace("Says so.", "very " * 1024),
    rules_of.NO_THINK: GOOD.replace("<think>\n", ""),
    rules_of.MANY_THINKS: GOOD.replace("<answer>", "<think>hm</think>\n<answer>"),
    rules_of.NO_ANSWER: GOOD.partition("<answer>")[0],
    rules_of.MANY_ANSWERS: GOOD + "<answer>A</answer>",
    rules_of.OUT_OF_ORDER: "<answer>A</answer>\n" + GOOD.partition("\n<answer>")[0],
    rules_of.OUTSIDE: "Sure. " + GOOD,
    rules_of.BAD_ANSWER: GOOD.replace("<answer>A", "<answer>A or B"),
    rules_of.OTHER_LABEL: GOOD.replace("<answer>A", "<answer>B"),
    rules_of.NO_SECTIONS: GOOD.replace("Comparision:", "Comparison:"),
    rules_of.EMPTY_SECTION: GOOD.replace("Only Response A did what was asked.", ""),
    rules_of.NO_CONCLUSION: GOOD.replace("Response A is better.", "That settles it."),
    rules_of.OTHER_CONCLUSION: GOOD.replace("Response A is better.", "Response B is better."),
    rules_of.REPETITIVE: GOOD.replace("Says so.", "So.\n" * 8),
    rules_of.LEAK: GOOD.replace("Says so.", "The label says so."),
}


@pytest.mark.parametrize("rule", BAD)
def test_every_rule_rejects_its_own_fixture(rule):
    """V17."""
    assert reason(BAD[rule]) == rule


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        (GOOD.replace("Conclusion:", "Feedback:"), rules_of.NO_SECTIONS),
        (GOOD.replace("Feedback:", "X").replace("Comparision:", "Feedback:").replace("X", "Comparision:"),
         rules_of.NO_SECTIONS),
        (GOOD.replace("Subtracts them.", ""), rules_of.EMPTY_SECTION),
        (GOOD.replace("<answer>A", "<answer>a"), rules_of.BAD_ANSWER),
        (GOOD.replace("Response A is better.", "Response A is better. Response B is better."), rules_of.NO_CONCLUSION),
        (GOOD.replace("</think>\n", "</think>\nSo:\n"), rules_of.OUTSIDE),
        ("", rules_of.NO_THINK),
    ],
)  # fmt: skip
def test_other_ways_to_break_a_rule(reply, rule):
    assert reason(reply) == rule


def test_the_repetition_limit_is_a_share_of_lines():
    assert rules_of.repeated_lines("a\nb\n\na\nc\n") == pytest.approx(1 / 4)
    assert rules_of.repeated_lines("") == 0
    assert reason(BAD[rules_of.REPETITIVE], max_repeated_lines=0.9) == ""


@pytest.mark.parametrize(
    ("votes", "rule"),
    [
        ((1.0, 0.9, False, "A"), ""),
        ((0.75, 0.8, False, "B"), ""),
        ((0.0, None, False, None), rules_of.NO_VERDICT),
        ((0.5, 0.9, True, "A"), rules_of.SPLIT),
        ((0.625, 0.9, False, "A"), rules_of.LOW_SHARE),
        ((1.0, 0.79, False, "A"), rules_of.LOW_PROBABILITY),
        ((1.0, math.nan, False, "A"), rules_of.LOW_PROBABILITY),
    ],
)
def test_doubtful_votes(votes, rule):
    """V17, the filters on votes at the default thresholds."""
    assert rules_of.doubtful(*votes, Rules()) == rule
    if rule == rules_of.LOW_PROBABILITY:
        assert rules_of.doubtful(*votes, Rules(min_probability=0.0)) == ""


def rows(count_a, count_b):
    other = GOOD.replace("Response A is better", "Response B is better").replace("<answer>A", "<answer>B")
    made = [{"id": f"a{i}", "label": "A", "rationale": GOOD} for i in range(count_a)]
    return made + [{"id": f"b{i}", "label": "B", "rationale": other} for i in range(count_b)]


@pytest.mark.parametrize(("count_a", "count_b"), [(50, 50), (55, 45), (80, 20), (20, 80), (90, 9), (7, 0), (0, 0)])
def test_the_balance_is_kept_and_nothing_more_is_left_out(count_a, count_b):
    kept = rules_of.filtered(rows(count_a, count_b), Rules(), words)
    assert len(kept.rows) + kept.dropped.total == count_a + count_b
    a = sum(row["label"] == "A" for row in kept.rows)
    if not kept.rows:
        assert min(count_a, count_b) == 0 and math.isnan(kept.share_of_a)
        return
    assert 0.45 - 1e-9 <= kept.share_of_a <= 0.55 + 1e-9
    assert min(a, len(kept.rows) - a) == min(count_a, count_b), "only the larger side loses rows"
    if kept.dropped:
        more = a + 1 if count_a > count_b else a
        assert not 0.45 <= more / (len(kept.rows) + 1) <= 0.55, "one more would be out of range"
        assert set(kept.dropped) == {rules_of.UNBALANCED}


def test_a_round_counts_every_reason():
    voted = {"vote_share": 0.5, "label_probability": 0.9, "tied": True}
    mixed = rows(10, 10)
    mixed += [{"id": f"x{i}", "label": "A", "rationale": text} for i, text in enumerate(BAD.values())]
    mixed += [{**row, "id": f"v{i}", **voted} for i, row in enumerate(rows(2, 0))]
    kept = rules_of.filtered(mixed, Rules(), words, seed=3)
    assert [row["id"] for row in kept.rows] == [row["id"] for row in rows(10, 10)]
    assert {rule: kept.dropped[rule][0] for rule in kept.dropped} == dict.fromkeys(BAD, 1) | {rules_of.SPLIT: 2}
    assert kept.dropped[rules_of.SPLIT] == (2, "v0") and kept.share_of_a == 0.5
    with pytest.raises(UserError, match="must enclose 0.5"):
        Rules(least_share_of_a=0.6)
    with pytest.raises(UserError, match="min_vote_share=75 must be from 0 to 1"):
        Rules(min_vote_share=75)


def test_columns_of_votes_are_what_the_filter_reads():
    votes = voting.columns(
        voting.vote([[1, 1, 1, 1], [1, 1, 1, 0], [1, -1, 1, -1], [0] * 4], [[0.9, 0.9, 0.8, 0.9]] * 4)
    )
    mixed = [{**row, **vote} for row, vote in zip(rows(4, 0), votes)]
    kept = rules_of.filtered(mixed, Rules(most_share_of_a=1.0), words)
    assert [row["id"] for row in kept.rows] == ["a0", "a1"]
    assert set(kept.dropped) == {rules_of.SPLIT, rules_of.NO_VERDICT}
