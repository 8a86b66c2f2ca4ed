"""`gramjax convert`: every direction, what it verifies, and what it refuses."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))
from small_models import SMALL, assert_equal, random_params  # noqa: E402

from gramjax.checkpoint import huggingface, state  # noqa: E402
from gramjax.checkpoint.source import open_source  # noqa: E402
from gramjax.core.errors import UserError  # noqa: E402
from gramjax.data import tokenizer  # noqa: E402
from gramjax.jobs import convert  # noqa: E402
from gramjax.models import decoder  # noqa: E402

BYTES = dataclasses.replace(SMALL, vocab_size=320)


@pytest.fixture
def run(tmp_path):
    """A run folder of a reward model, with its tokenizer and settings."""
    config = dataclasses.replace(BYTES, heads=("score",))
    folder = tmp_path / "run"
    with state.Checkpoints(folder) as saved:
        for step in (5, 10):
            content = {"params": random_params(config, seed=step), "step": jnp.int32(step)}
            saved.save(step, content, {}, {"model": dataclasses.asdict(config)})
    tokenizer.load("bytes").save(folder / "tokenizer")
    settings = {"model": {"kind": "decoder", "path": "elsewhere", "arch": {}}, "data": {"max_length": 77}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def params_of(path, step=None):
    source = open_source(path, step)
    return source.load(decoder.specs(source.config), source.config).params


def test_run_to_huggingface_and_back(run, tmp_path, capsys):
    hf, back = tmp_path / "hf", tmp_path / "back"
    assert convert.main([str(run), str(hf), "--to=hf", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "verify with gramjax: max abs difference 0.00e+00: ok" in out
    wanted = "max abs difference" if importlib.util.find_spec("torch") else "skipped, torch is not installed"
    assert f"verify with transformers: {wanted}" in out
    values = json.loads((hf / "config.json").read_text())
    assert values["architectures"] == ["LlamaForSequenceClassification"] and values["num_labels"] == 1
    assert values["pad_token_id"] == tokenizer.load("bytes").pad_id
    assert (hf / "tokenizer.json").read_bytes() == (run / "tokenizer" / "tokenizer.json").read_bytes()
    assert convert.main([str(hf), str(back), "--to=gramjax", "--verify"]) == 0
    assert_equal(params_of(back), random_params(open_source(run).config, seed=10))
    assert open_source(back).tokenizer_folder == str(back / "tokenizer")


def test_run_to_run_keeps_settings_and_drops_the_rest(run, tmp_path):
    assert convert.main([str(run), str(tmp_path / "small"), "--to=gramjax", "--step=5", "--dtype=bfloat16"]) == 0
    source = open_source(tmp_path / "small")
    assert source.dtype() == jnp.bfloat16 and state.steps_of(tmp_path / "small") == [5]
    settings = state.read_run(tmp_path / "small")
    assert settings["data"] == {"max_length": 77} and settings["model"]["path"] == ""
    assert settings["model"]["arch"]["hidden_size"] == 16
    expected = random_params(source.config, seed=5)["score"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(source.load(decoder.specs(source.config), source.config).params["score"], expected)


def test_verification_fails_loudly(run, tmp_path, monkeypatch, capsys):
    plain = huggingface.save

    def wrong(folder, params, *rest, **options):
        return plain(folder, {**params, "norm": params["norm"] * 1.5}, *rest, **options)

    monkeypatch.setattr(huggingface, "save", wrong)
    assert convert.main([str(run), str(tmp_path / "hf"), "--to=hf", "--verify"]) == 1
    assert "verify with gramjax: max abs difference" in (out := capsys.readouterr().out) and "FAILED" in out


def test_comparison():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)).astype(np.float32)
    assert convert.compare(logits, logits, True) == (
        True, "max abs difference 0.00e+00, KL 0.00e+00, top-1 agreement 100.0 %: ok",
    )  # fmt: skip
    good, text = convert.compare(logits, logits[..., ::-1], True)
    assert not good and text.endswith("FAILED") and "KL 0.00e+00" not in text
    assert not convert.compare(logits * np.nan, logits, False)[0]


def test_refusals(run, tmp_path):
    hf = tmp_path / "hf"
    for arguments, text in (
        ([run, run / "out", "--to=hf"], "lie inside each other"),
        ([run, run, "--to=hf", "--overwrite"], "lie inside each other"),
        ([run, hf, "--to=hf", "--step=7"], r"no checkpoint of step 7 \(there are: 5, 10\)"),
        ([run, hf, "--to=hf", "--head=tokens"], "no tokens head to export"),
        ([run / "checkpoints" / "5", hf, "--to=hf"], "one step of a run"),
        ([tmp_path / "nothing", hf, "--to=hf"], "not found locally"),
        ([run, hf, "--to=onnx"], "invalid choice: 'onnx'"),
    ):
        with pytest.raises(UserError, match=text):
            convert.main([str(a) for a in arguments])
    assert not hf.exists()


def test_a_tokenizer_with_too_many_ids(tmp_path):
    small = tmp_path / "small"
    huggingface.save(small, random_params(SMALL), SMALL)
    tokenizer.load("bytes").save(tmp_path / "bytes")
    size = tokenizer.load("bytes").vocab_size
    arguments = [str(small), str(tmp_path / "out"), "--to=hf", f"--tokenizer={tmp_path / 'bytes'}"]
    with pytest.raises(UserError, match=f"{size} ids and the model 40 embedding rows"):
        convert.main(arguments)
    assert convert.main([*arguments, "--pad_vocab"]) == 0
    assert params_of(tmp_path / "out")["embed"].shape == (size, 16)


def test_an_untrained_head_is_not_exported(run, tmp_path):
    config = open_source(run).config
    with state.Checkpoints(tmp_path / "fresh") as saved:
        content = {"params": random_params(config), "step": jnp.int32(0)}
        saved.save(0, content, {}, {"model": dataclasses.asdict(config), "fresh": ["score"]})
    with pytest.raises(UserError, match="score still holds initial values"):
        convert.main([str(tmp_path / "fresh"), str(tmp_path / "out"), "--to=hf"])


def test_llama2c_with_its_tokenizer(data_dir, tmp_path, capsys):
    source = data_dir / "stories260k"
    out = tmp_path / "hf"
    arguments = ["--to=hf", f"--tokenizer={source / 'tok512.bin'}", "--verify"]
    assert convert.main([str(source / "stories260K.bin"), str(out), *arguments]) == 0
    golden = json.loads((source / "golden.json").read_text())["greedy_from_bos"]
    assert tokenizer.load(str(out)).decode(golden["ids"][1:]).strip() == golden["text"].strip()
