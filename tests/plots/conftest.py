"""Fixtures of the figure tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_up_runs import entries, judged, write_run  # noqa: E402


@pytest.fixture
def run_folder(tmp_path):
    """A finished run."""
    return write_run(tmp_path / "runs" / "quickstart", judged(), entries())
