"""Rewards of this project's own models in the same process: scalar, pairs against a reference, GRAM-R2."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import written_judge as written  # noqa: E402

from gramjax.core import config as configs  # noqa: E402
from gramjax.core.errors import UserError  # noqa: E402
from gramjax.core.reinforcement import RewardSection  # noqa: E402
from gramjax.data.recipes import word_translation as words  # noqa: E402
from gramjax.generation.rewards import Resources, Rewards  # noqa: E402
from gramjax.rewards import preference as plugin  # noqa: E402
from gramjax.training import reinforcement  # noqa: E402

ROW = words.rows("valid", 2)[0]
BEST, WORSE = ROW["chosen"], ROW["rejected"]
ANSWERS = [BEST, WORSE, BEST + WORSE]
LONG = BEST * 40


@pytest.fixture(scope="module")
def resources():
    """As a training makes them."""
    config = configs.for_rows("score", ("mesh", "generation"))
    judge, writer = (functools.partial(make, config) for make in (reinforcement.open_judge, reinforcement.open_writer))
    return Resources(None, (0,), None, 0, open_reward_model=judge, open_sampler=writer)


def opened(resources, **settings):
    config = plugin.Config(**settings)
    return config, plugin.open(config, resources)


def score(made, row=ROW, answers=ANSWERS, greedy=None, **changes):
    """The rewards through the runner: the plug-in with a model that is open already."""
    config, state = made
    config = dataclasses.replace(config, **changes)

    class Module:
        Config = plugin.Config
        needs_greedy = staticmethod(plugin.needs_greedy)
        open = staticmethod(lambda given, resources: state)
        score = staticmethod(plugin.score)

    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    rewards = Rewards.open({"preference": (Module, values)}, RewardSection(), Resources(None, (0,), None, 0))
    assert rewards.greedy == (greedy is not None)
    found = rewards.result(rewards.submit(row, answers, [[1]] * len(answers), 3, greedy))
    return found[:, 0]


@pytest.fixture(scope="module")
def scalar(resources, tiny_scalar):
    return opened(resources, path=str(tiny_scalar))


@pytest.fixture(scope="module")
def judge(resources, tiny_judge):
    return opened(resources, path=str(tiny_judge))


def test_a_scalar_model_gives_its_scores_standardised(scalar):
    model = scalar[1].model
    plain = [reward.value for reward in model.rewards([(ROW["prompt"], answer) for answer in ANSWERS])]
    assert np.std(plain) > 1e-3
    np.testing.assert_allclose(score(scalar), plain, atol=1e-5)
    np.testing.assert_allclose(score(scalar, shift=0.5, scale=2.0), (np.array(plain) - 0.5) / 2, atol=1e-5)
    assert model.renderer.section.max_length == words.MAX_LENGTH, "as its run was trained"
    assert np.isfinite(score(scalar, answers=[LONG])).all(), "shortened"
    strict = dataclasses.replace(model, settings=dataclasses.replace(model.settings, overlong="drop"))
    found = score((scalar[0], dataclasses.replace(scalar[1], model=strict)), answers=[LONG, BEST])
    assert np.isnan(found).tolist() == [True, False], "what cannot be read is not judged"


def test_a_judge_compares_with_the_greedy_answer(judge):
    """GRAM's reward of reinforcement learning: both orders; nothing for the greedy answer itself."""
    model = judge[1].model
    said = [model.compare([(ROW["prompt"], answer, WORSE)])[0] for answer in ANSWERS]
    assert np.std([comparison.score for comparison in said]) > 1e-5, "the comparison below could fail"
    for reward in ("prob", "centered", "margin"):
        found = score(judge, greedy=WORSE, reward=reward)
        expected = [c.margin if reward == "margin" else c.score - 0.5 * (reward == "centered") for c in said]
        expected[1] = 0.5 if reward == "prob" else 0.0
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found[1] == expected[1]
    one, two = score(judge, greedy=WORSE, reward="prob")[0], score(judge, greedy=BEST, reward="prob")[1]
    assert one + two == pytest.approx(1, abs=1e-6) and one != two


def test_references_from_a_column_or_a_file(judge, resources, tiny_judge, tmp_path):
    wanted = score(judge, greedy=WORSE)
    config, state = judge
    calls = []
    known = dataclasses.replace(resources, open_reward_model=lambda *given: calls.append(given) or state.model)
    column = opened(known, path=str(tiny_judge), reference="given")
    np.testing.assert_allclose(score(column, {**ROW, "given": WORSE}), wanted, atol=1e-7)
    assert np.isnan(score(column)).all(), "a row without one is not judged"
    file = tmp_path / "references.jsonl"
    file.write_text(json.dumps({"prompt": ROW["prompt"], "reference": WORSE}) + "\n")
    named = opened(known, path=str(tiny_judge), reference=str(file), tokenizer="bytes", max_length=40)
    np.testing.assert_allclose(score(named), wanted, atol=1e-7)
    assert np.isnan(score(named, {**ROW, "prompt": "another"})).all()
    assert calls[1][:3] == (str(tiny_judge), "bytes", 40)


@pytest.fixture(scope="module")
def gram_r2():
    known = Resources(None, (0,), None, 0, open_sampler=lambda *given: written.sampler())
    return opened(known, path="judge", method="rationale", reference="given", judging=written.judging(n=4))


def test_a_judge_with_rationales_votes(gram_r2):
    pair = written.pairs(4)[3]
    one, other = pair["responses"]
    row = {"id": "1", "prompt": pair["prompt"]}
    against = score(gram_r2, {**row, "given": other}, [one, other, one], reward="prob")
    assert against[1] == 0.5 and 0 < against[0] < 1 and abs(against[0] - 0.5) > 1e-3
    greedy = dataclasses.replace(gram_r2[0], judging=written.judging(n=2, temperature=0.0))
    first = score((greedy, gram_r2[1]), {**row, "given": other}, [one], reward="prob")
    second = score((greedy, gram_r2[1]), {**row, "given": one}, [other], reward="prob")
    assert first + second == pytest.approx(1, abs=1e-5)
    votes = score(gram_r2, {**row, "given": other}, [one] * 3, reward="prob", votes="votes")
    assert set(votes) <= {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_allclose(
        score(gram_r2, {**row, "given": other}, [one], reward="margin"),
        np.log(against[0] / (1 - against[0])), rtol=1e-5,
    )  # fmt: skip


def test_what_cannot_be_read_is_not_judged():
    known = Resources(None, (0,), None, 0, open_sampler=lambda *given: written.sampler(unreadable=40.0))
    made = opened(known, path="judge", method="rationale", reference="given", judging=written.judging(n=2))
    pair = written.pairs(4)[3]
    one, other = pair["responses"]
    found = score(made, {"id": "1", "prompt": pair["prompt"], "given": other}, [one, other])
    assert np.isnan(found[0]) and found[1] == 0


def test_settings(resources, tiny_scalar):
    for settings, message in (
        ({}, "path is empty: name a reward model"), ({"path": "x", "scale": 0.0}, "scale is 0"),
        ({"path": "x", "reward": "logit"}, "reward='logit'"), ({"path": "x", "votes": "share"}, "votes='share'"),
        ({"path": str(tiny_scalar), "reference": "given"}, "reference='given', but .* leave it out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"config.rewards.preference.{message}"):
            opened(resources, **settings)


def test_on_several_devices_it_waits_for_its_turn():
    class Mesh:
        size = 4

    assert plugin.in_turn(dataclasses.replace(Resources(None, (0,), None, 0), mesh=Mesh()))
    assert not plugin.in_turn(Resources(None, (0,), None, 0))
