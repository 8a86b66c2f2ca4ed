"""A reward model with adapters through the verbs: train, evaluate, convert, and its PEFT folder judged on the base."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import huggingface
from gramjax.checkpoint.source import open_source
from gramjax.core import flags, spec, tree
from gramjax.data import tokenizer
from gramjax.jobs import train
from gramjax.models import decoder, lora
from gramjax.training import setup

TINY = f"{Path(__file__).parent / 'tiny.py'}:bradley_terry"
ADAPTERS = ("--config.lora.rank=2", "--config.lora.alpha=8.0")


def settings(base, workdir, *changes):
    return [f"--config={TINY}", f"--workdir={workdir}", f"--config.model.path={base}", "--config.train.steps=3",
            "--config.optim.lr=0.05", "--config.train.evaluate=False", *changes]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, and a run that made a reward model of it."""
    folder = tmp_path_factory.mktemp("lora")
    words = tokenizer.load("recipe:word_translation")
    words.save(folder / "tokenizer")
    arch = decoder.Config(
        vocab_size=-(-words.vocab_size // 64) * 64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=8,
    )  # fmt: skip
    params = spec.init_params(decoder.specs(arch), jax.random.key(3))
    huggingface.save(folder / "base", params, arch, folder / "tokenizer")
    assert cli.main(["train", *settings(folder / "base", folder / "run", *ADAPTERS)]) == 0
    return folder


def params_of(path):
    source = open_source(path)
    return tree.flatten(source.load(decoder.specs(source.config), source.config).params)


def rows(folders, name, *changes):
    """The judged rows of `gramjax evaluate`, without any setting of adapters but `changes`."""
    data = "--config.data.path=recipe:word_translation:valid:40"
    assert cli.main(["evaluate", "--config=evaluate", data, f"--workdir={folders / name}", *changes]) == 0
    lines = (folders / name / "eval" / "preference.rows.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def numbers(found):
    return np.array([[x for x in row.values() if isinstance(x, float)] for row in found])


def test_the_run_its_adapter_on_the_base_and_the_merged_model_judge_alike(folders, capsys):
    run = rows(folders, "of_run", f"--config.model.path={folders / 'run'}")
    before, after = params_of(folders / "base"), params_of(folders / "run")
    moved = {path for path in before if path in after and not np.array_equal(before[path], after[path])}
    assert moved == set() and np.any(after["layers/001/mlp/down_lora/b"])
    assert cli.main(["convert", str(folders / "run"), str(folders / "peft"), "--adapter", "--verify"]) == 0
    assert "max abs difference 0.00e+00: ok" in capsys.readouterr().out
    base, peft = f"--config.model.path={folders / 'base'}", f"--config.model.adapter={folders / 'peft'}"
    shown = [f"--config.data.max_length={json.loads((folders / 'run/config.json').read_text())['data']['max_length']}"]
    assert rows(folders, "of_adapter", base, peft, *shown) == run
    assert cli.main(["convert", str(folders / "run"), str(folders / "merged"), "--verify"]) == 0
    merged = rows(folders, "of_merged", f"--config.model.path={folders / 'merged'}", *shown)
    assert numbers(run).size
    np.testing.assert_allclose(numbers(merged), numbers(run), atol=1e-4)


def started(base, *changes):
    """The labels and first parameters of a training, and what was said about them."""
    config = flags.parse(settings(base, "unused", *changes), "train").config
    run = setup.build_run(config)
    state, loaded = setup.first_state(run)
    return run.labels, tree.flatten(state["params"]), loaded


def test_a_training_that_begins_at_the_run_continues_its_adapters_or_merges_them(folders):
    before = params_of(folders / "run")
    labels, params, loaded = started(folders / "run", *ADAPTERS)
    assert loaded.notes == () and {path for path, label in labels.items() if label == tree.TRAIN} == {
        path for path in before if lora.is_rank_leaf(path) or path == "score"
    }
    assert all(np.array_equal(params[path], before[path]) for path in before)
    labels, params, loaded = started(folders / "run")
    assert "are merged into their matrices" in loaded.notes[-1] and set(labels.values()) == {tree.TRAIN}
    want = tree.flatten(lora.merge(tree.unflatten(before), open_source(folders / "run").config))
    assert list(params) == list(want) and all(np.array_equal(params[path], want[path]) for path in want)


def test_the_phases_of_a_config_share_its_adapters(folders):
    """The second phase starts at the first one's run, which has the PEFT folder in its weights already."""
    config = flags.parse(settings(folders / "base", "unused", *ADAPTERS), "train").config
    with config.unlocked():
        config.model.adapter = "peft"
        config.phases = {"first": {}, "second": {}}
    (_, first, at), (_, second, _) = train.phases(config, folders)
    assert (first.model.path, first.model.adapter) == (str(folders / "base"), "peft")
    assert (second.model.path, second.model.adapter) == (str(at), "")
    assert first.lora.rank == second.lora.rank == 2
