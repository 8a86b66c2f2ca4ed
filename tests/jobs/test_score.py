"""The score job: every kind of row, judges with references, a kill in the middle, refusals that are counted."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.data.recipes import word_translation as words

TINY = str(Path(__file__).parent / "tiny.py")


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(list(argv))
    return stopped.value.code


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same answers as pairs, as single completions (with a reference), as lists, and as conversations."""
    folder, pairs = tmp_path_factory.mktemp("rows"), words.rows("valid", 10)[:9]
    single = [
        {"id": f"{r['id']}/{name}", "prompt": r["prompt"], "completion": r[name], "answer": r["rejected"]}
        for r in pairs for name in ("chosen", "rejected")
    ]  # fmt: skip
    lists = [{"id": r["id"], "prompt": r["prompt"], "responses": [r["chosen"], r["rejected"], words.rows("train", 2)[0][
        "chosen"]], "answer": r["rejected"]} for r in pairs]  # fmt: skip
    two = [{"id": r["id"], "prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]]} for r in pairs]
    made = {"pairs": pairs, "single": single, "lists": lists, "two": two}
    return {name: write(folder / f"{name}.jsonl", part) for name, part in made.items()}


@pytest.fixture(scope="module")
def score(tiny_scalar, tiny_judge):
    def job(kind, path, workdir, *settings):
        model = {"scalar": tiny_scalar, "judge": tiny_judge}.get(kind, kind)
        return run("score", "--config=score", f"--config.model.path={model}", f"--config.data.path={path}",
                   f"--workdir={workdir}", *settings)  # fmt: skip

    return job


@pytest.fixture(scope="module")
def done(score, files, tmp_path_factory):
    """The single completions scored by the scalar model."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    assert score("scalar", files["single"], folder) == 0
    return folder


@pytest.mark.smoke
def test_every_kind_of_row_has_the_same_scores(done, score, files, tmp_path):
    alone = {row["id"]: row["score"] for row in rows(done / "rows.jsonl")}
    assert list(alone) == [row["id"] for row in rows(files["single"])], "in the order of the input"
    assert len(set(alone.values())) > 9
    for name in ("pairs", "lists", "two"):
        assert score("scalar", files[name], tmp_path / name) == 0
    for row in rows(tmp_path / "pairs" / "rows.jsonl"):
        wanted = [alone[f"{row['id']}/{name}"] for name in ("chosen", "rejected")]
        assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(wanted, abs=1e-5)
        assert row["score_margin"] == pytest.approx(wanted[0] - wanted[1], abs=1e-5)
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(-row["score_margin"])))
        assert "margin" not in row
    for name, count in (("lists", 3), ("two", 2)):
        for row in rows(tmp_path / name / "rows.jsonl"):
            wanted = [alone[f"{row['id']}/{c}"] for c in ("chosen", "rejected")]
            assert row["scores"][:2] == pytest.approx(wanted, abs=1e-5)
            assert len(row["scores"]) == count and ("score_margin" in row) == (count == 2)


def test_a_judge_compares_both_orders_and_single_answers_with_a_reference(score, files, tmp_path):
    """The reference is a column, or a file by prompt or by id; an answer that is its own reference has one half."""
    assert score("judge", files["pairs"], tmp_path / "pairs") == 0
    pairs = {row["id"]: row for row in rows(tmp_path / "pairs" / "rows.jsonl")}
    for row in pairs.values():
        assert row["probability"] == pytest.approx((row["probability_first"] + row["probability_second"]) / 2)
        assert "score_chosen" not in row
    assert score("judge", files["two"], tmp_path / "two") == 0
    for row in rows(tmp_path / "two" / "rows.jsonl"):
        assert row["probability"] == pytest.approx(pairs[row["id"]]["probability"], abs=1e-6)
    given = rows(files["single"])
    by_prompt = write(tmp_path / "a.jsonl", [{"prompt": r["prompt"], "response": r["answer"]} for r in given[::2]])
    by_id = write(tmp_path / "b.jsonl", [{"id": r["id"], "text": r["answer"]} for r in given])
    found = {}
    for name, reference in (("column", "answer"), ("prompt", by_prompt), ("id", by_id)):
        assert score("judge", files["single"], tmp_path / name, f"--config.score.reference={reference}") == 0
        found[name] = [row["score"] for row in rows(tmp_path / name / "rows.jsonl")]
    assert found["column"] == found["prompt"] == found["id"]
    for row, value in zip(given, found["column"], strict=True):
        name, kind = row["id"].rsplit("/", 1)
        assert value == pytest.approx(pairs[name]["probability"] if kind == "chosen" else 0.5, abs=1e-6)
    assert score("judge", files["lists"], tmp_path / "lists", "--config.score.reference=answer") == 0
    for row in rows(tmp_path / "lists" / "rows.jsonl"):
        assert row["scores"][:2] == pytest.approx([pairs[row["id"]]["probability"], 0.5], abs=1e-6)


@pytest.mark.parametrize("lines", [0, 7])
def test_after_a_kill_the_files_are_those_of_an_uninterrupted_run(done, score, files, tmp_path, capsys, lines):
    """The kill came in the middle of a line; the rest is scored in other batches and chunks."""
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    for name in ("summary.json", "DONE"):
        (folder / name).unlink()
    whole = (done / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(whole[:lines]) + whole[lines][:30])
    assert score("scalar", files["single"], folder, "--config.score.chunk=3", "--config.score.batch_size=4") == 0
    assert (f"{lines} of 18 rows are there already" in capsys.readouterr().err) == bool(lines)
    found, wanted = rows(folder / "rows.jsonl"), rows(done / "rows.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)
    assert (folder / "DONE").exists() and json.loads((folder / "summary.json").read_text())["written"] == 18


def test_a_request_to_stop_ends_at_the_next_batch_and_the_same_command_goes_on(
    done, score, files, tmp_path, monkeypatch, capsys
):
    """F5: SIGTERM while the third chunk is scored: what was scored before it stands there, and is not scored again."""
    from gramjax.scoring.reward_model import RewardModel

    read, calls, folder = RewardModel.read, [], tmp_path / "run"

    def asked_to_stop(self, asked):
        calls.append(len(asked))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, asked)

    monkeypatch.setattr(RewardModel, "read", asked_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    assert score("scalar", files["single"], folder, "--config.score.chunk=5") == 75
    assert "stopped on request in a batch of scoring: run the same command to go on" in capsys.readouterr().err
    assert calls == [5, 5, 5] and len(rows(folder / "rows.jsonl")) == 10, "a kill loses no more either"
    assert not (folder / "run.lock").exists() and signal.getsignal(signal.SIGTERM) is before
    assert score("scalar", files["single"], folder, "--config.score.chunk=5") == 0
    assert calls[3:] == [5, 3]
    found, wanted = rows(folder / "rows.jsonl"), rows(done / "rows.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)


def test_a_finished_file_is_not_scored_again(done, score, files, monkeypatch):
    from gramjax.training import scoring

    monkeypatch.setattr(scoring, "open_reward_model", lambda *_: pytest.fail("a model was opened"))
    before = (done / "rows.jsonl").read_bytes()
    assert score("scalar", files["single"], done) == 0
    assert (done / "rows.jsonl").read_bytes() == before


def test_rows_that_cannot_be_scored_are_refused_with_a_reason(score, tmp_path, capsys):
    long = "Translation: " + "pendovi " * 60
    made = [
        {"id": "good", "prompt": "Translate: river", "completion": "Translation: mirel"},
        {"id": "long", "prompt": "Translate: river", "completion": long},
        {"id": "empty", "prompt": "Translate: river", "completion": " "},
    ]
    path = write(tmp_path / "rows.jsonl", made)
    assert score("scalar", path, tmp_path / "run", "--config.score.overlong=drop") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    reason = f"longer than max_length {words.MAX_LENGTH}"
    assert summary["refused"] == {reason: {"count": 1, "first": "long"}}
    assert list(summary["unreadable"]) == ["empty completion"] and summary["written"] == 1
    assert f"1 without: {reason} (first: long)" in capsys.readouterr().out
    assert score("scalar", path, tmp_path / "cut") == 0, "shortened by default, and it says so"
    assert [row["shortened"] for row in rows(tmp_path / "cut" / "rows.jsonl")] == [False, True]


def test_a_judge_without_a_reference_for_a_row_refuses_that_row(score, files, tmp_path):
    given = rows(files["single"])
    known = write(tmp_path / "known.jsonl", [{"id": r["id"], "text": r["answer"]} for r in given[:-1]])
    assert score("judge", files["single"], tmp_path / "run", f"--config.score.reference={known}") == 0
    assert rows(tmp_path / "run" / "refused.jsonl") == [{"id": given[-1]["id"], "reason": "no reference answer"}]


@pytest.mark.parametrize(
    "kind,name,settings,code,words",
    [
        ("judge", "single", (), 2, "no score for one answer alone. Give --config.score.reference"),
        ("judge", "lists", (), 2, "no score for one answer alone"),
        ("judge", "pairs", ("--config.score.reference=answer",), 2, "no file and no column 'answer'"),
        ("scalar", "lists", ("--config.score.reference=answer",), 2, "scores an answer by itself: leave it out"),
        ("judge", "lists", ("--config.score.reference=gone.jsonl",), 2, "no file 'gone.jsonl'"),
        ("judge", "lists", ("--config.score.method=score",), 2, "needs the head 'score'"),
        ("scalar", "single", ("--config.reference.path=x",), 2, "looks at no reference"),
        ("scalar", "single", ("--config.score.chunk=0",), 2, "config.score.chunk is 0"),
        ("scalar", "single", ("--config.score.agg=mean",), 2, "config.score.agg is 'mean'"),
        ("scalar", "single", ("--config.data.rename=('answer:score',)",), 3, "has a column 'score', which would be"),
        ("", "single", (), 2, "give --config.model.path"),
    ],
)
def test_wrong_commands_are_one_line(score, files, tmp_path, capsys, kind, name, settings, code, words):
    assert score(kind, files[name], tmp_path / "run", *settings) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run" / "rows.jsonl").exists()


def test_a_dry_run_writes_nothing(score, files, tmp_path, capsys):
    assert score("scalar", files["single"], tmp_path / "run", "--dry_run") == 0
    assert capsys.readouterr().out.startswith("18 rows of 18, ") and not (tmp_path / "run").exists()
