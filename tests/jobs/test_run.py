"""The run job: steps in order, done ones once, a kill anywhere, errors that name the step, one recipe end to end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.checkpoint import state as checkpoints
from gramjax.core import config as configs
from gramjax.core import row_log
from gramjax.core.recipe import Step
from gramjax.jobs import select_data
from gramjax.plots import rounds as plots
from gramjax.recipes import gram_r2

TINY = str(Path(__file__).parent / "tiny_recipe.py")
WORLD = "recipe:permutation_world:unlabelled:12"


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(["run", *map(str, argv)])
    return stopped.value.code


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def taken(said):
    """The steps that a command says it runs."""
    return re.findall(r"^== (\S+) ", said, re.MULTILINE)


# -- a recipe of two selections ----------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """A recipe whose steps take no time: half of the world's pairs, then half of those."""

    def steps(config, workdir):
        sources = (WORLD, str(workdir / "steps" / "00-half" / "rows.jsonl"))
        out = []
        for name, source in zip(("00-half", "01-quarter"), sources, strict=True):
            step = configs.for_rows("select_data", ("data",))
            step.data.path, step.seed = source, config.seed
            configs.with_plugin(step, "selection", "selection/rows", "part")
            step.selection.parts = config.recipe.rounds + 1
            out.append(Step(name, "select_data", step))
        return out

    monkeypatch.setattr(gram_r2, "steps", steps)
    monkeypatch.setattr(gram_r2, "summarise", lambda config, workdir: {"recipe": "short", "rounds": []})
    return lambda workdir, *settings: run(f"--config={TINY}", f"--workdir={workdir}", *settings)


def test_steps_run_in_order_and_leave_readable_files(short, tmp_path, capsys):
    assert short(tmp_path) == 0
    said = capsys.readouterr().out
    assert taken(said) == ["00-half", "01-quarter"]
    for number, name in ((6, "00-half"), (3, "01-quarter")):
        assert len(rows(tmp_path / "steps" / name / "rows.jsonl")) == number
        config = tmp_path / "steps" / f"{name}.config.json"
        assert f"gramjax select_data --config={config} --workdir={tmp_path / 'steps' / name}" in said
        assert json.loads(config.read_text())["selection"]["name"] == "part"
    found = json.loads((tmp_path / "rounds.json").read_text())
    assert found["finished"] and found["recipe"] == "short"
    assert [(s["name"], s["verb"], s["done"], s["seconds"] >= 0) for s in found["steps"]] == [
        ("00-half", "select_data", True, True), ("01-quarter", "select_data", True, True)
    ]  # fmt: skip
    assert (tmp_path / "DONE").exists() and not (tmp_path / "run.lock").exists()


