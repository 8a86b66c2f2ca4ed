"""Which run a folder holds: going on, refusing another run, replacing on request."""

import json

import pytest
from ml_collections import ConfigDict

from gramjax.core import folder
from gramjax.core.config import defaults
from gramjax.core.errors import UserError

CONFIG = ConfigDict({"seed": 0, "train": {"keep": 3, "batch_size": 8}, "optim": {"betas": (0.9, 0.95)}})


def changed(**flat):
    config = CONFIG.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in flat.items()})
    return config


def prepare(path, config=CONFIG, **options):
    return folder.prepare(path, config, {"seed": 0}, environment={"host": "here"}, **options)


def started(path, config=CONFIG):
    """A folder with a run that has logged something."""
    prepare(path, config)
    (path / "metrics.jsonl").write_text('{"step": 1}\n')


def test_a_new_folder_gets_its_files(tmp_path):
    assert prepare(tmp_path / "runs" / "a") is False
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "runs" / "a").iterdir()}
    assert read == {
        "config.json": {"seed": 0, "train": {"keep": 3, "batch_size": 8}, "optim": {"betas": [0.9, 0.95]}},
        "overrides.json": {"seed": 0}, "env.json": {"host": "here"},
    }


def test_the_same_run_goes_on(tmp_path):
    started(tmp_path)
    assert prepare(tmp_path) is True


def test_settings_that_change_no_step_may_differ(tmp_path):
    started(tmp_path)
    assert prepare(tmp_path, changed(train__keep=5)) is True
    assert json.loads((tmp_path / "config.json").read_text())["train"]["keep"] == 5


def test_another_run_is_refused_with_both_values(tmp_path):
    started(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, changed(train__batch_size=16, optim__betas=(0.9, 0.99)))
    assert "config.train.batch_size=8, now 16" in str(caught.value)
    assert "config.optim.betas=[0.9, 0.95], now [0.9, 0.99]" in str(caught.value)
    assert "--config.overwrite=True" in str(caught.value) and "config.json" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_that_stopped_at_a_wrong_setting_does_not_block_its_folder(tmp_path):
    prepare(tmp_path)
    assert prepare(tmp_path, changed(train__batch_size=16)) is False
    assert json.loads((tmp_path / "config.json").read_text())["train"]["batch_size"] == 16


def test_a_run_is_not_continued_unasked(tmp_path):
    started(tmp_path)
    with pytest.raises(UserError, match="config.resume is False"):
        prepare(tmp_path, resume=False)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    started(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare(tmp_path, changed(seed=1), overwrite=True) is False
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["config.json", "env.json", "notes.txt", "overrides.json"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(tmp_path / "file" / "below")
    started(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        prepare(tmp_path / "run")


def test_json_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "a.json"
    folder.write_json(path, {"a": "é"})
    with pytest.raises(ValueError):
        folder.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": "é"} and "é" in path.read_text("utf-8")


def test_a_setting_that_is_newer_than_the_run_does_not_make_it_another_run():
    config = defaults("bradley_terry")
    old = folder.as_dict(config)
    del old["model"]["step"], old["optim"]["lr"]
    assert folder.differences(old, config) == []
    config.optim.lr = 0.25
    assert folder.differences(old, config) == ["config.optim.lr=1e-05, now 0.25"]
