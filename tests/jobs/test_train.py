"""The train and evaluate jobs from end to end: kill and resume, the files of a run, phases, refusals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import state
from gramjax.core.writer import read_metrics

LONG = ("--config.train.steps=260", "--config.train.save_every=20", "--config.train.evaluate=False")
TINY = str(Path(__file__).parent / "tiny.py")


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(list(argv))
    return stopped.value.code


def train(workdir, *settings, config=TINY):
    return run("train", f"--config={config}", f"--workdir={workdir}", *settings)


def losses(workdir):
    return {e["step"]: e["loss"] for e in read_metrics(workdir / "metrics.jsonl") if "loss" in e}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One finished tiny run."""
    folder = tmp_path_factory.mktemp("tiny")
    assert train(folder, "--config.log.report=True") == 0
    return folder


def final_params(workdir):
    step = state.steps_of(workdir)[-1]
    leaves = state.manifest.read(workdir / "checkpoints" / str(step)).leaves
    return step, {name: leaf.checksum for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def scalar(done, tmp_path_factory):
    """A Bradley-Terry run that starts from the weights of the judge."""
    folder = tmp_path_factory.mktemp("scalar")
    settings = (f"--config.model.path={done}", "--config.train.steps=2")
    assert train(folder, *settings, config=f"{TINY}:bradley_terry") == 0
    assert (folder / "DONE").exists() and not (folder / "report.html").exists()  # not wanted
    return folder


@pytest.mark.smoke
def test_a_run_leaves_what_the_design_promises(done):
    for name in ("config.json", "overrides.json", "env.json", "metrics.jsonl", "eval/preference.json", "DONE",
                 "report.html"):  # fmt: skip
        assert (done / name).exists(), name
    results = json.loads((done / "eval" / "preference.json").read_text())
    for name in ("accuracy", "swap_consistency", "position_bias", "ece", "num_pairs"):
        assert isinstance(results[name], int | float), name
    assert results["num_pairs"] == 40
    rows = (done / "eval" / "preference.rows.jsonl").read_text().splitlines()
    assert len(rows) == 40
    entries = read_metrics(done / "metrics.jsonl")
    for name in ("loss", "accuracy", "margin", "learning_rate", "grad_norm", "num_tokens", "epoch", "perf/step_time"):
        assert name in entries[0], name
    assert [e["step"] for e in entries if "loss" in e] == list(range(1, 7))
    assert entries[-1]["eval/preference/accuracy"] == results["accuracy"]


def test_evaluate_gives_the_numbers_of_the_training_run(done, tmp_path):
    """Rendering settings come from the run; the same function judges during training and afterwards."""
    rows = tmp_path / "rows.jsonl"
    from gramjax.data.recipes import word_translation

    rows.write_text("".join(json.dumps(row) + "\n" for row in word_translation.rows("valid", 40)))
    code = run(
        "evaluate", "--config=evaluate", f"--config.model.path={done}", f"--config.data.path={rows}",
        f"--workdir={tmp_path / 'out'}", "--config.evals.preference.batch_size=7",
    )  # fmt: skip
    assert code == 0
    now = json.loads((tmp_path / "out" / "eval" / "preference.json").read_text())
    then = json.loads((done / "eval" / "preference.json").read_text())
    for name in ("accuracy", "swap_consistency", "position_bias", "ece", "brier"):
        np.testing.assert_allclose(now[name], then[name], atol=1e-5, err_msg=name)


def test_evaluate_takes_the_step_it_is_asked_for(done, tmp_path, capsys):
    rows = ("--config.data.path=recipe:word_translation:valid:8", f"--workdir={tmp_path / 'out'}", "--dry_run")
    assert run("evaluate", "--config=evaluate", f"--config.model.path={done}", "--config.model.step=6", *rows) == 0
    assert run("evaluate", "--config=evaluate", f"--config.model.path={done}", "--config.model.step=5", *rows) == 2
    assert "has no checkpoint of step 5 (there are: 6)" in capsys.readouterr().err


def test_an_ensemble_leaves_what_each_member_says_and_their_mean(done, tmp_path):
    other = tmp_path / "other"
    assert train(other, "--config.seed=1", "--config.train.steps=2", "--config.train.evaluate=False") == 0
    arguments = (f"--config.model.path={done}", f"--config.ensemble.members=('{other}',)")
    data = "--config.data.path=recipe:word_translation:valid:40"
    assert run("evaluate", "--config=evaluate", f"--workdir={tmp_path / 'e'}", data, *arguments) == 0

    def rows(folder):
        return [json.loads(line) for line in (folder / "preference.rows.jsonl").read_text().splitlines()]

    first, second, both = (rows(tmp_path / "e" / name) for name in ("members/00", "members/01", "eval"))
    assert first == rows(done / "eval") and first != second and len(both) == 40
    for a, b, together in zip(first, second, both):
        assert together["margin"] == pytest.approx((a["margin"] + b["margin"]) / 2)
    results = json.loads((tmp_path / "e" / "eval" / "preference.json").read_text())
    assert results["members"] == [str(done), str(other)] and results["num_pairs"] == 40


def test_same_command_again_says_that_it_is_done(done, capsys):
    before = (done / "metrics.jsonl").read_text()
    assert train(done) == 0
    assert "is done (6 steps)" in capsys.readouterr().out
    assert (done / "metrics.jsonl").read_text() == before


def test_another_config_in_the_same_folder_is_refused(done, capsys):
    """B43."""
    assert train(done, "--config.optim.lr=0.5") == 2
    assert "config.optim.lr" in capsys.readouterr().err
    assert (done / "DONE").exists()


def start(workdir, log, *settings):
    """The train job as a process of its own, once it has logged some steps."""
    command = [sys.executable, "-m", "gramjax", "train", f"--config={TINY}", f"--workdir={workdir}", *settings]
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
    while process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and len((workdir / "metrics.jsonl").read_text().splitlines()) > 90:
            break
        time.sleep(0.005)
    assert process.poll() is None, log.read_text()[-2000:]
    return process


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder, *LONG) == 0
    return folder


