"""The text of a judgement: writing, reading, never guessing; the same judgement of the pair in the other order."""

import random

import pytest

from gramjax.data import judge_prompts, rationales, rows, sides
from gramjax.data.rationales import Judgement, Rationale
from gramjax.data.rows import Drop

GOLD = """<think>
Feedback:
Response A: Clear and right.
Response B: Wrong sum.

Comparision:
Response A adds correctly, Response B does not.

Conclusion:
Response A is better.
</think>
<answer>A</answer>"""


def sample():
    texts = ("Clear and right.", "Wrong sum.", "Response A adds correctly, Response B does not.")
    return rationales.rationale(*texts, "A")


def test_the_rendered_form_to_the_letter():
    assert rationales.render_rationale(sample()) == GOLD
    assert rationales.read_rationale(GOLD) == sample()
    read = rationales.parse(GOLD)
    assert read == Judgement(
        "A",
        True,
        "Response A: Clear and right.\nResponse B: Wrong sum.",
        "Response A adds correctly, Response B does not.",
        "Response A is better.",
    )


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("<answer>A</answer>", "A"),
        ("<answer>\n b \n</answer>", "B"),
        ("<answer>A is better</answer>", "A"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>A</answer> and then <answer>B", "A"),
        ("<answer>A <answer>B</answer>", "B"),
        ("<answer>A</answer></answer>", "A"),
        ("<answer></answer>", None),
        ("<answer>Response A</answer>", None),
        ("<answer>neither</answer>", None),
        ("<answer>C</answer>", None),
        ("<answer>A</answer><answer>?</answer>", None),
        ("Response B is better.", None),
        ("</answer>B<answer>", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_from_the_last_complete_answer_block_or_not_at_all(reply, verdict):
    """The text after the closing tag does not count: the released reader took it and always found B."""
    assert rationales.parse(reply).verdict == verdict
    assert rationales.parse(f"<think>B, of course</think>{reply}\nB").verdict == verdict


@pytest.mark.parametrize(
    "reply",
    [
        GOLD.replace("Comparision", "Comparison"),
        GOLD.replace("Feedback:", "Conclusion:"),
        GOLD.replace("</think>", ""),
        GOLD.replace("Comparision:\n", ""),
        GOLD + GOLD,
    ],
)
def test_sections_are_read_from_the_trained_headings_only(reply):
    assert not rationales.parse(reply).headed and rationales.parse(reply).comparison == ""
    with pytest.raises(Drop, match=rationales.UNREADABLE):
        rationales.read_rationale(reply)


@pytest.mark.parametrize(
    "text", ["x\nResponse B: y", "x\n\nComparision:\ny", "a </think> b", "<answer>B</answer>", "one\nConclusion:\ntwo"]
)
def test_texts_that_would_be_read_otherwise_are_refused(text):
    with pytest.raises(Drop, match=rationales.UNFIT):
        rationales.render_rationale(rationales.rationale(text, "b", "c", "A"))
    with pytest.raises(Drop, match="empty section"):
        rationales.rationale("a", " \n", "c", "A")
    with pytest.raises(Drop, match=rationales.OTHER_SIDE):
        rationales.read_rationale(GOLD.replace("<answer>A", "<answer>B"))


PARTS = [
    "Response A",
    "Assistants A and B",
    "the second response",
    "gut",
    "12 > 3",
    "Übel 😀",
    "\n",
    "\u2028",
    "- x",
    '"q"',
]


def test_swapping_is_its_own_inverse_and_exchanges_everything():
    """Seeded random texts, both labels."""
    draw, seen = random.Random(0), 0
    for trial in range(300):
        texts = ["x " + " ".join(draw.choices(PARTS, k=draw.randint(1, 8))) for _ in range(3)]
        given = rationales.render_rationale(rationales.rationale(*texts, "AB"[trial % 2]))
        turned = rationales.swapped(given)
        assert turned is not None and rationales.swapped(turned) == given
        old, new = rationales.read_rationale(given), rationales.read_rationale(turned)
        assert new.verdict == sides.other(old.verdict)
        assert new.feedback_a == sides.exchanged(old.feedback_b) and new.feedback_b == sides.exchanged(old.feedback_a)
        seen += "Response A" in old.comparison and "Response B" in new.comparison
    assert seen > 50


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("Response A beats Response B.", "Response B beats Response A."),
        ("Responses A and B agree; Assistant B's tone", "Responses B and A agree; Assistant A's tone"),
        ("The first response is short.", "The second response is short."),
        ("First, it is short. This response is fine.", "First, it is short. This response is fine."),
        ("A is better.", None),
        ("A good reply.", None),
        ("Response A, not B", None),
        ("the latter is worse", None),
        ("the first is short", None),
        ("the first paragraph", None),
        ("Answer B is the right option.", None),
        ("Its first answer is wrong.", None),
        ("response b", None),
        ("Response 1", None),
        ("the previous response", None),
    ],
)
def test_names_are_rewritten_with_certainty_or_not_at_all(text, turned):
    assert sides.exchanged(text) == turned


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Response A is slightly better than Response B because it is short.", "A"),
        ("Response B is good, but Response A is superior.", "A"),
        ("Compared with Response A, Response B is much stronger.", "B"),
        ("I prefer Response B over Response A.", "B"),
        ("The better one is Response B.", "B"),
        ("Response A is worse.", "B"),
        ("B is better.", "B"),
        ("Response A is not better than Response B.", None),
        ("Response A could be better.", None),
        ("Is Response A better?", None),
        ("Response A is better. Response B is better.", None),
        ("Both are fine.", None),
        ("Response A is short.", None),
    ],
)
def test_the_side_that_a_text_calls_better(text, side):
    assert sides.claimed(text) == side
    turned = sides.exchanged(text)
    if turned:
        assert sides.claimed(turned) == (side and sides.other(side))


