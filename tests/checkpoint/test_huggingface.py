"""Folders written and read without torch: bits, heads, names that do not fit, and what is carried along."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import FAMILIES, SMALL, assert_equal, random_params

from gramjax.checkpoint import huggingface, shards
from gramjax.core.errors import DataError, UserError
from gramjax.models import decoder

PAD = {"pad_token_id": 0, "eos_token_id": 2}


def headed(config, *heads):
    return dataclasses.replace(config, heads=heads)


def load(folder, config, **options):
    return huggingface.load_params(folder, decoder.specs(config), config, **options)


def rewrite(folder, change):
    """Write the weights of a folder again after `change(dict of arrays)`."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["tokens", "score", "value"])
def test_export_and_import_give_the_same_bits(tmp_path, name, head):
    config = headed(FAMILIES[name], head)
    params = random_params(config)
    huggingface.save(tmp_path / "out", params, config, token_ids=PAD, max_shard_bytes=3000)
    assert huggingface.read_config(tmp_path / "out") == config
    loaded = load(tmp_path / "out", config)
    assert_equal(loaded.params, params)
    assert loaded.fresh == loaded.notes == ()
    assert ("lm_head.weight" in shards.entries(tmp_path / "out")) == ("lm_head" in params)


def test_bfloat16_and_mixed_dtypes(tmp_path):
    params = random_params(SMALL, dtype="bfloat16")
    huggingface.save(tmp_path / "half", params, SMALL)
    assert {e.dtype for e in shards.entries(tmp_path / "half").values()} == {"BF16"}
    assert_equal(load(tmp_path / "half", SMALL, dtype=jnp.bfloat16).params, params)
    dtypes = jax.tree.map(lambda x: jnp.dtype("bfloat16"), params)
    dtypes["norm"] = jnp.dtype("float32")
    mixed = load(tmp_path / "half", SMALL, dtype=dtypes).params
    assert mixed["norm"].dtype == jnp.float32 and mixed["embed"].dtype == jnp.bfloat16
    huggingface.save(tmp_path / "mixed", mixed, SMALL)  # nothing is lost: written in float32
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["torch_dtype"] == "float32"
    with pytest.raises(UserError, match="int8 cannot be exported"):
        huggingface.save(tmp_path / "int8", params, SMALL, dtype="int8")


def test_names_that_do_not_fit_are_listed_both_ways(small_folder):
    def change(arrays):
        arrays["model.layers.0.self_attn.qkv_proj.weight"] = arrays.pop("model.layers.0.self_attn.q_proj.weight")
        arrays["model.layers.1.mlp.up_proj.weight"] = arrays["model.layers.1.mlp.up_proj.weight"].T.copy()

    rewrite(small_folder, change)
    with pytest.raises(DataError) as error:
        load(small_folder, SMALL)
    text = str(error.value)
    assert "missing: model.layers.0.self_attn.q_proj.weight (layers/000/attn/q)" in text
    assert "unknown: model.layers.0.self_attn.qkv_proj.weight" in text
    assert "model.layers.1.mlp.up_proj.weight is [16, 24], expected [24, 16]" in text


def test_a_layer_too_many_or_too_few(small_folder):
    config = dataclasses.replace(SMALL, num_layers=3)
    with pytest.raises(DataError, match=r"missing: model\.layers\.2\."):
        load(small_folder, config)
    config = dataclasses.replace(SMALL, num_layers=1)
    with pytest.raises(DataError, match=r"unknown: model\.layers\.1\."):
        load(small_folder, config)


def test_old_rotary_buffers_are_not_weights(small_folder):
    rewrite(small_folder, lambda a: a.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}))
    assert "inv_freq" in load(small_folder, SMALL).notes[0]


def test_a_missing_head_is_fresh_only_when_asked(small_folder):
    score = headed(SMALL, "score")
    with pytest.raises(DataError, match="missing: score.weight .score.. The folder has no score head"):
        load(small_folder, score)
    with pytest.raises(DataError, match="no score head"):
        load(small_folder, score, fresh=("value",), key=jax.random.key(0))
    loaded = load(small_folder, score, fresh=("score",), key=jax.random.key(0))
    assert loaded.fresh == ("score",)
    assert 0 < float(jnp.abs(loaded.params["score"]).max()) < 2
    assert any("lm_head.weight" in note and "left out" in note for note in loaded.notes)
    both = headed(SMALL, "tokens", "score", "value")
    loaded = load(small_folder, both, fresh=("score", "value"), key=jax.random.key(0))
    assert loaded.fresh == ("score", "value/bias", "value/weight")


def test_fresh_never_covers_a_weight_of_the_body(small_folder):
    rewrite(small_folder, lambda a: a.pop("model.norm.weight"))
    with pytest.raises(DataError, match=r"missing: model\.norm\.weight"):
        load(small_folder, SMALL, fresh=("norm", "score"), key=jax.random.key(0))


