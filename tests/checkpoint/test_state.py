"""Checkpoints of a run: bits, faults of the disk, changed models, retention, parameters alone."""

import gc
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax.checkpoint import leaves
from gramjax.checkpoint import state as states
from gramjax.checkpoint.checksum import checksums
from gramjax.core.errors import DataError, UserError

# Reads that TensorStore gives up leave coroutines behind; Python says so when it collects them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
META = {"model": {"num_layers": 2, "heads": ["tokens"]}, "data": {"seed": 0, "files": {"a.jsonl": "77aa"}}}


def make_state(step: int) -> dict:
    rng = np.random.default_rng(step)
    matrix = jnp.asarray(rng.normal(size=(64, 48)), jnp.float32)  # too large to stand in the index of the store
    half = jnp.asarray(rng.normal(size=(8, 5)), jnp.bfloat16)
    params = {"layers": {"000": {"q": matrix, "norm": jnp.ones(5)}}, "embed": half}
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), TX.init(params))
    return {"params": params, "opt_state": opt_state, "step": jnp.asarray(step, jnp.int32)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with the steps 1, 2 and 3: copy it before changing it."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    with states.Checkpoints(workdir) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"next_index": 10 * step}, META)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    yield tmp_path / "run"
    gc.collect()  # what the reads left behind goes here, not in somebody else's test


@pytest.fixture
def log():
    return []


def test_state_comes_back_bit_for_bit(run):
    with states.Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        step, state, data, meta = checkpoints.restore(None, abstract(make_state(0)), expect=META)
        assert (step, data, meta, checkpoints.notes) == (3, {"next_index": 30}, META, [])
        assert_same(state, make_state(3))
        assert_same(checkpoints.restore(1, abstract(make_state(0))).state, make_state(1))
        assert all(checkpoints.verify(step) == [] for step in (1, 2, 3))


def test_values_are_those_at_the_call_though_the_buffers_are_donated(tmp_path):
    state = make_state(1)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with states.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, META)
        state = step(state)
        checkpoints.wait()
        assert_same(checkpoints.restore(1, abstract(make_state(0))).state, make_state(1))


FLIPS = 25
"""Of each file."""


def test_a_flipped_byte_never_restores_a_wrong_value(run):
    folder = run / "checkpoints" / "3"
    expected = make_state(3)
    refused = {}
    wanted = abstract(expected)
    with states.Checkpoints(run) as checkpoints:
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
            whole = file.read_bytes()
            rng = np.random.default_rng(len(whole))
            for place in rng.choice(len(whole), size=min(FLIPS, len(whole)), replace=False):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << int(rng.integers(8))
                file.write_bytes(damaged)
                try:
                    restored = checkpoints.restore(3, wanted)
                except DataError:
                    refused[file] = refused.get(file, 0) + 1
                    continue
                assert_same(restored.state, expected)  # the byte did not matter: a date, or a file that is not used
                assert restored.data_state == {"next_index": 30} and restored.meta == META
            file.write_bytes(whole)
    data = [file for file in refused if file.parent.name == "d"]
    assert data and max(refused[file] for file in data) == FLIPS
    assert refused[folder / "manifest" / "metadata"] == FLIPS


def test_restore_falls_back_to_the_step_before_and_says_so(run, log):
    damage_values(run, 3)
    with states.Checkpoints(run, log=log.append) as checkpoints:
        with pytest.raises(DataError, match="params/embed|opt_state|layers"):
            checkpoints.restore(None, abstract(make_state(0)), strict=True)
        with pytest.raises(DataError):
            checkpoints.restore(3, abstract(make_state(0)))  # exactly this step was asked for
        step, state, data, _ = checkpoints.restore(None, abstract(make_state(0)))
        assert (step, data) == (2, {"next_index": 20})
        assert_same(state, make_state(2))
        assert len(log) == 1 and "checkpoint 3 is refused" in log[0] and "using step 2" in log[0]
        assert log == checkpoints.notes
        assert checkpoints.steps() == [1, 2] and (run / "checkpoints-refused" / "3").is_dir()
        checkpoints.save(3, make_state(33), {}, META)  # the number is free again
        checkpoints.wait()
        assert_same(checkpoints.restore(None, abstract(make_state(0))).state, make_state(33))


def damage_values(run, step):
    """Change one stored value so that nothing but our checksum can see it: the manifest's own record of it."""
    path = run / "checkpoints" / str(step) / "manifest" / "metadata"
    value = json.loads(path.read_text())
    shape, dtype, total = value["leaves"]["params/embed"]
    value["leaves"]["params/embed"] = [shape, dtype, f"{int(total, 16) ^ 1:016x}"]
    del value["checksum"]
    from gramjax.checkpoint import manifest

    path.write_text(json.dumps({"checksum": manifest._checksum(value), **value}))


def test_a_wrong_value_names_its_leaf(run):
    damage_values(run, 3)
    assert len(states.verify(run, 3)) == 1 and "params/embed is damaged" in states.verify(run, 3)[0]


