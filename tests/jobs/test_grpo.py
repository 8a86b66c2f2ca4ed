"""Reinforcement learning from end to end: files, rewards of the user, a kill at any moment, rewards of a model."""

import math
import os

import numpy as np
import pytest
from test_train import final_params, losses, run

from gramjax.core.writer import read_metrics

REWARD = '''
"""Rewards as a user of TRL writes them."""
import os, signal, time

def digits(completions, answer, **kwargs):
    """The share of digits."""
    assert len(answer) == len(completions) and set(kwargs) >= {"prompts", "completion_ids", "trainer_state", "id"}
    stop = os.environ.get("STOP_AT")
    if stop is not None and kwargs["trainer_state"].global_step == int(stop):
        os.environ.pop("STOP_AT", None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # the rewards are waited for while the signal is there
    return [sum(c.isdigit() for c in text) / 4 for text in completions]

async def short(completions, log_metric, **kwargs):
    log_metric("mine/longest", max(map(len, completions)))
    return [-0.01 * len(text) for text in completions]

def broken(completions):
    raise ValueError("no ground truth")
'''


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "mine.py"
    path.write_text(REWARD)
    return path


def train(reward_file, workdir, *settings):
    config = os.path.join(os.path.dirname(__file__), "tiny_grpo.py")
    return run("train", f"--config={config}:{reward_file}", f"--workdir={workdir}", *settings)


@pytest.fixture(scope="module")
def done(reward_file, tmp_path_factory):
    """A finished run of 6 steps."""
    folder = tmp_path_factory.mktemp("grpo") / "run"
    functions = f"('{reward_file}:digits', '{reward_file}:short')"
    assert train(reward_file, folder, f"--config.reward.functions={functions}", "--config.log.report=True") == 0
    return folder


