"""What stands at a path: every kind is told apart, and what is none says what to give instead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, assert_equal, random_params

from gramjax.checkpoint import huggingface, state
from gramjax.checkpoint.source import open_source
from gramjax.core import spec
from gramjax.core.errors import DataError, UserError
from gramjax.models import decoder

BOTH = dataclasses.replace(SMALL, heads=("tokens", "score"))


def save_run(workdir, config, steps=(100, 200), **meta):
    with state.Checkpoints(workdir) as saved:
        for step in steps:
            content = {"params": random_params(config, seed=step), "opt_state": {}, "step": jnp.int32(step)}
            saved.save(step, content, {}, {"model": dataclasses.asdict(config), **meta})


@pytest.fixture
def run(tmp_path):
    save_run(tmp_path / "run", BOTH)
    return tmp_path / "run"


def test_a_run(run):
    source = open_source(run)
    assert (source.kind, source.config, source.tokenizer_folder) == ("run", BOTH, "")
    assert source.dtype() == jnp.float32
    loaded = source.load(decoder.specs(BOTH), BOTH)
    assert_equal(loaded.params, random_params(BOTH, seed=200))
    assert loaded.notes == loaded.fresh == ()
    early = open_source(run, step=100)
    assert_equal(early.load(decoder.specs(BOTH), BOTH).params, random_params(BOTH, seed=100))


def test_heads_of_a_run(run):
    tokens = dataclasses.replace(SMALL, heads=("tokens",))
    loaded = open_source(run).load(decoder.specs(tokens), tokens)
    assert "score" not in loaded.params and "score of" in loaded.notes[0] and "left out" in loaded.notes[0]
    value = dataclasses.replace(SMALL, heads=("value",))
    with pytest.raises(UserError, match="params/value/bias"):
        open_source(run).load(decoder.specs(value), value)
    loaded = open_source(run).load(decoder.specs(value), value, fresh=("value",), key=jax.random.key(1))
    assert loaded.fresh == ("value/bias", "value/weight")
    expected = spec.init_leaf(decoder.specs(value)["value"]["weight"], jax.random.key(1), "value/weight")
    np.testing.assert_array_equal(loaded.params["value"]["weight"], expected)
    smaller = dataclasses.replace(BOTH, num_layers=1)
    with pytest.raises(UserError, match="holds layers/001/attn/k.*which this model does not have"):
        open_source(run).load(decoder.specs(smaller), smaller)


def test_a_damaged_newest_step_is_passed_over_and_noted(run):
    (run / "checkpoints" / "200" / "manifest" / "metadata").write_text("garbage")
    loaded = open_source(run).load(decoder.specs(BOTH), BOTH)
    assert_equal(loaded.params, random_params(BOTH, seed=100))
    assert "using step 100" in loaded.notes[0]
    with pytest.raises(DataError, match="not valid JSON"):
        open_source(run, step=200)


def test_tokenizers_beside_the_weights(run, small_folder):
    assert open_source(small_folder).tokenizer_folder == ""
    for folder in (run / "tokenizer", small_folder):
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text("{}")
    assert open_source(run).tokenizer_folder == str(run / "tokenizer")
    assert open_source(small_folder).tokenizer_folder == str(small_folder)


def test_huggingface_folder(small_folder):
    source = open_source(str(small_folder))
    assert (source.kind, source.config, source.dtype()) == ("huggingface", SMALL, jnp.float32)
    assert_equal(source.load(decoder.specs(SMALL), SMALL).params, random_params(SMALL))
    with pytest.raises(UserError, match="step 3.*no run folder"):
        open_source(small_folder, step=3)


def test_paths_that_are_something_else(run, small_folder, tmp_path):
    def make(name, *files):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("{}")
        return folder

    for path, text in (
        ("meta-llama/Llama-3.2-1B", "offline: meta-llama/Llama-3.2-1B not found locally"),
        (run / "checkpoints", f"is the checkpoint folder of a run: give {run}"),
        (run / "checkpoints" / "100", rf"one step of a run \(steps there: 100, 200\): give {run} and the step"),
        (run / "checkpoints" / "7", rf"{run} has no checkpoint of step 7 \(there are: 100, 200\)"),
        (small_folder / "model.safetensors", "one file of a model: give the folder"),
        (small_folder / "config.json", "is no model"),
        (make("adapter", "adapter_config.json"), "adapter .LoRA.*config.model.adapter"),
        (make("pickles", "config.json", "pytorch_model.bin"), "model_type None"),
        (make("bare pickles", "pytorch_model.bin"), "a pickle that can run code"),
        (make("no config", "model.safetensors"), "no config.json: copy the whole folder"),
        (make("empty"), "no model.safetensors"),
        (make("checkpoint", "m.pt") / "m.pt", r"\.pt files are not read"),
        (make("objects", "w.npy") / "w.npy", r"\.npy files are not read"),
    ):
        with pytest.raises(UserError, match=text):
            open_source(path)
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x02}q\x00(" * 20)
    with pytest.raises(DataError, match="not a llama2.c file"):
        open_source(tmp_path / "pickle.bin")
    with pytest.raises(UserError, match=r"no checkpoint of step 7 \(there are: 100, 200\)"):
        open_source(run, step=7)
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        open_source(tmp_path / "new")


def test_a_run_that_does_not_say_its_model(tmp_path):
    with state.Checkpoints(tmp_path) as saved:
        saved.save(1, {"params": {"w": jnp.ones(2)}}, {}, {})
    with pytest.raises(DataError, match="does not say which model"):
        open_source(tmp_path)


def test_a_value_head_of_a_folder_for_a_run_of_both(tmp_path):
    value = dataclasses.replace(SMALL, heads=("value",))
    huggingface.save(tmp_path / "hf", random_params(value), value)
    both = dataclasses.replace(SMALL, heads=("score", "value"))
    with pytest.raises(DataError, match="no score head"):
        open_source(tmp_path / "hf").load(decoder.specs(both), both)
    loaded = open_source(tmp_path / "hf").load(decoder.specs(both), both, fresh=("score",), key=jax.random.key(0))
    assert loaded.fresh == ("score",)
    np.testing.assert_array_equal(loaded.params["value"]["weight"], random_params(value)["value"]["weight"])
