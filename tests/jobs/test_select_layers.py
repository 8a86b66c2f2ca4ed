"""From questions in three languages to chosen layers, a picture, and a training that changes nothing else."""

import csv
import json
import os
import signal

import jax
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import source
from gramjax.core import flags, spec, tree
from gramjax.core.errors import Preempted, UserError
from gramjax.models import decoder
from gramjax.selection.layers import activation


def flat(path) -> dict:
    """The parameters of a run or file, by path."""
    opened = source.open_source(str(path), None)
    specs = decoder.specs(opened.config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places, kinds = spec.map_specs(lambda _: place, specs), spec.map_specs(lambda _: np.float32, specs)
    return tree.flatten(opened.load(specs, opened.config, places, kinds).params)


@pytest.fixture(scope="module")
def stories(data_dir):
    """The flags of a real model and of its tokenizer."""
    folder = data_dir / "stories260k"
    return [f"--config.model.path={folder / 'stories260K.bin'}", f"--config.tokenizer.path={folder / 'tok512.bin'}"]


def select(stories, data_dir, workdir, *more):
    files = tuple(str(data_dir / "mgsm" / f"{name}.jsonl.gz") for name in ("en", "de", "sw"))
    return cli.main([
        "select_layers", "--config=select_layers", *stories, f"--config.data.train={files!r}", f"--workdir={workdir}",
        "--config.probe.max_tokens=2500", "--config.selection.k=2", *more,
    ])  # fmt: skip


def asked_to_stop(model, weights, batches, config):
    os.kill(os.getpid(), signal.SIGTERM)
    return list(batches)


def test_from_questions_to_a_training_of_the_chosen_layers(stories, data_dir, tmp_path, capsys, monkeypatch):
    layers = tmp_path / "layers"
    with monkeypatch.context() as patch, pytest.raises(Preempted, match="in a batch of texts: it keeps nothing half"):
        patch.setattr(activation, "layer_scores", asked_to_stop)  # F5
        select(stories, data_dir, layers)
    assert not (layers / "run.lock").exists()
    assert select(stories, data_dir, layers) == 0
    said = capsys.readouterr()
    found = json.loads((layers / "layers.json").read_text("utf-8"))
    assert found["selection"] == "activation" and found["rule"] == "prefix_topk(k=2)" and found["layers"] == [0, 1]
    assert found["languages"] == ["en", "de", "sw"] and found["model"]["architecture"]["num_layers"] == 5
    assert all(len(values) == 5 for values in found["scores"].values()) and len(found["scores"]) == 9
    assert max(found["tokens"].values()) >= 2500 > min(found["tokens"].values()) - 500
    assert found["fingerprint"] and found["data"]["files"][0]["name"] == "en.jsonl.gz"
    assert all(warning in said.err for warning in found["warnings"]) and "layers 0, 1" in said.out
    with (layers / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["msd_prob"]) for row in rows] == pytest.approx(found["scores"]["msd_prob"])
    assert [row["chosen"] for row in rows] == ["1", "1", "0", "0", "0"]
    assert (layers / "plots" / "layers.png").stat().st_size > 5000

    assert select(stories, data_dir, layers) == 0 and "is done" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with config.selection.rule='prefix_topk', now 'topk'"):
        select(stories, data_dir, layers, "--config.selection.rule=topk")

    pairs, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    sides = [str(data_dir / "mgsm" / f"{name}.jsonl.gz") for name in ("en", "de")]
    assert cli.main(["data", "pairs", *sides, str(pairs), "--limit=60"]) == 0
    assert cli.main([
        "train", "--config=slam", *stories, f"--config.select.path={layers}", f"--config.data.train={pairs}",
        f"--workdir={run}", "--config.train.batch_size=2", "--config.train.steps=2", "--config.data.max_length=384",
        "--config.data.max_overlong_share=1", "--config.optim.weight_decay=0.1",
        "--config.log.tensorboard=False", "--config.log.report=False",
    ]) == 0  # fmt: skip
    assert "260,032 parameters (44,032 trained)" in capsys.readouterr().out
    before, after = flat(stories[0].partition("=")[2]), flat(run)
    changed = [path for path in before if before[path].tobytes() != after[path].tobytes()]
    assert changed == [f"layers/00{layer}/mlp/{part}" for layer in (0, 1) for part in ("down", "up")]


def test_languages_are_needed(stories, data_dir, tmp_path):
    with pytest.raises(UserError, match="config.selection=activation compares languages, the texts have en"):
        cli.main(["select_layers", "--config=select_layers", *stories, "--dry_run",
                  f"--config.data.path={data_dir / 'mgsm' / 'en.jsonl.gz'}"])  # fmt: skip
    with pytest.raises(UserError, match="config.data.path=FILE_OR_FOLDER, or several sources"):
        cli.main(["select_layers", "--config=select_layers", *stories, "--dry_run"])


def test_another_selection_by_name():
    """`--config.selection=NAME` brings the settings of that plug-in with it."""
    arguments = flags.parse(
        ["--config=select_layers:activation", "--config.selection=activation", "--config.selection.k=3", "--dry_run"],
        "select_layers",
    )
    assert arguments.config.selection.k == 3 and arguments.overrides["selection.name"] == "activation"
    with pytest.raises(UserError, match="no selection/layers called 'activations'.*did you mean 'activation'"):
        flags.parse(["--config=select_layers", "--config.selection=activations", "--dry_run"], "select_layers")
    rows = flags.parse(["--config=select_data", "--config.selection=random_rows", "--dry_run"], "select_data")
    assert rows.config.selection.name == "random_rows"
