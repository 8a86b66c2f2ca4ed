"""Counts of active neurons: a loop over tokens, one device and a mesh all give the same whole numbers."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gramjax.core import spec
from gramjax.core.config import DataSection, ProbeSection
from gramjax.core.errors import UserError
from gramjax.data import probe, tokenizer
from gramjax.data.languages import LanguageText, Texts
from gramjax.data.rows import Tally
from gramjax.data.text import Renderer
from gramjax.models import decoder, model
from gramjax.selection.layers import activation

SMALL = decoder.Config(
    vocab_size=320, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4,
    init_scale=0.3,
)  # fmt: skip
QWEN3 = dataclasses.replace(SMALL, family="qwen3", qk_norm=True, sliding_window=6, full_layers=(1,))
ENGLISH = ["one two three", "a", "the sun is up and it is warm today", "four"]
GERMAN = ["eins zwei drei", "ein", "die Sonne scheint und es ist warm", "vier, sagte sie"]


def texts() -> Texts:
    rows = [LanguageText(name, str(i), text) for name, own in (("en", ENGLISH), ("de", GERMAN))
            for i, text in enumerate(own)]  # fmt: skip
    return Texts(rows, [], Tally())


def small_probe(mesh=None, **settings) -> probe.Probe:
    renderer = Renderer(tokenizer.load("bytes"), DataSection(max_length=64))
    return probe.build(texts(), ProbeSection(**{"batch_size": 4, **settings}), renderer, mesh)


def counted(config: decoder.Config, mesh=None) -> tuple[np.ndarray, np.ndarray]:
    handle = model.build("decoder", config, mesh)
    params = spec.init_params(handle.specs(), jax.random.key(1))
    return activation.activations(handle, jax.jit(handle.pack)(params), small_probe(mesh))


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def gates(params: dict, config: decoder.Config, tokens: np.ndarray) -> list[np.ndarray]:
    """The gates of every layer [T, I] for one text, in float64: attention head by head, nothing shared with the code.

    Norm scales are 1 in the parameters that are used.
    """
    x = np.asarray(params["embed"], np.float64)[tokens]
    T, E = len(tokens), config.head_dim
    frequencies = config.rope_theta ** (-np.arange(0, E, 2) / E)
    angles = np.arange(T)[:, None] * frequencies

    def turned(v: np.ndarray) -> np.ndarray:
        first, second = v[:, : E // 2], v[:, E // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)

    out = []
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda w: np.asarray(w, np.float64), params["layers"][f"{index:03d}"])
        h, mixed = rms(x, config.norm_eps), np.zeros_like(x)
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            q = turned(h @ layer["attn"]["q"][:, head])
            k = turned(h @ layer["attn"]["k"][:, shared])
            v = h @ layer["attn"]["v"][:, shared]
            for t in range(T):
                weights = np.exp(q[t] @ k[: t + 1].T / math.sqrt(E))
                mixed[t] += (weights / weights.sum()) @ v[: t + 1] @ layer["attn"]["o"][head]
        x = x + mixed
        h = rms(x, config.norm_eps)
        gate = h @ layer["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
        out.append(gate)
    return out


def test_counts_are_those_of_a_loop_over_tokens():
    """S-4: two languages, texts of uneven lengths, padding, rows that only fill a batch."""
    seen = small_probe()
    assert seen.languages == ("en", "de") and len(seen) == 2
    params = spec.init_params(decoder.specs(SMALL), jax.random.key(1))
    expected = np.zeros((2, 2, SMALL.num_layers, SMALL.intermediate_size), np.int64)
    totals = np.zeros((2, 2), np.int64)
    for sequence in seen.sequences:
        for index, gate in enumerate(gates(params, SMALL, sequence.tokens)):
            assert np.abs(gate).min() > 1e-6  # no sign hangs on the rounding of float32
            for t in np.flatnonzero(sequence.counted):
                expected[sequence.language, sequence.number % 2, index] += gate[t] > 0
        totals[sequence.language, sequence.number % 2] += sequence.counted.sum()
    found, tokens = counted(SMALL)
    np.testing.assert_array_equal(tokens, totals)
    np.testing.assert_array_equal(found, expected)
    assert tokens.sum() == sum(len(text.encode()) for text in ENGLISH + GERMAN)


def test_nothing_of_the_size_of_layers_times_tokens_is_kept():
    """What the scan over layers puts out, from the program as it is traced."""
    layers, rows, length, groups = 6, 4, 64, 4
    handle = model.build("decoder", dataclasses.replace(SMALL, num_layers=layers))
    weights = jax.eval_shape(handle.pack, spec.abstract(handle.specs()))
    table = {name: jax.ShapeDtypeStruct((rows, length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    table |= {"counted": jax.ShapeDtypeStruct((rows, length), bool)}
    table |= {name: jax.ShapeDtypeStruct((rows,), np.int32) for name in ("language", "number")}
    so_far = (jax.ShapeDtypeStruct((layers, groups, 24), np.int32), jax.ShapeDtypeStruct((groups,), np.int32))
    traced = jax.make_jaxpr(lambda *given: activation.count(handle, *given))(so_far, weights, table)
    (scan,) = [e for e in traced.eqns if e.primitive.name == "scan"]
    sizes = {variable.aval.shape: math.prod(variable.aval.shape) for variable in scan.outvars}
    assert (layers, groups, 24) in sizes and (rows, length, SMALL.hidden_size) in sizes  # the counts, the hidden states
    assert [shape for shape in sizes if shape[:1] == (layers,) and shape != (layers, groups, 24)] == []


WORKER = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
sys.path.insert(0, sys.argv[1])
import test_activation as cases
from gramjax.core import sharding
from gramjax.core.config import MeshSection
mesh = sharding.make_mesh(MeshSection(data=1, fsdp=2, tensor=1))
counts, totals = cases.counted(cases.QWEN3, mesh)
print(json.dumps([counts.tolist(), totals.tolist()]))
"""


