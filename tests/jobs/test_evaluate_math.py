"""Repeated evaluation through the command: its files, the short name of its settings, two runs compared."""

import json

import pytest

from gramjax import cli
from gramjax.core import flags
from gramjax.core.errors import UserError

TEXTS = ("yes no", "Response A: d f", "no no d", "k a yes", "f f", "is better", "a d", "d a k f")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Prompts whose right answer is whatever follows; see `test_the_command`."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "answer": "?"}) + "\n" for text in TEXTS))
    return path


def evaluate(model, data, folder, *settings):
    code = cli.main([
        "evaluate", "--config=evaluate_math", f"--config.model.path={model}", f"--config.data.path={data}",
        f"--workdir={folder}", "--config.eval.kind=exact", "--config.eval.template=",
        "--config.eval.sampling.max_tokens=2", "--config.eval.generation.steps_per_call=2", *settings,
    ])  # fmt: skip
    assert code == 0
    lines = (folder / "eval" / "math.rows.jsonl").read_text().splitlines()
    return json.loads((folder / "eval" / "math.json").read_text()), [json.loads(line) for line in lines]


def test_the_command(prover_run, problems, tmp_path, capsys):
    """The greedy answers become the right ones; then draws of any number of slots are the same, and graded by them."""
    _, before = evaluate(prover_run, problems, tmp_path / "a", "--config.eval.repeats=1")
    assert [r["greedy"]["verdict"] for r in before] == [False] * 8
    with problems.open("w") as file:
        for text, row in zip(TEXTS, before):
            file.write(json.dumps({"prompt": text, "answer": row["greedy"]["completion"].strip() or "-"}) + "\n")
    hot = "--config.eval.sampling.temperature=1.5"
    found, rows = evaluate(prover_run, problems, tmp_path / "b", "--config.eval.repeats=6", hot)
    assert found["k"] == 6 and len(rows) == 8 and all(len(r["verdicts"]) == 6 for r in rows)
    assert {"avg@k", "maj@k", "pass@1", "pass@2", "pass@4", "pass@6", "greedy_flip_rate"} <= found.keys()
    expected = [bool(r["greedy"]["completion"].strip()) for r in rows]
    assert [r["greedy"]["verdict"] for r in rows] == expected and any(expected)
    for r in rows:
        assert r["verdicts"] == [reply.strip() == r["gold"] for reply in r["completions"]]
    assert found["settings"]["repeats"] == 6 and found["engine"]["tokens"] > 0
    assert json.loads((tmp_path / "b" / "config.json").read_text())["evals"]["math"]["repeats"] == 6
    said = capsys.readouterr().out
    assert "avg@k" in said and "pass@6" in said and "greedy_flip_rate" in said and "math.json" in said

    again, other = evaluate(
        prover_run, problems, tmp_path / "c", "--config.eval.repeats=6", hot, "--config.eval.generation.slots=3"
    )
    assert [r["completions"] for r in other] == [r["completions"] for r in rows]
    assert again["avg@k"] == found["avg@k"]

    seeded, drawn = evaluate(
        prover_run, problems, tmp_path / "d", "--config.eval.repeats=6", hot, "--config.eval.seed=1"
    )
    assert [r["completions"] for r in drawn] != [r["completions"] for r in rows] and seeded["settings"]["seed"] == 1
    assert cli.main(["report", str(tmp_path / "b"), str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    assert "math: on 8 problems that both answered (6 repeats), avg@k of b minus that of d is" in said
    page = (tmp_path / "b" / "report.html").read_text()
    assert "avg@6" in page and "How often is a problem solved?" in page and "Greedy flips" in page


def test_the_short_name_of_the_only_eval():
    common = ["--config=evaluate_math", "--dry_run"]
    arguments = flags.parse([*common, "--config.eval.repeats=5"], "evaluate")
    assert arguments.config.evals.math.repeats == 5 and arguments.overrides == {"evals.math.repeats": 5}
    assert arguments.origins["evals.math.repeats"] == "command line"
    with pytest.raises(UserError, match="evals.math.repeats is given twice"):
        flags.parse([*common, "--config.eval.repeats=5", "--config.evals.math.repeats=5"], "evaluate")
    with pytest.raises(UserError, match="did you mean config.evals.math.repeats"):
        flags.parse([*common, "--config.eval.repeat=5"], "evaluate")


def test_bad_settings_are_refused_before_weights_are_read(problems, tmp_path):
    with pytest.raises(UserError, match="pass_at has 9"):
        from gramjax.jobs import evaluate as job

        job.main(["--config=evaluate_math", "--config.model.path=nowhere", f"--config.data.path={problems}",
                  f"--workdir={tmp_path}", "--config.eval.pass_at=(9,)"])  # fmt: skip
