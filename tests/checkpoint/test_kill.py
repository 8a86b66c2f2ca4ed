"""SIGKILL while a save is under way: the newest committed step restores, and the run goes on to the same end."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

WORKER = '''
import sys, zlib
import jax, jax.numpy as jnp, numpy as np
from gramjax.checkpoint.state import Checkpoints, RunLock

work, total = sys.argv[1], int(sys.argv[2])
start = {"params": {"w": jnp.arange(600_000, dtype=jnp.float32)}, "step": jnp.int32(0)}
move = lambda w, n: jnp.sin(w) * 1.5 + n
step = jax.jit(lambda s: {"params": {"w": move(s["params"]["w"], s["step"])}, "step": s["step"] + 1}, donate_argnums=0)
with RunLock(work), Checkpoints(work, keep=2) as saved:
    state = start
    if saved.steps():
        state = saved.restore(None, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), start)).state
    print("from", int(state["step"]), flush=True)
    while int(state["step"]) < total:
        state = step(state)
        saved.save(int(state["step"]), state, {"next": int(state["step"])}, {"model": {}})
        print("saving", int(state["step"]), flush=True)
print("hash", zlib.crc32(np.asarray(state["params"]["w"]).tobytes()), flush=True)
'''
TOTAL = 12


def start(workdir, total=TOTAL):
    command = [sys.executable, "-c", WORKER, str(workdir), str(total)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, error = process.communicate()
    assert process.returncode == 0, error
    lines = out.splitlines()
    return int(lines[0].split()[1]), next(line for line in lines if line.startswith("hash")), error


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("straight")))[1]


@pytest.mark.parametrize("seed", range(3))
def test_killed_runs_end_where_an_unkilled_one_does(tmp_path, straight, seed):
    rng = random.Random(seed)
    process, last = start(tmp_path), 0
    for _ in range(rng.randint(2, 8)):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        last = int(line.split()[1])
    time.sleep(rng.random() * 0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed_at, digest, said = finish(start(tmp_path))
    assert last - 2 <= resumed_at <= TOTAL  # at most the save under way, and the one announced before it, are lost
    assert digest == straight
    assert "is gone without releasing the folder" in said
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["11", "12"]  # no remains of the killed save
    assert not (tmp_path / "run.lock").exists()
