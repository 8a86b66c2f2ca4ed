"""Two real processes on one machine, started by `launch/gpu_host.sh`: the numbers of one, whatever is done to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gramjax.checkpoint import state
from gramjax.checkpoint.source import open_source
from gramjax.core import tree
from gramjax.core.writer import read_metrics
from gramjax.models import decoder

ROOT = Path(__file__).parent.parent.parent
TINY = str(ROOT / "tests" / "jobs" / "tiny.py")
STEPS = 150
SETTINGS = [f"--config.train.steps={STEPS}", "--config.train.save_every=10", "--config.train.evaluate=False"]


def environment(devices=1):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "GRAMJAX_GRACE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}  # fmt: skip


def with_defaults(settings):
    """The settings, and those of `SETTINGS` that are not among them."""
    names = {setting.partition("=")[0] for setting in settings}
    return [*(default for default in SETTINGS if default.partition("=")[0] not in names), *settings]


def launch(workdir, *settings, log):
    """The launcher with two processes, in a session of its own."""
    script = ROOT / "launch" / "gpu_host.sh"
    given = with_defaults(settings)
    command = [str(script), "--processes=2", "train", f"--config={TINY}", f"--workdir={workdir}", *given]
    return subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def end(job):
    """Kill what is left of a launcher and its processes."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    job.wait()


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
    return undisturbed(tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes under /proc")
def test_a_killed_and_a_stopped_run_end_as_an_undisturbed_one(alone, tmp_path):
    """SIGKILL of one process, then SIGTERM of the launcher, then to the end: always the same command."""
    run = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        job = launch(run, log=log)
        try:
            wait_for_step(job, run, 12, log)
            while not state.steps_of(run):  # saved in the background
                assert job.poll() is None, Path(log.name).read_text()[-3000:]
                time.sleep(0.02)
            os.kill(workers(job)[1], signal.SIGKILL)
            assert job.wait(120) not in (0, 75)
            assert max(state.steps_of(run)) < STEPS

            job = launch(run, log=log)
            wait_for_step(job, run, max(steps_in(run)) + 10, log)
            job.send_signal(signal.SIGTERM)
            assert job.wait(120) == 75, Path(log.name).read_text()[-3000:]
            stopped = max(state.steps_of(run))
            assert stopped < STEPS and max(steps_in(run)) == stopped

            job = launch(run, log=log)
            assert job.wait(300) == 0, Path(log.name).read_text()[-3000:]
        finally:
            end(job)
    assert steps_in(run) == list(range(1, STEPS + 1))
    want, got = params_of(alone), params_of(run)
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)
    losses = [[entry["loss"] for entry in read_metrics(r / "metrics.jsonl") if "loss" in entry] for r in (alone, run)]
    assert losses[0] == losses[1]


def pair(commands):
    """Exit codes and output of two commands that are started together."""
    with_numbers = [
        {**environment(), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
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


def test_a_file_that_one_host_lacks_stops_all_with_its_error(tmp_path):
    """The error of one process is raised in all: none waits for a partner that is gone."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(8)))
    worker = Path(__file__).parent / "one_sided_worker.py"
    codes, texts = pair([[sys.executable, str(worker), str(rows)], [sys.executable, str(worker), str(rows) + ".gone"]])
    assert codes == [3, 3], texts
    assert all(".gone" in text for text in texts) and "process 1 of 2" in texts[0]


def test_rollouts_of_two_processes_are_those_of_one(tmp_path):
    """Each draws its share of the groups; the rewards of every step and the policy at the end are the same."""
    rewards = tmp_path / "rewards.py"
    body = "return [sum(c.isdigit() for c in t) / 4 for t in completions]"
    rewards.write_text(f"def digits(completions, **kwargs):\n    {body}\n")
    config = [f"--config={ROOT / 'tests' / 'jobs' / 'tiny_grpo.py'}:{rewards}", "--config.train.steps=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "gramjax", "train", *config, f"--workdir={one}"]
    done = subprocess.run(command, env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    script = [str(ROOT / "launch" / "gpu_host.sh"), "--processes=2", "train", *config, f"--workdir={two}"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(script, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            assert job.wait(300) == 0, Path(log.name).read_text()[-3000:]
        finally:
            end(job)
    logs = [read_metrics(run / "metrics.jsonl") for run in (one, two)]
    found = [[(entry["step"], entry["reward"]) for entry in log if "loss" in entry] for log in logs]
    assert found[0] == found[1] and len(found[0]) == 3 and any(reward for _, reward in found[0])
    want, got = params_of(one), params_of(two)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-6, err_msg=path)
