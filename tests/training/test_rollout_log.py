"""What rollouts leave behind: columns that reward functions logged, and warnings with numbers."""

import json
import types

import numpy as np
import pytest

from gramjax.generation import experience
from gramjax.training import rollout_log


def sample(**extra):
    return experience.Sample(0, 0, 0, 1, np.array([1, 2], np.int32), "text", "stop", 0, rewards=(1.0,), extra=extra)


def test_logged_columns_survive_a_checkpoint_and_have_one_type_each():
    drawn = [sample(found="4", size=1), sample(found=None, size=2), sample(size="many")]
    again = [experience.from_json(json.loads(json.dumps(experience.as_json(one)))) for one in drawn]
    columns = rollout_log.extra_columns(again)
    assert columns == {"found": ["4", None, None], "size": ["1", "2", "many"]}
    assert rollout_log.extra_columns(again[:2])["size"] == [1, 2]
    assert rollout_log.extra_columns([sample()]) == {}
    pyarrow = pytest.importorskip("pyarrow")
    assert pyarrow.table(columns).num_rows == 3


def test_a_reward_that_mostly_does_not_judge_is_named(tmp_path):
    source = types.SimpleNamespace(rewards=types.SimpleNamespace(names=("fine", "silent")))
    said = []
    log = rollout_log.Log(source, tmp_path, types.SimpleNamespace(say=said.append))
    for _ in range(9):
        log.warn({"rewards/fine/not_judged": (4.0, 8.0), "rewards/silent/not_judged": (7.0, 8.0)})
    assert said == ["warning: the reward silent did not judge 88% of the completions"] * rollout_log.MOST_WARNINGS
