"""Wrong settings and config files (B1-B9, B44, B45): one line, exit code 2, before JAX computes anything."""

import json
import time
import types

import jax
import numpy as np
import pytest

from gramjax.core import checks, flags
from gramjax.core import config as configs
from gramjax.core.errors import UserError

HUGE = "9" * 5000


@pytest.mark.parametrize(
    "words, expected",
    [
        pytest.param(["--config.trian.steps=3"], "did you mean config.train.steps?", id="B1-section"),
        pytest.param(["--config.train.stepps=3"], "did you mean config.train.steps?", id="B1-setting"),
        pytest.param(["--confg=x"], "unknown flag --confg — did you mean --config?", id="B1-flag"),
        pytest.param(["--config.optim.lr='1e-4'"], "config.optim.lr takes a number", id="B3-quoted"),
        pytest.param(["--config.train.batch_size=1e3"], "takes a whole number (now 128), not '1e3'", id="B3-whole"),
        pytest.param(["--config.train.batch_size=12:30"], "takes a whole number", id="B4-number"),
        pytest.param(["--config.train.steps=-1"], "config.train.steps is -1; it must be from 0", id="B5-negative"),
        pytest.param(["--config.optim.lr=inf"], "config.optim.lr is inf; give a finite number", id="B5-infinite"),
        pytest.param(["--config.train.batch_size=0"], "config.train.batch_size is 0; it must be at least 1", id="B5-0"),
        pytest.param(["--config.train.epochs=0"], "both 0: nothing would be trained", id="B5-no-steps"),
        pytest.param([f"--config.seed={HUGE}"], "config.seed takes a whole number", id="B9-digits"),
        pytest.param([f"--config.optim.betas=({HUGE},1)"], "config.optim.betas takes a tuple", id="B9-digits-in-tuple"),
        pytest.param(["--config.optim.betas=" + "(" * 3000], "config.optim.betas takes a tuple", id="B9-brackets"),
        pytest.param(["--config.data.train=" + "[" * 3000], "config.data.train is a list", id="B9-list"),
        pytest.param(["--config.seed=1099511627776"], "it must be from 0 to 2147483647", id="B45-seed"),
        pytest.param(["--config.train.steps=2147483648"], "it must be from 0 to 2147483647", id="B45-steps"),
        pytest.param(["--config.data.max_length=1099511627776"], "must be from 1 to 2147483647", id="B45-length"),
    ],
)
def test_wrong_values(told, words, expected):
    code, line = told("train", "--config=bradley_terry", "--dry_run", *words)
    assert code == 2 and expected in line


@pytest.mark.parametrize("text", ["no", "010", "12:30:45", "1e-4", "None", "True", "[1, 2]"])
def test_B4_text_stays_text(text):
    parsed = flags.parse(["--config=bradley_terry", "--dry_run", f"--config.data.judge_prompt={text}"])
    assert parsed.config.data.judge_prompt == text


def test_B3_numbers_are_numbers_and_B4_a_leading_zero_is_decimal():
    parsed = flags.parse(["--config=bradley_terry", "--dry_run", "--config.optim.lr=1e-4", "--config.train.steps=010"])
    assert parsed.config.optim.lr == 1e-4 and parsed.config.train.steps == 10


@pytest.mark.parametrize(
    "settings, expected",
    [
        pytest.param(["train.batch_size=6", "train.grad_accum=4"], "batch_size 6 is not a multiple", id="B6-batch"),
        pytest.param(["model.arch.num_kv_heads=3"], "num_heads 4 is not a multiple of num_kv_heads 3", id="B6-heads"),
        pytest.param(["model.arch.num_kv_heads=0"], "num_kv_heads is 0", id="B6-no-heads"),
        pytest.param(["model.arch.max_position_embeddings=4"], "max_position_embeddings=4", id="B6-positions"),
        pytest.param(["model.arch.sliding_window=-5"], "sliding_window is -5", id="B6-window"),
        pytest.param(["model.arch.norm_eps=0"], "norm_eps is 0", id="B6-epsilon"),
        pytest.param(["model.arch.preference_width=64"], "this training has no preference head", id="B6-idle-head"),
        pytest.param(["select.layers=(99,)"], "layer 99 does not exist; the model has layers 0 to 3", id="B6-layers"),
        pytest.param(["lora.rank=4", "lora.targets=('nope',)"], "'nope' matches no parameter", id="B6-lora"),
        pytest.param(["lora.rank=4", "select.layers=(1,)"], "has adapters", id="B6-lora-and-layers"),
        pytest.param(["train.trainable=()"], "config.train.trainable=() leaves no parameter to train", id="B6-nothing"),
        pytest.param(["mesh.data=64"], "needs 64 devices, found", id="B6-mesh"),
        pytest.param(["model.arch.hidden_size=1099511627776"], "hidden_size is 1099511627776", id="B45-size"),
        pytest.param(["model.arch.num_layers=1000000000"], "num_layers is 1000000000; at most", id="B45-layers"),
        pytest.param(["data.valid=('nowhere.jsonl',)"], "no file or folder 'nowhere.jsonl'", id="B6-held-out"),
    ],
)
def test_contradictions(told, settings, expected):
    made = "recipe:word_translation:train:100"
    words = [f"--config.data.train=('{made}',)", "--config.tokenizer.path=recipe:word_translation"]
    small = [] if any("batch_size" in setting for setting in settings) else ["--config.train.batch_size=8"]
    given = [f"--config.{setting}" for setting in settings]
    code, line = told("train", "--config=bradley_terry", "--dry_run", *words, *small, *given)
    assert code == 2 and expected in line


