"""`gramjax data contamination`: what is the same question, in any order, script and spelling, and what is kept."""

import json
import random

import pytest

from gramjax import cli
from gramjax.core.errors import DataError, UserError
from gramjax.data import contamination

LONG = " ".join(f"word{i}" for i in range(20))


def row(identity, prompt, **fields):
    return {"id": str(identity), "prompt": prompt} | fields


def ids(train, evaluation, n=13):
    return contamination.compare(train, evaluation, n).contaminated


def test_thirteen_words_in_a_row_and_not_twelve():
    words = [f"w{i}" for i in range(30)]
    question = row("e", " ".join(words))
    inside = row("13", " ".join(["x"] * 9 + words[5:18] + ["y"] * 9))
    shorter = row("12", " ".join(["x"] * 9 + words[5:17] + ["y"] * 9))
    assert ids([inside, shorter], [question]) == {"13": "e"}
    assert ids([inside, shorter], [question], n=12) == {"13": "e", "12": "e"}
    gap = row("gap", " ".join(words[:12] + ["other"] + words[13:25]))
    assert ids([gap], [question]) == {}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (LONG, LONG.upper().replace(" ", ",  ") + "!"),
        ("Straße ﬁne ＡＢＣ " + LONG, "STRASSE FINE abc " + LONG),  # case folding, ligature, full width
        ("cafe\u0301 " + LONG, "caf\u00e9 " + LONG),  # combining and single accent
        ("他昨天在北京的图书馆里借了三本书和一张地图", "问：他昨天在北京的图书馆里借了三本书和一张地图。"),
        ("मैंने कल बाज़ार से दस किलो चावल और पाँच किलो आटा ख़रीदा था क्योंकि मेहमान आ रहे थे",
         "«मैंने कल बाज़ार से दस किलो चावल और पाँच किलो आटा ख़रीदा था क्योंकि मेहमान आ रहे थे»"),
    ],
)  # fmt: skip
def test_one_question_in_two_spellings(one, two):
    assert ids([row("t", two)], [row("e", one)]) == {"t": "e"} == ids([row("t", one)], [row("e", two)])


def test_words_of_scripts():
    assert contamination.words("Don't_stop: naïve 日本語、मैंने!") == ["don", "t", "stop", "naïve", "日", "本", "語", "मैंने"]
    assert contamination.words("…?!") == []


def test_short_prompts_are_compared_whole():
    evaluation = [row("e", "What is two plus two?")]
    train = [row("same", "what is TWO plus two"), row("longer", "Say it: what is two plus two? " + LONG),
             row("part", "two plus two"), row("empty", "?!")]  # fmt: skip
    found = contamination.compare(train, evaluation)
    assert found.contaminated == {"same": "e"}
    assert found.train == {"rows": 4, "without_prompt": 1, "short": 2}


