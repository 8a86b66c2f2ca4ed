"""The harness that measures what sharing attention gains: it runs, and its accounting is that of the specification."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import lisa_speed  # noqa: E402


def test_it_measures_both_sides_in_turn(capsys, monkeypatch, tmp_path):
    out = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["lisa_speed", "--shape=tiny", "--variants=lisa", "--rounds=3", f"--json={out}"])
    lisa_speed.main()
    (found,) = json.loads(out.read_text())["grid"]
    for kind in ("decode", "prefill"):
        assert found[kind]["plain"]["gain"] == 1.0
        assert math.isfinite(found[kind]["lisa"]["gain"]) and found[kind]["lisa"]["gain"] > 0


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="what memory allows is gained on accelerators")
def test_four_layers_of_llama_2_decode_faster_when_three_share(monkeypatch, tmp_path):
    """A6.16."""
    out, full = tmp_path / "speed.json", lisa_speed.SHAPES["llama2-7b"]
    four = dataclasses.replace(full, config=dataclasses.replace(full.config, num_layers=4), shared=3)
    monkeypatch.setitem(lisa_speed.SHAPES, "llama2-7b", four)
    flags = ["--shape=llama2-7b", "--variants=lisa", "--grid=32x2048", f"--json={out}"]
    monkeypatch.setattr(sys, "argv", ["lisa_speed", *flags])
    lisa_speed.main()
    assert json.loads(out.read_text())["grid"][0]["decode"]["lisa"]["gain"] > 1.0


@pytest.mark.parametrize(
    "name,count,want",
    [("llama2-7b", 21, {(1, 512): 1.10, (8, 1024): 1.16, (32, 1024): 1.24, (64, 2048): 1.33}),
     ("llama2-7b", 27, {(1, 512): 1.14, (8, 1024): 1.21, (64, 2048): 1.47}),
     ("llama3-8b", 17, {(1, 512): 1.04, (32, 1024): 1.05, (64, 2048): 1.08})],
)  # fmt: skip
def test_bytes_give_the_gains_of_the_specification(name, count, want):
    shape = dataclasses.replace(lisa_speed.SHAPES[name], shared=count)
    handles = lisa_speed.sides(shape, ["lisa"])
    assert handles["lisa"].compute_dtype == jnp.bfloat16
    for (batch, context), gain in want.items():
        found = lisa_speed.accounted(handles, batch, context)["lisa"]["bytes_gain"]
        assert found == pytest.approx(gain, abs=0.011)


def test_alignment_costs_as_much_as_the_scores_it_replaces():
    """FLOPs per pair of tokens and layer: 8,192; 1,280 + 8,192 with the network, 1,280 + 2,048 with one map."""
    handles = lisa_speed.sides(lisa_speed.SHAPES["llama2-7b"], ["lisa", "linear"])

    def per_pair(name):
        total = lisa_speed.multiply_adds(handles[name], 1001) - lisa_speed.multiply_adds(handles[name], 1000)
        return 2 * (total - 32 * 32 * 128)  # of all layers, without the values

    plain = per_pair("plain")
    assert plain == 32 * 8192
    assert per_pair("lisa") == 11 * 8192 + 21 * (1280 + 8192)
    assert per_pair("linear") == 11 * 8192 + 21 * (1280 + 2048)
