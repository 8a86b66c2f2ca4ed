"""From a benchmark file through `gramjax evaluate` to what its leaderboard reads, and again without the model."""

import json
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.core.errors import UserError

TINY = Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A judge after one step, its evaluation on a file as JudgeBench publishes it, and the pairs."""
    folder = tmp_path_factory.mktemp("leaderboard")
    assert cli.main(["train", f"--config={TINY}", f"--workdir={folder / 'runs' / 'judge'}",
                     "--config.train.steps=1", "--config.train.evaluate=False"]) == 0  # fmt: skip
    pairs = [{"pair_id": f"p{n}", "source": "livecodebench", "question": f"q{n}", "response_model": "gpt",
              "response_A": f"a{n}", "response_B": "b", "label": ("A>B", "B>A")[n % 2]} for n in range(6)]  # fmt: skip
    pairs.append(pairs[0] | {"pair_id": "twin", "response_B": "a0"})
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder, source, pairs


def test_evaluate_writes_what_the_leaderboard_reads(judged, capsys):
    folder, source, pairs = judged
    out = folder / "out"
    capsys.readouterr()
    run = folder / "runs" / "judge"
    assert cli.main(["evaluate", "--config=evaluate", f"--config.model.path={run}", f"--config.data.path={source}",
                     f"--workdir={out}", "--config.tokenizer.chat_template=none"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    results = json.loads((out / "eval" / "preference.json").read_text())
    assert results["num_pairs"] == 7 and results["ties"] >= 1, "equal answers are a tie, not a dropped row"
    assert "for the leaderboard" in said and "judgebench_official" in said and said.count("95% interval") == 6
    (file,) = (out / "eval" / "exports" / "judgebench" / "outputs").iterdir()
    assert file.name.endswith("judge_model=runs_judge.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [{key: line[key] for key in pairs[0]} for line in lines] == pairs
    assert [game["decision"] for game in lines[-1]["judgments"]] == ["A=B", "A=B"] or results["position_bias"] != 0

    before = file.read_bytes()
    file.unlink()
    assert cli.main(["leaderboard", str(out), "--model", "runs/judge"]) == 0
    assert file.read_bytes() == before and str(file) in capsys.readouterr().out
    assert cli.main(["leaderboard", str(out), "--tool", "--model", "org/name"]) == 0
    whole = json.loads((out / "eval/exports/tool/org/name.json").read_text())
    assert whole["num_prompts"] == 7
    assert cli.main(["leaderboard", str(out), "--pref-sets", "--model", "org/name"]) == 0
    sets = out / "eval/exports/rewardbench"
    by_subset = json.loads((sets / "pref-sets/org/name.json").read_text())
    assert by_subset.pop("model_type") == "Generative RM" and by_subset.pop("chat_template") == "none"
    judged_rows = json.loads((sets / "pref-sets-scores/org/name.json").read_text())
    assert by_subset == {"model": "org/name", "livecodebench": pytest.approx(sum(judged_rows["results"]) / 7)}
    assert [text[-1]["content"] for text in judged_rows["text_chosen"][:2]] == ["a0", "b"]
    with pytest.raises(UserError, match="ORG/MODEL, not 'name'"):
        cli.main(["leaderboard", str(out), "--model", "name"])
    source.rename(folder / "moved.jsonl")
    with pytest.raises(UserError, match="no file or folder"):
        cli.main(["leaderboard", str(out)])
    assert cli.main(["leaderboard", str(out), "--data", str(folder / "moved.jsonl")]) == 0


def test_rows_of_no_benchmark(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "eval" / "preference.json").write_text("{}")
    (tmp_path / "eval" / "preference.rows.jsonl").write_text('{"id": "1", "subset": "x", "correct": true}\n')
    with pytest.raises(UserError, match="of no benchmark with files of its own"):
        cli.main(["leaderboard", str(tmp_path)])
