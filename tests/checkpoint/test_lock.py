"""One run per folder: the second is told who holds it, the dead are not waited for."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from gramjax.checkpoint.lock import NAME, RunLock
from gramjax.core.errors import UserError

HOLDER = """
import sys, time
from gramjax.checkpoint.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_lock_is_released(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path / "new"):
            assert json.loads((tmp_path / "new" / NAME).read_text())["pid"] == os.getpid()
        assert not (tmp_path / "new" / NAME).exists()
    with pytest.raises(RuntimeError), RunLock(tmp_path):
        raise RuntimeError
    assert not (tmp_path / NAME).exists()


def test_second_run_is_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(UserError) as error, RunLock(tmp_path):
        pass
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in str(error.value)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid  # still theirs


def test_lock_of_a_killed_run_is_taken_over_with_a_warning(tmp_path, holder):
    holder.kill()
    holder.wait()
    said = []
    with RunLock(tmp_path, warn=said.append):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {holder.pid} is gone" in said[0]
    assert not (tmp_path / NAME).exists()


def test_a_pid_that_another_process_has_now_is_a_dead_holder(tmp_path):
    content = {"host": socket.gethostname(), "pid": os.getppid(), "started": "another boot:1", "time": time.time()}
    (tmp_path / NAME).write_text(json.dumps(content))
    said = []
    with RunLock(tmp_path, warn=said.append):
        assert said


def test_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "", "time": 0}))
    with pytest.raises(UserError, match=f"process 1 on elsewhere; if that run is over, remove .*{NAME}"):
        RunLock(tmp_path).__enter__()


def test_an_unreadable_lock_is_taken_over_when_it_is_old(tmp_path):
    (tmp_path / NAME).write_text("")
    os.utime(tmp_path / NAME, (1, 1))
    said = []
    with RunLock(tmp_path, warn=said.append):
        assert "unreadable lock" in said[0]


def test_only_one_of_several_takes_a_stale_lock(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "started": "", "time": 0}))
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLDER.replace("60", "3"), str(tmp_path)], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    results = [process.communicate() for process in processes]
    assert sorted(out.strip() for out, _ in results) == ["", "", "", "held"]
    assert sum("is in use by process" in error for _, error in results) == 3


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    """F17."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunLock(tmp_path / "file").__enter__()
    with pytest.raises(UserError, match="cannot be written .Not a directory"):
        RunLock(tmp_path / "file" / "below").__enter__()
