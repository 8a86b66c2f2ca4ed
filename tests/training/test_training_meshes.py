"""Eight simulated devices give the numbers of one, for every objective, however the mesh is cut."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import simulated

LINE = "Involuntary full rematerialization"
WORKER = Path(__file__).parent / "mesh_worker.py"


def run(devices: int, data: int, fsdp: int, tensor: int, context: int, *objectives: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, (data, fsdp, tensor, context)), *objectives],
        env=simulated.environment(devices),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def one_device():
    return run(1, 1, 1, 1, 1)[0]


MESHES = {
    (1, 2, 2, 2): (),
    (2, 2, 2, 1): ("cross_entropy", "grm"),
    (1, 8, 1, 1): ("cross_entropy", "verdict", "dpo"),
    (2, 1, 1, 4): ("cross_entropy", "grpo"),
}
"""data, fsdp, tensor, context: all objectives where every other axis cuts, one of each kind on the others."""


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_equal_one(one_device, mesh):
    found, log = run(8, *mesh, *MESHES[mesh])
    for objective in found:
        want = one_device[objective]
        np.testing.assert_allclose(found[objective]["losses"], want["losses"], rtol=1e-5, err_msg=objective)
        np.testing.assert_allclose(found[objective]["total"], want["total"], rtol=1e-5, err_msg=objective)
    _, fsdp, tensor, _ = mesh
    assert found["cross_entropy"]["shard"] == [16 // fsdp, 24 // tensor]
    assert LINE not in log


def test_no_involuntary_rematerialisation(tmp_path):
    """Nothing in the compiler's log of the training step on any mesh; and the log does say it where it happens.

    Where devices share the length of rows, nothing but the keys of attention is gathered along it.
    """
    environment = simulated.environment(8, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    # What is read from a cache is not compiled, and says nothing.
    command = [sys.executable, str(WORKER.with_name("compile_worker.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = dict(part.split("\n", 1) for part in done.stderr.split("== ")[1:])
    assert list(logs) == ["known case", "fsdp 8", "fsdp 4, tensor 2", "data 2, fsdp 2, context 2"]
    assert [name for name, log in logs.items() if LINE in log] == ["known case"]
    assert not done.stdout, done.stdout[:2000]
