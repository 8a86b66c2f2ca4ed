"""Against transformers and torch: folders that they wrote, folders that they read, bits and logits."""

import dataclasses
import json

import numpy as np
import pytest
from small_models import FAMILIES, assert_equal, random_params

from gramjax.checkpoint import hf_config, huggingface, tables
from gramjax.jobs import convert
from gramjax.models import decoder

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
transformers.utils.logging.disable_progress_bar()

HEADS = ("tokens", "score", "value")
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def rows(config):
    return convert._rows(config, 0)[:2, :20]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_that_transformers_wrote(tmp_path, name, head):
    config = dataclasses.replace(FAMILIES[name], heads=(head,))
    values = hf_config.to_hf(config, head, "float32", IDS)
    torch.manual_seed(0)
    theirs_config = transformers.AutoConfig.for_model(**values)
    model = getattr(transformers, values["architectures"][0])(theirs_config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, biases and heads too: nothing may be mixed up
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")

    ours_config = huggingface.read_config(tmp_path / "theirs")
    assert ours_config == config
    loaded = huggingface.load_params(tmp_path / "theirs", decoder.specs(config), config)
    assert loaded.fresh == loaded.notes == ()
    written = model.state_dict()
    for row in tables.rows(decoder.specs(config)).values():
        leaf = loaded.params
        for part in row.path.split("/"):
            leaf = leaf[part]
        np.testing.assert_array_equal(row.to_hf(np.asarray(leaf)), written[row.name].numpy(), err_msg=row.path)

    huggingface.save(tmp_path / "ours", loaded.params, config, token_ids=IDS, max_shard_bytes=3000)
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    for key, value in again.state_dict().items():
        assert torch.equal(value, written[key]), key

    tokens = rows(config)
    if head != "tokens" and name != "llama":
        return  # the body is the same whatever the head
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    ours = convert.logits(loaded.params, config, tokens)
    np.testing.assert_allclose(ours, out if head == "tokens" else out[..., 0], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_the_same_settings_from_our_config(tmp_path, name):
    config = FAMILIES[name]
    huggingface.save(tmp_path / "ours", random_params(config), config, token_ids=IDS)
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    for form in (("rope_theta", "rope_scaling", "torch_dtype"), ("rope_parameters", "dtype")):
        # What each generation reads: 5 the nested form, 4 the flat one; 5 still understands the flat one.
        seen = {key: value for key, value in values.items() if key not in form}
        theirs = transformers.AutoConfig.for_model(**seen)
        assert theirs.rope_parameters["rope_theta"] == config.rope_theta
        assert theirs.rope_parameters["rope_type"] == config.rope_scaling.kind.replace("none", "default")
        assert str(theirs.dtype).endswith("float32") and theirs.pad_token_id == 0


def test_bfloat16_bits_survive_torch(tmp_path):
    config = FAMILIES["qwen2"]
    params = random_params(config, dtype="bfloat16")
    huggingface.save(tmp_path / "ours", params, config, token_ids=IDS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "theirs")
    loaded = huggingface.load_params(tmp_path / "theirs", decoder.specs(config), config, dtype="bfloat16")
    assert_equal(loaded.params, params)


def test_score_of_a_padded_row_is_that_of_its_last_token(tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], heads=("score",))
    params = random_params(config)
    huggingface.save(tmp_path / "ours", params, config, token_ids=IDS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    tokens = rows(config)
    padded = np.concatenate([tokens, np.zeros((2, 5), np.int32)], axis=1)
    mask = torch.from_numpy((padded != 0).astype(np.int64))
    with torch.no_grad():
        theirs = model(torch.from_numpy(padded).long(), attention_mask=mask).logits[:, 0].numpy()
    np.testing.assert_allclose(convert.logits(params, config, tokens), theirs, atol=1e-4)


def test_a_version_4_folder(tmp_path):
    # A folder as transformers 4 left it: flat rotary settings, torch_dtype, no head_dim. Frozen by hand.
    text = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.02,
        "intermediate_size": 24, "max_position_embeddings": 64, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 16, "rope_type": "llama3"}, "rope_theta": 500.0,
        "tie_word_embeddings": true, "torch_dtype": "float32", "transformers_version": "4.43.0", "vocab_size": 40}"""
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(folder / "model.safetensors")
    config = huggingface.read_config(folder)
    assert config == huggingface.read_config(tmp_path / "new")  # both generations' files say the same
    loaded = huggingface.load_params(folder, decoder.specs(config), config)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(rows(config)).long()).logits.numpy()
    np.testing.assert_allclose(convert.logits(loaded.params, config, rows(config)), theirs, atol=1e-4)
