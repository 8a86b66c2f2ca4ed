"""Folders of models whose layers share attention: read again by us, run by the torch file that lies in them."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.checkpoint import huggingface, source
from gramjax.core import spec, tree
from gramjax.core.errors import DataError, UserError
from gramjax.models import decoder, heads, lisa, rotary, stack

QWEN3 = decoder.Config(
    family="qwen3", vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=6, num_heads=4, num_kv_heads=2,
    head_dim=8, init_scale=0.2, qk_norm=True, sliding_window=5, full_layers=(0, 2, 3),
)  # fmt: skip
LLAMA = dataclasses.replace(
    QWEN3, family="llama", qk_norm=False, sliding_window=0, full_layers=(), tie_word_embeddings=False,
    rope_scaling=rotary.Scaling("llama3", 8.0, 1.0, 4.0, 16),
)  # fmt: skip
QWEN2 = dataclasses.replace(QWEN3, family="qwen2", qk_norm=False, attention_bias=True)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12), dtype=np.int32)

VARIANTS = {
    "default": (LLAMA, {}),
    "bias, residual, gelu": (QWEN3, {"align_bias": True, "align_residual": True, "align_act": "gelu"}),
    "linear, anchor, kv": (QWEN2, {"align": "linear", "source": "anchor", "delta_kv_heads": "kv", "delta_rope": False}),
    "post": (LLAMA, {"share_point": "post", "delta_scale": "head"}),
    "keys": (QWEN2, {"shares": "keys", "rank": 20}),
    "delta only": (QWEN3, {"align": "off"}),
    "direct": (LLAMA, {"align": "none", "rank": 0}),
}


def made(config, settings):
    config = dataclasses.replace(config, lisa=lisa.LisaSection(**{"layers": (2, 3, 5), "rank": 4} | settings))
    params = tree.flatten(spec.init_params(decoder.specs(config), jax.random.key(0)))
    noise = {path: 0.2 * jax.random.normal(jax.random.key(i), x.shape) for i, (path, x) in enumerate(params.items())}
    return tree.unflatten({path: x + noise[path] for path, x in params.items()}), config


def logits(params, config):
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    return np.asarray(heads.logits(weights, decoder.forward(weights, config, {"tokens": TOKENS}).hidden))


@pytest.mark.parametrize("config,settings", VARIANTS.values(), ids=VARIANTS)
def test_a_written_folder_is_the_same_model_here_and_in_torch(tmp_path, config, settings):
    torch = pytest.importorskip("torch")
    params, config = made(config, settings)
    notes = huggingface.save(tmp_path / "model", params, config, dtype="float32")
    assert "lisa_torch.py" in " ".join(notes)
    again = source.open_source(tmp_path / "model")
    assert again.config == config
    loaded = again.load(decoder.specs(again.config), again.config).params
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(tree.flatten(loaded)[path], leaf, err_msg=path)
    found = importlib.util.spec_from_file_location("lisa_torch_copy", tmp_path / "model" / "lisa_torch.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with torch.no_grad():
        theirs = module.logits(*module.load(tmp_path / "model"), torch.from_numpy(TOKENS).long()).numpy()
    np.testing.assert_allclose(logits(params, config), theirs, atol=1e-4)


def test_transformers_does_not_take_the_folder_for_its_family(tmp_path):
    transformers = pytest.importorskip("transformers")
    params, config = made(LLAMA, {})
    huggingface.save(tmp_path / "model", params, config)
    with pytest.raises(ValueError, match="gramjax_lisa"):
        transformers.AutoConfig.from_pretrained(tmp_path / "model")


def test_a_folder_that_does_not_say_its_layers_is_refused(tmp_path):
    params, config = made(LLAMA, {})
    huggingface.save(tmp_path / "model", params, config)
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"lisa": {}}))
    with pytest.raises(DataError, match="lisa.layers"):
        source.open_source(tmp_path / "model")
    file.write_text(json.dumps(values | {"lisa": {"layers": [2, 3], "ranks": 4}}))
    with pytest.raises(UserError, match="ranks"):
        source.open_source(tmp_path / "model")