def test_the_same_command_again_runs_nothing(short, tmp_path, capsys, monkeypatch):
    assert short(tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    capsys.readouterr()
    monkeypatch.setattr(select_data, "main", lambda argv: pytest.fail("a step ran again"))
    assert short(tmp_path) == 0
    assert taken(capsys.readouterr().out) == []
    kept = [path for path in before if path.name != "env.json"]
    assert all(path.read_bytes() == before[path] for path in kept)


def test_a_kill_costs_the_step_that_ran_and_no_other(short, tmp_path, capsys, monkeypatch):
    """Killed in the second step; afterwards everything is as it would have been."""
    assert short(tmp_path / "whole") == 0
    real = select_data.main

    def killed(argv):
        if "01-quarter" in argv[0]:
            raise KeyboardInterrupt
        return real(argv)

    with monkeypatch.context() as patch:
        patch.setattr(select_data, "main", killed)
        assert short(tmp_path / "cut") == 130
    found = json.loads((tmp_path / "cut" / "rounds.json").read_text())
    assert [step["done"] for step in found["steps"]] == [True, False] and not found["finished"]
    assert not (tmp_path / "cut" / "DONE").exists()
    capsys.readouterr()
    assert short(tmp_path / "cut") == 0
    assert taken(capsys.readouterr().out) == ["01-quarter"]
    for name in ("00-half", "01-quarter"):
        whole, cut = (tmp_path / folder / "steps" / name / "rows.jsonl" for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def test_a_request_to_stop_ends_it_before_the_next_step(short, tmp_path, capsys, monkeypatch):
    """F5: SIGTERM in a step that cannot be broken off: it is done, and the next one is not begun."""
    real = select_data.main

    def asked_to_stop(argv):  # called once: the other step is not begun
        os.kill(os.getpid(), signal.SIGTERM)
        return real(argv)

    with monkeypatch.context() as patch:
        patch.setattr(select_data, "main", asked_to_stop)
        assert short(tmp_path) == 75
    said = capsys.readouterr()
    assert taken(said.out) == ["00-half"] and "in the beginning of step 01-quarter: run the same" in said.err
    assert short(tmp_path) == 0
    assert taken(capsys.readouterr().out) == ["01-quarter"]


def test_a_step_that_leaves_no_row_is_one_error_that_names_its_file(short, tmp_path, capsys, monkeypatch):
    """Whichever step it is, and again on the next start."""
    monkeypatch.setattr(gram_r2, "steps", nothing_left)
    for _ in range(2):
        assert short(tmp_path) == 3
        error = capsys.readouterr().err
        path = tmp_path / "steps" / "00-votes" / "rows.jsonl"
        why = "1 even split of the votes; 1 vote share too low"
        assert error == f"gramjax: step 00-votes: {path}: none of 2 rows is left ({why})\n"
    assert not (tmp_path / "steps" / "00-votes.json").exists()


def nothing_left(config, workdir):
    """A step whose two rows fall to two different rules."""
    workdir.mkdir(exist_ok=True)
    made = [{"id": name, "prompt": "q", "responses": ["x", name], "label": "A", "vote_share": 0.5,
             "label_probability": 1.0, "tied": name == "a"} for name in "ab"]  # fmt: skip
    (workdir / "voted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    step = configs.for_rows("select_data", ("data",))
    step.data.path = str(workdir / "voted.jsonl")
    return [Step("00-votes", "select_data", configs.with_plugin(step, "selection", "selection/rows", "sure_votes"))]


def test_errors_of_a_step_name_it_and_keep_their_code(short, tmp_path, capsys, monkeypatch):
    from gramjax.core.errors import DataError, UserError

    for error, code in ((UserError, 2), (DataError, 3)):

        def fails(argv, error=error):
            raise error("what now")

        monkeypatch.setattr(select_data, "main", fails)
        assert short(tmp_path) == code
        assert capsys.readouterr().err == "gramjax: step 00-half: what now\n"
    monkeypatch.setattr(select_data, "main", lambda argv: 7)
    assert short(tmp_path) == 7 and not (tmp_path / "steps" / "00-half.json").exists()


def test_another_setting_is_refused_and_overwrite_begins_anew(short, tmp_path, capsys):
    """Overwriting removes what the recipe left, and nothing else."""
    assert short(tmp_path) == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("mine")
    assert short(tmp_path, "--config.recipe.rounds=2") == 2
    error = capsys.readouterr().err
    assert "config.recipe.rounds=1, now 2" in error and error.count("\n") == 1
    assert len(rows(tmp_path / "steps" / "00-half" / "rows.jsonl")) == 6
    assert short(tmp_path, "--config.recipe.rounds=2", "--config.overwrite=True") == 0
    assert taken(capsys.readouterr().out) == ["00-half", "01-quarter"]
    assert len(rows(tmp_path / "steps" / "00-half" / "rows.jsonl")) == 4
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "configs" / "mine.py").read_text() == "mine"


@pytest.mark.parametrize(
    "settings,words",
    [
        (("--config=quickstart",), "'quickstart' is no recipe"),
        ((f"--config={TINY}", "--distributed=auto"), "gramjax run is one process"),
        ((f"--config={TINY}", "--config.recipe.rationale_source=other"), "rationale_source='other'"),
        ((f"--config={TINY}", "--config.recipe.judging.sampling.n=0"), "n is 0"),
        ((f"--config={TINY}", "--config.recipe.unlabelled=('nowhere.jsonl',)"),
         "step 02-R1-pairs: no file or folder 'nowhere.jsonl'"),
        ((f"--config={TINY}", "--config.model.path=nowhere"), "step 00-prover: no file or folder 'nowhere'"),
        ((f"--config={TINY}", "--config.recipe.round=1"), "did you mean config.recipe.rounds?"),
        ((f"--config={TINY}", "--config.phases.judge.train.batch_size=0"), "batch_size is 0"),
    ],
)
def test_wrong_recipes_are_one_line_before_any_step(tmp_path, capsys, settings, words):
    assert run(*settings, f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_dry_run_lists_the_commands_and_writes_nothing(tmp_path, capsys):
    assert run(f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--dry_run") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == [
        "train", "train", "select_data", "annotate", "select_data", "annotate", "select_data", "train",
    ]  # fmt: skip
    assert all(line.startswith("gramjax ") for line in said) and not (tmp_path / "run").exists()
    assert run("--config=gram_r2_toy", "--dry_run", "--config.recipe.rationale_source=none") == 0
    assert "balance" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["run", "annotate", "select_data"])
def test_help_needs_no_jax(verb):
    code = (
        "import sys; from gramjax import cli\n"
        f"try: cli.main(['{verb}', '--help'])\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print([m for m in ('jax', 'flax', 'numpy', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert f"usage: gramjax {verb} --config=" in done.stdout


# -- GRAM-R2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny recipe, uninterrupted: its folder."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    assert run(f"--config={TINY}", f"--workdir={folder}") == 0
    return folder


def step_folder(workdir, name):
    (found,) = (workdir / "steps").glob(f"[0-9][0-9]-{name}")
    return found


def weights(folder):
    """Checksums of a training's last parameters."""
    last = checkpoints.steps_of(folder)[-1]
    leaves = checkpoints.manifest.read(folder / "checkpoints" / str(last)).leaves
    return {name: leaf.checksum for name, leaf in leaves.items()}


def test_a_recipe_from_nothing_to_its_report(whole):
    """Every pair is followed from file to file, and the numbers are those of the files."""
    found = json.loads((whole / "rounds.json").read_text())
    assert found["finished"] and all(step["done"] and step["seconds"] > 0 for step in found["steps"])
    first, second = found["rounds"]
    for one in (first, second):
        assert one["test"]["num_pairs"] == 8 and one["test_accuracy"] == one["test"]["accuracy"]
    assert set(second) >= {"pseudo_label_precision", "kept_share", "test_accuracy", "vote_histogram", "filters"}
    files = {name: rows(step_folder(whole, f"R1-{name}") / "rows.jsonl")
             for name in ("pairs", "judge", "votes", "proofs", "rules")}  # fmt: skip
    ids = {name: {row["id"] for row in made} for name, made in files.items()}
    assert len(ids["pairs"]) == 24 and ids["pairs"] == ids["judge"]
    assert ids["judge"] >= ids["votes"] >= ids["proofs"] >= ids["rules"] and 0 < len(ids["rules"]) <= 15
    assert second["kept_share"] == len(ids["rules"]) / 24
    gold = {row["id"]: row.get("gold") for row in files["pairs"]}
    assert any(gold.values()) and all(row.get("gold") == gold[row["id"]] for row in files["rules"])
    known = [row for row in files["rules"] if row.get("gold")]
    right = sum(row["label"] == row["gold"] for row in known)
    assert second["pseudo_label_precision"] == (pytest.approx(right / len(known)) if known else None)
    assert second["num_train"] == 64 + len(ids["rules"]), "everything so far"
    assert [(f["name"], f["after"]) for f in second["filters"]] == [
        (name, len(ids[name])) for name in ("votes", "proofs", "rules")
    ]  # fmt: skip
    assert [r.name for r in plots.read(found)] == ["R0", "R1"]
    assert (whole / "report.html").exists() and (whole / "DONE").exists()


def test_after_a_kill_in_the_proofs_everything_is_as_it_was(whole, capsys, monkeypatch):
    """Half of the proofs are there, and nothing after them: what was done stays, what follows is the same."""
    before = {name: (step_folder(whole, f"R1-{name}") / "rows.jsonl").read_bytes() for name in ("judge", "rules")}
    numbers, trained = json.loads((whole / "rounds.json").read_text()), weights(step_folder(whole, "R1"))
    for name in ("R1-proofs", "R1-rules", "R1"):
        folder = step_folder(whole, name)
        (whole / "steps" / f"{folder.name}.json").unlink()
        if name != "R1-proofs":
            shutil.rmtree(folder)
    (whole / "DONE").unlink()
    proofs = step_folder(whole, "R1-proofs")
    lines = (proofs / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (proofs / "rows.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    for name in ("summary.json", "DONE"):
        (proofs / name).unlink()
    add, once = row_log.RowLog.add, [signal.SIGTERM]

    def asked_to_stop(self, row):
        add(self, row)
        if once:  # a second one would end this very process
            os.kill(os.getpid(), once.pop())

    with monkeypatch.context() as patch:  # F5: asked to stop with nothing left to do in the step
        patch.setattr(row_log.RowLog, "add", asked_to_stop)
        assert run(f"--config={TINY}", f"--workdir={whole}") == 75
    said = capsys.readouterr()
    assert [name[3:] for name in taken(said.out)] == ["R1-proofs"]
    assert "stopped on request in the beginning of step" in said.err
    assert f"{len(lines) // 2} of " in said.err and "rows are there already" in said.err
    assert run(f"--config={TINY}", f"--workdir={whole}") == 0
    assert [name[3:] for name in taken(capsys.readouterr().out)] == ["R1-rules", "R1"]
    fields = ("id", "label", "rationale", "gold")
    now = [[row.get(f) for f in fields] for row in rows(step_folder(whole, "R1-rules") / "rows.jsonl")]
    assert now == [[json.loads(line).get(f) for f in fields] for line in before["rules"].splitlines()]
    assert (step_folder(whole, "R1-judge") / "rows.jsonl").read_bytes() == before["judge"]
    assert weights(step_folder(whole, "R1")) == trained, "bit for bit"
    again = json.loads((whole / "rounds.json").read_text())
    assert again["rounds"] == numbers["rounds"] and again["finished"]
    assert [s["seconds"] for s in again["steps"]][:5] == [s["seconds"] for s in numbers["steps"]][:5]


def test_a_half_done_recipe_keeps_its_settings(whole, capsys):
    assert run(f"--config={TINY}", f"--workdir={whole}", "--config.recipe.rules.min_vote_share=0.5") == 2
    error = capsys.readouterr().err
    assert "config.recipe.rules.min_vote_share=0.0, now 0.5" in error and error.count("\n") == 1
    assert (whole / "DONE").exists()