def test_sigterm_saves_and_exits_with_the_code_for_requeue(straight, tmp_path):
    """F6: a scheduler's signal in a single-process run; the next start ends where an uninterrupted run does."""
    process = start(tmp_path / "run", tmp_path / "log", *LONG)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75 and "is saved" in (tmp_path / "log").read_text()
    saved, logged = state.steps_of(tmp_path / "run")[-1], max(losses(tmp_path / "run"))
    assert saved == logged < 260
    assert train(tmp_path / "run", *LONG) == 0
    assert losses(tmp_path / "run") == losses(straight)
    assert final_params(tmp_path / "run") == final_params(straight)


def test_kill_and_resume_across_epochs_gives_the_same_bits(straight, tmp_path):
    """F1, F8: SIGKILL in the middle, the same command again; every step logged once, the final state bit-equal."""
    killed = tmp_path / "killed"
    process = start(killed, tmp_path / "log", *LONG)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "DONE").exists() and state.steps_of(killed)[-1] < 260

    assert train(killed, *LONG) == 0
    assert losses(killed) == losses(straight)
    steps = [e["step"] for e in read_metrics(killed / "metrics.jsonl")]
    assert steps == sorted(set(steps)) == list(range(1, 261))
    assert final_params(killed) == final_params(straight)


def test_bradley_terry_starts_from_another_run(done, scalar):
    """Order of starting points: another run's weights; the head that it lacks is drawn."""
    results = json.loads((scalar / "eval" / "preference.json").read_text())
    assert results["swap_consistency"] is None and results["num_pairs"] == 40
    entries = read_metrics(scalar / "metrics.jsonl")
    assert entries[0]["min_reward"] <= entries[0]["mean_reward"] <= entries[0]["max_reward"]
    assert json.loads((scalar / "config.json").read_text())["model"]["path"] == str(done)
    assert "params/score" in final_params(scalar)[1] and "params/lm_head" not in final_params(scalar)[1]


