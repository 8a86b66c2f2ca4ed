"""Tiny decoders of every family with random weights."""

import dataclasses

import jax
import numpy as np

from gramjax.core import spec, tree
from gramjax.models import decoder, rotary

SMALL = decoder.Config(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    max_position_embeddings=64, norm_eps=1e-6, tie_word_embeddings=False,
)
LLAMA3 = rotary.Scaling("llama3", 8.0, 1.0, 4.0, 32)
FAMILIES = {
    "llama": dataclasses.replace(SMALL, rope_theta=1234.0),
    "llama3": dataclasses.replace(SMALL, rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "linear": dataclasses.replace(SMALL, rope_scaling=rotary.Scaling("linear", 2.0)),
    "qwen2": dataclasses.replace(
        SMALL, family="qwen2", attention_bias=True, sliding_window=5, full_layers=(0,), tie_word_embeddings=True
    ),
    "qwen3": dataclasses.replace(SMALL, family="qwen3", qk_norm=True, head_dim=6, rope_theta=1e6),
    "mistral": dataclasses.replace(SMALL, family="mistral", sliding_window=7),
}


def random_params(config: decoder.Config, seed: int = 0, dtype: str = "float32") -> dict:
    """Parameters in which every value is random, norms and biases too, so that a mix-up always shows."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(decoder.specs(config), is_leaf=spec.is_spec)
    values = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}
    return tree.unflatten({path: jax.numpy.asarray(value, dtype) for path, value in values.items()})


def assert_equal(left: dict, right: dict) -> None:
    """Two trees have the same paths, dtypes and bits."""
    left, right = tree.flatten(left), tree.flatten(right)
    assert list(left) == list(right)
    for path in left:
        a, b = np.asarray(left[path]), np.asarray(right[path])
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert a.tobytes() == b.tobytes(), path
