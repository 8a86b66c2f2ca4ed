"""The reference of a run: which weights it is, that it is in no checkpoint, and that a resumed run keeps it."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import state
from gramjax.core import tree
from gramjax.core.errors import UserError
from gramjax.core.writer import read_metrics
from gramjax.models import decoder
from gramjax.training import reference, setup

TINY = f"{Path(__file__).parent.parent / 'jobs' / 'tiny.py'}:dpo"
SMALL = ("--config.train.steps=4", "--config.train.save_every=2", "--config.train.evaluate=False",
         "--config.model.arch.num_layers=1")  # fmt: skip


def train(workdir, *settings):
    """The exit code of the train job."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", f"--config={TINY}", f"--workdir={workdir}", *SMALL, *settings])
    return stopped.value.code


def leaves(workdir):
    """Names and checksums of the newest checkpoint, and its facts."""
    record = state.manifest.read(workdir / "checkpoints" / str(state.steps_of(workdir)[-1]))
    return {name: leaf.checksum for name, leaf in record.leaves.items()}, record.meta


def losses(workdir):
    return {entry["step"]: entry["loss"] for entry in read_metrics(workdir / "metrics.jsonl") if "loss" in entry}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A DPO run from fresh weights, which are its reference too."""
    folder = tmp_path_factory.mktemp("dpo") / "run"
    assert train(folder) == 0
    return folder


def cut_after_two_steps(done, folder):
    """The run as it was after two of its four steps."""
    shutil.copytree(done, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "DONE").unlink()
    return folder


def test_it_starts_at_log_2_and_is_in_no_checkpoint(done):
    found = losses(done)
    np.testing.assert_allclose(found[1], np.log(2), rtol=1e-6)
    assert found[2] != found[1]
    names, meta = leaves(done)
    assert {name.split("/")[0] for name in names} == {"params", "opt_state", "step"}
    assert set(meta["reference"]) == {"fingerprint"}


def test_a_resumed_run_has_the_reference_that_it_began_with(done, tmp_path):
    """Not the weights of its checkpoint: the run ends with the same bits."""
    folder = cut_after_two_steps(done, tmp_path / "run")
    assert train(folder) == 0
    assert leaves(folder)[0] == leaves(done)[0]


def test_another_model_as_reference(done, tmp_path, capsys):
    """Another loss from the first step on; and when other weights lie at that path later, the run does not go on."""
    other = tmp_path / "other"
    shutil.copytree(done, other)
    folder = tmp_path / "run"
    assert train(folder, f"--config.reference.path={other}") == 0
    assert abs(losses(folder)[1] - np.log(2)) > 1e-5
    cut = cut_after_two_steps(folder, tmp_path / "cut")
    shutil.rmtree(other / "checkpoints" / "4")  # now the newest checkpoint there is that of step 2
    assert train(cut, f"--config.reference.path={other}") == 2
    assert "reference.fingerprint" in capsys.readouterr().err


def test_a_reference_that_nothing_looks_at_is_refused(done, tmp_path, capsys):
    assert train(tmp_path / "run", "--config.objective.reference_free", f"--config.reference.path={done}") == 2
    assert "config.reference.path" in capsys.readouterr().err


def test_adapters_of_the_run_are_not_part_of_the_reference(done):
    """And its parameters are those of the checkpoint it names."""
    from gramjax.core import flags

    config = flags.load(TINY)
    config.model.path, config.model.arch.num_layers = str(done), 1
    config.lora.rank = 2
    run = setup.build_run(config)
    loaded = tree.flatten(reference.load(config, run).params)
    assert set(loaded) == {name.removeprefix("params/") for name in leaves(done)[0] if name.startswith("params/")}
    assert any("_lora/" in path for path in tree.flatten(run.abstract_state["params"]))


def test_another_architecture_is_refused_by_name():
    arch = decoder.Config(vocab_size=8)
    reference.check_same(dataclasses.replace(arch, heads=("tokens",)), dataclasses.replace(arch, heads=("score",)))
    with pytest.raises(UserError, match="num_layers 5"):
        reference.check_same(dataclasses.replace(arch, num_layers=5), arch)
