"""A language model with shared attention through the verbs: convert, train, evaluate, generate, export."""

import json

import jax
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import huggingface
from gramjax.checkpoint.source import open_source
from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.data import tokenizer
from gramjax.models import decoder, lisa


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of bytes with random weights, rows of text, and what it becomes with layers 2 and 3 sharing."""
    folder = tmp_path_factory.mktemp("lisa")
    tokenizer.load("bytes").save(folder / "tokenizer")
    arch = decoder.Config(vocab_size=320, hidden_size=16, intermediate_size=32, num_layers=4, num_heads=2,
                          num_kv_heads=2, head_dim=8, init_scale=0.2)  # fmt: skip
    params = spec.init_params(decoder.specs(arch), jax.random.key(0))
    huggingface.save(folder / "base", params, arch, folder / "tokenizer")
    rows = [{"id": str(i), "text": f"row {i} says that {i} and {i} are {i + i}"} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "layers.json").write_text(json.dumps({"layers": [2, 3], "scores": {}}))
    options = ["--to=lisa", f"--layers={folder / 'layers.json'}", "--set=rank=4", "--verify"]
    assert cli.main(["convert", str(folder / "base"), str(folder / "shared"), *options]) == 0
    return folder


def params_of(path):
    source = open_source(path)
    return tree.flatten(source.load(decoder.specs(source.config), source.config).params)


def test_conversion_keeps_what_stays_and_says_what_is_new(folder, capsys):
    source = open_source(folder / "shared")
    assert source.config.lisa.layers == (2, 3) and source.config.lisa.rank == 4
    base, new = params_of(folder / "base"), params_of(folder / "shared")
    assert set(base) - set(new) == {f"layers/00{i}/attn/{x}" for i in (2, 3) for x in "qk"}
    for path in set(base) & set(new):
        np.testing.assert_array_equal(base[path], new[path])
    assert not np.any(new["layers/002/attn/k_low"]) and np.any(new["layers/002/attn/q_low"])
    options = ["--to=lisa", "--layers=2-3", "--init=copy", "--set=rank=8", "--set=align=linear"]
    assert cli.main(["convert", str(folder / "base"), str(folder / "copied"), *options]) == 0
    assert "top-1 agreement 100.0 %" in capsys.readouterr().out


def test_only_the_new_leaves_train_and_the_result_is_evaluated_and_exported(folder, capsys):
    common = [f"--config.data.train=('{folder / 'rows.jsonl'}',)", "--config.data.max_length=64",
              "--config.train.steps=3", "--config.train.batch_size=4", "--config.optim.lr=0.05",
              "--config.log.tensorboard=False", "--config.log.report=False",
              f"--config.train.trainable=({lisa.NEW!r},)"]  # fmt: skip
    run = folder / "trained"
    model = f"--config.model.path={folder / 'shared'}"
    assert cli.main(["train", "--config=sft", model, f"--workdir={run}", *common]) == 0
    before, after = params_of(folder / "shared"), params_of(run)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "_low" in path or "align" in path}
    rows = f"--config.data.path={folder / 'rows.jsonl'}"
    job = ["evaluate", "--config=evaluate_lm", f"--config.model.path={run}", rows, f"--workdir={folder / 'judged'}"]
    assert cli.main([*job, "--config.data.limit=8"]) == 0
    found = json.loads((folder / "judged" / "eval" / "perplexity.json").read_text())
    assert found["num_rows"] == 8 and 1 < found["perplexity"] < 1000 and 0 <= found["accuracy"] <= 1
    capsys.readouterr()
    assert cli.main(["convert", str(run), str(folder / "hf"), "--verify"]) == 0
    assert "verify with gramjax: max abs difference 0.00e+00" in capsys.readouterr().out
    again = [f"--config.model.path={folder / 'hf'}", rows, f"--workdir={folder / 'judged_hf'}"]
    assert cli.main(["evaluate", "--config=evaluate_lm", *again, "--config.data.limit=8"]) == 0
    other = json.loads((folder / "judged_hf" / "eval" / "perplexity.json").read_text())
    assert other["nll"] == pytest.approx(found["nll"], rel=1e-6)


@pytest.mark.parametrize(
    "options,said",
    [
        (["--to=lisa"], "needs --layers"),
        (["--layers=2"], "belongs to --to=lisa"),
        (["--to=lisa", "--layers=0,1"], "layer 0 cannot share"),
        (["--to=lisa", "--layers=some"], "deepest:COUNT"),
        (["--to=lisa", "--layers=nowhere.json"], "no such file"),
        (["--to=lisa", "--layers=2", "--set=ranks=3"], "not NAME=VALUE"),
        (["--to=lisa", "--layers=2", "--set=rank=wide"], "rank is of type int"),
        (["--to=lisa", "--layers=2", "--set=rank=3"], "even"),
        (["--to=lisa", "--layers=2", "--method=align", "--set=delta_rope=False"], "delta_rope=False does nothing"),
        (["--to=lisa", "--layers=2", "--init=calibrated"], "needs --calibration"),
        (["--to=lisa", "--layers=2", "--init=copy"], "rank=8"),
        (["--to=lisa", "--layers=2", "--method=low_rank", "--init=share"], "takes --set=rank=N alone"),
        (["--to=lisa", "--layers=2", "--method=low_rank", "--calibration=rows.jsonl"], "takes --set=rank=N alone"),
        (["--to=lisa", "--layers=2", "--calibration_rows=5"], "beside --calibration=FILE"),
        (["--seed=3"], "belongs to --to=lisa"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        cli.main(["convert", str(folder / "base"), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_layers_that_were_chosen_for_another_model_are_refused(folder, tmp_path):
    found = {"layers": [2], "model": {"architecture": {"num_layers": 12}}}
    (tmp_path / "layers.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="num_layers=12, this one has 4"):
        options = ["--to=lisa", f"--layers={tmp_path / 'layers.json'}"]
        cli.main(["convert", str(folder / "base"), str(tmp_path / "out"), *options])


def test_the_low_rank_baseline_stays_a_plain_model(folder, tmp_path):
    options = ["--to=lisa", "--method=low_rank", "--layers=deepest:2", "--set=rank=4"]
    assert cli.main(["convert", str(folder / "base"), str(tmp_path / "out"), *options]) == 0
    assert open_source(tmp_path / "out").config.lisa.layers == ()
    cut = params_of(tmp_path / "out")["layers/003/attn/k"]
    assert [int(np.linalg.matrix_rank(cut[:, head], tol=1e-4)) for head in range(2)] == [4, 4]