def test_B6_a_batch_that_does_not_divide_over_the_mesh():
    from gramjax.training import setup

    mesh = types.SimpleNamespace(shape={"data": 2, "fsdp": 2, "context": 1, "tensor": 1})
    setup.check_batch(configs.TrainSection(batch_size=8, grad_accum=2), mesh)
    with pytest.raises(UserError, match="batch_size=6 does not divide over 4 devices.* x 1 microbatches: use 4, 8"):
        setup.check_batch(configs.TrainSection(batch_size=6), mesh)


@pytest.mark.parametrize(
    "text, expected",
    [
        pytest.param('{"seed": 1, "train": {"steps": 2, "steps": 3}}', "key 'steps' stands twice", id="B2-key"),
        pytest.param('{"objective": {"name": "os.system"}}', "no objectives called 'os.system'", id="B8-import"),
        pytest.param('{"objective": {"name": "../x"}}', "no objectives called '../x'", id="B8-path"),
        pytest.param('{"objective": {"name": "dpo"}, "model": {"kind": "os"}}', "no models called 'os'", id="B8-model"),
        pytest.param('{"objective": {"name": 5}}', "no objectives called 5", id="B8-number"),
        pytest.param('{"seed": 1}', "config.objective.name is missing", id="B8-no-method"),
        pytest.param('{"job": "rm"}', "is for gramjax rm, not for train", id="B8-job"),
        pytest.param('{"optim": 5}', "config.optim is 5; a section of settings belongs there", id="B5-section"),
        pytest.param('{"evals": {"preference": 5}}', "config.evals.preference is 5; a section", id="B5-eval"),
        pytest.param('{"phases": [1]}', "a section of settings belongs there", id="B5-phases"),
        pytest.param('{"a":' * 100_000, "no readable JSON", id="B9-nested"),
        pytest.param('{"seed": ' + HUGE + "}", "no readable JSON", id="B9-digits"),
        pytest.param('{"optim": {"lr": NaN}}', "NaN is not a number that can be used", id="B5-NaN"),
        pytest.param('{"optim": {"lr": 1e999}, "objective": {"name": "dpo"}}', "config.optim.lr is inf", id="B5-1e999"),
    ],
)
def test_config_files(told, file, text, expected):
    began = time.monotonic()
    code, line = told("train", f"--config={file('mine.json', text)}", "--dry_run")
    assert code == 2 and expected in line and "mine.json" in line or "config.optim.lr" in line or "called" in line
    assert time.monotonic() - began < 60, "bounded: it is refused before much work"


def test_B8_what_a_config_leaves_out_has_its_default(file):
    """A `config.json` of an older version, which knew fewer sections and settings."""
    old = {"objective": {"name": "bradley_terry"}, "train": {"batch_size": 4}, "optim": {"betas": [0.9, 0.99]}}
    config = flags.parse([f"--config={file('old.json', json.dumps(old))}", "--dry_run"]).config
    default = configs.defaults("bradley_terry")
    assert config.train.batch_size == 4 and config.optim.betas == (0.9, 0.99)
    same = {path: value for path, value in checks.flatten(default).items() if path.split(".")[-1] not in
            ("batch_size", "betas", "name")}  # fmt: skip
    assert {path: checks.flatten(config)[path] for path in same} == same


def test_B8_another_job_needs_its_sections(told, file):
    path = file("mine.json", '{"job": "evaluate", "model": {"path": "x"}}')
    code, line = told("evaluate", f"--config={path}", "--dry_run")
    assert code == 2 and "config.data is missing; gramjax evaluate needs it" in line


@pytest.mark.parametrize("name", ["run.yaml", "run.yml", "run.toml"])
def test_B7_yaml_is_not_read(told, file, name):
    path = file(name, "!!python/object/apply:os.system ['true']")
    code, line = told("train", f"--config={path}", "--dry_run")
    assert code == 2 and f"{path.suffix} files are not read: a config is a .py file" in line


def test_B45_counters_do_not_wrap():
    """Tokens are counted in Python's whole numbers; a counter of 32 bits would be negative here."""
    from gramjax.training import loop

    assert (np.array([2**31 - 1], np.int32) + np.int32(2))[0] < 0
    meter = loop.Meter(2**31 - 1)
    meter.add({"segment_ids": np.array([[1, 1, 0]], np.int32)})
    assert meter.num_tokens == 2**31 + 1


def test_a_setting_that_is_wrong_is_found_before_anything_is_read(monkeypatch):
    """The order that everything above relies on: settings first, then files, then devices."""
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("JAX was asked"))
    with pytest.raises(UserError, match="config.train.steps"):
        flags.parse(["--config=bradley_terry", "--config.train.steps=-1", "--dry_run"])
