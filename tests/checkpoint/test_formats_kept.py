"""F35: a checkpoint of every format that was ever written restores, whole; a later format is refused by its number.

`fixtures/format_N.tar.gz` holds the run folder of `gramjax train --config=tests/jobs/tiny.py` with 3 steps, hidden and
intermediate size 8 and 1 head, as the version of gramjax wrote it that brought the format (the texts in
commit_success.txt apart). A new format gets a new file; none is replaced.
"""

import json
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.checkpoint import manifest
from gramjax.checkpoint import source as weight_source
from gramjax.checkpoint import state as states
from gramjax.core import flags, tree
from gramjax.core.errors import DataError
from gramjax.core.writer import read_metrics
from gramjax.models import decoder
from gramjax.training import setup

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = range(1, manifest.FORMAT + 1)


@pytest.fixture
def run(tmp_path, request):
    with tarfile.open(FIXTURES / f"format_{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / f"format_{request.param}"


@pytest.mark.parametrize("run", FORMATS, indirect=True)
def test_a_run_of_this_format_goes_on(run):
    """Weights alone as another job reads them, and the whole state as the run itself does: it trains on from there."""
    assert states.steps_of(run) == [3] and states.examine(run, 3) == (manifest_leaves(run), {})
    source = weight_source.open_source(run)
    weights = tree.flatten(source.load(decoder.specs(source.config), source.config).params)
    assert all(np.isfinite(leaf).all() and np.asarray(leaf).any() for leaf in weights.values())

    built = setup.build_run(flags.load(str(run / "config.json")))
    with states.Checkpoints(run) as saved:
        restored = saved.restore(None, built.abstract_state, {"data": built.source.fingerprint()})
        assert saved.notes == [] and restored.step == restored.data_state["source"]["step"] == 3
    for path, leaf in tree.flatten(restored.state["params"]).items():
        assert np.array_equal(leaf, weights[path]), path
    built.source.restore(restored.data_state["source"])
    state, metrics = built.step(restored.state, built.put(built.source.next()))
    assert int(state["step"]) == 4
    first, last = (entry["loss"] for entry in read_metrics(run / "metrics.jsonl")[::2])
    now = float(metrics["loss"][0] / metrics["loss"][1])
    assert abs(now - last) < 0.05 and np.isfinite(first)  # the model that was trained, on the batch that follows


def manifest_leaves(run):
    return len(manifest.read(run / "checkpoints" / "3").leaves)


@pytest.mark.parametrize("run", FORMATS, indirect=True)
def test_a_later_format_is_refused_by_its_number(run):
    path = run / "checkpoints" / "3" / "manifest" / "metadata"
    value = json.loads(path.read_text())
    del value["checksum"]
    value["format"] = manifest.FORMAT + 1
    path.write_text(json.dumps({"checksum": manifest._checksum(value), **value}))
    with pytest.raises(DataError, match=rf"format {manifest.FORMAT + 1}, this version reads {manifest.FORMAT}"):
        states.restore_params(run, {"embed": jax.ShapeDtypeStruct((1, 8), jnp.float32)})