def test_one_score_in_the_run_and_in_the_exported_torch_model(done, scalar, tmp_path):
    """The margins that the runs wrote are those of torch on the exported folders, for a judge and a scalar model."""
    torch = pytest.importorskip("torch", reason="parity needs torch")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from gramjax.core.config import DataSection
    from gramjax.data import tokenizer
    from gramjax.data.recipes import word_translation as recipe
    from gramjax.data.text import Renderer

    assert run("convert", str(done), str(tmp_path / "judge"), "--to=hf", "--verify") == 0
    assert run("convert", str(scalar), str(tmp_path / "scalar"), "--to=hf", "--verify") == 0
    section = DataSection(max_length=recipe.MAX_LENGTH, judge_prompt=recipe.JUDGE_PROMPT)
    renderer = Renderer(tokenizer.load(str(tmp_path / "judge")), section)
    judge = AutoModelForCausalLM.from_pretrained(tmp_path / "judge").eval()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scalar").eval()
    a, b = renderer.verdict_ids
    written = [
        [json.loads(line) for line in (folder / "eval" / "preference.rows.jsonl").read_text().splitlines()]
        for folder in (done, scalar)
    ]
    with torch.no_grad():
        for index, row in enumerate(recipe.rows("valid", 40)[:4]):
            logits = judge(torch.tensor([renderer.judge(row["prompt"], row["chosen"], row["rejected"])])).logits[0, -1]
            np.testing.assert_allclose(written[0][index]["margin_first"], logits[a] - logits[b], atol=1e-4)
            ids, _ = renderer.completion(row["prompt"], row["chosen"])
            reward = model(torch.tensor([ids])).logits[0, 0]
            np.testing.assert_allclose(written[1][index]["score_chosen"], reward, atol=1e-4)


def test_random_weights_take_the_architecture_only(done, tmp_path):
    settings = (f"--config.model.path={done}", "--config.model.random_weights=True", "--config.train.steps=1")
    assert train(tmp_path / "fresh", *settings, "--config.train.evaluate=False") == 0
    first = {e["step"]: e["loss"] for e in read_metrics(done / "metrics.jsonl") if "loss" in e}[1]
    np.testing.assert_allclose(losses(tmp_path / "fresh")[1], first, rtol=1e-6)  # same seed, same drawn weights


def test_only_the_chosen_parameters_train(done, tmp_path):
    code = train(
        tmp_path / "part", f"--config.model.path={done}", "--config.train.steps=2", "--config.train.evaluate=False",
        "--config.train.trainable=('layers/001/mlp/.*',)",
    )  # fmt: skip
    assert code == 0
    before, after = final_params(done)[1], final_params(tmp_path / "part")[1]
    for path in before:
        if path.startswith("params/"):
            assert (before[path] != after[path]) == ("layers/001/mlp/" in path), path


def test_phases_run_one_after_the_other_and_resume(tmp_path, capsys):
    settings = [
        "--config.phases.stage1.train.steps=2", "--config.phases.stage2.train.steps=2", "--config.train.log_every=1",
        "--config.phases.stage1.data.train=('recipe:word_translation:unlabelled:80',)",
        "--config.phases.stage2.data.train=('recipe:word_translation:train:80',)",
        "--config.data.valid=('recipe:word_translation:valid:20',)",
        "--config.model.arch.hidden_size=16", "--config.model.arch.num_layers=1",
        "--config.log.tensorboard=False", "--config.log.report=False",
    ]  # fmt: skip
    workdir = tmp_path / "run"
    assert train(workdir, *settings, config="quickstart") == 0
    assert sorted(losses(workdir / "stage1")) == sorted(losses(workdir)) == [1, 2]
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["path"] == str(workdir / "stage1") and saved["objective"]["stage"] == "finetune"
    capsys.readouterr()
    assert train(workdir, *settings, config="quickstart") == 0
    assert capsys.readouterr().out.count("is done (2 steps)") == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("--config.train.batch_size=1000", "1000"),
        ("--config.train.batch_size=6 --config.train.grad_accum=4", "batch_size 6"),
        ("--config.model.attention=flash9", "flash9"),
        ("--config.model.arch.num_kv_heads=3", "num_kv_heads 3"),
        ("--config.objective.label_smoothing=0.7", "label_smoothing"),
        ("--config.data.train=('nowhere.jsonl',)", "nowhere.jsonl"),
        ("--config.train.trainable=('layer/.*',)", "layer/"),
        ("--config.mesh.tensor=2", "mesh"),
        ("--config.tokenizer.path=nowhere", "nowhere"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_compiled(tmp_path, capsys, setting, words):
    code = train(tmp_path / "run", *setting.split(" "))
    error = capsys.readouterr().err.strip()
    assert code in (2, 3) and words in error and "Traceback" not in error
    assert len(error.splitlines()) == 1, error