def test_a_run_leaves_metrics_by_trls_names_tables_of_completions_pass_rates_and_a_report(done):
    entries = read_metrics(done / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    names = {"reward", "reward_std", "frac_reward_zero_std", "rewards/digits/mean", "rewards/digits/std", "entropy",
             "rewards/short/mean", "clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/low_min",
             "clip_ratio/high_mean", "clip_ratio/high_max", "completions/mean_length", "completions/min_length",
             "completions/max_length", "completions/mean_terminated_length", "completions/clipped_ratio",
             "num_tokens", "learning_rate", "grad_norm", "sampling/logp_diff_mean", "groups/easy", "groups/hard",
             "mine/longest", "rollout/tokens_per_sec", "time/rollout"}  # fmt: skip
    assert names <= entries[0].keys()
    assert all(entry["completions/min_length"] <= entry["completions/max_length"] <= 4 for entry in entries)
    assert all(entry["sampling/logp_diff_max"] < 2e-5 for entry in entries)
    from pyarrow import parquet

    tables = sorted((done / "samples").glob("*.parquet"))
    assert [path.name for path in tables] == ["step_000000.parquet", "step_000002.parquet", "step_000004.parquet"]
    rows = parquet.read_table(tables[1]).to_pylist()
    assert len(rows) == 16 and {row["step"] for row in rows} == {2} == {row["weights_version"] for row in rows}
    for row in rows:
        assert row["rewards/digits"] == sum(c.isdigit() for c in row["completion"]) / 4
        assert row["reward"] == pytest.approx(row["rewards/digits"] + row["rewards/short"])
    assert len((done / "pass_rates.jsonl").read_text().splitlines()) == 6
    assert "Pass rates of the prompts" in (done / "report.html").read_text()


@pytest.mark.parametrize("settings", [(), ("--config.grpo.steps_per_rollout=2", "--config.grpo.iterations=2")])
def test_a_run_that_is_stopped_while_it_draws_goes_on_bit_for_bit(reward_file, tmp_path, monkeypatch, settings):
    """E-8, and the signal in the middle of a rollout."""
    assert train(reward_file, tmp_path / "whole", *settings) == 0
    monkeypatch.setenv("STOP_AT", "4")
    assert train(reward_file, tmp_path / "cut", *settings) == 75
    assert max(losses(tmp_path / "cut")) == 4
    assert train(reward_file, tmp_path / "cut", *settings) == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert final_params(tmp_path / "cut") == final_params(tmp_path / "whole")


def test_a_run_goes_on_from_the_middle_of_a_rollout(reward_file, tmp_path):
    settings = ("--config.grpo.steps_per_rollout=3", "--config.train.save_every=2", "--config.grpo.lag=1")
    assert train(reward_file, tmp_path / "whole", *settings) == 0
    assert train(reward_file, tmp_path / "cut", *settings, "--config.train.steps=2") == 0
    assert train(reward_file, tmp_path / "cut", *settings) == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert final_params(tmp_path / "cut") == final_params(tmp_path / "whole")


def test_rewards_that_fail_end_the_run_with_the_first_error(reward_file, tmp_path, capsys):
    assert train(reward_file, tmp_path, f"--config.reward.functions=('{reward_file}:broken',)") == 2
    said = capsys.readouterr().err
    assert "the reward broken failed in" in said and "the first: ValueError: no ground truth (mine.py line" in said


@pytest.mark.parametrize("settings, words", [
    (("--config.train.batch_size=8",), "config.grpo.prompts_per_step"),
    (("--config.sampling.temperature=0",), "temperature is 0"),
    (("--config.grpo.group_size=1",), "group_size"),
    (("--config.sampling.top_p=0.9", "--config.sampling.temperature=0.7", "--config.grpo.correction=token_mask"),
     "top_p"),
    (("--config.sampling.max_tokens=80",), "max_tokens=80"),
    (("--config.grpo.loss=dpao",), "dapo"),
    (("--config.grpo.use_adaptive_entropy=True", "--config.sampling.top_p=0.9"), "use_adaptive_entropy"),
    (("--config.reward.functions=('nowhere.py:f',)",), "nowhere.py does not exist"),
    (("--config.grpo.kl_estimator=k1", "--config.grpo.beta=0.1"), "allow_k1_loss"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(reward_file, tmp_path, capsys, settings, words):
    assert train(reward_file, tmp_path, *settings) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("settings", [
    ("--config.grpo.loss=dr_grpo", "--config.grpo.samples=positive"),
    ("--config.grpo.loss=gspo", "--config.grpo.samples=negative", "--config.reward.relative_length=True"),
    ("--config.grpo.beta=0.04", "--config.lora.rank=2", "--config.grpo.advantage=remax"),
    ("--config.grpo.offline_fraction=0.125", "--config.grpo.loss=cispo", "--config.reward.correct_at=0.9"),
    ("--config.grpo.zero_variance=resample", "--config.grpo.correction=sequence_mask", "--config.train.grad_accum=2"),
    ("--config.grpo.beta=0.04", "--config.grpo.kl_in=reward", "--config.grpo.advantage=reinforce++"),
])  # fmt: skip
def test_variants_run_and_stay_finite(reward_file, tmp_path, settings):
    assert train(reward_file, tmp_path, "--config.train.steps=2", *settings) == 0
    assert all(math.isfinite(value) for value in losses(tmp_path).values())
    entry = read_metrics(tmp_path / "metrics.jsonl")[-1]
    if "--config.grpo.beta=0.04" in settings and "--config.grpo.kl_in=reward" not in settings:
        assert 0 <= entry["kl"] < 0.5
    if "--config.grpo.offline_fraction=0.125" in settings:
        assert entry["offline/injected"] > 0


@pytest.mark.parametrize("judge", ["tiny_scalar", "tiny_judge"])
def test_a_reward_model_of_this_project_is_a_reward(reward_file, tmp_path, judge, request):
    """Scores of a scalar model, or a judge's preference over the policy's own greedy answer."""
    folder = request.getfixturevalue(judge)
    config = tmp_path / "config.py"
    config.write_text(f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import tiny_grpo
from gramjax.core.config import as_config
from gramjax.rewards import preference

def get_config():
    config = tiny_grpo.get_config({str(reward_file)!r})
    config.rewards.preference = as_config(preference.Config())
    config.rewards.preference.path = {str(folder)!r}
    config.reward.functions = ()
    config.train.steps = 2
    return config
""")
    assert run("train", f"--config={config}", f"--workdir={tmp_path / 'run'}") == 0
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / "run" / "samples" / "step_000000.parquet").to_pylist()
    values = np.array([row["rewards/preference"] for row in rows], float)
    assert np.isfinite(values).any() and np.nanstd(values) > 0
    assert entries[0]["rewards/preference/mean"] == pytest.approx(np.nanmean(values), abs=1e-6)
    if judge == "tiny_judge":
        assert np.nanmax(np.abs(values)) <= 0.5
    from gramjax.training import reinforcement, scoring  # the same number as `gramjax score` gives

    model = scoring.open_reward_model(reinforcement.model_config(tiny_config(reward_file), str(folder), "", 0))
    if judge == "tiny_scalar":
        want = [r.value for r in model.rewards([(row["prompt"], row["completion"]) for row in rows])]
        np.testing.assert_allclose(values, want, atol=1e-5)


def tiny_config(reward_file):
    import tiny_grpo

    return tiny_grpo.get_config(str(reward_file))


def test_a_stop_while_the_next_rollout_is_drawn_ahead_keeps_it(reward_file, tmp_path, monkeypatch):
    assert train(reward_file, tmp_path / "whole", "--config.grpo.lag=1") == 0
    monkeypatch.setenv("STOP_AT", "3")
    assert train(reward_file, tmp_path / "cut", "--config.grpo.lag=1") == 75
    assert train(reward_file, tmp_path / "cut", "--config.grpo.lag=1") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
