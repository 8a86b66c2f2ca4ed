"""`gramjax data check` and `gramjax data convert`."""

import json
import subprocess
import sys

import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import readers, text, tokenizer
from gramjax.jobs import data as job

ROWS = [
    {"prompt": f"question {i}?", "chosen": "a good answer", "rejected": "a bad answer" + " again" * i} for i in range(5)
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.jsonl"
    bad = [ROWS[0] | {"rejected": "a good answer"}, {"question": "q", "answer": "a"}]
    lines = [json.dumps(row) for row in [*ROWS, *bad]] + ["{broken"]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def report(capsys, *arguments):
    code = job.main(["check", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_json_report(file, capsys):
    code, found = report(capsys, file)
    assert code == 0
    assert (found["type"], found["rows"], found["usable"]) == ("preference", 8, 5)
    assert found["dropped"] == {"identical chosen/rejected": 1, "wrong columns": 1, "invalid JSON": 1}
    assert (
        found["refused"] == 2 and "my.jsonl row 7: has 'question','answer'" in found["first_dropped"]["wrong columns"]
    )
    assert found["lengths"]["unit"] == "characters" and sum(found["lengths"]["histogram"].values()) == 5


def test_lengths_in_tokens_and_overlong_rows(file, capsys):
    one = text.Renderer(tokenizer.byte_level(), job.DataSection(max_length=10_000))
    sizes = [len(one.judge(row["prompt"], row["chosen"], row["rejected"])) for row in ROWS]
    code, found = report(capsys, file, "--tokenizer=bytes", f"--max_length={sizes[2]}")
    assert code == 0 and found["usable"] == 3 and found["dropped"][f"longer than max_length {sizes[2]}"] == 2
    assert found["overlong"] == sizes[3:] and found["lengths"]["max"] == sizes[2] and found["rows"] == 8
    code, found = report(capsys, file, "--tokenizer=bytes", f"--max_length={sizes[2]}", "--overlong=shorten_responses")
    assert found["usable"] == 5 and found["shortened"] == 2


def test_three_rows_are_shown_with_special_tokens_and_what_is_scored(file, capsys):
    code = job.main(["check", str(file), "--tokenizer=bytes", "--render=completion"])
    shown = capsys.readouterr().out
    assert code == 0 and shown.count("--- my-1") == 2 and "--- my-3" in shown and "--- my-4" not in shown
    assert "<|bos|>question 0?⟦a good answer<|eos|>⟧" in shown
    assert "dropped   1 identical chosen/rejected; first: my.jsonl row 6" in shown
    assert "training stops at 2 of these" in shown and "<=" in shown


def test_nothing_usable_is_exit_code_3(tmp_path, capsys):
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    code, found = report(capsys, path)
    assert code == 3 and found["usable"] == 0 and found["dropped"] == {"wrong columns": 1}
    path.write_text("")
    with pytest.raises(DataError, match="0 records"):
        job.main(["check", str(path)])


def test_rename_type_and_leak_check(tmp_path, file, capsys):
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps({"question": "question 1?", "completion": "x"}) + "\n")
    code, found = report(capsys, path, "--rename=question:prompt", f"--against={file}")
    assert code == 0 and found["type"] == "prompt_completion" and found["overlap"] == 1
    code, found = report(capsys, file, "--type=pair_unlabelled", "--tokenizer=recipe:word_translation")
    assert found["type"] == "pair_unlabelled" and found["usable"] == 5


def test_real_file(data_dir, capsys):
    path = data_dir / "hh_harmless" / "dev.jsonl.gz"
    code, found = report(capsys, path)
    assert code == 0 and found["format"] == "hh" and found["rows"] == 1751
    assert found["usable"] == 1747 and found["dropped"] == {"empty chosen": 4}


def test_convert_writes_trl_rows_that_read_back(file, tmp_path, capsys):
    target = tmp_path / "out.jsonl"
    assert job.main(["convert", str(file), str(target)]) == 0
    captured = capsys.readouterr()
    assert "5 preference rows" in captured.out and "left out 1 invalid JSON" in captured.err
    again = readers.read(str(target)).rows
    assert [row["id"] for row in again] == [f"my-{i}" for i in range(1, 6)]
    assert [row["chosen"] for row in again] == ["a good answer"] * 5
    with pytest.raises(UserError, match="exists; use --overwrite"):
        job.main(["convert", str(file), str(target)])
    with pytest.raises(UserError, match="written as .jsonl"):
        job.main(["convert", str(file), str(tmp_path / "out.csv")])


def test_the_job_imports_no_jax(file):
    code = (
        "import sys; from gramjax.jobs import data; "
        f"data.main(['check', {str(file)!r}, '--tokenizer=bytes', '--json']); "
        "print([m for m in ('jax', 'torch', 'transformers', 'tensorflow') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "[]"