def test_a_value_head_is_not_taken_for_a_reward_head(tmp_path):
    value = headed(SMALL, "value")
    huggingface.save(tmp_path / "value", random_params(value), value)
    with pytest.raises(DataError, match="no score head"):
        load(tmp_path / "value", headed(SMALL, "score"))


def test_tied_weights_that_differ_are_refused(tmp_path):
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    folder = tmp_path / "tied"
    huggingface.save(folder, random_params(tied), tied)
    rewrite(folder, lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"].copy()}))
    assert "same as the embedding" in load(folder, tied).notes[0]
    rewrite(folder, lambda a: a["lm_head.weight"].__setitem__((3, 3), 9.0))
    with pytest.raises(DataError, match="tie_word_embeddings is true"):
        load(folder, tied)


def test_embedding_rows_are_added_only_when_asked(small_folder):
    larger = dataclasses.replace(SMALL, vocab_size=43)
    with pytest.raises(DataError, match=r"embed_tokens.weight is \[40, 16\], expected \[43, 16\]"):
        load(small_folder, larger)
    old = load(small_folder, SMALL).params
    new = load(small_folder, larger, pad_vocab=True)
    np.testing.assert_array_equal(new.params["embed"][:40], old["embed"])
    np.testing.assert_allclose(new.params["embed"][40:], np.tile(old["embed"].mean(0), (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(new.params["lm_head"][:, :40], old["lm_head"])
    np.testing.assert_allclose(new.params["lm_head"][:, 42], old["lm_head"].mean(1), atol=1e-6)
    assert sum("rows 40 to 42 are new" in note for note in new.notes) == 2
    with pytest.raises(DataError, match="embed_tokens"):  # never cut
        load(small_folder, dataclasses.replace(SMALL, vocab_size=39), pad_vocab=True)


def test_exports_that_would_mislead_are_refused(tmp_path):
    out = tmp_path / "out"
    params = random_params(SMALL)
    missing = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    with pytest.raises(UserError, match="missing: lm_head"):
        huggingface.save(out, missing, SMALL)
    score = headed(SMALL, "score")
    with pytest.raises(UserError, match="score still holds initial values"):
        huggingface.save(out, random_params(score), score, token_ids=PAD, fresh=("score",))
    with pytest.raises(UserError, match="padding token"):
        huggingface.save(out, random_params(score), score)
    both = headed(SMALL, "tokens", "score")
    with pytest.raises(UserError, match="has the heads tokens, score"):
        huggingface.save(out, random_params(both), both)
    with pytest.raises(UserError, match="no value head"):
        huggingface.save(out, random_params(both), both, head="value")
    bad = {**params, "norm": params["norm"].at[2].set(jnp.inf)}
    with pytest.raises(UserError, match="norm holds NaN or infinite"):
        huggingface.save(out, bad, SMALL)
    assert not out.exists() and list(tmp_path.iterdir()) == []  # nothing half-written stays
    notes = huggingface.save(out, random_params(both), both, head="score", token_ids=PAD)
    assert notes == ["lm_head is not part of a LlamaForSequenceClassification: left out"]
    assert huggingface.read_config(out).heads == ("score",)


def test_pad_equal_to_eos_is_said(tmp_path):
    score = headed(SMALL, "score")
    ids = {"pad_token_id": 2, "eos_token_id": 2}
    assert "share one id" in huggingface.save(tmp_path / "out", random_params(score), score, token_ids=ids)[0]


def test_overwriting(tmp_path):
    out = tmp_path / "out"
    huggingface.save(out, random_params(SMALL), SMALL, max_shard_bytes=3000)
    with pytest.raises(UserError, match="exists and holds a model"):
        huggingface.save(out, random_params(SMALL), SMALL)
    huggingface.save(out, random_params(SMALL, seed=1), SMALL, overwrite=True)
    assert_equal(load(out, SMALL).params, random_params(SMALL, seed=1))  # no file of the old one is left
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        huggingface.save(out, random_params(SMALL), SMALL, overwrite=True)
    assert (out / "thesis.tex").exists() and (out / "config.json").exists()


def test_tokenizer_is_carried_in_a_form_that_both_generations_load(tmp_path):
    source = tmp_path / "tokenizer"
    source.mkdir()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
    added = [{"id": 1, "content": "<s>"}, {"id": 39, "content": "<end>"}]
    (source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    settings = {
        "tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True,
        "extra_special_tokens": ["<end>"], "pad_token": "<pad>", "bos_token": {"content": "<s>"}, "eos_token": "<end>",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [2, 39]}))
    out = tmp_path / "out"
    huggingface.save(out, random_params(SMALL), SMALL, source)
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<end>"] and "extra_special_tokens" not in written
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    config = json.loads((out / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 1, 39)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["eos_token_id"] == [2, 39]
    with pytest.raises(UserError, match="no tokenizer there"):
        huggingface.save(tmp_path / "other", random_params(SMALL), SMALL, tmp_path)