def test_answers_and_system_turns_do_not_count():
    system = {"role": "system", "content": LONG}
    train = [
        row("answer", "hi", chosen=LONG, rejected="x"),
        row("system", [system, {"role": "user", "content": "hello there"}]),
        {"id": "talk", "messages": [{"role": "user", "content": "hey"}, {"role": "assistant", "content": LONG}]},
        {"id": "asked", "messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "yes"}]},
        row("turn", [{"role": "user", "content": "hi"}, {"role": "user", "content": f"so: {LONG}"}]),
    ]
    evaluation = [row("e", [system, {"role": "user", "content": LONG}])]
    assert set(ids(train, evaluation)) == {"asked", "turn"}


def test_the_order_of_rows_changes_nothing_but_the_examples():
    generator = random.Random(0)
    pool = ["a", "b", "c", "d"]
    make = lambda: " ".join(generator.choices(pool, k=generator.randint(2, 9)))  # noqa: E731
    train, evaluation = [row(f"t{i}", make()) for i in range(300)], [row(f"e{i}", make()) for i in range(40)]
    found = contamination.compare(train, evaluation, 4)
    assert 0 < len(found.contaminated) < 300 and 0 < len(found.hits) <= 40

    def slow(one, two):  # the definition, word by word
        one, two = one["prompt"].split(), two["prompt"].split()
        if min(len(one), len(two)) < 4:
            return one == two
        return any(one[i : i + 4] == two[j : j + 4] for i in range(len(one) - 3) for j in range(len(two) - 3))

    pairs = [(t["id"], e["id"]) for t in train for e in evaluation if slow(t, e)]
    assert set(found.contaminated) == {t for t, _ in pairs}
    assert found.hits == {e: sum(other == e for _, other in pairs) for e in {e for _, e in pairs}}
    generator.shuffle(train)
    generator.shuffle(evaluation)
    again = contamination.compare(train, evaluation, 4)
    assert again.hits == found.hits and set(again.contaminated) == set(found.contaminated)
    assert again.shared == found.shared and again.train == found.train


# -- the command


@pytest.fixture
def files(tmp_path):
    train = [{"prompt": f"{LONG} {i}" if i % 3 == 0 else f"question {i}", "chosen": "a", "rejected": f"b{i}"}
             for i in range(9)]  # fmt: skip
    lines = [json.dumps(r) for r in train] + ["{broken"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    asked = {"prompt": LONG, "completion": "x", "label": True, "id": "q"}
    (tmp_path / "eval.jsonl").write_text(json.dumps(asked) + "\n")
    return tmp_path


def run(files, *more):
    return cli.main(["data", "contamination", "--train", str(files / "train.jsonl"), "--eval",
                     str(files / "eval.jsonl"), *map(str, more)])  # fmt: skip


def test_report_and_filtered_copy(files, capsys):
    target = files / "out" / "clean.jsonl"
    assert run(files, "--json", "--output", target) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["train"]["contaminated"], report["train"]["rows"], report["train"]["unread"]) == (3, 9, 1)
    assert report["train"]["share"] == pytest.approx(1 / 3) and report["eval"]["contaminated"] == 1
    assert report["examples"][0]["train"] == "train-1" and report["examples"][0]["eval"] == "q"
    assert report["most_shared"][0]["train_rows"] == 3 and report["output"] == {"file": str(target), "rows": 6}
    kept = [json.loads(line) for line in target.read_text().splitlines()]
    assert [r["prompt"] for r in kept] == [f"question {i}" for i in range(9) if i % 3]
    assert all(r["chosen"] == "a" for r in kept)
    assert cli.main(["data", "contamination", "--train", str(target), "--eval", str(files / "eval.jsonl")]) == 0
    assert "0 of 6 rows" in capsys.readouterr().out, "the copy is clean"


def test_the_printed_report(files, capsys):
    assert run(files) == 0
    said = capsys.readouterr().out
    assert "training   3 of 9 rows (33.33 %)" in said and "evaluation 1 of 1 rows" in said
    assert "1 rows were not looked at: unreadable" in said and "train-1 and q: 'word0 word1" in said


def test_several_files_name_their_rows(files, capsys):
    again = files / "again.jsonl"
    again.write_text((files / "eval.jsonl").read_text())
    assert run(files, "--eval", again, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["eval"]["contaminated"] == 2 and report["examples"][0]["eval"].endswith("eval.jsonl: q")


def test_errors(files):
    with pytest.raises(UserError, match="--n is 0"):
        run(files, "--n", 0)
    with pytest.raises(UserError, match="written as .jsonl"):
        run(files, "--output", files / "x.csv")
    (files / "there.jsonl").write_text("")
    with pytest.raises(UserError, match="exists; use --overwrite"):
        run(files, "--output", files / "there.jsonl")
    (files / "eval.jsonl").write_text((files / "train.jsonl").read_text())
    with pytest.raises(DataError, match="every row of"):
        run(files, "--output", files / "there.jsonl", "--overwrite")
