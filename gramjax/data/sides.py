"""The two sides of a comparison, A and B, as texts name them: which one a text calls better, and the same text with
the sides exchanged. Nothing is guessed: a text that cannot be read with certainty gives None.
"""

import re

SIDES = ("A", "B")
NOUN = r"(?:[Rr]esponse|[Aa]ssistant)"
"""What stands before the letter of a side. `Answer B` is not among them: it may be an option of the question."""

_JOINED = r"(?:\s*(?:,|/|&)\s*|\s+(?:and|or|vs\.?|versus|over|than)\s+)"
_NAMED = re.compile(rf"\b({NOUN}s?\s+)([AB])\b(?:({_JOINED})([AB])\b)?")
_ORDINAL = re.compile(rf"\b([Tt]he\s+)(first|second)(?=\s+{NOUN}\b)")
_UNSURE = re.compile(
    rf"\b[AB]\b|\b{NOUN}s?\s+(?:[ab12]|one|two)\b|\b(?:former|latter)\b|\b[Tt]he\s+(?:first|second)\b"
    rf"|\b(?:[Ff]irst|[Ss]econd)\s+(?:one|answer|{NOUN})\b|\b(?:previous|preceding|following|earlier|above)\s+{NOUN}"
)
"""What may name a side by its place, and cannot be rewritten with certainty (a capital A may also be an article)."""

_NUMBERED = re.compile(r"@?\b([Rr]esponses?\s+)([12])\b(?:(\s*(?:,|/|&|and|or|vs\.?|versus|over|than)\s*)([12])\b)?")
_MENTION = re.compile(rf"\b{NOUN}\s+([AB])\b|\b([AB])(?=\s+(?:is|was|wins|outperforms)\b)")
_BETTER = re.compile(r"\b(?:better|best|superior|preferable|preferred|stronger|wins|prevails|outperforms)\b", re.I)
_WORSE = re.compile(r"\b(?:worse|worst|inferior|weaker|loses)\b", re.I)
_PREFER = re.compile(r"\b(?:prefer|prefers|choose|pick|favou?r|favou?rs)\b", re.I)
_DENIED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|hardly|could|should|would|might|may|if)\b|n't\b)\W*(?:\w+\W+){0,2}$"
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")


def other(side: str) -> str:
    """The other side of A and B."""
    return "B" if side == "A" else "A"


def lettered(text: str) -> str:
    """The text with `Response 1` and `@Response 2` as `Response A` and `Response B`."""
    letter = {"1": "A", "2": "B"}

    def name(found: re.Match[str]) -> str:
        first, one, join, two = found.groups()
        return f"{first}{letter[one]}" + (f"{join}{letter[two]}" if two else "")

    return _NUMBERED.sub(name, text)


def exchanged(text: str) -> str | None:
    """The text with every name of a side replaced by the other's; None if one cannot be rewritten with certainty.

    `Response A`, `Assistants A and B` and `the first response` are rewritten. A bare letter, a number, `the former`,
    `the second` without a noun and the like give None.
    """
    if _UNSURE.search(_ORDINAL.sub("; ", _NAMED.sub("; ", text))):
        return None
    turned = {"first": "second", "second": "first"}

    def name(found: re.Match[str]) -> str:
        first, one, join, two = found.groups()
        return f"{first}{other(one)}" + (f"{join}{other(two)}" if two else "")

    return _ORDINAL.sub(lambda found: found[1] + turned[found[2]], _NAMED.sub(name, text))


def _mentions(sentence: str) -> list[tuple[int, str]]:
    return [(found.start(), found[1] or found[2]) for found in _MENTION.finditer(sentence)]


def _claims(sentence: str) -> set[str]:
    """The sides that one sentence calls better; claims under a negation or a condition do not count."""
    mentions = _mentions(sentence)
    out: set[str] = set()
    if sentence.rstrip().endswith("?"):
        return out
    for pattern in (_BETTER, _WORSE, _PREFER):
        for found in pattern.finditer(sentence):
            before = [side for place, side in mentions if place < found.start()]
            after = [side for place, side in mentions if place >= found.end()]
            near = after[:1] if pattern is _PREFER else before[-1:] or after[:1]
            if near and not _DENIED.search(sentence[: found.start()]):
                out.add(other(near[0]) if pattern is _WORSE else near[0])
    return out


def claimed(text: str) -> str | None:
    """The side that the text calls better, None if it calls none or both so."""
    found: set[str] = set().union(*map(_claims, _SENTENCES.split(text)))
    return found.pop() if len(found) == 1 else None


def concluded(text: str) -> str | None:
    """The side that a conclusion stands for: the one it calls better; if it compares nothing, the only one it names."""
    if any(pattern.search(text) for pattern in (_BETTER, _WORSE, _PREFER)):
        return claimed(text)
    named = {side for _, side in _mentions(text)}
    return named.pop() if len(named) == 1 else None
