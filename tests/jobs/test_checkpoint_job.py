"""gramjax checkpoint verify, list and prune: what is damaged is named, and the last whole step is never deleted."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import manifest
from gramjax.checkpoint import state as states
from gramjax.checkpoint.lock import RunLock

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]

NAMES = {"params/embed", "params/score", "step"}


def run(*argv):
    with pytest.raises(SystemExit) as stopped:
        cli.run(["checkpoint", *map(str, argv)])
    return stopped.value.code


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made") / "run"
    rng = np.random.default_rng(0)
    with states.Checkpoints(workdir) as checkpoints:
        for step in (2, 4, 6):
            params = {"embed": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32), "score": jnp.ones((8, 1))}
            state = {"params": params, "step": jnp.int32(step)}
            checkpoints.save(step, state, {}, {"model": {}, "mesh": {"data": 1, "fsdp": 2}})
    return workdir


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def change_sums(folder, step, *names):
    """Other checksums for some leaves, in a manifest that is whole: as if their values had changed on disk."""
    path = folder / "checkpoints" / str(step) / "manifest" / "metadata"
    value = json.loads(path.read_text())
    for name in names:
        shape, dtype, total = value["leaves"][name]
        value["leaves"][name] = [shape, dtype, f"{int(total, 16) ^ 1:016x}"]
    del value["checksum"]
    path.write_text(json.dumps({"checksum": manifest._checksum(value), **value}))


def break_manifest(folder, step):
    (folder / "checkpoints" / str(step) / "manifest" / "metadata").write_text("{]")


def test_verify_names_every_damaged_leaf_and_says_that_the_others_are_whole(folder, capsys):
    assert run("verify", folder) == 0
    assert capsys.readouterr().out.splitlines() == [f"step {step}: whole (3 leaves)" for step in (2, 4, 6)]
    change_sums(folder, 4, "params/embed", "step")
    assert run("verify", folder) == 3
    out = capsys.readouterr().out
    assert "step 4: DAMAGED: params/embed, step; the other 1 of 3 leaves are whole" in out
    assert out.count("whole (3 leaves)") == 2
    assert run("verify", folder, "--step=4") == 3 and run("verify", folder, "--step=6") == 0
    capsys.readouterr()
    assert run("verify", folder, "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert not told["whole"] and [len(entry["damaged"]) for entry in told["steps"]] == [0, 2, 0]


def test_an_array_that_cannot_be_read_is_named_alone(folder, capsys):
    """The data file of one array is gone: that array is named, the two others are read."""
    files = [path for path in (folder / "checkpoints" / "6").rglob("d/*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    max(files, key=sizes.get).unlink()  # the matrix: all else is small enough to lie in the index
    assert run("verify", folder, "--step=6", "--json") == 3
    entry = json.loads(capsys.readouterr().out)["steps"][0]
    assert entry["leaves"] == 3 and "params/embed" in entry["damaged"] and "cannot be read" in str(entry["damaged"])
    assert set(entry["damaged"]) <= NAMES


def test_a_folder_that_is_none_and_a_step_that_is_not_there(folder, tmp_path, capsys):
    """B42: what was meant is said."""
    cases = {
        (tmp_path / "nowhere",): "is no run folder",
        (folder / "checkpoints",): f"give {folder}",
        (folder / "checkpoints" / "4",): "--step=4",
        (folder, "--step=5"): "has no checkpoint of step 5 (there are: 2, 4, 6)",
    }
    for action in ("verify", "list"):
        for arguments, words in cases.items():
            if action == "list" and len(arguments) > 1:
                continue
            assert run(action, *arguments) == 2, arguments
            error = capsys.readouterr().err
            assert words in error and len(error.splitlines()) == 1, error
    for wrong in (["--keep=0"], ["--steps=two"], ["--steps=5"], [], ["--keep=1", "--steps=2"]):
        assert run("prune", folder, *wrong) == 2, wrong
    assert states.steps_of(folder) == [2, 4, 6]


def test_list_says_what_is_whole_what_was_put_aside_and_what_never_came_to_be(folder, capsys):
    change_sums(folder, 6, "step")
    abstract = {"params": {"embed": jax.ShapeDtypeStruct((64, 48), jnp.float32),
                           "score": jax.ShapeDtypeStruct((8, 1), jnp.float32)},
                "step": jax.ShapeDtypeStruct((), jnp.int32)}  # fmt: skip
    with states.Checkpoints(folder, log=lambda text: None) as checkpoints:
        assert checkpoints.restore(None, abstract).step == 4
    (folder / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()

    def entries():
        assert run("list", folder, "--json") == 0
        return {entry["step"]: entry for entry in json.loads(capsys.readouterr().out)["steps"]}

    found = entries()
    assert {step: entry["status"] for step, entry in found.items()} == {
        2: "complete", 4: "complete", 6: "refused", 9: "incomplete"}  # fmt: skip
    assert found[4]["verified"] and not found[2]["verified"]  # restored, and never looked at
    assert found[2]["leaves"] == 3 and found[2]["mesh"] == {"data": 1, "fsdp": 2} and found[2]["bytes"] > 10_000
    os.utime(folder / "checkpoints" / "4" / "manifest" / "metadata")
    assert not entries()[4]["verified"]  # written again since
    assert run("list", folder) == 0
    text = capsys.readouterr().out
    assert "refused (damaged), in checkpoints-refused/6" in text and "never completed" in text


def test_prune_keeps_the_newest_and_does_nothing_when_dry(folder, capsys):
    assert run("prune", folder, "--keep=1", "--dry_run") == 0
    assert states.steps_of(folder) == [2, 4, 6] and "would delete checkpoints/2" in capsys.readouterr().out
    assert run("prune", folder, "--steps=4") == 0 and states.steps_of(folder) == [2, 6]
    assert run("prune", folder, "--keep=1") == 0 and states.steps_of(folder) == [6]
    assert run("prune", folder, "--keep=1") == 0 and states.steps_of(folder) == [6]
    assert "freed" in capsys.readouterr().out and not (folder / "run.lock").exists()
    assert run("prune", folder, "--steps=6") == 2 and states.steps_of(folder) == [6]
    assert "step 6 is the last that verifies" in capsys.readouterr().err


def test_prune_never_deletes_the_last_step_that_verifies(folder, capsys):
    break_manifest(folder, 6)
    assert run("prune", folder, "--keep=1") == 0
    assert states.steps_of(folder) == [4, 6] and "step 4 stays" in capsys.readouterr().err
    break_manifest(folder, 4)
    assert run("prune", folder, "--keep=1") == 3
    assert states.steps_of(folder) == [4, 6] and "nothing is deleted" in capsys.readouterr().err


def test_prune_waits_for_no_job_that_works_there(folder, capsys):
    with RunLock(folder):
        assert run("prune", folder, "--keep=1") == 2
    assert "is in use by process" in capsys.readouterr().err and states.steps_of(folder) == [2, 4, 6]


def test_prune_can_drop_what_was_put_aside(folder):
    (folder / "checkpoints-refused").mkdir()
    shutil.copytree(folder / "checkpoints" / "6", folder / "checkpoints-refused" / "6-again")
    assert run("prune", folder, "--keep=3") == 0 and (folder / "checkpoints-refused" / "6-again").exists()
    assert run("prune", folder, "--keep=3", "--refused") == 0
    assert not (folder / "checkpoints-refused" / "6-again").exists() and states.steps_of(folder) == [2, 4, 6]
