"""Ensembles of reward models: combinations by hand, and what cannot be combined."""

import numpy as np
import pytest

from gramjax.core import ensembles, judgements, statistics
from gramjax.core.errors import DataError, UserError

META = {"subset": "", "prompt_length": 3, "chosen_length": 2, "rejected_length": 2, "num_tokens": 9, "shortened": False}


def scalar(name, chosen, rejected):
    margin = chosen - rejected
    return {**META, "id": name, "order": "none", "score_chosen": chosen, "score_rejected": rejected, "margin": margin}


def judge(name, first, second):
    pair = statistics.margin_score([first], [second])
    return {**META, "id": name, "order": "both", "margin_first": first, "margin_second": second,
            "margin": float(pair.margin[0]), "score_chosen": float(pair.score[0])}  # fmt: skip


def test_rewards_by_hand():
    members = [[1.0, 3.0, 5.0], [12.0, 10.0, 17.0]]  # centred: -2 0 2 and -1 -3 4
    np.testing.assert_allclose(ensembles.rewards(members), [-1.5, -1.5, 3.0])
    np.testing.assert_allclose(ensembles.rewards(members, "worst"), [-2, -3, 2])
    np.testing.assert_allclose(ensembles.rewards(members, "uncertainty", 2.0), [-1.5 - 0.5, -1.5 - 4.5, 3 - 2.0])
    np.testing.assert_allclose(ensembles.rewards(members, "deviation", 2.0), [-1.5 - 1.0, -1.5 - 3.0, 3 - 2.0])


@pytest.mark.parametrize("combination", ensembles.COMBINATIONS)
def test_the_zero_of_a_member_is_nothing(combination):
    draw = np.random.default_rng(0).normal(size=(3, 7))
    moved = draw + np.array([[5.0], [-2.0], [100.0]])
    np.testing.assert_allclose(ensembles.rewards(moved, combination), ensembles.rewards(draw, combination), atol=1e-12)


def test_one_member_is_itself():
    rows = [scalar("a", 1.0, 0.0), scalar("b", 0.0, 2.0)]
    for combination in ensembles.COMBINATIONS:
        out, missing = ensembles.combine([rows], combination)
        assert missing == 0 and [(r["margin"], r["correct"]) for r in out] == [(1.0, True), (-2.0, False)]


def test_the_mean_outvotes_a_member_and_pairs_that_some_lack_are_counted():
    one, two = [scalar("a", 1.0, 0.0), scalar("b", 1.0, 0.0)], [scalar("b", 0.0, 3.0), scalar("a", 0.5, 0.0)]
    out, missing = ensembles.combine([[*one, scalar("c", 1.0, 0.0)], two])
    assert [(r["id"], r["margin"], r["correct"]) for r in out] == [("a", 0.75, True), ("b", -1.0, False)]
    assert missing == 1
    assert dict(judgements.summarise(out))["accuracy"] == 0.5


def test_judges_are_averaged_in_each_order():
    out, _ = ensembles.combine([[judge("a", 2.0, 1.0)], [judge("a", 0.0, -2.0)]])
    (record,) = out
    assert (record["margin_first"], record["margin_second"], record["margin"]) == (1.0, -0.5, 0.75)
    assert record["consistent"] and record["correct"]


def test_what_cannot_be_combined():
    with pytest.raises(UserError, match="needs scalar rewards"):
        ensembles.combine([[judge("a", 1.0, 0.0)]] * 2, "worst")
    with pytest.raises(DataError, match="mixes"):
        ensembles.combine([[judge("a", 1.0, 0.0)], [scalar("a", 1.0, 0.0)]])
    with pytest.raises(DataError, match="no judged pair in common"):
        ensembles.combine([[scalar("a", 1.0, 0.0)], [scalar("b", 1.0, 0.0)]])
    with pytest.raises(UserError, match="one of mean"):
        ensembles.rewards([[1.0]], "median")
