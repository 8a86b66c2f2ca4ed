"""Folders that the checkpoint tests start from."""

from pathlib import Path

import pytest
from small_models import SMALL, random_params

from gramjax.checkpoint import huggingface


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a small llama with an output matrix of its own, in one file."""
    folder = tmp_path / "small"
    huggingface.save(folder, random_params(SMALL), SMALL)
    return folder
