"""Two real processes on one machine, started by `launch/gpu_host.sh`: the numbers of one, whatever is done to them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gramjax.checkpoint import best, state
from gramjax.checkpoint.source import open_source
from gramjax.core import tree
from gramjax.core.writer import read_metrics
from gramjax.models import decoder

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
TINY = str(ROOT / "tests" / "jobs" / "tiny.py")
STEPS = 60
SETTINGS = [f"--config.train.steps={STEPS}", "--config.train.save_every=10", "--config.train.eval_every=20",
            "--config.evals.preference.batch_size=8", "--config.evals.preference.share=False",
            "--config.safety.check_replicas_every=15"]  # fmt: skip
BEST = ["--config.train.keep=1", "--config.train.keep_best=1", "--config.train.best_metric=eval/preference/ece",
        "--config.train.best_mode=min"]  # fmt: skip



def environment(devices=1, fault=""):
    """Variables of a job on a CPU. `gramjax` is the one of this checkout that can be given faults."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "GRAMJAX_GRACE": "1",
            "PATH": f"{HERE / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}", "GRAMJAX_FAULT": fault,
            "XLA_FLAGS": flags}  # fmt: skip


def with_defaults(settings):
    """The settings, and those of `SETTINGS` that are not among them."""
    names = {setting.partition("=")[0] for setting in settings}
    return [*(default for default in SETTINGS if default.partition("=")[0] not in names), *settings]


def launch(workdir, *settings, log, fault=""):
    """The launcher with two processes that train, in a session of its own."""
    return launch_verb("train", f"--config={TINY}", f"--workdir={workdir}", *with_defaults(settings), log=log,
                       fault=fault)  # fmt: skip


