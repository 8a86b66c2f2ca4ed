"""Eight simulated devices give the answers of one on every mesh; the cache is spread and updated in place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import simulated

WORKER = Path(__file__).parent / "decoding_worker.py"
MESHES = ["2,2,2,1,1", "1,4,1,2,0"]
"""data, fsdp, tensor, context; and whether the weights are gathered over data and fsdp."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the worker printed, and its log. Its compilation cache is new: the log holds what the compiler says."""
    environment = simulated.environment(8, JAX_COMPILATION_CACHE_DIR=str(tmp_path_factory.mktemp("xla")))
    done = subprocess.run([sys.executable, str(WORKER), *MESHES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_the_answers_of_one(run, mesh):
    one, many = run[0]["one"], run[0][mesh]["answers"]
    assert one.keys() == many.keys() and len(one) > 8
    for key, (tokens, logprobs) in one.items():
        assert many[key][0] == tokens, key
        np.testing.assert_allclose(many[key][1], logprobs, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_cache_is_spread_and_updated_in_place(run, mesh):
    """Devices that share the length of a row in training have rows of their own here."""
    data, fsdp, tensor, context, _ = map(int, mesh.split(","))
    found = run[0][mesh]
    assert found["cache shard"] == [8 // (data * fsdp * context), 64, 2 // tensor, 4]
    assert found["aliased"] >= 1 and found["cache stays"] and found["drawn is whole"]


def test_gathered_weights_are_not_gathered_in_every_step(run):
    assert run[0][MESHES[0]]["gathers in layers"] == 0 < run[0][MESHES[1]]["gathers in layers"]


@pytest.mark.parametrize("mesh", MESHES)
def test_one_decode_program(run, mesh):
    """What a program gives back lies as it came: nothing is compiled again for another place."""
    assert run[0][mesh]["decode programs"] == 1


def test_no_involuntary_rematerialisation(run):
    assert "Involuntary full rematerialization" not in run[1]
