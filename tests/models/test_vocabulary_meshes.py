"""What is read off the vocabulary does not depend on how tokens, width and vocabulary are cut."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated

WORKER = Path(__file__).parent / "vocabulary_worker.py"


@pytest.fixture(scope="module")
def differences():
    done = subprocess.run([sys.executable, str(WORKER)], env=simulated.environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["rows, length, vocabulary", "columns", "the vocabulary does not divide"])
def test_predictions_and_divergence_are_those_of_one_device(differences, case):
    found = differences[case]
    assert found.pop("hits") == 0
    assert max(found.values()) < 1e-5, found
