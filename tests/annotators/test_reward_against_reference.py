"""Rewards against a reference: complements when the two change places, nothing for the reference, nothing guessed."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import written_judge as written  # noqa: E402

from gramjax.annotators import reward_against_reference as plugin  # noqa: E402
from gramjax.core.errors import DataError, UserError  # noqa: E402
from gramjax.data import readers  # noqa: E402
from gramjax.data.recipes import permutation_world as world  # noqa: E402
from gramjax.data.rows import Drop  # noqa: E402


def rows(count=8):
    return [
        {"id": row["id"], "prompt": row["prompt"], "response": row["responses"][0], "reference": row["responses"][1]}
        for row in world.rows("unlabelled", count)
    ]


def annotate(given, sampler=None, refuse=None, n=2, temperature=1.0, overlong="shorten_responses", **settings):
    config = plugin.Config(judging=written.judging(n, temperature=temperature, overlong=overlong), **settings)
    found = list(plugin.annotate(iter(given), sampler or written.sampler(), config, 0, refuse))
    json.dumps(found, allow_nan=False)
    return found


@pytest.mark.parametrize("score", ["votes", "probability"])
def test_response_and_reference_share_one(score):
    """r(y | y') + r(y' | y) = 1: greedy draws in both orders, whichever is the response."""
    turned = [{**row, "response": row["reference"], "reference": row["response"]} for row in rows()]
    seen = []
    for sampler in (written.sampler(), written.sampler(lean=0.5)):
        one = annotate(rows(), sampler, temperature=0.0, score=score, reward="prob")
        two = annotate(turned, sampler, temperature=0.0, score=score, reward="prob")
        assert [a["reward"] + b["reward"] for a, b in zip(one, two)] == pytest.approx([1.0] * 8, abs=1e-5)
        for kind in ("centered", "logit"):
            one = annotate(rows(), sampler, temperature=0.0, score=score, reward=kind)
            two = annotate(turned, sampler, temperature=0.0, score=score, reward=kind)
            assert [a["reward"] + b["reward"] for a, b in zip(one, two)] == pytest.approx([0.0] * 8, abs=1e-4)
        seen += [a["win"] for a in one]
    assert np.std(seen) > 0.02, "the comparison above could fail"


def test_rewards_follow_from_the_draws():
    found = {kind: annotate(rows(), n=4, reward=kind, scale=3.0) for kind in plugin.REWARDS}
    for prob, centered, logit in zip(*found.values(), strict=True):
        draws = prob["judgements"]
        by_order = [[d["probability"] for d in draws if d["swapped"] == turned] for turned in (False, True)]
        assert prob["reward"] == prob["win"] == pytest.approx(np.mean([np.mean(part) for part in by_order]))
        assert centered["reward"] == pytest.approx(3 * (prob["win"] - 0.5))
        assert logit["reward"] == pytest.approx(
            np.mean([math.log(d["probability"] / (1 - d["probability"])) for d in draws])
        )
    votes = annotate(rows(), n=4, reward="logit", score="votes", most_logit=0.5)
    assert {abs(out["reward"]) for out in votes} == {0.5, 0.0}, "bounded, also where all votes agree"
    for out in votes:
        assert out["win"] == np.mean([d["verdict"] == "A" for d in out["judgements"]])


def test_the_reference_itself_gets_nothing_and_rows_keep_their_order():
    given = rows(6)
    for place in (0, 3, 5):
        given[place]["response"] = given[place]["reference"]
    found = annotate(given)
    assert [out["id"] for out in found] == [row["id"] for row in given]
    assert [out["reward"] == 0 and not out["judgements"] for out in found] == [i in (0, 3, 5) for i in range(6)]
    assert [out["reward"] for out in annotate(given[:1], reward="prob")] == [0.5]


def test_what_cannot_be_read_or_shown_is_refused():
    given = rows(3)
    given.insert(1, {**given[0], "id": "long", "response": "Out: d f a k " * 30})
    given.insert(3, {**given[0], "id": "same", "response": given[0]["reference"]})
    given.append({**given[0], "id": "empty", "response": " "})
    refused = {}
    found = annotate(given, refuse=lambda row, why: refused.update({row["id"]: why}), overlong="drop")
    assert [out["id"] for out in found] == ["unlabelled-0", "unlabelled-1", "same", "unlabelled-2"]
    assert list(refused) == ["long", "empty"] and refused["empty"] == "empty response"
    refused.clear()
    assert annotate(rows(2), written.sampler(unreadable=40.0), lambda row, why: refused.update({row["id"]: why})) == []
    assert set(refused.values()) == {plugin.UNREADABLE} and len(refused) == 2
    with pytest.raises(Drop, match=plugin.UNREADABLE):
        annotate(rows(1), written.sampler(unreadable=40.0))


def test_some_unreadable_draws_are_counted():
    found = annotate(rows(), written.sampler(unreadable=0.0), lambda row, why: None, n=6)
    assert sum(out["failed"] for out in found) > 3
    for out in found:
        assert out["failed"] == sum(d["verdict"] is None for d in out["judgements"])


def test_a_missing_reference_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="gramjax generate .*temperature=0 .*text:reference"):
        annotate([{"id": "x", "prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match="'response' is missing"):
        annotate([{"id": "x", "prompt": "p", "reference": "r"}])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    assert readers.read(str(path), want=plugin.ROW_TYPES).rows == rows(3)
    made = [{**{k: v for k, v in row.items() if k != "reference"}, "text": row["reference"]} for row in rows(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    section = readers.DataSection(rename=("text:reference",))
    assert readers.read(str(path), section, plugin.ROW_TYPES).rows == rows(3), "as the message says"


def test_settings_are_checked():
    with pytest.raises(UserError, match="annotator.reward is 'log'"):
        plugin.Config(reward="log")
    with pytest.raises(UserError, match="most_logit"):
        plugin.Config(most_logit=0.0)
    with pytest.raises(UserError, match="annotator.score is 'share'"):
        annotate(rows(1), score="share")
