"""Weights, model folders and tokenizers that are damaged or something else (B24, B35-B38, B40, B41): named, refused."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest

from gramjax.checkpoint import huggingface, shards
from gramjax.core import spec, tree
from gramjax.core.errors import DataError
from gramjax.data import pipeline, text, tokenizer
from gramjax.models import decoder

CONFIG = decoder.Config(
    vocab_size=264, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.byte_level(chat_template="chatml").save(folder / "tokens")
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32)
            for path, leaf in tree.flatten(decoder.specs(CONFIG), is_leaf=spec.is_spec).items()}  # fmt: skip
    params = jax.tree.map(jax.numpy.asarray, tree.unflatten(flat))
    huggingface.save(folder / "model", params, CONFIG, tokenizer_folder=folder / "tokens")
    return folder / "model"


@pytest.fixture
def model(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def test_the_folder_that_is_damaged_below_is_good(told, model, tmp_path):
    assert told("convert", model, tmp_path / "out", "--to=hf")[0] == 0


def header(change):
    """Damage: `change(entries, data)` of the safetensors file; what it returns is the new data."""

    def damage(folder):
        path = folder / shards.SINGLE
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        entries, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        new = change(entries, data)
        encoded = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + (new if isinstance(new, bytes) else data))

    return damage


def config(**changes):
    def damage(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(values))

    return damage


def tokens(name, change):
    def damage(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(values)))

    return damage


NORM = "model.norm.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS = [
    pytest.param(header(lambda h, d: h[NORM].update(data_offsets=[0, 2**70])), "model.norm.weight", id="B36-offsets"),
    pytest.param(header(lambda h, d: h[NORM].update(data_offsets="ab")), "is damaged", id="B36-text"),
    pytest.param(header(lambda h, d: h[NORM].update(shape=[2**40, 2**40])), "not what", id="B36-shape"),
    pytest.param(header(lambda h, d: h[NORM].update(dtype="F8_E4M3")), "is F8_E4M3", id="B36-dtype"),
    pytest.param(header(lambda h, d: h.update({NORM: [1]})), "is damaged", id="B36-entry"),
    pytest.param(header(lambda h, d: d[:8] + bytes([d[8] ^ 1]) + d[9:]), "(checksum)", id="B36-flipped-bit"),
    pytest.param(header(lambda h, d: d[:-3]), "the file is truncated", id="B36-truncated"),
    pytest.param(header(lambda h, d: h.update({"qkv.weight": h.pop(Q)})), "unknown: qkv.weight", id="B37-fused"),
    pytest.param(
        header(lambda h, d: h.update({"x." + name: h.pop(name) for name in list(h) if "layers" in name})),
        "missing: model.layers.0", id="B37-names",
    ),
    pytest.param(lambda f: (f / shards.SINGLE).rename(f / "model.pt"), "a pickle that can run code", id="B35-pickle"),
    pytest.param(
        lambda f: (f / shards.INDEX).write_text('{"weight_map": {"a": "../x.safetensors"}}'), "lies outside the folder",
        id="B38-outside",
    ),
    pytest.param(
        lambda f: (f / shards.INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}'), "which is not there",
        id="B38-absent",
    ),
    pytest.param(lambda f: (f / shards.INDEX).write_text("[]"), "expected an object", id="B38-list"),
    pytest.param(config(num_hidden_layers=10**9), "num_layers is 1000000000; at most", id="B45-layers"),
    pytest.param(config(vocab_size=2**40), "vocab_size is 1099511627776", id="B45-vocabulary"),
    pytest.param(header(lambda h, d: h[NORM].update(shape=[float("inf")])), "is damaged", id="B36-infinite"),
    pytest.param(config(rope_parameters={"rope_type": []}), "of a wrong type", id="B18-rotary"),
    pytest.param(config(architectures=[[]]), "architectures [[]] is not supported", id="B18-architectures"),
    pytest.param(config(hidden_size="16"), "hidden_size is '16'", id="B18-size"),
    pytest.param(config(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'; expected true", id="B18-tied"),
    pytest.param(config(model_type="os.system"), "model_type 'os.system' is not supported", id="B8-model_type"),
    pytest.param(config(architectures=["os.system"]), "['os.system'] is not supported", id="B8-architectures"),
    pytest.param(lambda f: (f / "config.json").write_bytes(b"\x80\x02}q"), "not valid JSON", id="B35-config"),
]  # fmt: skip


@pytest.mark.parametrize("damage, expected", WEIGHTS)
def test_models(told, model, tmp_path, damage, expected):
    damage(model)
    code, line = told("convert", model, tmp_path / "out", "--to=hf")
    assert code in (2, 3) and expected in line and not (tmp_path / "out").exists()


def test_B8_code_that_a_folder_names_is_not_run(told, model, tmp_path):
    """`auto_map` and a Python file beside the weights are what other readers run."""
    config(auto_map={"AutoModelForCausalLM": "evil.Model"})(model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert told("convert", model, tmp_path / "out", "--to=hf")[0] == 0
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out" / "evil.py").exists()


CONFIGURED = "tokenizer_config.json"
TOKENIZERS = [
    pytest.param(lambda f: (f / "tokenizer.json").write_text("{broken"), "no readable tokenizer", id="B35-broken"),
    pytest.param(lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), ".json: no UTF-8 text", id="B15-latin"),
    pytest.param(lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json", id="B40-absent"),
    pytest.param(tokens(CONFIGURED, lambda c: [1]), "an object was expected", id="B18-list"),
    pytest.param(tokens(CONFIGURED, lambda c: c | {"eos_token": "nope"}), "names 'nope' as its eos", id="B40-eos"),
    pytest.param(lambda f: (f / CONFIGURED).write_text("[" * 100_000), "no valid JSON", id="B9-nested"),
    pytest.param(lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "no UTF-8 text", id="B24-latin"),
    pytest.param(lambda f: (f / "chat_template.jinja").write_text("{% for"), "is no valid Jinja", id="B24-syntax"),
]


@pytest.mark.parametrize("damage, expected", TOKENIZERS)
def test_tokenizers(told, model, file, damage, expected):
    damage(model)
    code, line = told("data", "check", file("rows.jsonl", [{"text": "a"}]), f"--tokenizer={model}")
    assert code in (2, 3) and expected in line


@pytest.mark.parametrize("template", [5, [5], [{"name": "default"}], [{"name": "default", "template": 5}]])
def test_B24_a_template_that_is_no_text(told, model, file, template):
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokens(CONFIGURED, lambda c: c | {"chat_template": template})(model)
    code, line = told("data", "check", file("rows.jsonl", [{"text": "a"}]), f"--tokenizer={model}")
    assert (code == 3 and "'chat_template' is no text" in line) or (code == 0 and template == [5])


def test_B40_a_tokenizer_with_more_ids_than_the_model_has_rows(told, model):
    tokens("tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=10**6) or t)(model)
    words = ("--dry_run", f"--config.model.path={model}", "--config.data.train=('recipe:word_translation',)")
    code, line = told("train", "--config=bradley_terry", *words)
    assert code == 2 and "has 1000001 ids" in line and "264 embedding rows" in line


def test_B41_ids_are_looked_at_on_the_host():
    """A gather on the device would clamp them without a word."""
    table = jax.numpy.arange(4.0)
    assert float(table.at[9].get(mode="clip")) == 3.0
    rows = [{"id": "fine", "ids": [1, 119]}, {"id": "bad", "ids": [1, 120]}]
    with pytest.raises(DataError, match="row 'bad': token id 120 does not exist in a vocabulary of 120"):
        pipeline.encode_rows(rows, lambda row: text.example((row["ids"], [0.0, 1.0])), vocab_size=120)


def test_B41_ids_that_end_an_answer(model):
    from gramjax.training.ends import end_ids

    (model / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(DataError, match="generation_config.json: eos_token_id is 'x'; ids of tokens were expected"):
        end_ids(tokenizer.byte_level(), model)