def test_numbers_become_letters():
    text = "@Response 1 is better than @Response 2. Responses 1 and 2 are long. 1 and 2."
    assert sides.lettered(text) == "Response A is better than Response B. Responses A and B are long. 1 and 2."


ROW = {"id": "r", "prompt": "2+2?", "responses": ["4", "5"], "label": "A", "rationale": GOLD, "subset": "sums"}


def test_rationale_rows_are_checked_and_serve_as_pairs():
    assert rows.detect(ROW) == rows.RATIONALE and rows.detect(ROW | {"rationale": None}) == rows.PAIR_UNLABELLED
    row = rows.normalise(ROW, rows.RATIONALE, "f row 1")
    pair = rows.converted(row | {"label": "B"}, rows.RATIONALE, rows.PREFERENCE)
    assert (pair["chosen"], pair["rejected"], pair["subset"]) == ("5", "4", "sums") and "rationale" not in pair
    assert rows.detect(pair) == rows.PREFERENCE and rows.normalise(pair, rows.PREFERENCE, "f row 1") == pair
    bare = rows.converted(row, rows.RATIONALE, rows.PAIR_UNLABELLED)
    assert bare["responses"] == ["4", "5"] and not {"label", "rationale"} & set(bare)
    for column, value in (("label", "C"), ("rationale", {"a": 1}), ("responses", ["4"])):
        with pytest.raises(rows.DataError, match="f row 1: '" + column):
            rows.normalise(ROW | {column: value}, rows.RATIONALE, "f row 1")


def test_what_the_judge_and_the_prover_are_asked():
    judge, prover = judge_prompts.judge_row(ROW, "Judge."), judge_prompts.prover_row(ROW, "Prove.")
    blocks = (
        "[User Question]\n2+2?\n\n[The Start of Assistant A's Response]\n4\n[The End of Assistant A's Response]\n\n"
        "[The Start of Assistant B's Response]\n5\n[The End of Assistant B's Response]"
    )
    assert judge == {"id": "r", "subset": "sums", "prompt": f"Judge.\n\n{blocks}\n\n", "completion": GOLD}
    assert prover["prompt"] == f"Prove.\n\n{blocks}\n\n[The Better Response]\nA\n\n"
    assert judge_prompts.label_row(ROW, "Judge.") == judge | {"completion": "<answer>A</answer>"}
    blank = judge_prompts.blank_prover_prompt("", "Prove.")
    assert blank == prover["prompt"].replace("2+2?", "").replace("\n4\n", "\n\n").replace("\n5\n", "\n\n").replace(
        "\nA\n", "\n\n"
    )
    assert rows.detect(judge) == rows.detect(prover) == rows.PROMPT_COMPLETION


def test_conversations_stay_conversations():
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "q"},
    ]
    reply = [[{"role": "assistant", "content": text}] for text in ("one", "two")]
    row = judge_prompts.judge_row(ROW | {"prompt": talk, "responses": reply})
    assert [turn["role"] for turn in (*row["prompt"], *row["completion"])] == ["user", "assistant"]
    asked = row["prompt"][0]["content"]
    assert (
        "[User Question]\nUser: hi\n\nAssistant: yes?\n\nUser: q\n\n[The Start of Assistant A's Response]\none\n"
        in asked
    )
    assert isinstance(judge_prompts.blank_prover_prompt(talk), list)


def test_only_responses_are_shortened_and_both_alike():
    def length(row):
        return len(str(judge_prompts.judge_prompt(row["prompt"], row["responses"], "Judge.")).split())

    row = ROW | {"responses": ["one " * 300, "two " * 100]}
    full = length(row)
    cut = judge_prompts.shortened(row, full - 200, length)
    sizes = [len(text.split()) for text in cut["responses"]]
    assert full - 203 <= length(cut) <= full - 200 and sizes[0] == pytest.approx(150, abs=2) == 3 * sizes[1]
    turned = judge_prompts.shortened(row | {"responses": row["responses"][::-1]}, full - 200, length)
    assert turned["responses"] == cut["responses"][::-1] and cut["prompt"] == row["prompt"]
    assert judge_prompts.shortened(row, full, length) == row and judge_prompts.shortened(row, 5, length) is None
    talk = {
        "prompt": [{"role": "user", "content": "q"}],
        "responses": [[{"role": "assistant", "content": "x " * 50}]] * 2,
    }
    cut = judge_prompts.shortened(ROW | talk, length(talk) - 50, length)
    assert length(cut) == length(talk) - 50 and cut["responses"][0][0]["role"] == "assistant"


def test_orders_are_random_by_id_and_labels_follow():
    pairs = [{"id": str(i), "prompt": "p", "chosen": "good", "rejected": "bad"} for i in range(400)]
    drawn = [judge_prompts.in_random_order(pair) for pair in pairs]
    assert all(row["responses"]["AB".index(row["label"])] == "good" for row in drawn)
    assert 160 < sum(row["label"] == "A" for row in drawn) < 240
    assert drawn == [judge_prompts.in_random_order(pair) for pair in pairs]
    turned = judge_prompts.swapped_row(ROW)
    assert turned["responses"] == ["5", "4"] and turned["label"] == "B" and turned["id"] == "r/swapped"
    assert rationales.parse(turned["rationale"]).verdict == "B"
    bare = rationales.render_rationale(Rationale("A is fine", "no", "c", "A"))
    assert judge_prompts.swapped_row(ROW | {"rationale": bare}) is None
