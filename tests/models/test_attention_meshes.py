"""Eight simulated devices give the attention of one, in every form, and move nothing that they need not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated

WORKER = Path(__file__).parent / "attention_worker.py"


@pytest.fixture(scope="module")
def found():
    done = subprocess.run([sys.executable, str(WORKER)], env=simulated.environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_values_and_gradients(found):
    assert len(found) == 7 and {line["mesh"] for line in found} == {"rows and heads", "length", "heads do not divide"}
    for line in found:
        assert line["gap"] < 5e-5, line


def test_nothing_but_the_loss_moves_unless_the_length_is_shared(found):
    """Keys are gathered where the length is shared, their gradients scattered; no scores are sent anywhere."""
    for line in found:
        if line["mesh"] == "rows and heads":
            assert line["moved"] == ["all-reduce"], line
        elif line["mesh"] == "length":
            assert line["moved"] == ["all-gather", "all-reduce", "reduce-scatter"], line
