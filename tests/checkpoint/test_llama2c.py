"""The flat format of llama2.c: layout, rotary permutation, damaged files, and the real model's logits."""

import json
import struct

import jax
import numpy as np
import pytest

from gramjax.checkpoint import huggingface, llama2c
from gramjax.checkpoint.source import open_source
from gramjax.core.errors import DataError
from gramjax.jobs import convert
from gramjax.models import decoder


def write(path, vocab=10, seed=0):
    """A random file in the format's order; returns the arrays by name."""
    D, F, L, H, K, V, T = (8, 12, 2, 2, 1, abs(vocab), 6)
    E = D // H
    shapes = dict(
        embed=(V, D), attn_norm=(L, D), wq=(L, D, D), wk=(L, K * E, D), wv=(L, K * E, D), wo=(L, D, D),
        mlp_norm=(L, D), w1=(L, F, D), w2=(L, D, F), w3=(L, F, D), norm=(D,), cos=(T, E // 2), sin=(T, E // 2),
    )
    if vocab < 0:
        shapes["head"] = (V, D)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", D, F, L, H, K, vocab, T)
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays.values()))
    return arrays


def reference(arrays, tokens):
    """llama2.c's own forward pass for one row: interleaved rotary pairs, written out."""
    x = arrays["embed"][tokens].astype(np.float64)
    T, E = len(tokens), 4

    def norm(x, weight):
        return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def rotate(v):  # [T, heads, E], pairs (0, 1), (2, 3)
        out = v.copy()
        for i in range(0, E, 2):
            angle = np.arange(T)[:, None] / 10000 ** (i / E)
            a, b = v[..., i], v[..., i + 1]
            out[..., i], out[..., i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return out

    for i in range(2):
        h = norm(x, arrays["attn_norm"][i])
        q = rotate((h @ arrays["wq"][i].T).reshape(T, 2, E))
        k = rotate((h @ arrays["wk"][i].T).reshape(T, 1, E)).repeat(2, axis=1)
        v = (h @ arrays["wv"][i].T).reshape(T, 1, E).repeat(2, axis=1)
        scores = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(E) + np.triu(np.full((T, T), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khe->qhe", weights, v).reshape(T, -1) @ arrays["wo"][i].T
        h = norm(x, arrays["mlp_norm"][i])
        gate, up = h @ arrays["w1"][i].T, h @ arrays["w3"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ arrays["w2"][i].T
    return norm(x, arrays["norm"]) @ arrays.get("head", arrays["embed"]).T


@pytest.mark.parametrize("vocab", [10, -10])
def test_logits_are_those_of_the_format(tmp_path, vocab):
    arrays = write(tmp_path / "m.bin", vocab)
    config, params = llama2c.read(tmp_path / "m.bin")
    assert config.tie_word_embeddings == (vocab > 0) and ("lm_head" in params) == (vocab < 0)
    tokens = np.array([1, 5, 2, 7, 7, 3], np.int32)
    ours = convert.logits(jax.tree.map(jax.numpy.asarray, params), config, tokens[None])[0]
    np.testing.assert_allclose(ours, reference(arrays, tokens), atol=2e-4)


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda raw: raw[:-4], "damaged or truncated"),
        (lambda raw: raw + b"\0\0\0\0", "damaged or truncated"),
        (lambda raw: raw[:12], "12 bytes"),
        (lambda raw: b"", "0 bytes"),
        (lambda raw: b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01" + raw, "not a llama2.c file"),
        (lambda raw: b"PK\x03\x04" + raw, "not a llama2.c file"),
        (lambda raw: raw[:400] + struct.pack("<f", float("nan")) + raw[404:], "holds NaN"),
    ],
)
def test_bad_files(tmp_path, damage, text):
    write(tmp_path / "m.bin")
    (tmp_path / "bad.bin").write_bytes(damage((tmp_path / "m.bin").read_bytes()))
    with pytest.raises(DataError, match=text):
        llama2c.read(tmp_path / "bad.bin")


def test_real_model_speaks_its_golden_text(data_dir, tmp_path):
    folder = data_dir / "stories260k"
    golden = json.loads((folder / "golden.json").read_text())
    ids = np.asarray(golden["greedy_from_bos"]["ids"], np.int32)
    expected = np.load(folder / "golden_logits.npy")
    source = open_source(folder / "stories260K.bin")
    params = source.load(decoder.specs(source.config), source.config).params
    logits = convert.logits(params, source.config, ids[None])[0]
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=2e-5)
    np.testing.assert_array_equal(logits[:-1].argmax(-1), ids[1:])
    huggingface.save(tmp_path / "out", params, source.config)
    again = open_source(tmp_path / "out")
    assert again.config == source.config
    back = again.load(decoder.specs(again.config), again.config).params
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), back, params))
