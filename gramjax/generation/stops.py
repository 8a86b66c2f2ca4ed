"""Stop texts, on the host: where exactly an answer ends, and what of it may already be shown."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids to text; special tokens give no text."""

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no whole character yet."""


def first(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the earliest stop text begins, and which it is (of two at one place, the longer); None: there is none."""
    found = [(at, -len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return None
    at, _, stop = min(found)
    return at, stop


def find(token_ids: Sequence[int], checked: int, stops: Sequence[str], decode: Decode) -> tuple[int, str, str] | None:
    """The end of an answer that stop texts end: (tokens kept, text before the stop text, the stop text).

    `checked` tokens are known to hold none. Kept are the tokens up to the one that completes a stop text: the shortest
    beginning whose text holds one.
    """
    if first(decode(token_ids), stops) is None:
        return None
    for kept in range(checked + 1, len(token_ids) + 1):
        text = decode(token_ids[:kept])
        hit = first(text, stops)
        if hit is not None:
            return kept, text[: hit[0]], hit[1]
    raise AssertionError("a text that holds a stop text has a shortest beginning that does")


def visible(text: str, stops: Sequence[str]) -> str:
    """The part of an unfinished text that stays whatever comes: no half character, no beginning of a stop text."""
    text = text.rstrip(UNFINISHED)
    for length in range(min(max(map(len, stops), default=1) - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return text[:-length]
    return text
