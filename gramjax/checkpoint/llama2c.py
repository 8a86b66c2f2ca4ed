"""The flat weight format of llama2.c: a header of seven integers, then float32 arrays in a fixed order."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.core import tree
from gramjax.core.errors import DataError
from gramjax.models.decoder import Config

HEADER = 7 * 4
LARGEST = 2**24
"""No size in the header is larger; other files of this ending (pickles, archives) fail here."""


def _layout(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every array in the order of the file: name and shape."""
    L, D, F, V = config.num_layers, config.hidden_size, config.intermediate_size, config.vocab_size
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "embed", (V, D)
    yield "attn_norm", (L, D)
    yield "q", (L, heads, D)
    yield "k", (L, kv, D)
    yield "v", (L, kv, D)
    yield "o", (L, D, heads)
    yield "mlp_norm", (L, D)
    yield "gate", (L, F, D)
    yield "down", (L, D, F)
    yield "up", (L, F, D)
    yield "norm", (D,)
    yield "cos", (config.max_position_embeddings, config.head_dim // 2)
    yield "sin", (config.max_position_embeddings, config.head_dim // 2)
    if not config.tie_word_embeddings:
        yield "lm_head", (V, D)


def read_config(path: str | Path) -> Config:
    """The decoder config of a llama2.c file; raises DataError for a file that is none (a pickle, a truncated one)."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(head) < HEADER:
        raise DataError(f"{path}: {len(head)} bytes; a llama2.c file starts with a header of {HEADER}")
    width, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", head)
    sizes = (width, hidden, layers, heads, kv_heads, abs(vocab), length)
    if min(sizes) <= 0 or max(sizes) > LARGEST or width % heads or heads % kv_heads or (width // heads) % 2:
        raise DataError(
            f"{path}: not a llama2.c file (its header would be {sizes}). Pickles (.bin, .pt) are never read: "
            "convert them to safetensors"
        )
    config = Config(
        family="llama",
        vocab_size=abs(vocab),
        hidden_size=width,
        intermediate_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        max_position_embeddings=length,
        norm_eps=1e-5,
        tie_word_embeddings=vocab > 0,  # the format writes a negative size for an output matrix of its own
    )
    expected = HEADER + 4 * sum(math.prod(shape) for _, shape in _layout(config))
    if size != expected:
        raise DataError(f"{path}: {size} bytes, its header describes {expected}; the file is damaged or truncated")
    return config


def _half_rotation(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a query or key matrix from the interleaved rotary layout (channels 2i, 2i+1) to ours (i, i + E/2)."""
    heads = weight.shape[0] // head_dim
    pairs = weight.reshape(heads, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read(path: str | Path) -> tuple[Config, dict[str, Any]]:
    """Config and float32 parameters of a llama2.c file, as host arrays (the format is for small models).

    Raises DataError for a file that is none, is truncated, or holds NaN or infinite values.
    """
    config = read_config(path)
    arrays, offset = {}, HEADER
    for name, shape in _layout(config):
        arrays[name] = np.fromfile(path, "<f4", math.prod(shape), offset=offset).reshape(shape)
        offset += 4 * math.prod(shape)
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{path}: {name} holds NaN or infinite values")
    D, H, K, E = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    flat: dict[str, np.ndarray] = {"embed": arrays["embed"], "norm": arrays["norm"]}
    if not config.tie_word_embeddings:
        flat["lm_head"] = arrays["lm_head"].T
    for i in range(config.num_layers):
        at = f"layers/{i:03d}"
        flat[f"{at}/attn_norm"], flat[f"{at}/mlp_norm"] = arrays["attn_norm"][i], arrays["mlp_norm"][i]
        flat[f"{at}/attn/q"] = _half_rotation(arrays["q"][i], E).T.reshape(D, H, E)
        flat[f"{at}/attn/k"] = _half_rotation(arrays["k"][i], E).T.reshape(D, K, E)
        flat[f"{at}/attn/v"] = arrays["v"][i].T.reshape(D, K, E)
        flat[f"{at}/attn/o"] = arrays["o"][i].T.reshape(H, E, D)
        flat[f"{at}/mlp/gate"], flat[f"{at}/mlp/up"] = arrays["gate"][i].T, arrays["up"][i].T
        flat[f"{at}/mlp/down"] = arrays["down"][i].T
    return config, tree.unflatten({name: np.ascontiguousarray(value) for name, value in sorted(flat.items())})
