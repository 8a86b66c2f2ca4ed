"""F32: a run that crashes at the same step in every try is not started again, and says why."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.checkpoint import state as states
from gramjax.core import goodput, tries
from gramjax.core.errors import DataError, DoNotRequeue, GramjaxError, Preempted, UserError
from gramjax.core.writer import last_step, read_metrics
from gramjax.jobs import train as train_job
from gramjax.plots import report

HERE = Path(__file__).parent
TINY = str(HERE.parent / "jobs" / "tiny.py")


def log_to(workdir, step):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def attempt(workdir, error=None, step=None, most=3):
    """One try that logs a step and ends with an error (`GONE`: without a word); whether it was let in."""
    entered = tries.Try(workdir, most)
    try:
        entered.__enter__()
    except DoNotRequeue as refusal:
        return str(refusal)
    if step is not None:
        log_to(workdir, step)
    if error is not GONE:
        entered.__exit__(type(error) if error else None, error, None)
    return ""


GONE = object()


@pytest.mark.parametrize("end", [RuntimeError("broken"), GONE, GramjaxError("process 1: broken")])
def test_the_fourth_try_at_one_step_is_refused(tmp_path, end):
    assert [attempt(tmp_path, end, step=6) for _ in range(3)] == ["", "", ""]
    refused = attempt(tmp_path, end, step=6)
    assert "crashed 3 times in a row after step 6" in refused and str(tmp_path / "tries.json") in refused
    assert "config.safety.max_crashes=0" in refused
    assert attempt(tmp_path, end, step=6)  # as often as it is asked
    assert attempt(tmp_path, end, step=6, most=0) == ""
    (tmp_path / "tries.json").unlink()
    assert attempt(tmp_path, end, step=6) == ""


@pytest.mark.parametrize("end", [Preempted("x"), UserError("x"), DataError("x"), KeyboardInterrupt(), None])
def test_what_is_no_crash_wipes_the_slate(tmp_path, end):
    for _ in range(3):
        assert attempt(tmp_path, RuntimeError("x"), step=6) == ""
        assert attempt(tmp_path, RuntimeError("x"), step=6) == ""
        assert attempt(tmp_path, end, step=6) == ""
    assert tries.read(tmp_path / "tries.json") == []


def test_progress_is_no_loop(tmp_path):
    """Killed again and again, but never twice after the same step; then a crash of another step counts from one."""
    for step in (3, 9, 4, 12, 5, 12):
        assert attempt(tmp_path, GONE, step) == ""
    for _ in range(2):
        assert attempt(tmp_path, RuntimeError("x"), 12) == ""
    assert attempt(tmp_path, RuntimeError("x"), 12)


def test_the_last_step_is_read_from_the_end_of_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text("".join(json.dumps({"step": step, "x": "y" * 5000}) + "\n" for step in range(40)))
    assert last_step(path) == 39
    with path.open("a") as file:
        file.write('{"step": 40, "x": "yy')
    assert last_step(path) == 39
    (tmp_path / "tries.json").write_text('{"tries": [{}')
    assert tries.read(tmp_path / "tries.json") == []


def run(workdir, *settings):
    given = ["--config.train.steps=9", "--config.train.save_every=2", "--config.train.evaluate=False", *settings]
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", f"--config={TINY}", f"--workdir={workdir}", *given])
    return stopped.value.code


def test_a_training_that_fails_at_step_seven_each_time(tmp_path, monkeypatch, capsys):
    """A real kill, then two bugs, each after step 6; the next start ends with 76, and 0 once the cause is gone."""
    folder = tmp_path / "run"
    command = [sys.executable, str(HERE / "faulty.py"), "train", f"--config={TINY}", f"--workdir={folder}",
               "--config.train.steps=9", "--config.train.save_every=2", "--config.train.evaluate=False"]  # fmt: skip
    # The metrics of a step are written when the next one is under way: the eighth start of a step follows line 6.
    killed = subprocess.run(command, env={**os.environ, "GRAMJAX_FAULT": "kill@step8"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and last_step(folder / "metrics.jsonl") == 6

    compile_step, start = train_job.compile_step, {}

    def broken(run, state, *rest):
        step = compile_step(run, state, *rest)

        def fails(state, batch):
            if int(state["step"]) == start["fails"]:
                raise RuntimeError("no luck")
            return step(state, batch)

        return fails

    monkeypatch.setattr(train_job, "compile_step", broken)
    for start["fails"] in (7, 7):
        with pytest.raises(RuntimeError, match="no luck"):
            cli.run(command[2:])
    assert len(tries.read(folder / "tries.json")) == 3
    capsys.readouterr()
    assert run(folder) == 76
    error = capsys.readouterr().err
    assert "crashed 3 times in a row after step 6 (the last time: RuntimeError: no luck)" in error
    assert len(error.splitlines()) == 1 and not (folder / "run.lock").exists()
    monkeypatch.undo()
    assert run(folder, "--config.safety.max_crashes=0") == 0 and states.steps_of(folder)[-1] == 9
    entries = read_metrics(folder / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    assert tries.read(folder / "tries.json") == []
    last = entries[-1]
    # Only tries that wrote a line are starts: the last, the killed one, and the one after it if it had to repeat lines.
    assert last["goodput/starts"] in (2, 3) and 0 < last["goodput/share"] < 1
    seconds = {name: last[f"goodput/{name}"] for name in ("steps", "startup", "compile", "saving")}
    assert min(seconds.values()) > 0 and last["goodput/startup"] > entries[0]["goodput/startup"]
    assert last["goodput/share"] == pytest.approx(
        seconds["steps"] / sum(last.get(f"goodput/{cause}", 0.0) for cause in goodput.CAUSES), abs=1e-3
    )
    page = report.write_report(folder).read_text()
    assert "Where the time went" in page and f"{last['goodput/starts']:.0f} starts" in page
