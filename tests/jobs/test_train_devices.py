"""The train job on several simulated devices: checkpoints, resumption, the numbers of one device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from gramjax.checkpoint import state
from gramjax.core.writer import read_metrics

TINY = str(Path(__file__).parent / "tiny.py")
SETTINGS = ("--config.train.save_every=1", "--config.train.evaluate=False")


def train(workdir, devices, *settings):
    """`gramjax train` in a process with this many simulated devices; its losses by step."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "gramjax", "train", f"--config={TINY}", f"--workdir={workdir}", *SETTINGS]
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {e["step"]: e["loss"] for e in read_metrics(workdir / "metrics.jsonl") if "loss" in e}


def test_a_job_on_four_devices_saves_every_step_and_has_the_losses_of_one(tmp_path):
    """Saving runs a reduction per parameter on all devices between steps; on simulated devices that locked up once."""
    several = train(tmp_path / "four", 4, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    one = train(tmp_path / "one", 1)
    np.testing.assert_allclose([several[s] for s in sorted(several)], [one[s] for s in sorted(one)], rtol=2e-4)
    assert sorted(several) == [1, 2, 3, 4, 5, 6]
    assert state.steps_of(tmp_path / "four") == state.steps_of(tmp_path / "one")
