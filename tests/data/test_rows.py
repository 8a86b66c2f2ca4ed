"""Row types: detection, and what a row must be to be used."""

import pytest

from gramjax.core.errors import DataError
from gramjax.data import rows


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"chosen": "a", "rejected": "b"}, rows.PREFERENCE),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score": 1}, rows.PREFERENCE),
        ({"prompt": "p", "completion": "c", "label": True}, rows.UNPAIRED),
        ({"prompt": "p", "completions": ["c"], "labels": [True]}, rows.STEPWISE),
        ({"prompt": "p", "responses": ["a", "b"]}, rows.PAIR_UNLABELLED),
        ({"text": "t"}, rows.LANGUAGE_MODELING),
        ({"messages": [user("t")]}, rows.LANGUAGE_MODELING),
        ({"prompt": "p", "completion": "c"}, rows.PROMPT_COMPLETION),
        ({"prompt": "p", "answer": "c"}, rows.PROMPT_ONLY),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, rows.PROMPT_ONLY),
    ],
)
def test_detect(row, kind):
    assert rows.detect(row) == kind


def test_a_row_that_fits_two_types_names_both():
    with pytest.raises(DataError, match=r"my.jsonl row 3: .*preference and unpaired"):
        rows.detect({"chosen": "a", "rejected": "b", "completion": "c", "label": True}, "my.jsonl row 3")


def test_a_row_that_fits_none_says_what_is_needed_and_how_to_rename():
    with pytest.raises(DataError) as error:
        raise rows.missing({"id": "x", "question": "q", "answer": "a"}, "my.jsonl row 17", [rows.PREFERENCE])
    assert str(error.value) == (
        "my.jsonl row 17: has 'id','question','answer'; preference training needs 'chosen' and 'rejected' "
        "(optional 'prompt'). Rename with --config.data.rename=\"('question:prompt',)\""
    )


def test_the_common_prompt_is_whole_messages_never_characters():
    row = {"chosen": [user("hi"), bot("I am well")], "rejected": [user("hi"), bot("I am not")]}
    made = rows.normalise(row, rows.PREFERENCE, "r")
    assert made["prompt"] == [user("hi")]
    assert made["chosen"] == [bot("I am well")] and made["rejected"] == [bot("I am not")]


def test_the_common_prompt_leaves_an_answer_when_one_dialogue_continues_the_other():
    chosen = [user("hi"), bot("yes")]
    made = rows.normalise({"chosen": chosen, "rejected": [*chosen, user("and?"), bot("no")]}, rows.PREFERENCE, "r")
    assert made["prompt"] == [user("hi")]
    assert made["chosen"] == [bot("yes")] and made["rejected"] == [bot("yes"), user("and?"), bot("no")]


def test_strings_without_a_prompt_are_kept_whole():
    made = rows.normalise({"chosen": "abc", "rejected": "abd"}, rows.PREFERENCE, "r")
    assert (made["prompt"], made["chosen"], made["rejected"]) == ("", "abc", "abd")


def test_a_string_prompt_beside_message_answers_is_a_user_turn():
    made = rows.normalise({"prompt": "q", "chosen": [bot("a")], "rejected": [bot("b")]}, rows.PREFERENCE, "r")
    assert made["prompt"] == [user("q")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "identical chosen/rejected"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "empty chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": " \n"}, "empty rejected"),
        ({"prompt": [user("p")], "chosen": [bot("")], "rejected": [bot("b")]}, "empty chosen"),
        ({"prompt": "p", "chosen": [], "rejected": [bot("b")]}, "empty chosen"),
    ],
)
def test_useless_pairs_are_dropped_with_a_countable_reason(row, reason):
    with pytest.raises(rows.Drop) as drop:
        rows.normalise(row, rows.PREFERENCE, "r")
    assert drop.value.args[0] == reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": 3, "rejected": "b"}, "'chosen' is a int"),
        ({"chosen": ["a"], "rejected": ["b"]}, "'chosen' turn 1 is a str"),
        ({"chosen": [{"role": "robot", "content": "a"}], "rejected": "b"}, "role 'robot'"),
        ({"chosen": [{"role": "user"}], "rejected": "b"}, "content null"),
        ({"chosen": "a", "rejected": [bot("b")]}, "use one form"),
        ({"chosen": "a", "rejected": "b", "margin": "big"}, "'margin' is 'big'"),
        ({"chosen": "a", "rejected": "b", "margin": float("nan")}, "'margin' is nan"),
        ({"chosen": "a", "rejected": "b", "margin": True}, "'margin' is True"),
    ],
)
def test_wrong_values_are_named(row, words):
    with pytest.raises(DataError, match="row 5") as error:
        rows.normalise(row, rows.PREFERENCE, "row 5")
    assert words in str(error.value)


def test_other_wrong_values_are_named():
    with pytest.raises(DataError, match="'label' is 'yes'"):
        rows.normalise({"prompt": "p", "completion": "c", "label": "yes"}, rows.UNPAIRED, "r")
    with pytest.raises(DataError, match="same length"):
        rows.normalise({"prompt": "p", "completions": ["a"], "labels": []}, rows.STEPWISE, "r")
    with pytest.raises(DataError, match="'prompt' is null"):
        rows.normalise({"prompt": None, "completion": "c"}, rows.PROMPT_COMPLETION, "r")
    with pytest.raises(DataError, match="3 answers; two"):
        rows.normalise({"prompt": "p", "responses": ["a", "b", "c"]}, rows.PAIR_UNLABELLED, "r")


def test_text_parts_of_a_content_list_are_joined_and_images_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = rows.normalise({"messages": [{"role": "user", "content": parts}, bot("c")]}, rows.LANGUAGE_MODELING, "r")
    assert made["messages"][0]["content"] == "ab"
    with pytest.raises(DataError, match="images"):
        rows.messages([{"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "r", "messages")


def test_other_columns_are_kept():
    made = rows.normalise({"chosen": "a", "rejected": "b", "source": "x", "margin": 2}, rows.PREFERENCE, "r")
    assert made["source"] == "x" and made["margin"] == 2.0 and made["subset"] == ""


def test_the_order_of_an_unlabelled_pair_says_nothing_about_the_label():
    first = 0
    for index in range(400):
        row = {"id": f"r{index}", "prompt": "p", "chosen": "good", "rejected": "bad", "margin": None, "subset": ""}
        made = rows.converted(row, rows.PREFERENCE, rows.PAIR_UNLABELLED)
        assert sorted(made["responses"]) == ["bad", "good"] and "chosen" not in made and "rejected" not in made
        assert made == rows.converted(row, rows.PREFERENCE, rows.PAIR_UNLABELLED)
        first += made["responses"][0] == "good"
    assert 150 < first < 250


def test_tally_counts_and_keeps_the_first():
    tally = rows.Tally()
    tally.add("empty", "row 2")
    tally.add("empty", "row 9")
    assert tally == {"empty": (2, "row 2")} and tally.total == 2
