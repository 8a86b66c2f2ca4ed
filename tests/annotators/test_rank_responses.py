"""Lists ranked by a judge: the rankings of the judge's own comparisons, whatever else is ranked beside them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import written_judge as written  # noqa: E402

from gramjax.annotators import rank_responses  # noqa: E402
from gramjax.core.errors import UserError  # noqa: E402
from gramjax.data import readers  # noqa: E402
from gramjax.data.recipes import permutation_world as world  # noqa: E402
from gramjax.data.rows import Drop  # noqa: E402
from gramjax.generation import judging  # noqa: E402


def lists(count=4, size=4):
    """Rows with several responses to one prompt."""
    pairs = world.rows("unlabelled", count * size)
    return [
        {"id": f"list-{n}", "prompt": pairs[n * size]["prompt"],
         "responses": [pairs[n * size + k]["responses"][0] for k in range(size)]}
        for n in range(count)
    ]  # fmt: skip


def annotate(rows, sampler=None, refuse=None, seed=0, n=2, temperature=1.0, **settings):
    choices = {name: settings.pop(name) for name in ("overlong",) if name in settings}
    config = rank_responses.Config(judging=written.judging(n, temperature=temperature, **choices), **settings)
    found = list(rank_responses.annotate(iter(rows), sampler or written.sampler(), config, seed, refuse))
    json.dumps(found, allow_nan=False)
    return found


@pytest.mark.parametrize("score", judging.SCORES)
def test_a_tournament_has_the_mean_wins_of_its_comparisons(score):
    """Every pair is judged as `judge` judges it alone; wins, order and counts follow."""
    rows = lists()
    for row, out in zip(rows, annotate(rows, score=score), strict=True):
        assert {name: out[name] for name in row} == row
        assert [c["pair"] for c in out["comparisons"]] == [[i, j] for i in range(4) for j in range(i + 1, 4)]
        wins = [[] for _ in range(4)]
        for compared in out["comparisons"]:
            i, j = compared["pair"]
            pair = {"id": f"{row['id']}/{i}-{j}", "prompt": row["prompt"],
                    "responses": [row["responses"][i], row["responses"][j]]}  # fmt: skip
            ((_, judged),) = judging.judge([pair], written.sampler(), written.judging(2))
            assert compared["win"] == pytest.approx(judged.over_orders(judged.values(score)), abs=1e-4)
            assert compared["votes_a"] == sum(d.verdict == "A" for d in judged.draws)
            wins[i].append(compared["win"])
            wins[j].append(1 - compared["win"])
        assert out["wins"] == pytest.approx([sum(w) / 3 for w in wins])
        assert [out["wins"][i] for i in out["ranking"]] == sorted(out["wins"], reverse=True)
        assert (out["method"], out["num_comparisons"], out["num_judgements"]) == ("round_robin", 6, 12)


@pytest.mark.parametrize("method", ["linear", "knockout", "round_robin"])
def test_a_list_is_ranked_as_if_it_were_alone(method):
    """Other lists in the same batches change nothing; the lists come in order."""
    rows = [*lists(3), *({**row, "id": f"short-{row['id']}", "responses": row["responses"][:2]} for row in lists(2))]
    found = annotate(rows, method=method, score="votes")
    assert [out["id"] for out in found] == [row["id"] for row in rows]
    for row, out in zip(rows, found, strict=True):
        (alone,) = annotate([row], method=method, score="votes")
        assert out == alone and sorted(out["ranking"]) == list(range(len(row["responses"])))


def test_the_best_of_n_takes_n_minus_one_comparisons():
    for method in ("linear", "knockout"):
        for out in annotate(lists(2, 5), method=method, top=1, temperature=0.0):
            assert len(out["ranking"]) == 1 and out["num_comparisons"] == 4
            best = out["ranking"][0]
            assert all(
                (c["win"] if c["pair"][0] == best else 1 - c["win"]) >= 0.5
                for c in out["comparisons"] if best in c["pair"]
            )  # fmt: skip


def test_equal_responses_and_unreadable_verdicts_are_ties():
    row = {**lists(1)[0]}
    row["responses"] = [row["responses"][0]] * 3
    (out,) = annotate([row])
    assert out["wins"] == [0.5] * 3 and out["num_judgements"] == 0 and out["num_undecided"] == 0
    (out,) = annotate(lists(1, 3), written.sampler(unreadable=40.0))
    assert out["wins"] == [0.5] * 3 and (out["num_judgements"], out["num_undecided"]) == (6, 3)
    assert all(c["win"] is None and c["failed"] == 2 for c in out["comparisons"])


def test_lists_that_cannot_be_ranked_are_refused():
    rows = lists(3)
    rows[1] = {**rows[1], "responses": [*rows[1]["responses"][:3], "Out: d f a k " * 30]}
    rows.append({**rows[0], "id": "one", "responses": ["Out: a"]})
    refused = []
    found = annotate(rows, refuse=lambda row, reason: refused.append((row["id"], reason)), overlong="drop")
    assert [out["id"] for out in found] == ["list-0", "list-2"]
    assert [name for name, _ in refused] == ["list-1", "one"]
    assert "max_length 48" in refused[0][1] and refused[1][1] == rank_responses.TOO_FEW
    with pytest.raises(Drop, match="max_length"):
        annotate(rows[1:2], overlong="drop")
    with pytest.raises(UserError, match="annotator.score is 'wins'"):
        annotate(rows, score="wins")
    with pytest.raises(UserError, match="ranking method"):
        annotate(rows, method="best")


def test_lists_are_read_from_files(tmp_path):
    """Two answers or more; a pair is a short list."""
    path = tmp_path / "lists.jsonl"
    rows = [{**lists(1, 2)[0], "id": "pair"}, *lists(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = readers.read(str(path), want=rank_responses.ROW_TYPES)
    assert found.type == "responses" and found.rows == rows
