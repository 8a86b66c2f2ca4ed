"""The train job on several simulated devices: checkpoints, resumption, the numbers of one device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gramjax.checkpoint import state
from gramjax.core.writer import read_metrics
from tests import simulated

ROOT = Path(__file__).parent.parent.parent
TINY = str(Path(__file__).parent / "tiny.py")
SETTINGS = ("--config.train.save_every=1", "--config.train.evaluate=False")


def train(workdir, devices, *settings, processes=0):
    """`gramjax train` with this many simulated devices (of each process); its metrics by step."""
    environment = simulated.environment(devices)
    command = [sys.executable, "-m", "gramjax"]
    if processes:
        command = [str(ROOT / "launch" / "gpu_host.sh"), f"--processes={processes}"]
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    words = ["train", f"--config={TINY}", f"--workdir={workdir}", *SETTINGS, *settings]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {e["step"]: (e["loss"], e["num_tokens"]) for e in read_metrics(workdir / "metrics.jsonl") if "loss" in e}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    return workdir, train(workdir, 1)


def test_a_job_on_four_devices_saves_every_step_and_has_the_losses_of_one(alone, tmp_path):
    """Saving runs a reduction per parameter on all devices between steps; on simulated devices that locked up once."""
    workdir, one = alone
    several = train(tmp_path / "four", 4, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    np.testing.assert_allclose([several[s] for s in sorted(several)], [one[s] for s in sorted(one)], rtol=2e-4)
    assert sorted(several) == [1, 2, 3, 4, 5, 6]
    assert state.steps_of(tmp_path / "four") == state.steps_of(workdir)


def test_processes_that_share_the_length_of_rows_read_the_same_rows(alone, tmp_path):
    """Two processes hold one half of every row each: losses and counts of tokens are those of one."""
    several = train(tmp_path / "two", 1, "--config.mesh.fsdp=1", "--config.mesh.context=2", processes=2)
    np.testing.assert_allclose([several[s] for s in sorted(several)], [alone[1][s] for s in sorted(several)], rtol=2e-4)
    assert len(several) == 6
