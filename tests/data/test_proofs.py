"""Rationale to proof and back (V14), and no trace of the given label afterwards (decisions R7b and R8)."""

import random

import pytest

from gramjax.data import proofs, rationales
from gramjax.data.rows import Drop

WORDS = [
    "Response A", "Response B", "is better", "First,", "Then,", "Thus", "both", "sums", "12 > 3;", "«Übel»", "😀", "é",
    "\n", "\n\n", "- item", "*bold*", "{x}", "\\n", "<b>", "Feedback", "\u2028", "\t", "Side by side", "1.", '"quoted"',
]  # fmt: skip
LEAKY = [
    "The selected response is short",
    "as the chosen response shows",
    "the rejected response fails",
    "the preferred assistant explains more",
    "given the label, this follows",
    "we are told that it wins",
    "because Response A was chosen",
    "annotators preferred it",
    "the known verdict holds",
    "as labelled, it is better",
    "the gold label says so",
]


def texts(draw):
    return ["x " + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(3)]


def test_the_proof_to_the_letter():
    given = rationales.render_rationale(rationales.rationale("Right.", "Wrong.", "Only A adds up.", "B"))
    assert proofs.to_proof(given) == (
        "The following shows why Response B is the better one.\n\nFirst, Response A: Right.\n\n"
        "Then, Response B: Wrong.\n\nSide by side: Only A adds up.\n\nThus Response B is better."
    )


@pytest.mark.parametrize("label", ["A", "B"])
def test_rationales_survive_the_way_there_and_back(label):
    """V14: 500 seeded random texts per label; a text is refused only if it holds a mark of one of the two forms."""
    draw = random.Random(label)
    for _ in range(500):
        given = rationales.render_rationale(rationales.rationale(*texts(draw), label))
        assert not proofs.leaks(given)
        proof = proofs.to_proof(given)
        assert proof.startswith(proofs.OPENING.format(label)) and proof.endswith(proofs.CLOSING.format(label))
        assert proofs.to_rationale(proof, label) == given
        assert proofs.to_rationale(f"\n{proof} \n", label) == given, "a model's space around it does not matter"
    for marked in (("a\n\nThen, Response B: b", "b"), ("a", "b\n\nSide by side: b")):
        given = rationales.render_rationale(rationales.rationale(*marked, "c", label))
        with pytest.raises(Drop, match=proofs.NO_PROOF):
            proofs.to_proof(given)


@pytest.mark.parametrize("label", ["A", "B"])
def test_no_trace_of_the_given_label_is_left(label):
    """V14, second half: whatever leak phrase the prover writes, the rationale has none, or there is no rationale."""
    draw, dropped, rewritten = random.Random(label), 0, 0
    for trial in range(600):
        parts = texts(draw)
        parts[trial % 3] += " " + LEAKY[trial % len(LEAKY)]
        proof = proofs._join(rationales.Rationale(*parts, label))
        try:
            made = proofs.to_rationale(proof, label)
        except Drop as drop:
            assert drop.args[0] == proofs.LEAK
            dropped += 1
            continue
        assert proofs.leaks(made) == [] and rationales.parse(made).verdict == label
        rewritten += 1
    assert dropped > 100 and rewritten > 20


@pytest.mark.parametrize("phrase", LEAKY)
def test_every_leak_is_seen(phrase):
    assert proofs.leaks(f"It is long, and {phrase}.")


@pytest.mark.parametrize(
    "phrase",
    [
        "Response A is the preferred response to such a request",
        "I prefer Response A",
        "it formats the list as instructed",
        "Response B gives a proof and a justification",
        "This response chooses its words well",
        "The given numbers are added",
    ],
)
def test_natural_words_are_no_leaks(phrase):
    assert proofs.leaks(phrase) == []


def test_the_chosen_response_becomes_a_name():
    proof = proofs._join(rationales.Rationale("The chosen response adds.", "ok", "Not so the rejected response.", "A"))
    made = rationales.read_rationale(proofs.to_rationale(proof, "A"))
    assert made.feedback_a == "Response A adds." and made.comparison == "Not so Response B."


def test_a_proof_must_open_with_arrive_at_and_be_asked_for_one_side():
    """R7b: both ends name the same side, and it is the label that was given."""
    given = rationales.render_rationale(rationales.rationale("a", "b", "c", "A"))
    proof = proofs.to_proof(given)
    for wrong, label in (
        (proof, "B"),
        (proof.replace("why Response A", "why Response B"), "A"),
        (proof.replace("Thus Response A", "Thus Response B"), "A"),
    ):
        with pytest.raises(Drop, match=proofs.WRONG_SIDE):
            proofs.to_rationale(wrong, label)
    for broken in (proof[:-1], proof.replace("Then, ", ""), "Sure! " + proof, "", proof.replace("\n\n", "\n")):
        with pytest.raises(Drop, match=proofs.NO_PROOF):
            proofs.to_rationale(broken, "A")