def test_a_mesh_counts_what_one_device_counts():
    """Rows and weights over two devices, another family, layers of two kinds."""
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    counts, totals = json.loads(result.stdout.splitlines()[-1])
    found, tokens = counted(QWEN3)
    np.testing.assert_array_equal(found, counts)
    np.testing.assert_array_equal(tokens, totals)


def test_scores_of_a_model_are_in_the_order_asked_for():
    handle = model.build("decoder", SMALL)
    params = spec.init_params(handle.specs(), jax.random.key(1))
    config = activation.Config(score="one_minus_overlap", rule="topk", k=1, pivot="English")
    found = activation.layer_scores(handle, handle.pack(params), small_probe(), config)
    assert list(found.scores)[0] == "one_minus_overlap" and len(found.scores) == 9
    assert found.layers == (int(np.argmax(found.scores["one_minus_overlap"])),)
    assert found.facts["pivot"] == "en" and "few tokens" in found.warnings[-1]
    np.testing.assert_array_equal(found.facts["overlap"][0], 1.0)  # English with itself
    for name, values in found.scores.items():
        own = np.array(found.facts["by_language"][name])
        if name not in ("one_minus_entropy", "lape_count", "msd_count_mean", "msd_active_mean"):
            np.testing.assert_allclose(own[1], values)  # one other language: its term is the mean


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"score": "loudness"}, "config.selection.score='loudness' is not one of msd_prob"),
        ({"rule": "best", "kappa": -1.0}, "config.selection.rule='best'.*config.selection.kappa is -1"),
        ({"layers": (0,)}, "config.selection.layers is given, but config.selection.rule is 'prefix_topk'"),
        ({"threshold": 1.5}, "config.selection.threshold is 1.5; it must be from 0 to 1"),
        ({"rule": "explicit", "layers": (0,), "k": 3}, "selection.k is given, but config.selection.rule is 'explicit'"),
        ({"kappa": 2.0}, "config.selection.kappa is given, but config.selection.rule is 'prefix_topk'"),
        ({"rule": "topk", "seed": 1}, "config.selection.seed is given, but config.selection.rule is 'topk'"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(UserError, match=message):
        activation.Config(**settings)


def test_a_pivot_without_texts():
    with pytest.raises(UserError, match="pivot='fr' is none of the languages en, de"):
        activation.layer_scores(model.build("decoder", SMALL), None, small_probe(), activation.Config(pivot="fr"))


# -- which tokens count ------------------------------------------------------------------------------------------------


def test_positions_that_count():
    """Of a prompt with a completion: its own characters, the last, those of the completion, or all with the frame."""
    bytes_of = Renderer(tokenizer.load("bytes", chat_template="alpaca"), DataSection(max_length=400))
    text = LanguageText("en", "0", "why?", "so")
    counts = {}
    for positions in ("prompt", "last", "completion", "all"):
        ids, marks = probe.tokens_of(text, bytes_of, positions)
        counts[positions] = bytes_of.tokenizer.decode(ids[marks])
    assert (counts["prompt"], counts["last"], counts["completion"]) == ("why?", "?", "so")
    assert "Below is an instruction" in counts["all"] and "why?" in counts["all"]
    plain = Renderer(tokenizer.load("bytes"), DataSection(max_length=400))
    ids, marks = probe.tokens_of(LanguageText("en", "0", [{"role": "user", "content": "why?"}]), plain, "prompt")
    assert plain.tokenizer.decode(ids[marks]) == "why?"  # a lone question needs no template


def test_parallel_texts_end_together():
    """The second German text reaches the limit, and English is not read further either."""
    seen = small_probe(max_tokens=16)
    assert [(s.language, s.number) for s in seen.sequences] == [(i, n) for n in range(2) for i in range(2)]
    alone = small_probe(max_tokens=16, parallel=False)
    own = {name: sum(s.language == index for s in alone.sequences) for index, name in enumerate(alone.languages)}
    assert own == {"en": 3, "de": 2}  # each language until it has enough
    assert seen.fingerprint() != alone.fingerprint() and seen.fingerprint() == small_probe(max_tokens=16).fingerprint()


def test_languages_that_are_not_there():
    with pytest.raises(UserError, match="config.probe.languages: no texts in 'sw'; the data has en, de"):
        small_probe(languages=("en", "swahili"))
    assert small_probe(languages=("German", "en")).languages == ("de", "en")
