"""The select_data job: rows kept, every other one counted, the same command again, refusals in one line."""

import json

import pytest

from gramjax import cli

WORLD = "recipe:permutation_world:unlabelled"
VOTED = [
    {"id": f"r{i}", "prompt": "q", "responses": ["x", f"y{i}"], "label": "AB"[i % 2], "vote_share": 0.5 + 0.1 * (i % 5),
     "label_probability": 0.9, "tied": i % 5 == 0}
    for i in range(10)
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "voted.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in VOTED))
    return file


def run(*argv):
    with pytest.raises(SystemExit) as stopped:
        cli.run(["select_data", *map(str, argv)])
    return stopped.value.code


def select(path, workdir, *settings):
    return run("--config=select_data:sure_votes", f"--config.data.path={path}", f"--workdir={workdir}", *settings)


def test_rows_are_kept_or_counted(path, tmp_path, capsys):
    """Nothing of a kept row is lost."""
    folder = tmp_path / "run"
    assert select(path, folder) == 0
    kept = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert kept == [row for row in VOTED if row["vote_share"] >= 0.75]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {
        "rows": 10, "written": 4, "unreadable": {},
        "refused": {"even split of the votes": {"count": 2, "first": "r0"},
                    "vote share too low": {"count": 4, "first": "r1"}},
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "4 of 10 rows kept" in said and "2 left out: even split of the votes (first: r0)" in said
    before = (folder / "rows.jsonl").read_bytes()
    assert select(path, folder) == 0 and (folder / "rows.jsonl").read_bytes() == before
    assert select(path, folder, "--config.selection.rules.min_vote_share=0.6") == 2
    error = capsys.readouterr().err
    assert "min_vote_share=0.75, now 0.6" in error and error.count("\n") == 1
    assert (folder / "rows.jsonl").read_bytes() == before
    assert select(path, folder, "--config.selection.rules.min_vote_share=0.6", "--config.overwrite=True") == 0
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 8


def test_no_row_is_a_result_too(path, tmp_path):
    """Whether that is an error is for a recipe to say."""
    assert select(path, tmp_path / "run", "--config.selection.rules.min_probability=1") == 0
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == b""
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["written"] == 0


def test_a_dry_run_says_what_would_be_kept(path, tmp_path, capsys):
    assert select(path, tmp_path / "run", "--dry_run") == 0
    assert "4 of 10 rows kept" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_rows_that_cannot_be_read_are_skipped_on_wish_and_counted(path, tmp_path):
    with path.open("a") as file:
        for row in ({"id": "bad", "prompt": 3, "responses": ["x", "y"]}, {**VOTED[1], "prompt": "another"}):
            file.write(json.dumps(row) + "\n")
    assert select(path, tmp_path / "strict") == 3
    assert select(path, tmp_path / "run", "--config.data.on_bad_row=skip") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == 10 and sum(found["count"] for found in summary["unreadable"].values()) == 2


@pytest.mark.parametrize(
    "settings,code,words",
    [
        (("--config=select_data:sure_votes",), 2, "give --config.data.path"),
        (("--config=select_data:best",), 2, "no selection/rows called 'best'"),
        (("--config=annotate", "--config.data.path=x"), 2, "names no selection"),
        (("--config=select_data:part", f"--config.data.path={WORLD}:4", "--config.selection.part=2"), 2, "part=2"),
        (("--config=select_data", f"--config.data.path={WORLD}:4"), 3, "has no 'vote_share'"),
        (("--config=select_data", "--config.data.path=nowhere.jsonl"), 2, "nowhere.jsonl"),
    ],
)  # fmt: skip
def test_wrong_selections_are_one_line(tmp_path, capsys, settings, code, words):
    assert run(*settings, f"--workdir={tmp_path / 'run'}") == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
