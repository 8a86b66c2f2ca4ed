"""A policy trained by DPO judges pairs by its implicit reward, in the training run and afterwards."""

import json
from pathlib import Path

import pytest

from gramjax.cli import main
from gramjax.core.errors import UserError

TINY = str(Path(__file__).parent / "tiny.py")
PAIRS = "recipe:word_translation:valid:40"


def margins(folder):
    return [json.loads(line)["margin"] for line in (folder / "eval" / "preference.rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the policy started, and the policy after three steps."""
    folder = tmp_path_factory.mktemp("implicit")
    start, policy = folder / "start", folder / "policy"
    short = ("--config.train.steps=1", "--config.train.evaluate=False")
    assert main(["train", f"--config={TINY}:cross_entropy", f"--workdir={start}", *short]) == 0
    given = (f"--config.model.path={start}", "--config.evals.preference.method=implicit", "--config.train.steps=3")
    assert main(["train", f"--config={TINY}:dpo", f"--workdir={policy}", *given]) == 0
    return start, policy


def evaluate(policy, out, *more):
    arguments = (f"--config.model.path={policy}", f"--config.data.path={PAIRS}", f"--workdir={out}")
    return main(["evaluate", "--config=evaluate", "--config.evals.preference.method=implicit", *arguments, *more])


def test_the_training_run_and_evaluate_agree_and_the_reference_counts(runs, tmp_path):
    start, policy = runs
    assert evaluate(policy, tmp_path / "with", f"--config.reference.path={start}") == 0
    assert evaluate(policy, tmp_path / "without") == 0
    during, after, alone = margins(policy), margins(tmp_path / "with"), margins(tmp_path / "without")
    assert after == pytest.approx(during, abs=1e-6) and max(map(abs, after)) > 1e-4
    assert alone != pytest.approx(after, abs=1e-4)


def test_a_policy_against_itself_has_no_reward(runs, tmp_path):
    start, _ = runs
    assert evaluate(start, tmp_path, f"--config.reference.path={start}") == 0
    assert margins(tmp_path) == [0.0] * 40
    assert json.loads((tmp_path / "eval" / "preference.json").read_text())["ties"] == 40


def test_a_reference_that_nobody_looks_at_is_refused(runs, tmp_path):
    start, policy = runs
    given = (f"--config.model.path={policy}", f"--config.data.path={PAIRS}", f"--workdir={tmp_path}")
    with pytest.raises(UserError, match="config.reference.path is for implicit rewards"):
        main(["evaluate", "--config=evaluate", f"--config.reference.path={start}", *given])
