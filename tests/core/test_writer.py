"""What a run writes: every step once whatever happened before, and nothing that ends a run because a disk is full."""

import io
import json
import sys
import types

import pytest

from gramjax.core import writer
from gramjax.core.config import LogSection
from gramjax.core.errors import UserError

QUIET = LogSection(tensorboard=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(folder, start_step=0, stream=None, section=QUIET, process_index=0, clock=lambda: 100.0):
    return writer.Writer(folder, section, 10, start_step, stream or io.StringIO(), process_index, clock)


def steps(folder):
    return [entry["step"] for entry in writer.read_metrics(folder / "metrics.jsonl")]


@pytest.mark.smoke
def test_a_resumed_run_holds_every_step_once(tmp_path):
    """Killed after logging step 6 (half of it), resumed from the checkpoint of step 4."""
    with make(tmp_path) as out:
        for step in range(1, 6):
            out.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with make(tmp_path, start_step=4) as out:
        for step in range(5, 9):
            out.write(step, {"loss": 10.0})
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    losses = [entry["loss"] for entry in writer.read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[:4] == [1.0, 0.5, 1 / 3, 0.25] and losses[4:] == [10.0] * 4


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    with make(tmp_path) as out:
        out.write(1, {"loss": 1.0})
    with make(tmp_path) as out:
        out.write(3, {"loss": 1.0})
    assert steps(tmp_path) == [3]


def test_rewind_counts_and_leaves_a_good_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert writer.rewind(path, 3) == 0 and not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    before = path.stat().st_ino
    assert writer.rewind(path, 3) == 0 and path.stat().st_ino == before
    assert writer.rewind(path, 1) == 2 and steps(tmp_path) == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl line 2"):
        writer.read_metrics(path)
    path.write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(UserError, match="line 2: no entry with a step"):
        writer.read_metrics(path)


def test_nan_is_null(tmp_path):
    with make(tmp_path) as out:
        out.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "accuracy": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(name)

    entry = json.loads(text, parse_constant=refuse)
    assert entry == {"step": 1, "time": 100.0, "loss": None, "grad_norm": None, "accuracy": 0.5}


def test_other_processes_write_nothing(tmp_path):
    stream = io.StringIO()
    with make(tmp_path, stream=stream, process_index=1) as out:
        out.write(1, {"loss": 1.0})
        out.say("hello")
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


def test_lines_when_piped(tmp_path):
    times = iter([0.0, 10.0, 10.0, 20.0, 20.0])
    stream = io.StringIO()
    with make(tmp_path, stream=stream, clock=lambda: next(times)) as out:
        out.write(1, {"loss": 0.69314, "accuracy": 0.5, writer.SPEED_PER_DEVICE: 12345.6})
        out.write(2, {"loss": 0.5, "eval/preference/accuracy": 0.875})
    first, second = stream.getvalue().splitlines()
    assert first == "step 1/10   loss 0.6931   accuracy 0.5   12,346 tokens/s   1m30s left"
    assert second == "step 2/10   loss 0.5   preference/accuracy 0.875   1m20s left"


def test_one_line_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    with make(tmp_path, stream=stream) as out:
        out.write(1, {"loss": 0.5})
        out.write(2, {"loss": 0.25, "accuracy": 0.5, "margin": 123.0})
        out.say("saved")
        out.write(3, {"loss": 0.125})
    text = stream.getvalue()
    shown = [part.split("\n")[0] for part in text.split("\r\x1b[2K")[1:]]
    assert [part.split("   ")[0] for part in shown] == ["step 1/10", "step 2/10", "saved", "step 3/10"]
    assert all(len(part) < 30 for part in shown) and text.count("\n") == 2 and text.endswith("\n")


def test_time_left_counts_from_the_resumed_step(tmp_path):
    times = iter([0.0, 10.0, 10.0])
    stream = io.StringIO()
    with make(tmp_path, start_step=4, stream=stream, clock=lambda: next(times)) as out:
        out.write(5, {"loss": 1.0})
    assert stream.getvalue().rstrip().endswith("   50s left")


@pytest.mark.parametrize("seconds,text", [(0.4, "0s"), (59, "59s"), (60, "1m00s"), (187, "3m07s"), (7500, "2h05m")])
def test_durations(seconds, text):
    assert writer.duration(seconds) == text


def test_a_full_disk_is_one_warning(tmp_path):
    stream = io.StringIO()
    with make(tmp_path, stream=stream) as out:
        out.write(1, {"loss": 1.0})
        out.file.close()
        out.file = open("/dev/full", "ab", buffering=0)
        out.write(2, {"loss": 1.0})
        out.write(3, {"loss": 1.0})
    assert stream.getvalue().count("warning: metrics.jsonl is not written: No space left on device") == 1
    assert "step 3/10" in stream.getvalue() and steps(tmp_path) == [1]


def test_a_line_that_only_fits_in_part_is_taken_back(tmp_path):
    class Short(io.FileIO):
        def write(self, data):
            return super().write(data[:5])

    with make(tmp_path) as out:
        out.write(1, {"loss": 1.0})
        good = out.file
        out.file = Short(out.path, "ab")
        out.write(2, {"loss": 1.0})
        out.file.close()
        out.file = good
        out.write(3, {"loss": 1.0})
    assert steps(tmp_path) == [1, 3]


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    stream = io.StringIO()
    with make(tmp_path / "file", stream=stream) as out:
        out.write(1, {"loss": 1.0})
    assert "warning: metrics.jsonl is not written" in stream.getvalue() and "step 1/10" in stream.getvalue()


def test_tensorboard_has_the_numbers(tmp_path):
    with make(tmp_path, section=LogSection(tensorboard=True)) as out:
        out.write(1, {"loss": 0.5})
    files = list((tmp_path / "tb").iterdir())
    assert len(files) == 1 and b"loss" in files[0].read_bytes()


def test_wandb_is_optional_and_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'config.log.wandb needs wandb: pip install "gramjax\[wandb\]"'):
        make(tmp_path, section=LogSection(tensorboard=False, wandb="project"))


def test_wandb_gets_the_optimiser_step_and_a_stable_id(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace()
    run.log = lambda values, step: calls.append((step, values))
    run.finish = lambda: calls.append("end")
    fake = types.ModuleType("wandb")
    fake.init = lambda **given: calls.append(given) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with make(tmp_path / "a run", section=LogSection(tensorboard=False, wandb="project")) as out:
        out.write(7, {"loss": 0.5})
    start, logged, end = calls
    assert start["project"] == "project" and start["resume"] == "allow" and " " not in start["id"]
    assert logged == (7, {"loss": 0.5}) and end == "end"
