"""`launch/gpu_host.sh` with a gramjax that is played here: who is started with what, and whose exit code counts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "launch" / "gpu_host.sh"


def command(*words):
    return ["bash", str(SCRIPT), *words]


def run(stands, *words, **variables):
    environment = {**os.environ, "PATH": stands.path(), "GRAMJAX_GRACE": "0.2", **variables}
    return subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=120)


def numbers(calls, name):
    return sorted(call["env"].get(name, "") for call in calls)


def test_one_process_sees_all(stands):
    stands.add("gramjax", "exit 7")
    assert run(stands, "train", "--config=a b").returncode == 7
    (call,) = stands.calls("gramjax")
    assert call["argv"] == ["train", "--config=a b"] and "JAX_PROCESS_ID" not in call["env"]
    done = run(stands, "--port=1234", "train")
    assert done.returncode == 2 and "--port=1234 is where several processes meet" in done.stderr
    assert len(stands.calls("gramjax")) == 1


def test_several_meet_at_one_place(stands):
    stands.add("gramjax")
    assert run(stands, "--processes=3", "--port=1234", "train").returncode == 0
    assert run(stands, "--processes=2", "train").returncode == 0
    given, free = stands.calls("gramjax")[:3], stands.calls("gramjax")[3:]
    assert numbers(given, "JAX_PROCESS_ID") == ["0", "1", "2"] and numbers(given, "JAX_NUM_PROCESSES") == ["3"] * 3
    assert set(numbers(given, "JAX_COORDINATOR_ADDRESS")) == {"127.0.0.1:1234"}
    (address,) = set(numbers(free, "JAX_COORDINATOR_ADDRESS"))
    assert 1024 < int(address.removeprefix("127.0.0.1:")) < 65536


def test_one_gpu_each(stands):
    stands.add("nvidia-smi", "printf 'GPU 0\\nGPU 1\\n'")
    stands.add("gramjax")
    assert run(stands, "--processes=2", "train", JAX_PLATFORMS="").returncode == 0
    calls = stands.calls("gramjax")
    assert [numbers(calls, "CUDA_VISIBLE_DEVICES"), numbers(calls, "JAX_PROCESS_ID")] == [["0", "1"]] * 2
    assert all(call["env"]["CUDA_VISIBLE_DEVICES"] == call["env"]["JAX_PROCESS_ID"] for call in calls)
    done = run(stands, "--processes=3", "train", JAX_PLATFORMS="")
    assert done.returncode == 2 and "this host has 2 GPUs" in done.stderr and len(stands.calls("gramjax")) == 2


def test_the_first_that_fails_is_named_and_ends_the_others(stands):
    stands.add("gramjax", 'if [[ $JAX_PROCESS_ID == 1 ]]; then sleep 0.1; exit 3; fi; exec sleep 60')
    began = time.monotonic()
    done = run(stands, "--processes=3", "train")
    assert done.returncode == 3 and "process 1 ended with 3" in done.stderr
    assert time.monotonic() - began < 50, "the others were waited for"


def test_a_saved_state_is_waited_for(stands):
    """75 from one: the others are saving too, and are not killed."""
    stands.add("gramjax", 'if [[ $JAX_PROCESS_ID == 1 ]]; then exit 75; fi; sleep 0.6; echo saved; exit 75')
    done = run(stands, "--processes=2", "train")
    assert done.returncode == 75 and done.stdout == "saved\n"


@pytest.mark.parametrize("deaf", [False, True])
def test_one_that_was_never_told_of_a_request_to_stop_is_asked_then_ended(stands, deaf):
    """A process that was stopped before it had joined the others would be waited for by them for minutes."""
    trap = "trap '' TERM" if deaf else "trap 'exit 75' TERM"
    stands.add("gramjax", f"if [[ $JAX_PROCESS_ID == 1 ]]; then exit 75; fi; {trap}\n"
                          "for i in {1..600}; do sleep 0.1; done")  # fmt: skip
    done = run(stands, "--processes=3", "train", GRAMJAX_LINGER="1")
    assert done.returncode == 75, done.stderr
    assert "2 of 3 processes did not stop with it" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_request_to_stop_reaches_each_process_once(stands, tmp_path, processes):
    marks = tmp_path / "marks"
    stands.add("gramjax", f"trap 'echo term >> {marks}; sleep 0.2; exit 75' TERM; echo started >> {marks}\n"
                          "while true; do sleep 0.02; done")  # fmt: skip
    environment = {**os.environ, "PATH": stands.path()}
    job = subprocess.Popen(command(f"--processes={processes}", "train"), env=environment, start_new_session=True)
    try:
        while not (marks.exists() and marks.read_text().count("started") == processes):
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 75
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert sorted(marks.read_text().split()) == ["started"] * processes + ["term"] * processes


@pytest.mark.parametrize("words,said", [([], "give a verb"), (["--processes=0", "train"], "not a positive number")])
def test_what_cannot_start(stands, words, said):
    done = run(stands, *words)
    assert done.returncode == 2 and said in done.stderr
