"""Eight simulated devices give the numbers of one, for every objective, however the mesh is cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).parent / "mesh_worker.py"


def run(devices: int, data: int, fsdp: int, tensor: int, *objectives: str) -> tuple[dict, str]:
    environment = dict(os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(data), str(fsdp), str(tensor), *objectives],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def one_device():
    return run(1, 1, 1, 1)[0]


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_eight_devices_equal_one(one_device, mesh):
    """All objectives on the mesh that cuts every way, one of each kind on the other."""
    found, log = run(8, *mesh, *(() if mesh == (2, 2, 2) else ("cross_entropy", "verdict", "dpo")))
    for objective in found:
        want = one_device[objective]
        np.testing.assert_allclose(found[objective]["losses"], want["losses"], rtol=1e-5, err_msg=objective)
        np.testing.assert_allclose(found[objective]["total"], want["total"], rtol=1e-5, err_msg=objective)
    _, fsdp, tensor = mesh
    assert found["cross_entropy"]["shard"] == [16 // fsdp, 24 // tensor]
    assert "Involuntary full rematerialization" not in log
