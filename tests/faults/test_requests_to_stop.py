"""A run of one process, asked to stop wherever it is: the same command goes on, and ends as an undisturbed run."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import best, state
from gramjax.checkpoint.source import open_source
from gramjax.core import signals, tree
from gramjax.core.errors import Preempted
from gramjax.core.writer import read_metrics
from gramjax.models import decoder
from gramjax.scoring import reading

FAULTY = Path(__file__).parent / "faulty.py"
SETTINGS = [
    f"--config={Path(__file__).parent.parent / 'jobs' / 'tiny.py'}", "--config.train.eval_every=2",
    "--config.train.save_every=3", "--config.evals.preference.batch_size=8", "--config.evals.preference.share=False",
    "--config.train.keep=1", "--config.train.keep_best=1", "--config.train.best_metric=eval/preference/accuracy",
]  # fmt: skip


def start(run: Path, fault: str = "") -> tuple[int, str]:
    """Exit code and output of the command, with a fault."""
    command = [sys.executable, str(FAULTY), "train", *SETTINGS, f"--workdir={run}"]
    done = subprocess.run(command, env={**os.environ, "GRAMJAX_FAULT": fault}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def entries(run: Path) -> list[tuple[int, float | None, float | None]]:
    """Step, loss and accuracy of the evaluation of every line of metrics."""
    return [(e["step"], e.get("loss"), e.get("eval/preference/nll")) for e in read_metrics(run / "metrics.jsonl")]


def params_of(run: Path):
    source = open_source(run)
    return tree.flatten(source.load(decoder.specs(source.config), source.config).params)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli.main(["train", *SETTINGS, f"--workdir={run}"]) == 0
    return run


def test_a_request_in_any_phase_is_served_and_nothing_is_lost_or_doubled(undisturbed, tmp_path):
    """F5, F7, F8, F36: SIGTERM while rows are encoded, in the first compilation, in an evaluation; twice; Ctrl-C."""
    run = tmp_path / "run"
    for fault in ("term@encode", "term@compile"):
        code, text = start(run, fault)
        assert code == 75 and "stopped on request in the" in text, text
        assert state.steps_of(run) == [] and not (run / "run.lock").exists()

    code, text = start(run, "term@eval2")
    assert code == 75 and "in the evaluation of step 2; it is saved" in text, text
    assert state.steps_of(run) == [2], "the state of that step is saved"
    assert [step for step, _, evaluated in entries(run) if evaluated is not None] == [], "half an evaluation is none"

    code, text = start(run, "twice@eval4")  # the second one does not wait for what the main thread stands in
    assert code == 128 + 15 and "ended at once" in text, text
    assert state.steps_of(run) == [2, 3] and state.verify(run, 3) == []

    code, text = start(run, "int@step1")
    assert code == 75 and "step 4 is saved" in text and "is gone without releasing the folder" in text, text
    assert 4 not in [step for step, _, evaluated in entries(run) if evaluated is not None], "due, and still to be made"

    code, text = start(run)
    assert code == 0, text
    assert entries(run) == entries(undisturbed)
    assert state.steps_of(run) == state.steps_of(undisturbed) == [2, 6], "the best (2) and the newest, after a kill too"
    assert open_source(f"{run}@best").step == best.step_of(undisturbed) == 2
    want, got = params_of(undisturbed), params_of(run)
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_a_kill_after_the_last_evaluation_doubles_no_line(undisturbed, tmp_path):
    """The last checkpoint is written before the last evaluation: a start that finds it evaluates again."""
    before = entries(undisturbed)
    (undisturbed / "DONE").unlink()  # as if it had been killed while it wrote its report
    assert cli.main(["train", *SETTINGS, f"--workdir={undisturbed}"]) == 0
    assert entries(undisturbed) == before and (undisturbed / "DONE").exists()


def test_an_evaluation_asked_to_stop_leaves_no_results(undisturbed, tmp_path, monkeypatch):
    """F5: `gramjax evaluate` keeps nothing half done; asked at its first batch, it stops there."""
    batches = reading._batches

    def asked_to_stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return batches(*args)

    monkeypatch.setattr(reading, "_batches", asked_to_stop)
    with pytest.raises(Preempted, match="in a batch of scoring: it keeps nothing half done"):
        cli.main(["evaluate", "--config=evaluate", f"--config.model.path={undisturbed}@best",
                  "--config.data.path=recipe:word_translation:valid:40", f"--workdir={tmp_path}"])  # fmt: skip
    assert not (tmp_path / "eval").exists()


def test_a_job_that_joined_others_before_tells_their_runtime_of_a_request():
    """`jax.distributed` sets its handler past Python, and all processes hear of SIGTERM to one through it alone."""
    told, before = [], signal.getsignal(signal.SIGTERM)
    theirs = ctypes.CFUNCTYPE(None, ctypes.c_int)(told.append)
    signals.handle(ctypes.cast(theirs, ctypes.c_void_p).value)
    try:
        with signals.Watch(joined=True) as watch:
            watch.begin(several=True)
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 10
            while not told and time.monotonic() < end:
                time.sleep(0.01)
        assert watch.asked and told == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stuck_process_ends_with_its_stacks(tmp_path):
    """F11: nothing moves in step 3."""
    command = [sys.executable, str(FAULTY), "train", *SETTINGS, f"--workdir={tmp_path / 'run'}",
               "--config.safety.watchdog_seconds=2.0", "--config.safety.watchdog_factor=1.0"]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "GRAMJAX_FAULT": "sleep@step3"}, capture_output=True, text=True)
    assert done.returncode == 77, done.stderr[-3000:]
    assert "nothing moved for" in done.stderr and "in a training step" in done.stderr
    assert "stand_still" in done.stderr, "the stack of the thread that is stuck"
