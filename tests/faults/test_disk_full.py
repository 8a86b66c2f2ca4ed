"""F15, F16, F33: a disk without room costs a checkpoint and no training; old steps go only when a new one is whole."""

import contextlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import state as states
from gramjax.core.errors import UserError
from gramjax.core.writer import read_metrics

# A save that fails leaves an event loop of TensorStore behind; Python says so when it collects it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TINY = str(Path(__file__).parent.parent / "jobs" / "tiny.py")


def make_state(step):
    """Half a megabyte that does not compress."""
    values = np.random.default_rng(step).normal(size=(512, 256))
    return {"params": {"w": jnp.asarray(values, jnp.float32)}, "step": jnp.int32(step)}


@contextlib.contextmanager
def largest_file(size):
    """No file of this process grows beyond so many bytes: what a disk without room does to large writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def folders(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_a_save_without_room_is_said_its_remains_go_and_the_next_one_works(tmp_path):
    log = []
    with states.Checkpoints(tmp_path, log=log.append) as saved:
        saved.save(1, make_state(1), {}, {})
        saved.wait()
        with largest_file(100_000):
            for step in (2, 3):  # two in a row: that a save failed is known when the next one begins
                saved.save(step, make_state(step), {}, {})
            with pytest.raises(states.DiskFull, match="checkpoint 3 was not written: the disk of .* is full"):
                saved.wait()
        saved.save(4, make_state(4), {}, {})
    assert states.steps_of(tmp_path) == [1, 4] and folders(tmp_path) == ["1", "4"]
    assert len(log) == 1 and "checkpoint 2" in log[0] and "the training goes on" in log[0]
    assert all(not states.verify(tmp_path, step) for step in (1, 4))


def test_the_third_save_in_a_row_without_room_is_the_end(tmp_path):
    log = []
    saved = states.Checkpoints(tmp_path, log=log.append)
    saved.save(1, make_state(1), {}, {})
    saved.wait()
    with largest_file(100_000):
        with pytest.raises(UserError, match="3 saves in a row found no room: make some"):
            for step in range(2, 9):
                saved.save(step, make_state(step), {}, {})
    saved.close()
    assert step == 5 and folders(tmp_path) == ["1"] and not states.verify(tmp_path, 1)


def test_a_training_goes_on_while_the_disk_is_full(tmp_path, monkeypatch, capsys):
    """The save of step 2 finds no room, those of 4 and 6 do; metrics are whole, and the run ends as one with room."""
    save = states.Checkpoints.save

    def squeezed(self, step, *rest):
        with largest_file(20_000) if step == 2 else contextlib.nullcontext():
            save(self, step, *rest)
            while step == 2 and self._manager.is_saving_in_progress():
                time.sleep(0.01)

    monkeypatch.setattr(states.Checkpoints, "save", squeezed)
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", f"--config={TINY}", f"--workdir={tmp_path}", "--config.train.steps=6",
                 "--config.train.save_every=2", "--config.train.evaluate=False"])  # fmt: skip
    assert stopped.value.code == 0
    assert "checkpoint 2 was not written: the disk of" in capsys.readouterr().err
    assert states.steps_of(tmp_path) == [4, 6] and folders(tmp_path) == ["4", "6"]
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, 7))
    assert all(math.isfinite(entry["loss"]) for entry in entries)


def test_deletes_that_fail_are_said_once_and_tried_again(tmp_path, monkeypatch):
    log, remove, broken = [], shutil.rmtree, [True]

    def rmtree(path, *args, **kwargs):
        if broken[0] and Path(path).name == "1":
            raise PermissionError(13, "Permission denied")
        return remove(path, *args, **kwargs)

    monkeypatch.setattr(states.shutil, "rmtree", rmtree)
    with states.Checkpoints(tmp_path, keep=1, log=log.append) as saved:
        for step in (1, 2, 3):
            saved.save(step, make_state(step), {}, {})
        saved.wait()
        assert saved.steps() == [2, 3] and log == ["checkpoint 1 cannot be deleted (Permission denied)"]
    assert states.steps_of(tmp_path) == [3]
    broken[0] = False
    with states.Checkpoints(tmp_path, keep=1):
        pass
    assert folders(tmp_path) == ["3"]  # what was left of step 1 is not offered, and goes when the run goes on


KILLED = '''
import os, shutil, signal, sys
import jax, jax.numpy as jnp, numpy as np
from gramjax.checkpoint import state as states

def rmtree(path, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

states.shutil.rmtree = rmtree
with states.Checkpoints(sys.argv[1], keep=1) as saved:
    for step in (1, 2, 3):
        saved.save(step, {"params": {"w": jnp.full((64, 64), step, jnp.float32)}, "step": jnp.int32(step)}, {}, {})
'''


def test_a_kill_in_the_middle_of_a_delete_leaves_a_step_that_verifies(tmp_path):
    """A real SIGKILL between the two halves of the first delete: the step that was to go is not offered any more."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert killed.returncode == -signal.SIGKILL
    whole = [step for step in states.steps_of(tmp_path) if not states.verify(tmp_path, step)]
    assert whole == states.steps_of(tmp_path) == [2] and "1" in folders(tmp_path)
    abstract = {"params": {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}, "step": jax.ShapeDtypeStruct((), "int32")}
    with states.Checkpoints(tmp_path, keep=1) as saved:
        restored = saved.restore(None, abstract)
        assert restored.step == 2 and np.all(restored.state["params"]["w"] == 2)
        saved.save(3, restored.state, {}, {})
    assert folders(tmp_path) == ["3"]
