"""Rewards while samples are drawn: functions of TRL, verl and OpenRLHF as they are, and failures that spoil nothing."""

import dataclasses
import threading
import types

import numpy as np
import pytest

from gramjax.core.errors import UserError
from gramjax.core.reinforcement import RewardSection
from gramjax.generation.reward_functions import adapted, user_function
from gramjax.generation.rewards import Function, Resources, Rewards

RESOURCES = Resources(None, (0,), None, 0)
LENIENT = RewardSection(max_failures=1.0)
ROW = {"id": "7", "prompt": "2+2=", "answer": "4", "level": 3}
CHAT = {**ROW, "prompt": [{"role": "user", "content": "2+2="}]}
ANSWERS = ["4", "It is 4.", "5"]
IDS = [[1], [1, 2, 3], [4]]

# As in the documentation of TRL: with the arguments that each wants, and **kwargs for the rest.
TRL = '''
import asyncio
import re


def reward_len(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def format_reward(completions, **kwargs):
    return [1.0 if re.match(r"^It", completion[0]["content"]) else 0.0 for completion in completions]


def reward_ids(prompts, completions, completion_ids, trainer_state, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids)
    return [len(ids) + 100 * trainer_state.global_step for ids in completion_ids]


def only_math(prompts, completions, answer, level, **kwargs):
    return [float(text == right) if hard > 2 else None for text, right, hard in zip(completions, answer, level)]


async def slow_reward(completions, log_metric, **kwargs):
    async def one(completion):
        await asyncio.sleep(0.01)
        return 0.5

    found = await asyncio.gather(*map(one, completions))
    log_metric("mean_half", sum(found) / len(found))
    return found


def logs(completions, answer, log_extra=None, log_metric=None, **kwargs):
    log_extra("extracted", [text[-1] for text in completions])
    log_extra("odd", [object(), 1, None])
    return [0] * len(completions)


class Judge:
    def __call__(self, prompts, completions, **kwargs):
        return [2] * len(completions)


judge = Judge()


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": 1.0 if solution_str == ground_truth else 0.0}


async def compute_slowly(solution_str, ground_truth, **kwargs):
    assert set(kwargs) == {"data_source", "extra_info"}
    await asyncio.sleep(0)
    return float(ground_truth in solution_str)


def reward_func(queries, prompts, labels, **kwargs):
    rewards = [float(query == prompt + label) for query, prompt, label in zip(queries, prompts, labels)]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"hits": rewards}}
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "mine.py"
    path.write_text(TRL)
    return path


def runner(*calls, section=LENIENT):
    return Rewards([Function(call.__name__, 1.0, adapted(call)) for call in calls], section)


def table(rewards, row=ROW, texts=ANSWERS, step=0):
    return rewards.result(rewards.submit(row, texts, IDS[: len(texts)], step))


def from_file(file, *names, section=LENIENT):
    section = dataclasses.replace(section, functions=tuple(f"{file}:{name}" for name in names))
    return Rewards.open({}, section, RESOURCES)


@pytest.mark.smoke
def test_functions_written_for_trl_work_as_they_are(file):
    rewards = from_file(file, "reward_len", "reward_ids", "only_math", "slow_reward", "judge")
    found = table(rewards, step=2)
    assert found.tolist() == [[1, 201, 1, 0.5, 2], [8, 203, 0, 0.5, 2], [1, 201, 0, 0.5, 2]]
    metrics = rewards.metrics()
    assert metrics["mean_half"] == (0.5, 1.0) and metrics["rewards/judge/failed"] == (0.0, 1.0)
    assert metrics["time/reward/slow_reward"][0] >= 0.01
    assert np.isnan(table(from_file(file, "only_math"), {**ROW, "level": 1})).all(), "None: not judged"
    assert "mean_half" not in rewards.metrics(), "each rollout anew"


def test_conversations_get_messages(file):
    assert table(from_file(file, "format_reward"), CHAT).tolist() == [[0], [1], [0]]


def test_functions_of_verl_and_openrlhf(file):
    rewards = from_file(file, "compute_score", "compute_slowly", "reward_func")
    assert table(rewards).tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    metrics = rewards.metrics()
    assert metrics["acc"] == (1.0, 3.0) and metrics["hits"] == (1.0, 3.0)
    verl = {**{k: v for k, v in ROW.items() if k != "answer"}, "reward_model": {"style": "rule", "ground_truth": "5"}}
    assert table(from_file(file, "compute_score", "reward_func"), verl).tolist() == [[0, 0], [0, 0], [1, 1]]
    assert table(from_file(file, "compute_score"), CHAT).tolist() == [[1], [0], [0]]


def test_columns_for_the_table_of_completions(file):
    rewards = from_file(file, "logs", "reward_len")
    calls = rewards.submit(ROW, ANSWERS, IDS, 0)
    rewards.result(calls)
    first, second, third = rewards.extra(calls)
    assert (first["extracted"], second["extracted"], third["extracted"]) == ("4", ".", "5")
    assert first["odd"].startswith("<object") and (second["odd"], third["odd"]) == (1, None)


def test_all_columns_arrive_as_lists_and_nothing_else():
    seen = {}

    def keeps(**arguments):
        seen.update(arguments)
        return [0, 0, 0]

    rewards = runner(keeps)
    rewards.result(rewards.submit({**ROW, "completion": "x", "messages": []}, ANSWERS, IDS, 5, greedy="4"))
    state = seen.pop("trainer_state")
    assert state.global_step == 5 and callable(seen.pop("log_metric")) and callable(seen.pop("log_extra"))
    assert seen == {
        "id": ["7"] * 3, "answer": ["4"] * 3, "level": [3] * 3, "prompts": ["2+2="] * 3, "completions": ANSWERS,
        "completion_ids": IDS, "greedy": ["4"] * 3,
    }  # fmt: skip


def test_a_function_cannot_change_what_others_see():
    def spoils(completions, completion_ids, **kwargs):
        completions.clear()
        completion_ids.pop()
        return [0, 0, 0]

    def counts(completions, completion_ids, **kwargs):
        return [len(completions) * len(completion_ids)] * 3

    rewards = runner(spoils, counts, section=dataclasses.replace(LENIENT, threads=1))
    assert table(rewards).tolist() == [[0, 9]] * 3


def raises(completions, **kwargs):
    return [1 / (len(completions) - 3)] * 3


def leaves(completions, **kwargs):
    raise SystemExit(3)


FAILURES = [
    (raises, r"ZeroDivisionError: .* \(test_rewards_runner.py line \d+\)"),
    (leaves, "SystemExit: 3"),
    (lambda **kwargs: [1, 2], "returned 2 rewards for 3 completions"),
    (lambda **kwargs: None, "returned a NoneType; a list of 3 numbers was expected"),
    (lambda **kwargs: [1, "good", 2], "reward 1 is 'good'; a number or None was expected"),
    (lambda **kwargs: [1, 2, float("inf")], "reward 2 is inf; rewards must be finite"),
    (lambda **kwargs: [float("nan"), 2, 3], "reward 0 is nan; rewards must be finite"),
    (lambda log_extra, **kwargs: log_extra("x", [1]), "log_extra\\('x'\\) has 1 values for 3 completions"),
]


@pytest.mark.parametrize("function,message", FAILURES)
def test_a_failure_costs_its_own_samples_and_ends_the_run_only_when_they_are_many(function, message):
    def fine(**kwargs):
        return [1, None, 3]

    function.__name__ = "bad"
    rewards = runner(function, fine)
    found = table(rewards)
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_array_equal(found[:, 1], [1, np.nan, 3])
    rewards.check()
    assert rewards.metrics()["rewards/bad/failed"] == (1.0, 1.0)
    with pytest.raises(UserError, match=rf"the reward bad failed in 1 of 1 calls, .*=0.9; the first: .*{message}"):
        table(runner(fine, function, section=RewardSection(max_failures=0.9)))


def test_failures_are_counted_over_a_rollout():
    fails = iter([True, False, False, False, False, True, True])

    def sometimes(completions, **kwargs):
        return [] if next(fails) else [0, 0, 0]

    section = RewardSection(max_failures=0.2, threads=1)
    rewards = runner(sometimes, section=section)
    groups = [rewards.submit(ROW, ANSWERS, IDS, 0) for _ in range(5)]
    assert np.isnan(np.stack([rewards.result(calls) for calls in groups])).sum() == 3
    rewards.check()  # one of five is not more than 20 %
    rewards.metrics()
    with pytest.raises(UserError, match="the reward sometimes failed in 1 of 1 calls"):
        table(rewards)


def test_a_call_that_hangs_is_left_behind_and_others_go_on():
    forever, begun = threading.Event(), []

    def hangs(completions, answer, **kwargs):
        if answer[0] == "hang":
            begun.append(1)
            forever.wait()
        return [1, 1, 1]

    rewards = runner(hangs, section=RewardSection(max_failures=0.6, threads=1, timeout=0.3))
    stuck = rewards.submit({**ROW, "answer": "hang"}, ANSWERS, IDS, 0)
    after = rewards.submit(ROW, ANSWERS, IDS, 0)  # waits behind it for the only thread
    assert np.isnan(rewards.result(stuck)).all() and rewards.result(after).tolist() == [[1]] * 3
    assert stuck[0].error == "no answer within config.reward.timeout=0.3 s" and begun == [1]
    rewards.check()
    rewards.metrics()
    many = [rewards.submit({**ROW, "answer": "hang"}, ANSWERS, IDS, 0) for _ in range(50)]
    rewards.section = dataclasses.replace(rewards.section, max_failures=0.02)
    with pytest.raises(UserError, match="2 of 50 calls"):  # it does not wait for all of them
        for calls in many:
            rewards.result(calls)
    forever.set()


def test_whoever_waits_can_be_stopped():
    release = threading.Event()

    def waits(**kwargs):
        release.wait()
        return [0, 0, 0]

    def stop():
        raise KeyboardInterrupt

    rewards = runner(waits)
    with pytest.raises(KeyboardInterrupt):
        rewards.result(rewards.submit(ROW, ANSWERS, IDS, 0), stop)
    release.set()


def plug_in(**more):
    @dataclasses.dataclass(frozen=True)
    class Config:
        weight: float = 1.0
        points: float = 2.0

    module = types.ModuleType("points")
    module.Config = Config
    module.score = lambda prompts, completions, completion_ids, *, config, opened=None, **columns: [
        config.points + (opened or 0) for _ in completions
    ]
    vars(module).update(more)
    return module


def test_plug_ins_get_their_settings_and_what_they_opened():
    opened = plug_in(open=lambda config, resources: 10 * config.points + resources.processes)
    rewards = Rewards.open(
        {"points": (plug_in(), {"weight": 0.5, "points": 3.0}), "more": (opened, {})}, LENIENT, RESOURCES
    )
    assert (rewards.names, rewards.weights, rewards.greedy) == (["points", "more"], [0.5, 1.0], False)
    assert table(rewards).tolist() == [[3.0, 24.0]] * 3
    compares = plug_in(needs_greedy=lambda config, opened: config.points == 2.0)
    assert Rewards.open({"points": (compares, {})}, LENIENT, RESOURCES).greedy
    assert not Rewards.open({"points": (compares, {"points": 1.0})}, LENIENT, RESOURCES).greedy


def test_what_uses_several_devices_runs_where_it_is_waited_for():
    order = []

    def score(prompts, completions, completion_ids, *, config, opened, **columns):
        order.append((columns["id"][0], threading.current_thread() is threading.main_thread()))
        return [1.0] * len(completions)

    turns = plug_in(score=score, in_turn=lambda resources: True)
    rewards = Rewards.open({"turns": (turns, {}), "points": (plug_in(), {})}, LENIENT, RESOURCES)
    groups = [rewards.submit({**ROW, "id": name}, ANSWERS, IDS, 0) for name in "abc"]
    assert order == []
    assert [rewards.result(calls).tolist() for calls in groups] == [[[1, 2]] * 3] * 3
    assert order == [("a", True), ("b", True), ("c", True)]


def test_which_reward_says_what_is_right(file):
    """Not the first of the alphabet: a shaping reward beside one that judges must not turn samples round."""
    shapes, judges = (plug_in(), {}), (plug_in(JUDGES=True), {})
    own = RewardSection(functions=(f"{file}:judge",))
    for plug_ins, section, right in (
        ({"a": shapes, "b": judges}, own, "b"),
        ({"a": shapes}, own, "judge"),
        ({"a": shapes, "b": shapes}, LENIENT, "a"),
    ):
        assert Rewards.open(plug_ins, section, RESOURCES).correct == right


def test_weights_and_names_of_functions(file, tmp_path):
    section = RewardSection(functions=(f"{file}:reward_len", f"{file}:judge"), function_weights=(0.25, 2.0))
    assert Rewards.open({}, section, RESOURCES).weights == [0.25, 2.0]
    with pytest.raises(UserError, match="config.reward.function_weights has 1 numbers for 2 functions"):
        Rewards.open({}, dataclasses.replace(section, function_weights=(1.0,)), RESOURCES)
    with pytest.raises(UserError, match="two rewards have one name: judge, judge"):
        Rewards.open({"judge": (plug_in(), {})}, RewardSection(functions=(f"{file}:judge",)), RESOURCES)
    with pytest.raises(UserError, match="no reward: name plug-ins in config.rewards or functions"):
        Rewards.open({}, RewardSection(), RESOURCES)


def test_a_file_is_run_once_for_all_its_functions(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nLOADS = []\nLOADS.append(1)\n"
        "@dataclasses.dataclass\nclass Seen:\n    count: int = 0\n"
        "def one(completions, **kwargs):\n    return [len(LOADS)] * len(completions)\n"
        "def two(completions, **kwargs):\n    LOADS.append(1)\n    return [0] * len(completions)\n"
    )
    section = dataclasses.replace(LENIENT, threads=1, functions=(f"{path}:two", f"{path}:one"))
    assert table(Rewards.open({}, section, RESOURCES)).tolist() == [[0, 2]] * 3


def test_files_are_looked_for_from_the_working_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert user_function("mine.py:judge")[0] == "judge"


@pytest.mark.parametrize("text,message", [
    ("mine.py", "'mine.py' is not of the form FILE.py:NAME"),
    ("gone.py:f", "gone.py does not exist"),
    ("{file}:gone", "mine.py has no function 'gone' .there are: reward_len, format_reward"),
    ("{broken}:f", "broken.py: NameError: name 'nothing' is not defined"),
])  # fmt: skip
def test_a_function_that_is_not_there(file, text, message):
    broken = file.with_name("broken.py")
    broken.write_text("nothing\n")
    with pytest.raises(UserError, match=f"config.reward.functions: .*{message}"):
        user_function(text.format(file=file, broken=broken))
