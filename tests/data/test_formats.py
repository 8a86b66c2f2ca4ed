"""Foreign rows to TRL names."""

import pytest

from gramjax.core.errors import DataError
from gramjax.data import formats
from gramjax.data.rows import Drop

PRE = {
    "instruction": "[User Question]\nWhat is {2}?\n\n",
    "input": "",
    "output": "[The Start of Assistant A's Answer]\nx = {1};\n}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n\\n\n[The End of Assistant B's Answer]",
}


def one(record, want=("preference",)):
    name, made = formats.adapt(record, "f row 1", want)
    assert len(made) == 1
    return name, made[0]


def text(turns):
    return [(turn["role"], turn["content"]) for turn in turns]


def test_gram_pretraining_rows_keep_braces_and_backslashes():
    name, row = one(PRE)
    assert name == "gram pre-training" and text(row["prompt"]) == [("user", "What is {2}?")]
    assert [answer[0]["content"] for answer in row["responses"]] == ["x = {1};\n}", "\\n"]


@pytest.mark.parametrize(("letter", "chosen"), [("A", "one"), ("B", "two")])
def test_gram_finetuning_rows(letter, chosen):
    record = {
        "instruction": "Judge. [User Question] is marked.\n\n[User Question]\nq?\n\n"
        "[The Start of Assistant A's Answer]\none\n"
        "[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\ntwo\n"
        "[The End of Assistant B's Answer]\n\n#Preferred:",
        "input": "",
        "output": letter,
        "source": "x",
    }
    name, row = one(record)
    assert name == "gram fine-tuning" and text(row["prompt"]) == [("user", "q?")] and row["source"] == "x"
    assert (
        row["chosen"][0]["content"] == chosen and row["rejected"][0]["content"] == {"one": "two", "two": "one"}[chosen]
    )


def test_an_answer_that_holds_a_marker_is_refused():
    record = PRE | {"output": PRE["output"] + "[The Start of Assistant A's Answer]"}
    with pytest.raises(DataError, match="f row 1: 'output' holds the marker .* 2 times"):
        formats.adapt(record, "f row 1")


def test_alpaca_rows():
    name, row = one(
        {"instruction": "Add", "input": "1 2", "output": "3", "system": "be brief", "history": [["a", "b"]]}
    )
    assert name == "alpaca" and row["completion"][0]["content"] == "3"
    assert text(row["prompt"]) == [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "Add\n1 2")]
    _, row = one({"instruction": "i", "input": "", "chosen": "c", "rejected": "r"})
    assert text(row["prompt"]) == [("user", "i")] and text(row["chosen"]) == [("assistant", "c")]
    _, row = one({"instruction": "i", "output": "o", "kto_tag": False})
    assert row["label"] is False and text(row["completion"]) == [("assistant", "o")]


def test_sharegpt_rows():
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "q2"}]
    good, bad = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
    name, row = one({"conversations": talk, "chosen": good, "rejected": bad, "system": "s"})
    assert name == "sharegpt" and [turn[0] for turn in text(row["prompt"])] == ["system", "user", "assistant", "user"]
    assert text(row["chosen"]) == [("assistant", "good")] and text(row["rejected"]) == [("assistant", "bad")]
    _, row = one({"conversations": talk[:2]})
    assert text(row["messages"]) == [("user", "q"), ("assistant", "a")]
    _, row = one({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True})
    assert row["label"] is True and text(row["completion"]) == [("assistant", "a")]


def test_hh_dialogues():
    head = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?"
    name, row = one({"chosen": f"{head}\n\nAssistant: fine", "rejected": f"{head}\n\nAssistant: no"})
    assert name == "hh" and text(row["chosen"]) == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "and?"),
        ("assistant", "fine"),
    ]


@pytest.mark.parametrize(
    ("votes", "winner"), [((1, 1, 2), 1), ((2, 0, 2), 2), ((0, 0, 1), 0), ((1, 2, 0), 0), ((1, 2), 0), ((2,), 2)]
)
def test_majority(votes, winner):
    assert formats.majority(votes) == winner


