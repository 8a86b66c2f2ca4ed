"""Rationales as proofs and back (GRAM-R2, arXiv 2509.02492, section on the preference-proving model).

The prover is given the label and writes a proof: a sentence that announces a justification, what is to be said of A,
then of B, how they compare, and a last sentence that draws the conclusion. `to_rationale` turns it into the rationale
of somebody who was not given the label: sentences of the template are taken off, phrases that presuppose the label are
rewritten, and a proof that keeps one is dropped.
"""

import re

from gramjax.data.rationales import Rationale, rationale, read_rationale, render_rationale
from gramjax.data.rows import Drop
from gramjax.data.sides import NOUN, other

OPENING = "The following shows why Response {} is the better one."
CLOSING = "Thus Response {} is better."
_PROOF = re.compile(
    r"The following shows why Response ([AB]) is the better one\.\n\nFirst, Response A: (.*?)\n\n"
    r"Then, Response B: (.*?)\n\nSide by side: (.*?)\n\nThus Response ([AB]) is better\.",
    re.DOTALL,
)

NO_PROOF = "proof lacks its structure"
WRONG_SIDE = "proof argues for the other side"
LEAK = "rationale presupposes the label"

_GIVEN = r"(?<!\bis )(?<!\bwas )(?<!\bbe )\b[Tt]he "
_CHOSEN = re.compile(_GIVEN + rf"(?:selected|chosen|preferred|winning|labell?ed|designated) {NOUN}\b")
_REJECTED = re.compile(_GIVEN + rf"(?:rejected|unselected|dispreferred|non-preferred|losing|not chosen) {NOUN}\b")
_CHOICE = r"(?:selected|chosen|labell?ed|designated|marked|given|stated)"

LEAK_PHRASES: tuple[re.Pattern[str], ...] = (
    _CHOSEN,
    _REJECTED,
    re.compile(r"\b(?:the|this|that|its|given|gold|reference|preference|known|true) labels?\b", re.I),
    re.compile(r"\b(?:gold|given|known|provided|stated|ground[- ]truth) (?:verdict|preference|decision)\b", re.I),
    re.compile(rf"\b(?:as|since|because) (?:it|(?:the )?{NOUN}(?: [AB])?) (?:is|was|has been) {_CHOICE}\b", re.I),
    re.compile(rf"\b{NOUN} [AB] (?:was|has been|is already) (?:{_CHOICE}|preferred)\b"),
    re.compile(r"\b(?:as|was|were|been) (?:labell?ed|annotated)\b", re.I),
    re.compile(r"\bwe (?:are|were) (?:told|given|informed)\b", re.I),
    re.compile(r"\bannotators? (?:chose|selected|preferred|picked|decided)\b", re.I),
    re.compile(r"\bshows why Response [AB] is\b"),
)
"""Phrases by which a text shows that its writer was given the label."""


def leaks(text: str) -> list[str]:
    """The phrases of a text that presuppose a given label, in order of `LEAK_PHRASES`."""
    return [found[0] for pattern in LEAK_PHRASES for found in pattern.finditer(text)]


def _join(given: Rationale) -> str:
    parts = (
        OPENING.format(given.verdict),
        f"First, Response A: {given.feedback_a}",
        f"Then, Response B: {given.feedback_b}",
        f"Side by side: {given.comparison}",
        CLOSING.format(given.verdict),
    )
    return "\n\n".join(parts)


def _split(proof: str) -> Rationale:
    found = _PROOF.fullmatch(proof.strip())
    if found is None:
        raise Drop(NO_PROOF)
    if found[1] != found[5]:
        raise Drop(WRONG_SIDE)
    return rationale(found[2], found[3], found[4], found[5])


def to_proof(text: str) -> str:
    """The proof of a rendered rationale. Raises Drop if it is not one, or could not be turned back from its proof."""
    given = read_rationale(text)
    proof = _join(given)
    if _split(proof) != given:
        raise Drop(NO_PROOF)
    return proof


def _unled(text: str, label: str) -> str:
    """The text with `the chosen response` and the like as the side's name."""

    def name(side: str) -> str:
        return f"Response {side}"

    return _REJECTED.sub(name(other(label)), _CHOSEN.sub(name(label), text))


def to_rationale(proof: str, label: str) -> str:
    """The rendered rationale of a proof that was written for `label`.

    The inverse of `to_proof` for rationales without a leak phrase. Raises Drop with a reason to count: not in the form
    of a proof, opening with or arriving at another side than the label, a leak that cannot be rewritten.
    """
    found = _split(proof)
    if found.verdict != label:
        raise Drop(WRONG_SIDE)
    texts = [_unled(text, label) for text in (found.feedback_a, found.feedback_b, found.comparison)]
    out = render_rationale(rationale(texts[0], texts[1], texts[2], label))
    if leaks(out):
        raise Drop(LEAK)
    return out
