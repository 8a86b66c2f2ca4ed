"""The judgement of GRAM-R2 (arXiv 2509.02492) as text: a think block with three headed sections, then an answer block.

    <think>
    Feedback:
    Response A: ...
    Response B: ...

    Comparision:
    ...

    Conclusion:
    Response A is better.
    </think>
    <answer>A</answer>

The misspelt heading is part of the trained format. `render_rationale` writes this form, `read_rationale` is its exact
inverse, and `parse` reads whatever a model wrote.
"""

import dataclasses
import re

from gramjax.data.rows import Drop
from gramjax.data.sides import SIDES, exchanged, other

HEADINGS = ("Feedback:", "Comparision:", "Conclusion:")
THINK = ("<think>", "</think>")
ANSWER = ("<answer>", "</answer>")
CONCLUSION = "Response {} is better."
"""The conclusion of a rendered rationale."""

TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_ANSWERS = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_THINKS = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL)
_HEADING = re.compile(r"^(?:Feedback|Comparision|Conclusion):", re.MULTILINE)
_RENDERED = re.compile(
    r"<think>\nFeedback:\nResponse A: (.*?)\nResponse B: (.*?)\n\nComparision:\n(.*?)\n\n"
    r"Conclusion:\nResponse ([AB]) is better\.\n</think>\n<answer>([AB])</answer>",
    re.DOTALL,
)

UNFIT = "text holds a mark of the rationale's format"
EMPTY = "empty section"
UNREADABLE = "rationale not in the rendered form"
OTHER_SIDE = "conclusion and answer name different sides"


@dataclasses.dataclass(frozen=True)
class Rationale:
    """What a rationale says; texts without space around them."""

    feedback_a: str
    feedback_b: str
    comparison: str
    verdict: str
    """`A` or `B`."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A reply as it was read."""

    verdict: str | None
    """`A`, `B`, or None: a failure that callers count."""
    headed: bool = False
    """All three headings stand once, in order, in the only think block; else the sections are empty."""
    feedback: str = ""
    comparison: str = ""
    conclusion: str = ""


def rationale(feedback_a: str, feedback_b: str, comparison: str, verdict: str) -> Rationale:
    """A Rationale from raw texts. Raises Drop for an empty text, ValueError for a verdict that is no side."""
    if verdict not in SIDES:
        raise ValueError(f"a verdict is A or B, not {verdict!r}")
    feedback_a, feedback_b, comparison = feedback_a.strip(), feedback_b.strip(), comparison.strip()
    if not (feedback_a and feedback_b and comparison):
        raise Drop(EMPTY)
    return Rationale(feedback_a, feedback_b, comparison, verdict)


def render_rationale(given: Rationale) -> str:
    """The text of a rationale. Raises Drop if its texts hold tags or headings, so that it could not be read again."""
    feedback = f"Response A: {given.feedback_a}\nResponse B: {given.feedback_b}"
    sections = (feedback, given.comparison, CONCLUSION.format(given.verdict))
    blocks = [f"{heading}\n{section}" for heading, section in zip(HEADINGS, sections, strict=True)]
    body = "\n\n".join(blocks)
    text = f"{THINK[0]}\n{body}\n{THINK[1]}\n{ANSWER[0]}{given.verdict}{ANSWER[1]}"
    if TAG.search(body) or _split(text) != given or parse(text) != Judgement(given.verdict, True, *sections):
        raise Drop(UNFIT)
    return text


def _split(text: str) -> Rationale | None:
    found = _RENDERED.fullmatch(text)
    return None if found is None or found[4] != found[5] else Rationale(*found.groups()[:4])


def read_rationale(text: str) -> Rationale:
    """The Rationale behind a rendered text. Raises Drop for any other text."""
    found = _RENDERED.fullmatch(text.strip())
    if found is None or len(TAG.findall(text)) != len(THINK) + len(ANSWER):
        raise Drop(UNREADABLE)
    if found[4] != found[5]:
        raise Drop(OTHER_SIDE)
    return rationale(*found.groups()[:4])


def parse(reply: str) -> Judgement:
    """Read a model's reply.

    The verdict is the first character of the last complete answer block, stripped and upper-cased, if it is A or B;
    else None, whatever else the reply says. The rule is as published: a block `Assistant B` would read as A. What is
    trained on must hold the letter alone (`rationale_rules`).
    """
    blocks = _ANSWERS.findall(reply)
    letter = blocks[-1].strip().upper()[:1] if blocks else ""
    return Judgement(letter if letter in SIDES and letter else None, *_sections(reply))


def verdict_place(reply: str) -> int | None:
    """Where the letter that `parse` takes as the verdict stands in the reply; None without a verdict."""
    blocks = list(_ANSWERS.finditer(reply))
    if not blocks or parse(reply).verdict is None:
        return None
    return blocks[-1].start(1) + len(blocks[-1][1]) - len(blocks[-1][1].lstrip())


def _sections(reply: str) -> tuple[bool, str, str, str]:
    blocks = _THINKS.findall(reply)
    body = blocks[0] if len(blocks) == 1 else ""
    found = list(_HEADING.finditer(body))
    if tuple(match[0] for match in found) != HEADINGS:
        return False, "", "", ""
    ends = [match.start() for match in found[1:]] + [len(body)]
    feedback, comparison, conclusion = (body[m.end() : end].strip() for m, end in zip(found, ends, strict=True))
    return True, feedback, comparison, conclusion


def answer(verdict: str) -> str:
    """A reply that is an answer block alone: what a judge without rationales is trained to write."""
    return f"{ANSWER[0]}{verdict}{ANSWER[1]}"


def swapped(text: str) -> str | None:
    """The rendered rationale of the pair in the other order: feedbacks change places, names of sides are rewritten.

    None where a side is named in a way that cannot be rewritten with certainty (such a row is not augmented). Raises
    Drop for a text that is no rendered rationale.
    """
    old = read_rationale(text)
    first, second, comparison = map(exchanged, (old.feedback_b, old.feedback_a, old.comparison))
    if first is None or second is None or comparison is None:
        return None
    return render_rationale(Rationale(first, second, comparison, other(old.verdict)))
