"""`gramjax plan` as a person calls it."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest

from gramjax.core import chips, flags, presets
from gramjax.core.errors import UserError
from gramjax.jobs import plan
from gramjax.models import decoder
from gramjax.training import budget

KEYS = ("fits", "peak_gib_per_device", "device_gib", "parameters_gib", "optimizer_gib", "temporaries_gib",
        "flops_per_step", "collective_gib_per_step", "floor_step_seconds")  # fmt: skip


SMALL = decoder.Config(
    vocab_size=512, hidden_size=64, intermediate_size=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16,
)  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "gramjax", "plan", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_what_does_not_fit_and_two_changes_that_make_it_fit(monkeypatch, capsys):
    """A small model on a GPU that has next to no memory: without remat it does not fit, with it it does."""
    config = presets.preset(SMALL, "full")
    config.data.max_length, config.train.batch_size, config.train.logit_chunk = 256, 4, 256
    config.train.remat = "none"
    topology = chips.parse("h100:1")
    whole = plan.one("", config, topology, say=True)
    assert all(key in whole for key in KEYS)
    assert whole["fits"] and whole["estimated"] and whole["device_gib"] == 72
    assert whole["optimizer_gib"] == pytest.approx(2 * whole["parameters_gib"], abs=0.002)
    small = dataclasses.replace(chips.CHIPS["h100"], memory_gib=0.97 * whole["peak_gib_per_device"])
    monkeypatch.setitem(chips.CHIPS, "h100", small)
    assert not plan.one("", config, topology, say=True)["fits"]
    found = list(plan.advice(config, topology, say=True))
    # Half the rows at a time cost nothing on one device; after that, what is computed again the least.
    assert [change["change"] for change in found] == ["--config.train.grad_accum=2", "--config.train.remat=projections"]
    assert all(change["peak_gib_per_device"] <= small.memory_gib for change in found)
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "an estimate from sizes" in said
    assert "fits with --config.train.remat=projections: " in said


ORDER = """
import dataclasses
from gramjax.core import chips, presets
from gramjax.jobs import plan
from gramjax.models import decoder

topology = chips.parse("h100:4")
chips.prepare(topology)
arch = decoder.Config(vocab_size=512, hidden_size=64, intermediate_size=256, num_layers=4, num_heads=4, num_kv_heads=2,
                      head_dim=16)
full, decode = (presets.preset(arch, use) for use in ("full", "decode"))
full.data.max_length, full.train.batch_size, full.train.logit_chunk, full.train.remat = 256, 16, 256, "none"
for config, link in ((full, 1e-3), (full, 1e9), (decode, 1e-3)):
    chips.CHIPS["h100"] = dataclasses.replace(chips.CHIPS["h100"], link_gb=link, bandwidth_gb=1e6)
    print(*[",".join(f"{name}={value}" for name, value in change.items())
            for change, _ in plan.in_order_of_cost(config, topology)])
"""


def test_what_is_cheap_depends_on_the_links():
    """Gathering weights once more per microbatch costs nothing on fast links and more than computing again on slow
    ones; weights in parts of their own are cheaper to sample with than weights that every token gathers."""
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    slow, fast, decode = (line.split() for line in done.stdout.splitlines())
    assert slow[0] == "train.remat=projections" and fast[0] == "train.grad_accum=2"
    assert slow.index("train.remat=full") < slow.index("train.grad_accum=2")
    assert fast.index("train.grad_accum=4") < fast.index("train.remat=projections")
    assert slow[-1] == fast[-1] == "train.batch_size=8" and set(slow) == set(fast)
    assert decode.index("mesh.tensor=2") < decode.index("generation.gather_weights=False")


@pytest.mark.parametrize(("remat_fits", "second"), [(True, "train.remat=full"), (False, "train.grad_accum=4")])
def test_more_of_the_same_setting_comes_after_the_others(remat_fits, second, monkeypatch):
    ordered = [({"train.grad_accum": 2}, True), ({"train.grad_accum": 4}, True), ({"train.remat": "full"}, remat_fits)]
    read = lambda fits, topology: types.SimpleNamespace(fits=fits, peak_gib_per_device=1.0, floor_step_seconds=1.0)  # noqa: E731
    monkeypatch.setattr(plan, "in_order_of_cost", lambda config, topology: ordered)
    monkeypatch.setattr(budget, "read", read)
    found = list(plan.advice(presets.preset(SMALL, "full"), chips.parse("h100:1"), say=False))
    assert [change["change"] for change in found] == ["--config.train.grad_accum=2", f"--config.{second}"]


def test_phases_and_simulated_devices():
    done = run("--config=quickstart", "--topology=cpu:2", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert list(found["phases"]) == ["stage1", "stage2"] and all(key in found for key in KEYS)
    assert found["settings"]["mesh"]["fsdp"] == 2 and found["collective_gib_by_kind"]["all-gather"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--topology is missing"),
        (("--topology=v5e:4x4x4", "--config=quickstart"), "v5e has 2 dimensions"),
        (("--topology=v9:2", "--config=quickstart"), "expected KIND:SHAPE"),
        (("--topology=cpu:2", "--topology=cpu:4"), "--topology is given twice"),
        (("--topology=cpu:2",), "give --config"),
        (("--topology=cpu:2", "--config=quickstart", "--workdir=x"), "--workdir means nothing here"),
        (("--topology=cpu:2", "--config=quickstart", "--devices=4"), "--devices means nothing here"),
    ],
)
def test_what_is_refused(words, message, monkeypatch):
    monkeypatch.setattr(chips, "prepare", lambda topology: None)
    with pytest.raises(UserError, match=message):
        plan.main(list(words))


def test_help_needs_no_jax():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from gramjax import cli; code = cli.main(['plan', '--help']); "
         "assert 'jax' not in sys.modules; sys.exit(code)"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "--topology" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["qwen3_1_7b", "llama31_8b", "qwen3_14b", "llama31_70b"])
def test_presets_have_the_sizes_they_are_named_after(name):
    """Parameters without the embedding that is also the output: what the names round."""
    from gramjax.core import spec, tree
    from gramjax.core.config import section
    from gramjax.models import decoder

    arch = section(flags.load(f"models/{name}").model.arch, decoder.Config, "model.arch")
    count = sum(leaf.size for leaf in tree.flatten(decoder.specs(arch), is_leaf=spec.is_spec).values())
    want = {"qwen3_1_7b": 1_720_574_976, "llama31_8b": 8_030_261_248, "qwen3_14b": 14_768_307_200,
            "llama31_70b": 70_553_706_496}  # fmt: skip
    assert count == want[name]
