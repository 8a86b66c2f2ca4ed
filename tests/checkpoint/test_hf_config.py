"""config.json: both generations of transformers in, one that both read out, and refusals by name."""

import json

import pytest
from small_models import FAMILIES, SMALL

from gramjax.checkpoint import hf_config
from gramjax.core.errors import DataError, UserError
from gramjax.models import rotary

VERSION_4 = {  # as transformers 4 wrote a Llama 3.1 folder: no head_dim, rope_theta at the top, torch_dtype
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": [2, 3], "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.02,
    "intermediate_size": 24, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 40,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 16, "intermediate_size": 24,
    "max_position_embeddings": 64, "max_window_layers": 1, "model_type": "qwen2", "num_attention_heads": 4,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 8, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 40,
}


def read(values, **changes):
    values = {name: value for name, value in {**values, **changes}.items() if value != "absent"}
    return hf_config.from_hf(values, "config.json")


def test_version_4_llama():
    config = read(VERSION_4)
    assert (config.head_dim, config.rope_theta, config.norm_eps) == (4, 500000.0, 1e-5)
    assert config.rope_scaling == rotary.Scaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert not config.tie_word_embeddings and not config.attention_bias and config.heads == ("tokens",)


def test_version_5_says_the_same():
    rope = {"rope_theta": 500000.0, **VERSION_4["rope_scaling"]}
    new = {**VERSION_4, "rope_parameters": rope, "rope_theta": "absent", "rope_scaling": "absent", "dtype": "bfloat16"}
    assert read(new) == read(VERSION_4)


def test_old_scaling_and_defaults_of_absent_keys():
    config = read(
        VERSION_4, rope_scaling={"type": "linear", "factor": 4}, rope_theta="absent", num_key_value_heads="absent",
        rms_norm_eps="absent", tie_word_embeddings="absent", architectures="absent", max_position_embeddings="absent",
    )
    assert config.rope_scaling == rotary.Scaling("linear", 4.0)
    assert (config.rope_theta, config.num_kv_heads, config.norm_eps) == (10000.0, 4, 1e-6)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (2048, False)


def test_windows_by_family():
    assert read(QWEN2).sliding_window == 0
    used = read(QWEN2, use_sliding_window=True)
    assert (used.sliding_window, used.full_layers) == (8, (0,))
    assert used.attention_bias and used.tie_word_embeddings
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert read(QWEN2, use_sliding_window=True, layer_types=kinds).full_layers == (1, 2)
    assert read(QWEN2, use_sliding_window=True, max_window_layers=0).full_layers == ()
    assert read(QWEN2, use_sliding_window=True, max_window_layers=3).sliding_window == 0
    mistral = {**QWEN2, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    assert read(mistral).sliding_window == 8
    assert read(mistral, sliding_window=None).sliding_window == 0
    assert read(mistral, sliding_window="absent").sliding_window == 4096  # as transformers takes it


def test_heads_from_the_architecture():
    assert read(VERSION_4, architectures=["LlamaForSequenceClassification"], num_labels=1).heads == ("score",)
    one = {"0": "LABEL_0"}
    assert read(VERSION_4, architectures=["LlamaForTokenClassification"], id2label=one).heads == ("value",)
    with pytest.raises(UserError, match="2 labels"):
        read(VERSION_4, architectures=["LlamaForSequenceClassification"], id2label={"0": "no", "1": "yes"})
    with pytest.raises(UserError, match="LlamaForQuestionAnswering"):
        read(VERSION_4, architectures=["LlamaForQuestionAnswering"])


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"model_type": "mamba"}, UserError, "model_type 'mamba'"),
        ({"hidden_act": "gelu"}, UserError, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, UserError, "attention_bias is True"),
        ({"mlp_bias": True}, UserError, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, UserError, "rope type 'yarn'"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, UserError, "per kind of layer"),
        ({"quantization_config": {"bits": 4}}, UserError, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, UserError, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, DataError, "contradict"),
        ({"hidden_size": "absent"}, DataError, "hidden_size is None"),
        ({"num_hidden_layers": "2"}, DataError, "num_hidden_layers is '2'"),
        ({"num_key_value_heads": 3}, DataError, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"rms_norm_eps": float("nan")}, DataError, "rms_norm_eps"),
        ({"vocab_size": -1}, DataError, "vocab_size is -1"),
    ],
)
def test_refused_by_name(changes, error, text):
    with pytest.raises(error, match=text):
        read(VERSION_4, **changes)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama", "model_type": "qwen2"}', "[" * 100_000])
def test_a_damaged_config_is_one_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json"):
        hf_config.read_config(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_read_back_from_either_form(name):
    config = FAMILIES[name]
    values = json.loads(json.dumps(hf_config.to_hf(config, "tokens", "float32", {"pad_token_id": 3})))
    assert hf_config.from_hf(values, "written") == config
    old = {n: v for n, v in values.items() if n not in ("rope_parameters", "dtype")}
    new = {n: v for n, v in values.items() if n not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert hf_config.from_hf(old, "version 4") == hf_config.from_hf(new, "version 5") == config
    assert values["pad_token_id"] == 3 and values["torch_dtype"] == values["dtype"] == "float32"


def test_what_a_family_cannot_express_is_refused():
    import dataclasses

    for changes, text in (
        ({"attention_bias": True}, "attention_bias"),
        ({"qk_norm": True}, "qk_norm"),
        ({"sliding_window": 4}, "sliding window"),
        ({"family": "mistral", "sliding_window": 4, "full_layers": (0,)}, "sliding window"),
    ):
        with pytest.raises(UserError, match=text):
            hf_config.to_hf(dataclasses.replace(SMALL, **changes), "tokens", "float32", {})


def test_tokenizer_larger_than_the_embedding():
    assert hf_config.check_vocab(SMALL, 40) is SMALL and hf_config.check_vocab(SMALL, 12) is SMALL
    with pytest.raises(UserError, match="41 ids and the model 40 embedding rows"):
        hf_config.check_vocab(SMALL, 41)
    assert hf_config.check_vocab(SMALL, 41, pad=True).vocab_size == 41