def test_pandalm_and_llmbar_rows():
    record = {"instruction": "i", "input": "x", "response1": "one", "response2": "two"}
    votes = {"annotator1": 2, "annotator2": 2, "annotator3": 1}
    _, row = one(record | votes)
    assert text(row["chosen"]) == [("assistant", "two")] and row["votes"] == [2, 2, 1]
    assert text(row["prompt"]) == [("user", "i\nx")]
    tie = record | {"annotator1": 0, "annotator2": 0, "annotator3": 1}
    with pytest.raises(Drop, match="tie"):
        formats.adapt(tie, "f row 1")
    _, row = one(tie, want=("pair_unlabelled",))
    assert [answer[0]["content"] for answer in row["responses"]] == ["one", "two"]
    _, row = one({"input": "q", "output_1": "a", "output_2": True, "label": 2})
    assert text(row["chosen"]) == [("assistant", "True")], "an unquoted answer is text too"
    with pytest.raises(DataError, match="1, 2 or 0"):
        formats.adapt({"input": "q", "output_1": "a", "output_2": "b", "label": 3}, "f row 1")


def test_judgebench_rows():
    record = {"pair_id": "p1", "source": "mmlu-pro-law", "question": "q", "response_A": "a", "response_B": "b"}
    _, row = one(record | {"label": "B>A"})
    assert text(row["chosen"]) == [("assistant", "b")] and row["id"] == "p1" and row["subset"] == "mmlu"
    with pytest.raises(DataError, match="'label' is 'C'"):
        formats.adapt(record | {"label": "C"}, "f row 1")


def test_records_with_many_answers_give_every_pair_of_different_ones():
    record = {"id": "u", "instruction": "i", "input": "", "responses": {"x": "1", "y": "2", "z": "1", "w": ""}}
    name, made = formats.adapt(record, "f row 1")
    assert name == "self-instruct" and len(made) == 1 and {made[0]["models"][0], made[0]["models"][1]} == {"x", "y"}
    with pytest.raises(Drop, match="fewer than two"):
        formats.adapt(record | {"responses": {"x": "1", "z": "1"}}, "f row 1")
    cells = {"id": 3, "prompt": "p", "chosen": ["c0", "c1"], "rejected": ["r0", "r1"], "domain": "chat"}
    _, made = formats.adapt(cells, "f row 1")
    assert [row["matrix_id"] for row in made] == ["0-0", "0-1", "1-0", "1-1"] and {row["subset"] for row in made} == {
        "chat"
    }
    assert len({row["id"] for row in made}) == 4 and {row["group"] for row in made} == {"3"}


def test_qa_feedback_pairs_follow_their_order():
    record = {
        "src_row": 5,
        "question": "q",
        "passages": [],
        "predictions": list("abcd"),
        "preference": [1, 2, 0, 1, 1, 2],
    }
    _, made = formats.adapt(record, "f row 1")
    kept = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made if "_drop" not in row]
    assert kept == [("a", "b"), ("c", "a"), ("b", "c"), ("b", "d"), ("d", "c")]
    assert [row["_drop"] for row in made if "_drop" in row] == ["tie"]


def test_persona_rows():
    record = {
        "question": "q?",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
        "statement": "s",
    }
    _, row = one(record)
    assert text(row["chosen"]) == [("assistant", "Yes")] and text(row["rejected"]) == [("assistant", "No")]
    assert row["statement"] == "s"


def test_rows_with_trl_names_are_left_alone():
    record = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert formats.adapt(record, "f row 1") == ("trl", [record])
    record = {"messages": [{"role": "user", "content": "q"}]}
    assert formats.adapt(record, "f row 1") == ("trl", [record])


def test_mqm_translations_are_pairs_by_penalty_or_a_list_with_scores():
    scored = (("gut", 0.3333), ("besser", 0.0), ("falsch", 1.3333))
    outputs = [{"system": text, "hyp": text, "mqm": penalty, "raters": 3} for text, penalty in scored]
    record = {"lp": "ende", "doc": "news:1", "seg": 4, "source": "good", "outputs": outputs}
    name, rows = formats.adapt(record, "row 1")
    kept = [row for row in rows if "_drop" not in row]
    assert name == "mqm" and [row["_drop"] for row in rows if "_drop" in row] == ["tie"]
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"], r["margin"]) for r in kept] == [
        ("gut", "falsch", 1.0),
        ("besser", "falsch", 1.3333),
    ]
    assert "German" in kept[0]["prompt"][0]["content"] and kept[0]["id"] == "news:1/4/0-2"
    (listed,) = formats.adapt(record, "row 1", ("responses",))[1]
    assert listed["scores"] == [-0.3333, -0.0, -1.3333] and len(listed["responses"]) == 3
