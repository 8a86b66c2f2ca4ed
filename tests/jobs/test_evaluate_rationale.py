"""A judge of rationales through the commands: the same numbers during training and afterwards, its instruction kept."""

import json
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.core.errors import UserError
from gramjax.core.writer import read_metrics
from gramjax.data.recipes import permutation_world as world
from tests.serving.live_server import in_process

VALID = "recipe:permutation_world:valid:20"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    config = f"--config={Path(__file__).parent / 'tiny_rationale.py'}"
    assert cli.main(["train", config, f"--workdir={folder}", "--config.log.report=True"]) == 0
    return folder


def results(folder):
    lines = (folder / "eval" / "rationale.rows.jsonl").read_text().splitlines()
    return json.loads((folder / "eval" / "rationale.json").read_text()), [json.loads(line) for line in lines]


def evaluate(model, folder, *settings):
    code = cli.main([
        "evaluate", "--config=evaluate_rationale", f"--config.model.path={model}", f"--config.data.path={VALID}",
        f"--workdir={folder}", "--config.evals.rationale.judging.sampling.max_tokens=8",
        "--config.evals.rationale.judging.sampling.n=3", *settings,
    ])  # fmt: skip
    assert code == 0
    return results(folder)


def test_training_and_evaluate_draw_the_same(trained, tmp_path, capsys):
    """Rendering settings and the instruction come from the run; the same function judges in both."""
    then, rows = results(trained)
    assert then["num_pairs"] == 20 and then["unreadable_share"] < 0.5 and (trained / "report.html").exists()
    assert read_metrics(trained / "metrics.jsonl")[-1]["eval/rationale/accuracy"] == then["accuracy"]
    now, again = evaluate(trained, tmp_path, "--config.evals.rationale.generation.slots=16")
    for one, two in zip(rows, again, strict=True):
        assert [d["reply"] for d in one["judgements"]] == [d["reply"] for d in two["judgements"]]
        assert one["probability"] == pytest.approx(two["probability"], abs=1e-4)
    assert now["accuracy"] == then["accuracy"] and now["votes_curve"] == then["votes_curve"]
    assert now["inherited"]["evals.rationale.judging.instruction"] == world.JUDGE_PROMPT
    said = capsys.readouterr().out
    assert "agreement" in said and "num_unreadable" in said and "rationale.json" in said


def test_another_instruction_can_be_given(trained, tmp_path):
    now, _ = evaluate(trained, tmp_path, "--config.evals.rationale.judging.instruction=Prove.")
    assert "evals.rationale.judging.instruction" not in now["inherited"]


def test_a_reader_of_verdicts_is_not_pointed_at_it_and_the_server_writes(trained, tmp_path):
    for job, setting in (("evaluate", "evals.preference"), ("score", "score")):
        command = [job, f"--config={job}", f"--config.model.path={trained}", f"--config.data.path={VALID}"]
        with pytest.raises(UserError, match=f"config.{setting}.method=judge reads it without one"):
            cli.main([*command, f"--workdir={tmp_path / job}"])
    client, service = in_process(trained, "--config.sampling.max_tokens=8", "--config.data.max_length=100")
    row = world.rows("valid", 1)[0]
    with client:
        found = client.post("/v1/compare", json={"prompt": row["prompt"], "responses": row["responses"],
                                                 "rationale": True}).json()  # fmt: skip
    assert service.judging.instruction == world.JUDGE_PROMPT and found["kind"] == "rationale"
    assert len(found["pairs"][0]["judgements"]) == 2
