"""The annotate job: files of rows that go on after a kill, refusals in one line, nothing lost without a reason."""

import json
import os
import shutil
import signal

import pytest

from gramjax import cli
from gramjax.core import row_log
from gramjax.data.recipes import permutation_world as world
from gramjax.generation import proving

SHORT = ("--config.annotator.proving.sampling.max_tokens=32", "--config.annotator.proving.sampling.n=2",
         f"--config.annotator.proving.instruction={world.PROVER_PROMPT}", "--config.data.max_length=48",
         "--config.generation.steps_per_call=8")  # fmt: skip


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(list(argv))
    return stopped.value.code


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Twelve labelled pairs, the fourth of them too long for the prover."""
    made = [{k: v for k, v in row.items() if k != "rationale"} for row in world.rows("train", 12)]
    made[3] |= {"responses": ["Out: " + "a " * 40, "Out: b"]}
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def annotate(prover_run, pairs):
    def job(workdir, *settings, path=pairs, config="annotate:prove_preferences"):
        model = f"--config.model.path={prover_run}"
        return run("annotate", f"--config={config}", model, f"--config.data.path={path}", f"--workdir={workdir}",
                   *SHORT, *settings)  # fmt: skip

    return job


@pytest.fixture(scope="module")
def done(annotate, tmp_path_factory):
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("proved") / "run"
    assert annotate(folder) == 0
    return folder


def test_every_row_comes_out_or_has_a_reason(done, pairs):
    written, refused = rows(done / "rows.jsonl"), rows(done / "refused.jsonl")
    given = rows(pairs)
    names = [row["id"] for row in written]
    assert names == [row["id"] for row in given if row["id"] in names], "in the order of the input"
    assert sorted(names + [row["id"] for row in refused]) == sorted(row["id"] for row in given)
    assert len(names) >= 6 and {"id": "train-3", "reason": "longer than max_length 32"} in refused
    summary = json.loads((done / "summary.json").read_text())
    assert (summary["rows"], summary["written"], summary["unreadable"]) == (12, len(names), {})
    assert sum(found["count"] for found in summary["refused"].values()) == len(refused)
    assert summary["refused"]["longer than max_length 32"] == {"count": 1, "first": "train-3"}
    assert all(row["rationale"] and row["proofs"] for row in written)
    for name in ("config.json", "overrides.json", "env.json", "DONE"):
        assert (done / name).exists(), name
    assert not (done / "run.lock").exists()


@pytest.mark.parametrize("lines", [0, 4])
def test_after_a_kill_the_files_are_those_of_an_uninterrupted_run(
    done, annotate, tmp_path, capsys, monkeypatch, lines
):
    """The kill came in the middle of a line, in the second case of both files; other slots draw the same."""
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    for name in ("summary.json", "DONE"):
        (folder / name).unlink()
    whole = (done / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(whole[:lines]) + whole[lines][:30])
    (folder / "refused.jsonl").write_bytes((done / "refused.jsonl").read_bytes()[: -10 if lines else 0])
    there = lines + len((folder / "refused.jsonl").read_bytes().splitlines()) - bool(lines)
    if lines:  # F5: then a request to stop, after two rows more
        add, once = row_log.RowLog.add, [signal.SIGTERM]

        def asked_to_stop(self, row):
            add(self, row)
            if once:  # a second one would end this very process
                os.kill(os.getpid(), once.pop())

        with monkeypatch.context() as patch:
            patch.setattr(proving, "PAIRS_AT_ONCE", 2)
            patch.setattr(row_log.RowLog, "add", asked_to_stop)
            assert annotate(folder, "--config.generation.slots=3") == 75
        assert "stopped on request in a round of the sampler: run the same" in capsys.readouterr().err
        there = sum(len(rows(folder / name)) for name in ("rows.jsonl", "refused.jsonl"))
        assert lines < len(rows(folder / "rows.jsonl")) < len(whole) and not (folder / "run.lock").exists()
    assert annotate(folder, "--config.generation.slots=3") == 0
    said = capsys.readouterr().err
    assert (f"{there} of 12 rows are there already" in said) == bool(lines)
    fields = ("id", "label", "rationale")
    found, wanted = rows(folder / "rows.jsonl"), rows(done / "rows.jsonl")
    assert [[row[f] for f in fields] for row in found] == [[row[f] for f in fields] for row in wanted]
    for one, two in zip(found, wanted, strict=True):
        for a, b in zip(one["proofs"], two["proofs"], strict=True):
            assert (a["proof"], a["reason"]) == (b["proof"], b["reason"])
            assert (a["score"] or 0.0) == pytest.approx(b["score"] or 0.0, rel=1e-4)
    assert sorted(map(str, rows(folder / "refused.jsonl"))) == sorted(map(str, rows(done / "refused.jsonl")))
    assert (folder / "summary.json").read_text() == (done / "summary.json").read_text() and (folder / "DONE").exists()


def test_a_finished_file_is_not_made_again(done, annotate, monkeypatch):
    from gramjax.training import sampling

    monkeypatch.setattr(sampling, "open_sampler", lambda config: pytest.fail("a model was opened"))
    before = (done / "rows.jsonl").read_bytes()
    assert annotate(done) == 0
    assert (done / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "setting,words",
    [
        ("--config.annotator.proving.min_score=-0.5", "config.annotator.proving.min_score=-1.0, now -0.5"),
        ("--config.seed=1", "config.seed=0, now 1"),
        ("--config.resume=False", "holds a run and config.resume is False"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(done, annotate, capsys, setting, words):
    before = (done / "rows.jsonl").read_bytes()
    assert annotate(done, setting) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert (done / "rows.jsonl").read_bytes() == before and (done / "DONE").exists()


def test_a_file_with_other_rows_is_refused(done, annotate, pairs, capsys):
    """The same path, other rows in it."""
    before = pairs.read_bytes()
    try:
        pairs.write_bytes(before.replace(b'"train-0"', b'"other"'))
        assert annotate(done) == 2
        assert "has row 'train-0', which" in capsys.readouterr().err
    finally:
        pairs.write_bytes(before)


def test_a_dry_run_writes_nothing(annotate, tmp_path, capsys):
    assert annotate(tmp_path / "run", "--dry_run") == 0
    assert capsys.readouterr().out.startswith("12 rows of 12, ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings,code,words",
    [
        (("--config=annotate:prove_preferences",), 2, "give --config.model.path"),
        (("--config=annotate", "--config.model.path=x"), 2, "give --config.data.path"),
        (("--config=annotate:guess",), 2, "no annotators called 'guess'"),
        (("--config=select_data",), 2, "names no annotator"),
        (("--config=annotate", "--config.annotator.proving.n=3"), 2, "config.annotator.proving.n"),
        (("--config=annotate:prove_preferences", "--config.model.path=x", "--config.data.path=x",
          "--config.annotator.proving.choice=best"), 2, "proving.choice is 'best'"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_line(tmp_path, capsys, settings, code, words):
    assert run("annotate", *settings, f"--workdir={tmp_path / 'run'}") == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run" / "rows.jsonl").exists()


@pytest.mark.parametrize(
    "lines,words",
    [
        ('{"id": "a", "prompt": "q", "responses": ["x", "y"], "label": "A"}\n' * 2, "the id 'a' was used before"),
        ('{"prompt": "q", "completion": "x"}\n', "has 'prompt','completion'"),
        ("", "0 records"),
    ],
)
def test_rows_that_cannot_be_annotated_are_an_error_of_the_data(annotate, tmp_path, capsys, lines, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines)
    assert annotate(tmp_path / "run", path=path) == 3
    error = capsys.readouterr().err
    assert words in error and "bad.jsonl" in error and error.count("\n") == 1
