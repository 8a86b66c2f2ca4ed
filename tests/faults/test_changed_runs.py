"""F26, F27, F28: a run that cannot go on as it was: no memory, other data, a record that cannot be read."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from test_bad_steps import TINY

from gramjax import cli
from gramjax.checkpoint import state as states
from gramjax.core.config import DataSection, TrainSection
from gramjax.core.writer import read_metrics
from gramjax.data import readers
from gramjax.data.recipes import word_translation
from gramjax.jobs import train as train_job
from gramjax.training import out_of_memory


def train(workdir, *settings, steps=4):
    given = [f"--config.train.steps={steps}", "--config.train.save_every=2", "--config.train.evaluate=False", *settings]
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", f"--config={TINY}", f"--workdir={workdir}", *given])
    return stopped.value.code


def last_line(capsys):
    error = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in error), error
    return error[-1]


def test_a_device_without_memory_says_what_takes_it_and_what_helps(tmp_path, monkeypatch, capsys):
    """The error is JAX's own, of an array of 128 TiB in the second step; the exit code says: do not try again."""
    compile_step = train_job.compile_step

    def greedy(*args):
        step = compile_step(*args)

        def second_is_too_large(state, batch):
            if int(state["step"]) == 1:
                jnp.zeros(2**45, jnp.float32).block_until_ready()
            return step(state, batch)

        return second_is_too_large

    monkeypatch.setattr(train_job, "compile_step", greedy)
    assert train(tmp_path / "run", "--config.train.remat=none") == 76
    error = last_line(capsys)
    for words in (
        "a device ran out of memory", "works on 8 rows of", "config.train.batch_size=8", "parameters 0.0 MiB",
        "optimiser 0.", "params/embed", "--config.train.remat=full", "--config.train.grad_accum=2", "gramjax plan",
    ):  # fmt: skip
        assert words in error, (words, error)
    assert not (tmp_path / "run" / "tries.json").read_text().count("time")  # no crash: it is known not to help


def test_remedies_that_are_used_up_are_not_offered():
    mesh = {"data": 1, "fsdp": 4}
    left = "; ".join(out_of_memory.remedies(TrainSection(remat="full", logit_chunk=128), DataSection(), mesh, rows=1))
    assert not any(word in left for word in ("remat", "grad_accum", "logit_chunk", "fsdp")) and "max_length" in left
    all_of_them = out_of_memory.remedies(TrainSection(remat="none"), DataSection(), {"data": 2, "fsdp": 2}, rows=9)
    assert len(all_of_them) == 7 and "grad_accum=3 (same batch, 3 rows" in all_of_them[1] and "fsdp=4" in all_of_them[3]


def test_other_errors_of_jax_are_not_called_memory(tmp_path, monkeypatch):
    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: no luck")

    monkeypatch.setattr(train_job, "compile_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no luck"):
        cli.run(["train", f"--config={TINY}", f"--workdir={tmp_path}", "--config.train.evaluate=False"])


def test_other_data_are_refused_by_name_until_they_are_accepted(tmp_path, capsys):
    """Another file content, another length, another batch size; then all of them, with reset_data."""
    rows = [json.dumps(row) + "\n" for row in word_translation.rows("train", 100)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(rows))
    run, data = tmp_path / "run", f"--config.data.train=('{file}',)"
    assert train(run, data, steps=2) == 0
    capsys.readouterr()

    file.write_text("".join([*rows[50:], *rows[:50]]))
    for changes, words in (
        ([data], "rows.jsonl"),  # known when the rows are read, the others before
        ([data, "--config.data.max_length=100"], "config.data.max_length"),
        ([data, "--config.train.batch_size=4"], "config.train.batch_size"),
    ):
        assert train(run, *changes) == 2
        error = last_line(capsys)
        assert words in error and "--config.safety.reset_data=True" in error, error
    assert train(run, data, "--config.optim.lr=0.5", "--config.safety.reset_data=True") == 2  # no data setting
    assert "config.optim.lr" in last_line(capsys)
    assert states.steps_of(run) == [2]

    assert train(run, data, "--config.train.batch_size=4", "--config.safety.reset_data=True") == 0
    assert "was written with data." in capsys.readouterr().err
    entries = read_metrics(run / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4] and all(math.isfinite(e["loss"]) for e in entries)
    assert json.loads((run / "config.json").read_text())["train"]["batch_size"] == 4  # from here on it is the run's


def test_a_record_that_cannot_be_read_is_named_or_skipped_up_to_a_limit(tmp_path, capsys):
    """Line 42 is broken: an error, or one row less and the same batches at every start; too many are an error again."""
    lines = [json.dumps(row) + "\n" for row in word_translation.rows("train", 100)]
    file = tmp_path / "rows.jsonl"

    def dry(*broken, policy="skip"):
        file.write_text("".join("{broken\n" if number in broken else line for number, line in enumerate(lines, 1)))
        code = train(tmp_path / "run", f"--config.data.train=('{file}',)", f"--config.data.on_bad_row={policy}",
                     "--dry_run")  # fmt: skip
        found = capsys.readouterr()
        return code, found.out + found.err

    code, said = dry(42, policy="raise")
    assert code == 3 and "rows.jsonl row 42" in said
    code, said = dry(42)
    assert code == 0 and "rows 100, examples 99" in said and "dropped 1: invalid JSON (first: " in said
    code, said = dry(42, 43, 44, 45, 46, 47)
    assert code == 3 and "6 of 100 rows cannot be read" in said and "max_bad_share=0.05" in said and "row 42" in said

    section = DataSection(train=(str(file),), on_bad_row="skip", max_bad_share=0.1)
    first, again = (readers.read_all(section.train, section, "preference") for _ in range(2))
    assert [row["id"] for row in first.rows] == [row["id"] for row in again.rows] and first.refused == 6
    assert {f"rows-{number}" for number in range(42, 48)}.isdisjoint(row["id"] for row in first.rows)
