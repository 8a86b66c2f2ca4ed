"""HelpSteer3 records: whose annotation, which sign, what is skipped; real pairs without feedback text stay pairs."""

import json

import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError
from gramjax.data import formats, helpsteer3, rationales, readers, rows


def note(score, reasoning="@Response 1 is better than @Response 2.", first="Good sum.", second="Bad sum."):
    return {"score": score, "reasoning": reasoning, "feedback1": first, "feedback2": second}


def record(overall=-2, notes=(note(-2),), **more):
    return {
        "domain": "stem",
        "language": "english",
        "context": [{"role": "user", "content": "2+2?"}],
        "response1": "4",
        "response2": "5",
        "overall_preference": overall,
        "individual_preference": list(notes),
        **more,
    }


def write(tmp_path, records):
    file = tmp_path / "helpsteer3.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return str(file)


def test_a_negative_score_prefers_response_1(tmp_path):
    file = write(tmp_path, [record(), record(3, [note(3, "Response 2 wins.")])])
    found = readers.read(file, want=rows.RATIONALE)
    one, two = found.rows
    assert found.format == "helpsteer3" and found.type == rows.RATIONALE
    assert one["label"] == "A" and two["label"] == "B" and one["subset"] == "stem" and one["margin"] == 2
    assert one["responses"][0][0]["content"] == "4" and one["prompt"][0]["content"] == "2+2?"
    assert rationales.read_rationale(one["rationale"]) == rationales.Rationale(
        "Good sum.", "Bad sum.", "Response A is better than Response B.", "A"
    )
    assert readers.read(file).type == rows.RATIONALE, "asked for nothing, the file shows what it holds"
    pairs = readers.read(file, want=rows.PREFERENCE).rows
    assert [(pair["chosen"][0]["content"], pair["margin"]) for pair in pairs] == [("4", 2), ("5", 3)]


def test_the_annotation_that_agrees_and_is_nearest_is_taken():
    notes = [note(1, first="opposite"), note(-1, first="near"), note(-3, first="far"), note(-1, first="later")]
    assert helpsteer3.annotation(record(-1, notes))["feedback1"] == "near"
    assert helpsteer3.annotation(record(-3, notes))["feedback1"] == "far"
    assert helpsteer3.annotation(record(3, notes))["feedback1"] == "opposite"


def test_records_without_a_rationale_are_counted(tmp_path):
    file = write(
        tmp_path, [record(), record(0), record(2, [note(-1)]), record(-1, [note(-1, second=" ")]), record(-1, [])]
    )
    found = readers.read(file, want=rows.RATIONALE)
    counts = {reason: count for reason, (count, _) in found.dropped.items()}
    assert len(found.rows) == 1 and counts == {"tie": 1, helpsteer3.NO_ANNOTATION: 2, rationales.EMPTY: 1}
    assert len(readers.read(file, want=rows.PREFERENCE).rows) == 4, "a pair needs no rationale"
    assert len(readers.read(file, want=rows.PAIR_UNLABELLED).rows) == 5, "nor a label"


@pytest.mark.parametrize("score", [True, "2", 7, 0.5, None])
def test_scores_that_are_none_are_errors(score, tmp_path):
    with pytest.raises(DataError, match="row 1: 'individual_preference score' is .*from -3 to 3"):
        readers.read(write(tmp_path, [record(-1, [note(score)])]), want=rows.RATIONALE)
    if score is not None:
        with pytest.raises(DataError, match="row 1: 'overall_preference' is"):
            readers.read(write(tmp_path, [record(score)]))
    with pytest.raises(DataError, match="needs the texts feedback1, feedback2, reasoning"):
        readers.read(write(tmp_path, [record(-1, [{"score": -1, "reasoning": "r"}])]))


def test_the_sign_is_checked_against_what_annotators_write():
    """Texts that name the response their score prefers agree; under the other convention nearly none would."""
    texts = [
        "Response 1 is better",
        "I prefer Response 1 over Response 2",
        "Response 2 is slightly worse",
        "Both are long",
    ]
    turned = [text.translate(str.maketrans("12", "21")) for text in texts]
    notes = [note(-2, text) for text in texts] + [note(1, text) for text in turned]
    noise = [note(2, "@Response 1 is better"), note(0, "Response 1 is better")]
    found = helpsteer3.sign_agreement([record(-1, notes), record(1, noise)])
    assert (found.annotations, found.named, found.agreeing) == (9, 7, 6)
    opposite = helpsteer3.sign_agreement([record(1, [one | {"score": -one["score"]} for one in notes])])
    assert found.share == pytest.approx(6 / 7) and opposite.share == 0
    assert helpsteer3.sign_agreement([]).share == 0.5


def test_copies_with_chosen_and_rejected_columns_are_still_recognised():
    """A derived copy of the set carries both."""
    name, made = formats.adapt(record(chosen="4", rejected="5"), "f row 1", (rows.RATIONALE,))
    assert name == "helpsteer3" and rows.detect(made[0]) == rows.RATIONALE


@pytest.mark.parametrize("name", ["qa_feedback/dev.jsonl.gz", "llmbar/natural.jsonl.gz"])
def test_real_pairs_without_feedback_text_are_not_taken_for_rationales(data_dir, name):
    """QA-Feedback and LLMBar hold verdicts, no text that gives reasons: they serve as pairs for the prover."""
    file = str(data_dir / name)
    found = readers.scan(file, DataSection(on_bad_row="skip", limit=20), want=rows.RATIONALE)
    assert not found.rows and "wrong columns" in found.dropped
    assert len(readers.read(file, DataSection(limit=20), want=rows.PREFERENCE).rows) == 20
