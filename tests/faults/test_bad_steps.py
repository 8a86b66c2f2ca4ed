"""F23, F24: a step whose loss or gradient is not finite changes nothing, is named, and in a row ends the training."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_two_processes import finished, launch

from gramjax import cli
from gramjax.checkpoint import manifest
from gramjax.checkpoint import state as states
from gramjax.core import tree
from gramjax.core.config import OptimSection
from gramjax.core.errors import NotFinite
from gramjax.core.writer import read_metrics
from gramjax.data import pipeline
from gramjax.training import bad_steps, optimizer, setup
from gramjax.training import step as steps

TINY = str(Path(__file__).parent.parent / "jobs" / "tiny.py")

# -- the step ---------------------------------------------------------------------------------------------------------

PARAMS = {"a": jnp.arange(1.0, 4.0), "b": jnp.asarray([0.5, -0.0]), "frozen": jnp.ones(3)}
LABELS = {"a": "train", "b": "train", "frozen": "freeze"}
TOY = SimpleNamespace(pack=lambda params, labels=None: params, mesh=None)


def toy_loss(model, weights, batch):
    """Finite while `batch` is; `root` at the value of b[0] gives b an infinite gradient and the loss a finite value."""
    fit = jnp.sum(batch["x"] * (weights["a"] * weights["frozen"])[None]) ** 2
    return (fit + jnp.sum(jnp.sqrt(jnp.abs(weights["b"][0] - batch["root"]))), jnp.float32(len(batch["x"]))), {}


def toy_batch(x=1.0, root=0.0):
    rows = np.full((4, 3), 0.1, np.float32)
    rows[2, 1] = x
    return {"x": rows, "root": np.full((4,), root, np.float32)}


@pytest.fixture(scope="module", params=["branch", "where", "empty", "accumulated"])
def train_step(request):
    """The toy step with each way of keeping an update back."""
    optim = OptimSection(lr=0.1, warmup_ratio=0.0, weight_decay=0.1)
    tx = optimizer.build(optim, LABELS, 10)
    accum = 2 if request.param == "accumulated" else 1
    made = steps.make_step(TOY, toy_loss, tx, LABELS, optimizer.schedule(optim, 10), accum, request.param == "empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "branches", lambda mesh: request.param != "where")
        yield jax.jit(made), {"params": PARAMS, "opt_state": tx.init(PARAMS), "step": jnp.int32(0)}


def assert_bits(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(
    ("batch", "leaf"),
    [
        (toy_batch(x=math.nan), "a"),
        (toy_batch(x=math.inf), "a"),
        ("root", "b"),  # the loss is finite, one gradient is not
    ],
)
def test_a_bad_step_leaves_every_bit_as_it_was(train_step, batch, leaf):
    step, start = train_step
    before, metrics = step(start, toy_batch())
    assert metrics["bad_steps"][0] == 0 and metrics["bad_leaf"][0] == -1
    if batch == "root":
        batch = toy_batch(root=float(before["params"]["b"][0]))
        assert np.isfinite(toy_loss(TOY, before["params"], batch)[0][0])
    after, metrics = step(before, batch)
    assert metrics["bad_steps"][0] == 1 and list(tree.flatten(PARAMS))[int(metrics["bad_leaf"][0])] == leaf
    assert_bits([after["params"], after["opt_state"]], [before["params"], before["opt_state"]])
    assert after["step"] == before["step"] + 1  # the batch is used up
    next_one, _ = step(after, toy_batch())
    as_if_never, _ = step({**before, "step": after["step"]}, toy_batch())
    assert_bits(next_one, as_if_never)
    assert not np.array_equal(next_one["params"]["a"], after["params"]["a"])


def test_bad_weights_are_named_and_good_ones_are_not():
    assert bad_steps.first_bad(PARAMS) == ""
    assert bad_steps.first_bad({**PARAMS, "b": PARAMS["b"].at[1].set(jnp.inf)}) == "b"


def test_only_bad_steps_in_a_row_end_the_training():
    warned = []
    watch = bad_steps.BadSteps(False, 3, lambda index: [f"row{index}"], warned.append)

    def metrics(bad):
        return {"loss": (math.nan if bad else 2.0, 1.0), "bad_steps": (float(bad), 1.0), "bad_leaf": (1.0 * bad, 1.0)}

    def take(first, pattern):
        return watch.good([(first + i, metrics(c == "x")) for i, c in enumerate(pattern)], PARAMS)

    assert take(1, ".xx.x") == [{"loss": (2.0, 1.0)}] * 2 and watch.in_a_row == 1
    assert [line.split(":")[1] for line in warned] == [f" step {step} is bad" for step in (2, 3, 5)]
    assert "rows row1" in warned[0] and "first bad gradient b" in warned[0] and "loss nan" in warned[0]
    with pytest.raises(NotFinite, match=r"3 bad steps in a row; step 7 .*row6.*the weights are whole"):
        take(6, "xx")
    with pytest.raises(NotFinite, match="^step 1 is bad"):
        bad_steps.BadSteps(True, 3, lambda index: []).good([(1, metrics(True))], PARAMS)


# -- the job ----------------------------------------------------------------------------------------------------------


def train(workdir, *settings, save_every=1):
    given = ["--config.train.steps=9", f"--config.train.save_every={save_every}", "--config.train.evaluate=False",
             "--config.train.keep=20", *settings]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", f"--config={TINY}", f"--workdir={workdir}", *given])
    return stopped.value.code


def poison(monkeypatch, wanted):
    """Batches of these steps (counted from 1) hold NaN in one row."""
    batch = pipeline.Pipeline.batch

    def poisoned(self, index):
        made = batch(self, index)
        if index + 1 in wanted:
            for array in made.values():
                if array.dtype == np.float32:
                    array[1] = math.nan
        return made

    monkeypatch.setattr(pipeline.Pipeline, "batch", poisoned)


def leaves(workdir, step):
    return {name: leaf.checksum for name, leaf in manifest.read(workdir / "checkpoints" / str(step)).leaves.items()}


def test_a_poisoned_batch_costs_its_step_and_three_in_a_row_the_training(tmp_path, monkeypatch, capsys):
    """Step 2 alone is skipped and counted; 5, 6 and 7 end the run; what is saved is whole; a good run goes on."""
    run = tmp_path / "run"
    poison(monkeypatch, {2, 5, 6, 7})
    assert train(run) == 76
    error = capsys.readouterr().err
    assert error.count("warning: step") == 3 and "warning: step 2 is bad" in error and "first bad gradient" in error
    assert "3 bad steps in a row; step 7 is bad" in error and "batch 6 with the rows" in error
    entries = {e["step"]: e for e in read_metrics(run / "metrics.jsonl")}
    assert {step: e["bad_steps"] for step, e in entries.items()} == {1: 0, 2: 1, 3: 0, 4: 0, 5: 1, 6: 1}
    assert "loss" not in entries[2] and math.isfinite(entries[3]["loss"])
    saved = states.steps_of(run)
    assert saved == [1, 2, 3, 4, 5, 6] and all(not states.verify(run, step) for step in saved)
    same = {name: total for name, total in leaves(run, 4).items() if name != "step"}
    assert same.items() <= leaves(run, 5).items() and same.items() <= leaves(run, 6).items()
    assert leaves(run, 1).items() - leaves(run, 2).items() <= {("step", leaves(run, 1)["step"])}
    assert leaves(run, 4)["params/embed"] != leaves(run, 3)["params/embed"]

    assert train(run, "--config.safety.on_bad_step=stop") == 76  # step 7 again: the first one is enough now
    assert "gramjax: step 7 is bad" in capsys.readouterr().err and states.steps_of(run)[-1] == 6
    monkeypatch.undo()
    assert train(run) == 0 and [e["step"] for e in read_metrics(run / "metrics.jsonl")] == list(range(1, 10))


def test_weights_that_are_not_finite_end_it_and_are_never_saved(tmp_path, monkeypatch, capsys):
    """A frozen matrix holds a NaN from the start: no step is good, and no checkpoint is written, not even the first."""
    first_state = setup.first_state

    def spoilt(run):
        state, loaded = first_state(run)
        attention = state["params"]["layers"]["001"]["attn"]
        attention["q"] = attention["q"].at[0].set(jnp.nan)
        return state, loaded

    monkeypatch.setattr(setup, "first_state", spoilt)
    part = "--config.train.trainable=('layers/000/.*',)"
    for folder, every in (("often", 1), ("late", 100)):
        assert train(tmp_path / folder, part, save_every=every) == 76
        error = capsys.readouterr().err
        assert "layers/001/attn/q" in error, error
        assert states.steps_of(tmp_path / folder) == []
    assert "3 bad steps in a row" in error and "the weights are bad themselves" in error
    assert json.loads((tmp_path / "late" / "config.json").read_text())["safety"]["max_bad_steps"] == 3


def test_a_row_of_one_process_is_a_bad_step_of_all(tmp_path):
    """Two real processes: only the second one's rows hold NaN; both skip the same steps and end at the same one."""
    run = tmp_path / "run"
    given = ["--config.train.steps=12", "--config.train.save_every=2", "--config.train.evaluate=False"]
    with (tmp_path / "log").open("w") as log:
        fault = ",".join(f"nan@batch{step}:1" for step in (2, 5, 6, 7))
        code, said = finished(launch(run, *given, log=log, fault=fault), log)
    assert code == 76, said
    assert said.count("warning: step 2 is bad") == 1 and "3 bad steps in a row; step 7 is bad" in said
    entries = {e["step"]: e["bad_steps"] for e in read_metrics(run / "metrics.jsonl")}
    assert entries == {1: 0, 2: 1, 3: 0, 4: 0, 5: 1, 6: 1}
    assert states.steps_of(run) == [2, 4, 6] and not states.verify(run, 6)
    same = {name: total for name, total in leaves(run, 4).items() if name != "step"}
    assert same.items() <= leaves(run, 6).items()