def launch_verb(*words, log, fault=""):
    """The launcher with two processes of any verb."""
    command = [str(ROOT / "launch" / "gpu_host.sh"), "--processes=2", *words]
    where = environment(fault=fault)
    return subprocess.Popen(command, env=where, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finished(job, log):
    """Exit code of a launcher, and what was printed."""
    try:
        code = job.wait(300)
    finally:
        end(job)
    log.flush()
    return code, Path(log.name).read_text()


def end(job):
    """Kill what is left of a launcher and its processes."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    job.wait()


def lines_in(workdir):
    """Step, loss and evaluation of every line of metrics."""
    return [(e["step"], e.get("loss"), e.get("eval/preference/nll")) for e in read_metrics(workdir / "metrics.jsonl")]


def steps_in(workdir):
    file = workdir / "metrics.jsonl"
    return [entry["step"] for entry in read_metrics(file) if "loss" in entry] if file.exists() else []


def wait_for_step(job, workdir, step, log):
    while not any(found >= step for found in steps_in(workdir)):
        assert job.poll() is None, f"it ended with {job.returncode}:\n{Path(log.name).read_text()[-3000:]}"
        time.sleep(0.05)


def workers(job):
    """Process ids of the two trainings, by number."""
    out = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        number = next((v.partition(b"=")[2] for v in variables if v.startswith(b"JAX_PROCESS_ID=")), None)
        if parent == str(job.pid) and number is not None:
            out[int(number)] = int(folder.name)
    return out


def params_of(run):
    source = open_source(run)
    return tree.flatten(source.load(decoder.specs(source.config), source.config).params)


def undisturbed(run, *settings):
    """One process with two devices, from the first step to the last."""
    given = with_defaults(settings)
    command = [sys.executable, "-m", "gramjax", "train", f"--config={TINY}", f"--workdir={run}", *given]
    done = subprocess.run(command, env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("alone") / "run", *BEST)


def test_a_run_that_is_killed_and_stopped_again_and_again_ends_as_an_undisturbed_one(alone, tmp_path):
    """F2, F3, F4, F5: SIGKILL of either process while it saves, SIGTERM to one of them in an evaluation and to the
    launcher in a step; then to the end: always the same command."""
    run = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        code, text = finished(launch(run, *BEST, log=log, fault="kill@save10:1"), log)
        assert code == 128 + 9 and "process 1 ended with 137" in text, text[-3000:]
        assert max(state.steps_of(run), default=0) <= 10

        code, text = finished(launch(run, *BEST, log=log, fault="term@eval20:1"), log)
        assert code == 75 and "in the evaluation of step 20; it is saved" in text, text[-3000:]
        assert max(state.steps_of(run)) == 20 == max(steps_in(run))
        assert all(evaluated is None for _, _, evaluated in lines_in(run)), "half an evaluation is none"

        code, text = finished(launch(run, *BEST, log=log, fault="kill@save40:0"), log)
        assert code == 128 + 9 and "process 0 ended with 137" in text, text[-3000:]
        assert 20 <= max(state.steps_of(run)) <= 40 and state.verify(run, max(state.steps_of(run))) == []

        job = launch(run, *BEST, log=log, fault="slow@step1")
        wait_for_step(job, run, max(steps_in(run)) + 3, log)
        job.send_signal(signal.SIGTERM)
        code, text = finished(job, log)
        assert code == 75, text[-3000:]
        stopped = max(state.steps_of(run))
        assert stopped < STEPS and max(steps_in(run)) == stopped

        code, text = finished(launch(run, *BEST, log=log), log)
        assert code == 0, text[-3000:]
    assert lines_in(run) == lines_in(alone)
    assert steps_in(run) == list(range(1, STEPS + 1))
    assert state.steps_of(run) == state.steps_of(alone) == [40, STEPS], "the best stays beside the newest (F25)"
    assert best.step_of(run) == best.step_of(alone) == 40
    want, got = params_of(alone), params_of(run)
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_a_bug_in_one_process_and_a_process_that_stands_still_end_the_job(tmp_path):
    """F12: the traceback of the one that failed is there, the other does not wait for it. F11: a peer that is alive and
    stuck is noticed by nobody but a watchdog."""
    short = ["--config.train.steps=20", "--config.train.evaluate=False", "--config.train.save_every=0"]
    with (tmp_path / "bug").open("w") as log:
        code, text = finished(launch(tmp_path / "run", *short, log=log, fault="raise@step3:1"), log)
    assert code == 1 and "RuntimeError: broken on purpose" in text and "process 1 ended with 1" in text, text[-3000:]
    watched = [*short, "--config.safety.watchdog_seconds=3.0", "--config.safety.watchdog_factor=1.0"]
    with (tmp_path / "stuck").open("w") as log:
        code, text = finished(launch(tmp_path / "run", *watched, log=log, fault="sleep@step5:1"), log)
    assert code == 77 and "nothing moved for" in text and "where every thread stands" in text, text[-3000:]


def test_evaluate_in_two_processes_writes_what_one_writes(alone, tmp_path):
    """One writer, the same bytes; and a verb that several processes cannot share says so in all of them."""
    settings = ["--config=evaluate", f"--config.model.path={alone}", "--config.evals.preference.batch_size=8"]
    rows = "--config.data.path=recipe:word_translation:valid:40"
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "gramjax", "evaluate", *settings, rows, f"--workdir={one}"]
    done = subprocess.run(command, env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "log").open("w") as log:
        code, text = finished(launch_verb("evaluate", *settings, rows, f"--workdir={two}", log=log), log)
        assert code == 0 and text.count("results  ") == 1, text[-3000:]
    for name in ("preference.json", "preference.rows.jsonl"):
        assert (one / "eval" / name).read_bytes() == (two / "eval" / name).read_bytes()


def pair(commands, devices=1):
    """Exit codes and output of two commands that are started together."""
    with_numbers = [
        {**environment(devices), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    ] * 2
    jobs = [
        subprocess.Popen(command, env={**variables, "JAX_PROCESS_ID": str(i)}, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for i, (command, variables) in enumerate(zip(commands, with_numbers))
    ]  # fmt: skip
    try:
        texts = [job.communicate(timeout=120)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    return [job.returncode for job in jobs], texts


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_processes_with_different_settings_stop_before_the_first_step(tmp_path):
    base = [sys.executable, "-m", "gramjax", "train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *SETTINGS]
    codes, texts = pair([base, [*base, "--config.optim.lr=0.5"]])
    assert codes == [2, 2], texts
    for text in texts:
        assert "another config than process 0" in text and "config.optim.lr=0.001, now 0.5" in text
    assert not (tmp_path / "run" / "run.lock").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_that_differ_are_told_and_copies_that_drift_are_named(tmp_path):
    """F13, F14: uneven data, another seed, other code. F22: a folder that is in use. F34: one bit of one device's copy,
    and copies without a most."""
    worker = [sys.executable, str(HERE / "agreeing_worker.py"), str(tmp_path)]
    with state.RunLock(tmp_path):
        codes, texts = pair([worker, worker], devices=2)
    assert codes == [0, 0], texts
    found, other = [json.loads(text.partition("found ")[2].splitlines()[0]) for text in texts]
    plain = lambda said: re.sub(r"process \d of 2: ", "", json.dumps(said))  # noqa: E731
    assert plain(found) == plain(other), "both say the same, one names the other"
    assert f"is in use by process {os.getpid()}" in found["lock"]
    assert found["same"] == found["same code"] == found["whole"] == "" and found["steps"] == 2
    for name in ("uneven", "seed", "code"):
        assert found[name].startswith("2 process 1 of 2: process 1 has another"), found[name]
    assert "another data than process 0" in found["uneven"] and "count 10 there, 9 here" in found["uneven"]
    assert "seed 0 there, 1 here" in found["seed"] and "jax " in found["code"] and ", 0.0.1 here" in found["code"]
    assert found["odd"].startswith("76 step 10: copies that should be the same differ in 1 of 3 arrays: params/copied")
    odd, others = found["devices"][3], found["devices"][:3]
    assert f"device {odd} of " in found["odd"] and not any(f"device {d} of " in found["odd"] for d in others)
    assert all(f"device {d} of " in found["even"] for d in found["devices"]), "two against two: all are named"


def test_a_file_that_one_host_lacks_stops_all_with_its_error(tmp_path):
    """The error of one process is raised in all: none waits for a partner that is gone."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(8)))
    worker = Path(__file__).parent / "one_sided_worker.py"
    codes, texts = pair([[sys.executable, str(worker), str(rows)], [sys.executable, str(worker), str(rows) + ".gone"]])
    assert codes == [3, 3], texts
    assert all(".gone" in text for text in texts) and "process 1 of 2" in texts[0]


REWARD = '''
import os, pathlib, signal, time

def digits(completions, **kwargs):
    mark = pathlib.Path(os.environ.get("GRAMJAX_MARK", "/"))
    step, number = kwargs["trainer_state"].global_step, os.environ.get("JAX_PROCESS_ID")
    if step == 1 and number == "1" and not mark.exists():
        os.kill(os.getpid(), signal.SIGTERM)
        mark.touch()
        time.sleep(4)  # the rewards are waited for while the signal is there
    return [sum(c.isdigit() for c in text) / 4 for text in completions]
'''


def test_rollouts_of_two_processes_are_those_of_one(tmp_path):
    """Each rewards its share of the groups; the rewards of every step and the policy at the end are the same. F5: a
    request to stop while rewards are computed ends both, and the same command goes on."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARD)
    config = [f"--config={ROOT / 'tests' / 'jobs' / 'tiny_grpo.py'}:{rewards}", "--config.train.steps=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "gramjax", "train", *config, f"--workdir={one}"]
    done = subprocess.run(command, env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    os.environ["GRAMJAX_MARK"] = str(tmp_path / "mark")
    try:
        with (tmp_path / "log").open("w") as log:
            code, text = finished(launch_verb("train", *config, f"--workdir={two}", log=log), log)
            assert code == 75 and "stopped on request in waiting for rewards" in text, text[-3000:]
            assert state.steps_of(two) == [1]
            code, text = finished(launch_verb("train", *config, f"--workdir={two}", log=log), log)
            assert code == 0, text[-3000:]
    finally:
        del os.environ["GRAMJAX_MARK"]
    logs = [read_metrics(run / "metrics.jsonl") for run in (one, two)]
    found = [[(entry["step"], entry["reward"]) for entry in log if "loss" in entry] for log in logs]
    assert found[0] == found[1] and len(found[0]) == 3 and any(reward for _, reward in found[0])
    want, got = params_of(one), params_of(two)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-6, err_msg=path)