def empty_folder(step):
    shutil.rmtree(step)
    step.mkdir()
    (step / "commit_success.txt").write_text("")


def largest(step):
    return max((p for p in step.rglob("*") if p.is_file() and p.parent.name == "d"), key=lambda p: p.stat().st_size)


MUTATIONS = {
    "empty folder": empty_folder,
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "no manifest": lambda step: shutil.rmtree(step / "manifest"),
    "garbage manifest": lambda step: (step / "manifest" / "metadata").write_bytes(b"\xff\x00garbage"),
    "truncated manifest": lambda step: truncate(step / "manifest" / "metadata"),
    "garbage metadata": lambda step: (step / "state" / "_METADATA").write_text("{]"),
    "truncated data": lambda step: truncate(largest(step)),
    "missing data": lambda step: largest(step).unlink(),
    "empty index": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""),
    "two keys in the manifest": lambda step: double_key(step / "manifest" / "metadata"),
}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def double_key(path):
    path.write_text(path.read_text()[:-1] + ', "format": 1}')


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_broken_step_is_refused_without_a_traceback(run, log, what):
    MUTATIONS[what](run / "checkpoints" / "3")
    assert len(states.verify(run, 3)) == 1
    restored = states.restore_params(run, abstract(make_state(0)["params"]), log=log.append)
    assert_same(restored, make_state(2)["params"])
    assert len(log) == 1 and "using step 2" in log[0]
    with states.Checkpoints(run, log=log.append) as checkpoints:
        assert checkpoints.restore(None, abstract(make_state(0))).step == 2


def test_steps_without_a_commit_are_not_offered(run):
    (run / "checkpoints" / "3" / "commit_success.txt").unlink()
    (run / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "7").mkdir()
    assert states.steps_of(run) == [1, 2]
    with states.Checkpoints(run) as checkpoints:
        assert checkpoints.restore(None, abstract(make_state(0))).step == 2
        checkpoints.save(3, make_state(3), {}, META)  # over the leftover of a killed save
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3] and checkpoints.verify(3) == []
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_nothing_that_verifies_is_an_error_that_lists_every_step(run):
    for step in (1, 2, 3):
        truncate(run / "checkpoints" / str(step) / "manifest" / "metadata")
    with states.Checkpoints(run, log=lambda text: None) as checkpoints:
        with pytest.raises(DataError) as error:
            checkpoints.restore(None, abstract(make_state(0)))
    assert all(f"checkpoints/{step}/" in str(error.value) for step in (1, 2, 3))


def test_steps_that_do_not_exist(run, tmp_path):
    with states.Checkpoints(run) as checkpoints:
        for act in (checkpoints.verify, lambda s: checkpoints.restore(s, abstract(make_state(0)))):
            with pytest.raises(UserError, match=r"no checkpoint of step 5 \(there are: 1, 2, 3\)"):
                act(5)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        states.restore_params(tmp_path, {})


def test_a_step_that_exists_is_an_error(run):
    with states.Checkpoints(run) as checkpoints:
        for step in (2, 3):
            with pytest.raises(UserError, match=f"checkpoint {step} was not written.*1, 2, 3"):
                checkpoints.save(step, make_state(step), {}, META)


def changed(path, change):
    state = abstract(make_state(0))
    params = state["params"]
    change(params)
    return {**state, "params": params}


@pytest.mark.parametrize(
    "change, texts",
    [
        (lambda p: p.update(extra=jax.ShapeDtypeStruct((3,), jnp.float32)), ["not in it: params/extra [3] float32"]),
        (lambda p: p.pop("embed"), ["in it but not wanted: params/embed [8, 5] bfloat16"]),
        (
            lambda p: p.update(embed=jax.ShapeDtypeStruct((9, 5), jnp.bfloat16)),
            ["params/embed is [8, 5] bfloat16, expected [9, 5] bfloat16"],
        ),
        (
            lambda p: p.update(embed=jax.ShapeDtypeStruct((8, 5), jnp.float32)),
            ["params/embed is [8, 5] bfloat16, expected [8, 5] float32"],
        ),
        (
            lambda p: p.update(layers={"000": p["layers"]["000"], "001": p["layers"]["000"]}),
            ["params/layers/001/q [64, 48] float32", "params/layers/001/norm [5] float32"],
        ),
    ],
)
def test_another_model_is_listed_leaf_by_leaf(run, change, texts):
    with states.Checkpoints(run) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(None, changed(run, change))
        assert checkpoints.steps() == [1, 2, 3]  # nothing is wrong with the files
    for text in [*texts, "checkpoint 3", "config.overwrite=True"]:
        assert text in str(error.value)


