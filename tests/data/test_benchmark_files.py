"""Benchmark files as they are published: which rows they give, ties included, and golden numbers of trivial judges."""

import json
from pathlib import Path

import pytest

from gramjax.core import leaderboards, trivial_judges
from gramjax.core.errors import DataError
from gramjax.data import readers, rows


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in value)
    path.write_text(text, "utf-8")
    return str(path)


def judged(source):
    """The trivial judges on a preference file, as `gramjax evaluate` counts them."""
    found = readers.read(str(source), want="preference")
    records = [
        {"id": row["id"], "subset": row["subset"], **leaderboards.columns(row),
         "chosen_length": rows.text_length(row["chosen"]), "rejected_length": rows.text_length(row["rejected"])}
        for row in found.rows
    ]  # fmt: skip
    return records, {name: trivial_judges.judged(records, name) for name in trivial_judges.NAMES}


GOLDEN = {
    # pairs, then right ones of knowledge, reasoning, math, code for the longer answer, and for the shorter one
    ("gpt", "gpt-4o-2024-05-13"): (350, (154, 98, 56, 42), (68, 41, 29, 23), (86, 57, 27, 19), (48.137, 51.863)),
    ("claude", "claude-3-5-sonnet-20240620"): (270, (154, 51, 34, 31), (68, 22, 14, 14), (85, 29, 20, 16),
                                               (43.410, 55.620)),
}  # fmt: skip


@pytest.mark.parametrize("names", GOLDEN, ids=lambda names: names[0])
def test_golden_numbers_of_judgebench(names, data_dir):
    """Longer and shorter answer on both files; micro and macro averages, and nothing of one in the other (D4)."""
    places = [f"judgebench/{names[0]}.json", f"judgebench/dataset=judgebench,response_model={names[1]}.jsonl"]
    path = next((data_dir / place for place in places if (data_dir / place).is_file()), None)
    if path is None:
        pytest.skip(f"needs JudgeBench: {' or '.join(places)} in GRAMJAX_DATA")
    pairs, totals, longer, shorter, macro = GOLDEN[names]
    records, judges = judged(path)
    assert len(records) == pairs
    for name, right, expected in (("longer", longer, macro[0]), ("shorter", shorter, macro[1])):
        table = leaderboards.judgebench(judges[name])["official"]
        order = ("knowledge", "reasoning", "math", "code")
        assert [table["categories"][c]["num_pairs"] for c in order] == list(totals)
        assert [round(table["categories"][c]["accuracy"] * n) for c, n in zip(order, totals)] == list(right)
        assert table["micro"] == pytest.approx(sum(right) / pairs)
        assert 100 * table["macro"] == pytest.approx(expected, abs=5e-4)
    if names[0] == "claude":
        assert sum(pair["tie"] for pair in judges["longer"]) == 2


def judgebench(identity, source, good, bad, label="A>B"):
    first, second = (good, bad) if label == "A>B" else (bad, good)
    return {"pair_id": identity, "original_id": f"o{identity}", "source": source, "question": "q?",
            "response_model": "m", "response_A": first, "response_B": second, "label": label}  # fmt: skip


def test_ties_of_length_are_counted_and_never_dropped(tmp_path):
    """Two pairs of equal length, one of them twice the same text: wrong for both length judges, in the denominator."""
    pairs = [
        judgebench("1", "mmlu-pro-law", "long answer", "short"), judgebench("2", "mmlu-pro-law", "no", "long", "B>A"),
        judgebench("3", "livecodebench", "same", "size"), judgebench("4", "livecodebench", "twin", "twin", "B>A"),
    ]  # fmt: skip
    records, judges = judged(write(tmp_path / "claude.jsonl", pairs))
    assert len(records) == 4 and leaderboards.benchmark_of(records) == "judgebench"
    for name, law in (("longer", 0.5), ("shorter", 0.5)):
        assert [pair["tie"] for pair in judges[name]] == [False, False, True, True]
        table = leaderboards.judgebench(judges[name])["official"]
        assert table["micro"] == 0.25 and table["macro"] == pytest.approx(law / 2)
        assert table["categories"]["code"]["accuracy"] == 0


