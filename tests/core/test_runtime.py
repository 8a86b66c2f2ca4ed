"""Facts about where a job runs, and when several processes are started."""

import json
import subprocess
import sys

import pytest

from gramjax.core import runtime
from gramjax.core.errors import UserError
from gramjax.jobs import doctor


@pytest.mark.smoke
def test_facts_are_json_and_name_the_installation():
    facts = json.loads(json.dumps(runtime.facts()))
    assert facts["versions"]["jax"] and facts["devices"]["count"] >= 1 and facts["devices"]["backend"] == "cpu"
    assert facts["variables"]["JAX_PLATFORMS"] == "cpu"
    assert set(facts["extras"]) == {"torch", "plot", "wandb", "serve", "math", "mt", "lmeval", "plan"}


def test_facts_without_devices_import_no_jax():
    code = "import sys; from gramjax.core import runtime; runtime.facts(False); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_extras_are_those_of_the_package():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {*runtime.EXTRAS, "cuda", "tpu", "dev", "all"}
    inside = extras["all"][0].removeprefix("gramjax[").removesuffix("]").split(",")
    assert set(inside) == set(runtime.EXTRAS) - {"torch", "plan"}  # libtpu is nothing for a machine with GPUs


@pytest.mark.parametrize(
    "text,expected", [("0.12.8", (0, 12, 8)), ("0.12.0.1", (0, 12, 0, 1)), ("5.0rc1", (5, 0)), ("1", (1,)), ("", ())]
)
def test_versions_as_numbers(text, expected):
    assert runtime.numbers(text) == expected


def test_known_bad_pairs():
    assert runtime.bad_pairs({"flax": "0.12.8", "jax": "0.10.2", "safetensors": "0.8.0"}) == []
    assert runtime.bad_pairs({"flax": "0.12.12", "jax": "0.12.0.1"}) == []
    assert runtime.bad_pairs({"flax": "", "jax": "0.12.0.1"}) == []
    (found,) = runtime.bad_pairs({"flax": "0.12.8", "jax": "0.11.1"})
    assert found == 'flax 0.12.8 does not work with jax 0.11.1: pip install -U "flax>=0.12.9"'


def test_a_missing_extra_is_named():
    with pytest.raises(UserError, match=r'^plot needs absent: pip install "gramjax\[plot\]"$'):
        runtime.need("absent.part", "plot", "plot")
    assert runtime.need("json", "plot", "plot") is json


def test_place_of_compiled_programs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.cache_dir({}) == tmp_path / ".cache" / "gramjax" / "xla"
    assert runtime.cache_dir({"GRAMJAX_CACHE": "~/x"}) == tmp_path / "x"
    assert str(runtime.cache_dir({"GRAMJAX_CACHE": "a", "JAX_COMPILATION_CACHE_DIR": "b"})) == "b"


def test_unwritable_folders(tmp_path):
    (tmp_path / "file").write_text("")
    assert runtime.unwritable(tmp_path / "new" / "folder") == "" and list((tmp_path / "new" / "folder").iterdir()) == []
    assert "cannot be written" in runtime.unwritable(tmp_path / "file" / "below")


def test_start_without_a_cache_folder_is_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "below"))
    runtime.start()
    assert "compiled programs are not kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked,environment,expected",
    [
        ("", {}, None),
        ("", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ("", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"cluster_detection_method": "slurm"}),
        ("", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        ("auto", {}, {}),
        ("slurm", {"SLURM_NTASKS": "1"}, {"cluster_detection_method": "slurm"}),
        ("host:1234,1,2", {}, {"coordinator_address": "host:1234", "process_id": 1, "num_processes": 2}),
        ("", {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
         {"coordinator_address": "host:1", "process_id": 0, "num_processes": 2}),
        ("", {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    ],
)
def test_when_processes_are_joined(asked, environment, expected):
    assert runtime.distributed_plan(asked, environment) == expected


@pytest.mark.parametrize(
    "asked,environment,expected",
    [
        ("slurm", {}, "SLURM_NTASKS is not set"),
        ("host,1,2", {}, "expected auto, slurm"),
        ("host:1,2,2", {}, "process 2 of 2"),
        ("", {"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES missing"),
    ],
)
def test_half_given_launches_are_refused(asked, environment, expected):
    with pytest.raises(UserError, match=expected):
        runtime.distributed_plan(asked, environment)


def test_half_set_slurm_is_said(capsys):
    assert runtime.distributed_plan("", {"SLURM_JOB_ID": "7"}) is None
    assert "SLURM_JOB_ID is set but SLURM_NTASKS is not" in capsys.readouterr().err


def test_commit_of_a_checkout(tmp_path):
    assert runtime.git_commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    assert runtime.git_commit(tmp_path) == ""


def test_doctor_is_ready_here(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready" and any(line.startswith("devices    1 x") or "x cpu" in line for line in lines)


@pytest.mark.parametrize(
    "name,value,expected",
    [
        ("XLA_FLAGS", "--xla_no_such_flag=1", "xla_no_such_flag"),
        ("JAX_PLATFORMS", "nonsense", "JAX_PLATFORMS is 'nonsense'"),
    ],
)
def test_doctor_survives_what_kills_jax(capsys, tmp_path, monkeypatch, name, value, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert doctor.main(["--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert len(found["problems"]) == 1 and expected in found["problems"][0] and found["variables"][name] == value


def test_doctor_says_how_processes_join():
    """The variables of a launcher, whole, half and not there: what a job would do with them."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", runtime.STEP_TASKS: "4"}
    by_hand = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert doctor.joining({}) == {"count": 1, "found": "one; several are started by gramjax launch"}
    assert doctor.joining(slurm) == {"count": 4, "found": "4 tasks of SLURM, this is number 3"}
    found = doctor.joining(by_hand)
    assert found["count"] == 2 and "meet at host:1, this is number 1" in found["found"]
    assert "JAX_NUM_PROCESSES missing" in doctor.joining({**by_hand, "JAX_NUM_PROCESSES": ""})["error"]


def test_doctor_counts_problems(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(runtime, "version", lambda name: {"jax": "0.11.1", "flax": "0.12.8"}.get(name, "1.0"))
    assert doctor.main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{sum(line.startswith('problem ') for line in lines)} problems"
    assert any("set GRAMJAX_CACHE" in line for line in lines)
    assert any('pip install -U "flax>=0.12.9"' in line for line in lines)