@pytest.mark.parametrize(
    "now, text",
    [
        ({"model": {"num_layers": 4, "heads": ("tokens",)}}, "checkpoint 3 was written with model.num_layers=2, config "
         "has 4. Use --config.overwrite=True or the saved config.json"),
        ({"data": {"seed": 1, "files": {"a.jsonl": "77aa"}}}, "data.seed=0, config has 1: the data order cannot be"),
        ({"data": {"seed": 0, "files": {"a.jsonl": "8b"}}}, 'data.files.a.jsonl="77aa", config has "8b"'),
    ],
)  # fmt: skip
def test_another_config_is_named(run, now, text):
    with states.Checkpoints(run, log=lambda line: None) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(None, abstract(make_state(0)), expect=now)
        assert text in str(error.value)
        same = {"model": {"num_layers": 2, "heads": ("tokens",)}}  # a tuple is a list in JSON
        assert checkpoints.restore(None, abstract(make_state(0)), expect=same).step == 3
        if "data" in now:
            assert checkpoints.restore(None, abstract(make_state(0)), expect=now, reset_data=True).step == 3
            assert "data." in checkpoints.notes[-1]


def test_only_parameters_in_another_dtype(run):
    wanted = {"embed": jax.ShapeDtypeStruct((8, 5), jnp.float32)}
    restored = states.restore_params(run, wanted)
    expected = make_state(3)["params"]["embed"].astype(jnp.float32)
    assert_same(restored, {"embed": expected})
    with pytest.raises(UserError, match=r"not in it: params/score \[8, 1\] float32"):
        states.restore_params(run, {"score": jax.ShapeDtypeStruct((8, 1), jnp.float32)})


def test_leaves_are_restored_in_groups(run, monkeypatch):
    monkeypatch.setattr(leaves, "GROUP_BYTES", 100)
    restored = states.restore_params(run, abstract(make_state(0)["params"]))
    assert_same(restored, make_state(3)["params"])


def test_retention_keeps_the_newest(tmp_path):
    with states.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, make_state(step), {}, META)
            assert len(checkpoints.steps()) <= 3
    assert states.steps_of(tmp_path) == [4, 5]
    with pytest.raises(UserError, match="keep at least 1"):
        states.Checkpoints(tmp_path, keep=0)


def test_retention_never_deletes_the_last_step_that_verifies(run, log):
    with states.Checkpoints(run, keep=1, log=log.append) as checkpoints:
        for step in (2, 3):
            truncate(run / "checkpoints" / str(step) / "manifest" / "metadata")
        checkpoints.save(4, make_state(4), {}, META)
        assert checkpoints.steps()[:3] == [1, 2, 3]  # 3 is the newest and damaged: 1 must stay
        assert "none of the checkpoints [3] verifies" in log[0]
    assert states.steps_of(run) == [4]


def test_no_save_waits_for_a_verification(tmp_path, monkeypatch):
    """What retention asks for is read in the background, once for every `keep` saves, as soon as it is committed."""
    read, verify = [], states.verify

    def noted(workdir, step, *rest):
        read.append((step, threading.current_thread().name))
        return verify(workdir, step, *rest)

    monkeypatch.setattr(states, "verify", noted)
    with states.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, make_state(step), {}, META)
            checkpoints.wait()
            if checkpoints._reader is not None:
                checkpoints._reader.join()
    assert read == [(step, "verification") for step in (3, 5, 7)] and states.steps_of(tmp_path) == [6, 7]


def test_who_has_to_leave_reads_nothing_to_its_end(tmp_path, monkeypatch):
    """A request to stop: the save is finished, a verification is given up, and nothing is deleted for it."""
    asked, monkey = threading.Event(), states.verify

    def slow(workdir, step, given_up):
        asked.set()
        while not given_up():
            threading.Event().wait(0.01)
        return monkey(workdir, step, given_up)

    monkeypatch.setattr(states, "verify", slow)
    with pytest.raises(KeyboardInterrupt), states.Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {}, META)
        asked.wait()
        raise KeyboardInterrupt
    assert states.steps_of(tmp_path) == [1, 2] and not checkpoints._verified
    monkeypatch.undo()
    with states.Checkpoints(tmp_path, keep=1):
        pass
    assert states.steps_of(tmp_path) == [2]


def test_read_run(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        states.read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 1}')
    assert states.read_run(tmp_path) == {"seed": 1}
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(DataError, match="not valid JSON"):
        states.read_run(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_checksum_sees_every_change(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (6, 7)) if dtype == "bool" else rng.integers(0, 100, (6, 7))
    x = jnp.asarray(values, dtype)
    other = {"x": x, "transposed": x.T, "row": x.reshape(-1)}
    for i in (0, 13, 41):
        flat = np.array(x).reshape(-1)
        flat.view(np.uint8)[i * flat.itemsize] ^= 1
        other[f"bit {i}"] = jnp.asarray(flat.reshape(6, 7))
    other["swapped"] = x.at[0].set(x[1]).at[1].set(x[0])
    other["zeros"], other["more zeros"] = jnp.zeros((3, 4), dtype), jnp.zeros((3, 5), dtype)
    sums = checksums(other)
    assert sums["row"] == sums["x"] == checksums({"again": x + jnp.zeros_like(x)})["again"]
    assert len({sums[name] for name in other if name != "row"}) == len(other) - 1