def test_identical_answers_are_still_dropped_where_no_benchmark_counts_them(tmp_path):
    plain = [{"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    found = readers.read(write(tmp_path / "plain.jsonl", plain), want="preference")
    assert len(found.rows) == 1 and list(found.dropped) == ["identical chosen/rejected"]


def test_rewardbench_rows(tmp_path):
    row = {"prompt": "p", "chosen": "a", "chosen_model": "x", "rejected": "b", "rejected_model": "y", "id": 7}
    found = readers.read(write(tmp_path / "f.jsonl", [row | {"subset": "hep-go"}]), want="preference").rows[0]
    assert found["id"] == "7" and leaderboards.columns(found) == {"benchmark": "rewardbench"}
    assert found["prompt"] == [{"role": "user", "content": "p"}]
    other = readers.read(write(tmp_path / "g.jsonl", [row | {"subset": "shp"}]), want="preference").rows[0]
    assert leaderboards.benchmark_of([other]) == "" and leaderboards.benchmark_of([found]) == "rewardbench"


SECOND = {"id": "tied:3", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c", "a"], "num_correct": 2,
          "total_completions": 4, "num_rejected": 2, "subset": "Ties", "models": ["m"]}  # fmt: skip


def test_rewardbench_2_is_read_as_lists_or_as_pairs(tmp_path):
    path = write(tmp_path / "v2.jsonl", [SECOND, SECOND | {"id": "ref:3", "chosen": ["a"], "num_correct": 1}])
    found = readers.read(path, want="responses")
    assert found.type == "responses" and [row["id"] for row in found.rows] == ["tied:3", "ref:3"]
    assert [answer[0]["content"] for answer in found.rows[0]["responses"]] == list("abca"), "correct ones first"
    assert found.rows[0]["num_correct"] == 2 and found.rows[0]["benchmark"] == "rewardbench2"
    pairs = readers.read(path, want="preference").rows
    assert len(pairs) == 4 + 2 and leaderboards.benchmark_of(pairs) == ""
    with pytest.raises(DataError, match="'num_correct' is 3 beside 2 chosen"):
        readers.read(write(tmp_path / "bad.jsonl", [SECOND | {"num_correct": 3}]), want="responses")


def big_bench(group, pairs):
    examples = [{"input": q, "target_scores": {good: 1, bad: 0}} for q, good, bad in pairs]
    return {"name": f"hhh_alignment.{group}", "description": "d", "examples": examples, "metrics": ["x"]}


def test_hhh_as_big_bench_has_it(tmp_path):
    """A folder of task files, one object each over many lines; the group is the name of the task or of the folder."""
    talk = "Human: Hi\n\nAssistant: Hello\n\nHuman: Which way?\n\nAssistant:"
    tasks = {"helpful": [("What?", "This.", "That."), (talk, "Left.", "Right.")],
             "other": [("Why?", "So.", "No."), ("Who?", "I.", "They.")]}  # fmt: skip
    for group, pairs in tasks.items():
        task = big_bench(group, pairs) | ({} if group == "helpful" else {"name": "task"})
        path = Path(write(tmp_path / "hhh" / group / "task.json", task))
        path.write_text(json.dumps(task, indent=2), "utf-8")
    found = readers.read(str(tmp_path / "hhh"), want="preference").rows
    assert [row["subset"] for row in found] == ["helpful", "helpful", "other", "other"]
    assert leaderboards.benchmark_of(found) == "hhh" and len({row["id"] for row in found}) == 4
    assert found[0]["prompt"] == [{"role": "user", "content": "What?"}]
    assert [turn["role"] for turn in found[1]["prompt"]] == ["user", "assistant", "user"]
    assert found[1]["chosen"][0]["content"] == "Left." and found[1]["rejected"][0]["content"] == "Right."


def test_hhh_with_labels_and_without_a_group(tmp_path):
    row = {"input": "What?", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}}
    found = readers.read(write(tmp_path / "honest.jsonl", [row, row]), want="preference").rows
    assert [r["subset"] for r in found] == ["honest"] * 2 and found[0]["chosen"][0]["content"] == "good"
    with pytest.raises(DataError, match="which of helpful, honest, harmless, other.*column 'subset'"):
        readers.read(write(tmp_path / "all.jsonl", [row]), want="preference")
    named = readers.read(write(tmp_path / "all.jsonl", [row | {"subset": "harmless"}]), want="preference").rows
    assert named[0]["subset"] == "harmless"


def test_a_json_file_may_be_one_object_or_lines(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=4))
    (tmp_path / "lines.json").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert [len(readers.read(str(tmp_path / f"{name}.json")).rows) for name in ("one", "lines")] == [1, 2]
