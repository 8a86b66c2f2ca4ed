"""RewardBench 2 through models: scores of answers, of a judge by round robin; what is left out; the command."""

import dataclasses
import json

import numpy as np
import pytest
from test_preference import Letters, networks  # noqa: F401  # a fixture

from gramjax import cli
from gramjax.core import rewardbench2 as rules
from gramjax.core.errors import DataError
from gramjax.evals import rewardbench2


@dataclasses.dataclass(frozen=True)
class Alone(Letters):
    """Renders answers one by one too."""

    def completion(self, prompt, answer):
        return self.completion_pair(prompt, answer, answer)[0]


def lists(count=5, seed=0):
    generator = np.random.default_rng(seed)
    words = lambda: "".join(chr(c) for c in generator.integers(97, 123, generator.integers(1, 30)))  # noqa: E731
    plain = [{"id": f"m{n}", "subset": "Math", "prompt": words(), "responses": [words() for _ in range(4)],
              "num_correct": 1} for n in range(count)]  # fmt: skip
    many = [{"id": f"{kind}:{n}", "subset": "Ties", "prompt": words(), "responses": [words() for _ in range(right + 2)],
             "num_correct": right} for n in range(2) for kind, right in (("ref", 1), ("tied", 3))]  # fmt: skip
    return plain + many


def run(network, rows, **settings):
    model, weights, scorer = network
    written = []
    config = rewardbench2.Config(**({"buckets": (128, 256), "batch_size": 8} | settings))
    return dict(rewardbench2.evaluate(model, weights, Alone(), rows, config, written.append, scorer=scorer)), written


def test_a_scalar_model_gives_every_answer_its_reward(networks):  # noqa: F811
    """The scores are those of the answers alone, whatever stands beside them; the table is that of the rules."""
    rows = lists()
    results, records = run(networks["score"], rows)
    assert [record["id"] for record in records] == [row["id"] for row in rows] and results["kind"] == "score"
    assert [len(record["scores"]) for record in records] == [4] * 5 + [3, 5, 3, 5]
    assert results["rewardbench2"] == rules.rewardbench2(records) and results["num_comparisons"] == 0
    assert results["accuracy"] == np.mean([rules.best_of(record["scores"]) for record in records[:5]])
    turned = [row | {"responses": row["responses"][::-1]} for row in rows]
    _, again = run(networks["score"], turned)
    for one, two in zip(records, again):
        np.testing.assert_allclose(one["scores"], two["scores"][::-1], rtol=0, atol=1e-5)


def test_a_judge_scores_an_answer_by_how_often_it_wins(networks):  # noqa: F811
    rows = lists(3)
    results, records = run(networks["judge"], rows)
    assert results["num_comparisons"] == 3 * 6 + 2 * (3 + 10)
    model, weights, scorer = networks["judge"]
    from gramjax.scoring import reward_model

    judge = reward_model.build(model, weights, Letters(), reader=scorer)
    for row, record in zip(rows, records):
        answers = row["responses"]
        assert sum(record["scores"]) == pytest.approx(len(answers) / 2), "what one wins another loses"
        others = judge.compare([(row["prompt"], answers[0], other) for other in answers[1:]])
        assert record["scores"][0] == pytest.approx(np.mean([said.score for said in others]), abs=1e-5)
    assert set(results["trivial_judges"]) == {"longer", "shorter", "random"}


def test_equal_answers_share_the_top(networks):  # noqa: F811
    row = {"id": "x", "subset": "Math", "prompt": "p", "responses": ["same"] * 4, "num_correct": 1}
    for name in ("score", "judge"):
        results, (record,) = run(networks[name], [row])
        assert len(set(record["scores"])) == 1 and results["accuracy"] == 0.25


def test_what_cannot_be_scored_is_counted(networks):  # noqa: F811
    rows = lists(2)
    rows[0]["responses"][2] = "x" * 500
    results, records = run(networks["judge"], rows, overlong="drop")
    assert len(records) == len(rows) - 1 and results["num_skipped"] == 1
    assert list(results["skipped"].values())[0]["first"] == "m0"
    with pytest.raises(DataError, match="0 of 1 lists can be scored: 1 longer than"):
        run(networks["judge"], rows[:1], overlong="drop")
    with pytest.raises(DataError, match="'num_correct' is None beside 4 responses"):
        run(networks["judge"], [rows[1] | {"num_correct": None}])


def test_the_command_writes_results_and_leaderboard_files(tmp_path, capsys):
    """From a published file to what the leaderboard merges; made again without the model, under another name."""
    run_folder = tmp_path / "runs" / "tiny"
    config = __file__.replace("evals/test_rewardbench2_eval.py", "jobs/tiny.py")
    assert cli.main(["train", f"--config={config}:bradley_terry", f"--workdir={run_folder}",
                     "--config.train.steps=1", "--config.train.evaluate=False"]) == 0  # fmt: skip
    rows = [{"id": row["id"], "prompt": row["prompt"], "chosen": row["responses"][: row["num_correct"]],
             "rejected": row["responses"][row["num_correct"] :], "num_correct": row["num_correct"],
             "total_completions": len(row["responses"]), "subset": row["subset"]} for row in lists()]  # fmt: skip
    source = tmp_path / "v2.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "judged"
    capsys.readouterr()
    assert cli.main(["evaluate", "--config=rewardbench2", f"--config.model.path={run_folder}",
                     f"--config.data.path={source}", f"--workdir={out}",
                     "--config.tokenizer.chat_template=none"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "no overall score of rewardbench2: no rows of Factuality, Focus" in said and "longer alone" in said
    results = json.loads((out / "eval" / "rewardbench2.json").read_text())
    table = json.loads((out / "eval/exports/rewardbench2/eval-set/runs/tiny.json").read_text())
    assert table["Math"] == results["rewardbench2"]["subsets"]["Math"]["score"]
    assert table["Ties"] == results["rewardbench2_ties"] and table["model"] == "runs/tiny"
    assert table["model_type"] == "Seq. Classifier" and table["chat_template"] == "none"
    assert cli.main(["leaderboard", str(out), "--model=org/name"]) == 0
    again = json.loads((out / "eval/exports/rewardbench2/eval-set/org/name.json").read_text())
    assert again == table | {"model": "org/name"}
