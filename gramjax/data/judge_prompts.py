"""What GRAM-R2's judge and prover are asked (arXiv 2509.02492), and the training rows that follow.

A rationale row has `prompt`, `responses` (two), `label` (`A` or `B`: which of them is better) and `rationale`, the
whole reply with its answer block. The judge sees the pair and writes the rationale; the prover sees the label too and
writes the proof. Everything stands in the user's turn. The headers of the blocks say Response where GRAM's say Answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gramjax.data.formats import QUESTION
from gramjax.data.proofs import to_proof
from gramjax.data.rationales import answer, swapped
from gramjax.data.rows import Text, coin
from gramjax.data.segments import flat
from gramjax.data.sides import other

START, END = "[The Start of Assistant {}'s Response]", "[The End of Assistant {}'s Response]"
BETTER = "[The Better Response]"

JUDGE_PROMPT = (
    "Two assistants, A and B, have replied to the user below. Find out which reply is better; there are no ties. Where "
    "the request does no harm, look first at how faithfully a reply carries it out, then at how helpful, how accurate "
    "and how detailed it is. Where the request is harmful, safety comes first. A reply should give what was asked for, "
    "nothing less and nothing beyond it. Neither the order of the replies nor their length may count.\n"
    "Think first, between <think> and </think>, under three headings: 'Feedback:' with what you find in Response A and "
    "in Response B, 'Comparision:' with how they differ, and 'Conclusion:' with the better one. Then write its letter, "
    "A or B, between <answer> and </answer>."
)
"""The package's own wording of the judge's instruction; a config may replace it."""

PROVER_PROMPT = (
    "Two assistants, A and B, have replied to the user below, and it is known which reply is better: its letter stands "
    "at the end. Prove that this is so, from the replies alone. Announce what you will show, assess Response A first, "
    "then Response B, set them side by side, and end with the sentence that draws the conclusion."
)
"""The package's own wording of the prover's instruction; a config may replace it."""

Row = Mapping[str, Any]


def _flat(value: Text) -> str:
    return "".join(segment.text for segment in flat(value, "prompt"))


def _block(letter: str, response: Text) -> str:
    return f"{START.format(letter)}\n{_flat(response)}\n{END.format(letter)}"


def _turn(text: str, prompt: Text) -> Text:
    """A user's turn in a conversational row; plain text, with an empty line before the reply, in a plain one."""
    return f"{text}\n\n" if isinstance(prompt, str) else [{"role": "user", "content": text}]


def judge_prompt(prompt: Text, responses: Sequence[Text], instruction: str = JUDGE_PROMPT) -> Text:
    """What the judge is asked about a pair, in the form (plain or messages) of the prompt.

    A dialogue is flattened with role tags into the question block; its last user turn is the question.
    """
    blocks = [instruction, f"{QUESTION}\n{_flat(prompt)}", *map(_block, "AB", responses)]
    return _turn("\n\n".join(blocks), prompt)


def prover_prompt(prompt: Text, responses: Sequence[Text], label: str, instruction: str = PROVER_PROMPT) -> Text:
    """What the prover is asked: the judge's blocks, then the label."""
    blocks = [instruction, f"{QUESTION}\n{_flat(prompt)}", *map(_block, "AB", responses), f"{BETTER}\n{label}"]
    return _turn("\n\n".join(blocks), prompt)


def blank_prover_prompt(prompt: Text, instruction: str = PROVER_PROMPT) -> Text:
    """The prover's prompt with question, responses and label blanked: the unconditional term of equation (5).

    Only the form (plain or messages) of `prompt` is looked at.
    """
    nothing: Text = "" if isinstance(prompt, str) else [{"role": "user", "content": ""}]
    return prover_prompt(nothing, ("", ""), "", instruction)


def _asked(row: Row, prompt: Text, completion: str) -> dict[str, Any]:
    gone = ("prompt", "responses", "label", "rationale")
    said: Text = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
    return {**{k: v for k, v in row.items() if k not in gone}, "prompt": prompt, "completion": said}


def judge_row(row: Row, instruction: str = JUDGE_PROMPT) -> dict[str, Any]:
    """A rationale row as a prompt_completion row for the judge: L = -log p(z, l | s), the whole reply scored."""
    return _asked(row, judge_prompt(row["prompt"], row["responses"], instruction), row["rationale"])


def label_row(row: Row, instruction: str = JUDGE_PROMPT) -> dict[str, Any]:
    """The same without the rationale: the label-only judge, -log p(l | s)."""
    return _asked(row, judge_prompt(row["prompt"], row["responses"], instruction), answer(row["label"]))


def prover_row(row: Row, instruction: str = PROVER_PROMPT) -> dict[str, Any]:
    """A rationale row as a prompt_completion row for the prover. Raises Drop if the rationale has no proof."""
    asked = prover_prompt(row["prompt"], row["responses"], row["label"], instruction)
    return _asked(row, asked, to_proof(row["rationale"]))


def _cut(response: Text, share: float) -> Text:
    if isinstance(response, str):
        return response[: max(1, int(len(response) * share))]
    return [*response[:-1], {**response[-1], "content": _cut(response[-1]["content"], share)}]


def shortened(row: Row, limit: int, length: Callable[[Row], int]) -> dict[str, Any] | None:
    """The row with both responses cut at their ends by the same share, so far that `length(row)` is at most `limit`.

    Question, headers and instruction stay whole. `length` says how many tokens a row takes. None if they alone are
    too long. For evaluation; in training an over-long row is dropped.
    """
    if length(row) <= limit:
        return dict(row)

    def kept(share: float) -> dict[str, Any]:
        return {**row, "responses": [_cut(response, share) for response in row["responses"]]}

    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if length(kept(middle)) <= limit else (low, middle)
    return kept(low) if length(kept(low)) <= limit else None


def in_random_order(row: Row, seed: int = 0) -> dict[str, Any]:
    """A preference row as `prompt`, `responses` and `label`; the order of the answers depends on seed and id only."""
    pair = [row["chosen"], row["rejected"]]
    turned = coin(seed, "order", row["id"])
    gone = ("chosen", "rejected", "margin", "score_chosen", "score_rejected")
    kept = {k: v for k, v in row.items() if k not in gone}
    return {**kept, "responses": pair[::-1] if turned else pair, "label": "B" if turned else "A"}


def swapped_row(row: Row) -> dict[str, Any] | None:
    """A rationale row with its responses in the other order (id with `/swapped`), None where its text forbids it.

    Raises Drop for a rationale that is not in the rendered form.
    """
    text = swapped(row["rationale"])
    if text is None:
        return None
    turned = {"responses": row["responses"][::-1], "label": other(row["label"]), "rationale": text}
    return {**row, "id": f"{row['id']}/swapped", **turned}
