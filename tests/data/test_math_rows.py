"""Problems with a right answer: what the published files become, and that every right answer can be read again."""

import gzip
import json

import pytest

from gramjax import cli
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError
from gramjax.data import formats, math_answers, readers
from gramjax.data.rows import Drop


def one(record, want=("prompt_only",)):
    name, (row,) = formats.adapt(record, "f row 1", want)
    return name, row


def asked(row):
    (turn,) = row["prompt"]
    assert turn["role"] == "user"
    return turn["content"]


def test_gsm8k():
    record = {"question": "How many? ", "answer": "2*600=<<2*600=1200>>1200\n#### 1,200", "src_row": 4}
    name, row = one(record)
    assert name == "gsm8k" and asked(row) == "How many?" and row["src_row"] == 4
    assert (row["answer"], row["answer_kind"]) == ("1200", "number")
    assert row["solution"] == record["answer"], "with its calculator marks and the last line"
    assert "completion" not in row and "question" not in row
    _, taught = one(record, ("prompt_completion", "language_modeling"))
    assert taught["completion"] == [{"role": "assistant", "content": record["answer"]}]
    with pytest.raises(DataError, match="f row 1: nothing follows ####"):
        one({"question": "q", "answer": "so\n####  "})


def test_math_and_competitions():
    record = {"problem": "Find $x$.", "answer": "\\frac{1}{2}", "type": "Algebra", "level": "Level 5"}
    name, row = one(record)
    assert name == "math" and asked(row) == "Find $x$." and row["answer_kind"] == "boxed"
    assert (row["answer"], row["subset"], row["level"]) == ("\\frac{1}{2}", "Algebra", "Level 5")
    _, row = one({"problem": "p", "solution": "First \\boxed{1}. Then \\boxed{\\frac{2}{3}}.", "subject": "Geometry"})
    assert (row["answer"], row["subset"]) == ("\\frac{2}{3}", "Geometry") and row["solution"].startswith("First")
    assert one({"problem": "p", "answer": 204})[1]["answer"] == "204"
    with pytest.raises(DataError, match="no .boxed"):
        one({"problem": "p", "solution": "It is 3."})
    for empty in (" ", None):
        with pytest.raises(Drop, match="problem without an answer"):
            one({"problem": "p", "answer": empty})
    with pytest.raises(DataError, match="f row 1: 'answer' is"):
        one({"problem": "p", "answer": ["1"]})


@pytest.mark.parametrize("given,answer", [("18", "18"), ("8.0", "8.0"), ("1,450", "1450"), (7, "7"), ("$5", "5")])
def test_a_question_with_a_number(given, answer):
    name, row = one({"question": "q?", "answer": given, "equation": None})
    assert name == "question and number" and (row["answer"], row["answer_kind"]) == (answer, "number")


@pytest.mark.parametrize("given", ["Paris", "18 apples", "", None, True, ["7"]])
def test_other_questions_stay_what_they_are(given):
    """A question with a text is no mathematics: the reader says how to rename it, as before."""
    assert formats.adapt({"question": "q?", "answer": given}, "f row 1")[0] == "trl"


def test_options():
    options = ["A)10", "B) 20", "(C) 30", "D.40", "50"]
    record = {"question": "Which? ", "options": options, "rationale": "Answer D", "correct": "D"}
    name, row = one(record)
    assert name == "choice" and asked(row) == "Which?\n(A) 10\n(B) 20\n(C) 30\n(D) 40\n(E) 50"
    assert (row["answer"], row["answer_kind"], row["solution"]) == ("D", "choice", "Answer D")
    assert row["options"] == options
    for letter in ("F", "", "AB"):
        with pytest.raises(DataError, match="f row 1: 'correct' is"):
            one(record | {"correct": letter})


@pytest.mark.parametrize("packed", [False, True])
def test_questions_in_tsv(packed, tmp_path):
    """MGSM as it is published: no header, quotation marks are text, a thousands separator may stand in the answer."""
    lines = b'"A" costs 3; how much?\t18\nWie viel?\t1,450\n\n'
    path = tmp_path / ("mgsm_de.tsv.gz" if packed else "mgsm_de.tsv")
    path.write_bytes(gzip.compress(lines) if packed else lines)
    found = readers.read(str(path))
    assert found.type == "prompt_only" and found.format == "question and number"
    assert [row["answer"] for row in found.rows] == ["18", "1450"] and asked(found.rows[0]).startswith('"A" costs')
    assert [row["id"] for row in found.rows] == ["mgsm_de-1", "mgsm_de-2"]
    path.write_bytes(gzip.compress(lines + b"three\tcolumns\there\n") if packed else lines + b"three\tcolumns\there\n")
    with pytest.raises(DataError, match="row 3.*3 columns"):
        readers.read(str(path))


def test_data_check_understands_them(tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a\n#### 3"}) + "\n")
    assert cli.main(["data", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "prompt_only rows (read from gsm8k form)" in said and "usable    1 of 1 rows" in said


MGSM = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "zh")
SIZES = {
    "gsm8k/train": 7473, "gsm8k/test_dev": 660, "math/train": 7470, "math/math500_dev": 250, "aqua/dev": 254,
    **{f"mgsm/{language}": 250 for language in MGSM},
    **{f"msvamp/{language}": 700 for language in ("bengali", "english", "thai", "swahili")},
}  # fmt: skip


@pytest.fixture(scope="module")
def problems(data_dir):
    """A function from the name of a set to its rows; skipped where it is absent."""

    def read(name):
        path = data_dir / f"{name}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"needs {name} in GRAMJAX_DATA")
        return readers.read(str(path), DataSection(), "prompt_only")

    return read


@pytest.mark.parametrize("name", SIZES)
def test_real_files(name, problems):
    """S-10: every row is read, and every right answer, written as a model would, is graded right."""
    found = problems(name)
    assert len(found.rows) == SIZES[name]
    lost = {"problem without an answer": (4, "train.jsonl.gz row 887")} if name == "math/train" else {}
    assert dict(found.dropped) == lost
    for row in found.rows:
        reply = f"So it is \\boxed{{{row['answer']}}}."
        verdict = math_answers.grade(reply, row["answer"], row["answer_kind"])
        assert verdict.correct, (row["id"], row["answer"], verdict)
        assert asked(row) and "####" not in row["answer"]
    if name.startswith("gsm8k"):
        assert all(math_answers.grade(row["solution"], row["answer"], "number").correct for row in found.rows)


def test_languages_share_their_answers(problems):
    """S-10: row i of every language is the same problem; and MGSM is the beginning of GSM8K's test set."""
    english = [float(row["answer"]) for row in problems("mgsm/en").rows]
    for language in MGSM:
        assert [float(row["answer"]) for row in problems(f"mgsm/{language}").rows] == english
    assert [float(row["answer"]) for row in problems("gsm8k/test_dev").rows[:250]] == english
    numbers = [[float(row["answer"]) for row in problems(f"msvamp/{n}").rows] for n in ("english", "thai", "bengali")]
    assert numbers[0] == numbers[1] == numbers[2]
