"""Segments of a rendering: where markup ends and content begins, what is scored, and what a length policy cuts."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from gramjax.core.errors import DataError
from gramjax.data.rows import Drop, Message, Text

NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
MARKS = "\ue0f0", "\ue0f1", "\ue0f2"
"""Private-use characters that stand around a message's number and content while a template is taken apart."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of a rendering. `part` says whose content it is, for the length policy."""

    text: str
    content: bool = False
    scored: bool = False
    part: str = ""
    """`prompt`, `first` or `second` for content that a policy may shorten; empty: never cut."""


Pieces = list[tuple[Segment, list[int]]]


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbouring markup segments of one kind joined, empty ones gone: markup is tokenised as it was written."""
    out: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        if out and not segment.content and not out[-1].content and segment.scored == out[-1].scored:
            out[-1] = dataclasses.replace(out[-1], text=out[-1].text + segment.text)
        else:
            out.append(segment)
    return out


def _trim(segments: list[Segment], left: int, right: int) -> list[Segment]:
    """Without the first `left` and the last `right` characters."""
    out = list(segments)
    for amount, index, cut in ((left, 0, lambda t, n: t[n:]), (right, -1, lambda t, n: t[: len(t) - n])):
        while amount and out:
            piece = out[index]
            take = min(amount, len(piece.text))
            out[index] = dataclasses.replace(piece, text=cut(piece.text, take))
            amount -= take
            if not out[index].text:
                out.pop(index)
    return out


def _joined(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _forms(segments: list[Segment]) -> list[list[Segment]]:
    """The ways in which a template may write a message: as it is, or stripped on one or both sides."""
    text = _joined(segments)
    left, right = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    if left == len(text):
        return [segments, []]
    return [segments, _trim(segments, left, right), _trim(segments, left, 0), _trim(segments, 0, right)]


def turns_of(value: Text, part: str, role: str = "user") -> list[tuple[Message, list[Segment]]]:
    """The messages of a text column, each with its content as segments."""
    items = [{"role": role, "content": value}] if isinstance(value, str) else value
    return [(dict(turn), [Segment(turn["content"], content=True, part=part)]) for turn in items]


def flat(value: Text, part: str) -> list[Segment]:
    """A text column as one block of text: a lone message is just its content, a dialogue gets role tags."""
    if isinstance(value, str):
        return [Segment(value, content=True, part=part)]
    if len(value) == 1:
        return [Segment(value[0]["content"], content=True, part=part)]
    out = []
    for index, turn in enumerate(value):
        name = NAMES.get(turn["role"], turn["role"].capitalize())
        out.append(Segment(f"{chr(10) * 2 if index else ''}{name}: "))
        out.append(Segment(turn["content"], content=True, part=part))
    return out


def score(segments: Sequence[Segment], scored: bool = True) -> list[Segment]:
    """The segments with everything scored (or nothing)."""
    return [dataclasses.replace(segment, scored=scored) for segment in segments]


def locate(full: str, contents: list[list[Segment]], render: Callable[[list[str]], str]) -> list[Segment]:
    """Split a rendered text into markup and the given contents, in order.

    `render` renders the same messages with other contents. First the contents are replaced by placeholders, which
    finds them exactly; a template that looks into contents may then write something else, so the second way is the
    contents themselves between marks. Raises DataError if neither explains the real text.
    """
    texts = [_joined(content) for content in contents]
    shown = [i for i, text in enumerate(texts) if text.strip()]
    first, last, end = MARKS
    attempts: tuple[tuple[Callable[[int], str], Callable[..., list[Segment] | None]], ...] = (
        (lambda i: f"{first}{i}{last}", _walk),
        (lambda i: f"{first}{i}{last}{texts[i]}{end}", _between),
    )
    for mark, split in attempts:
        try:
            skeleton = render([mark(i) if i in shown else text for i, text in enumerate(texts)])
        except DataError:
            continue
        found = split(full, skeleton, {i: contents[i] for i in shown})
        if found is not None:
            return found
    raise DataError("the chat template rewrites or leaves out the content of a message")


def _walk(full: str, skeleton: str, contents: dict[int, list[Segment]]) -> list[Segment] | None:
    """The split that placeholders promise, or None if it does not fit the real text."""
    out: list[Segment] = []
    place = 0
    for index, content in contents.items():
        before, mark, skeleton = skeleton.partition(f"{MARKS[0]}{index}{MARKS[1]}")
        if not mark or not full.startswith(before, place):
            return None
        place += len(before)
        following = skeleton.partition(MARKS[0])[0]
        for form in _forms(content):
            text = _joined(form)
            if full.startswith(text, place) and full.startswith(following, place + len(text)):
                out += [Segment(before), *form]
                place += len(text)
                break
        else:
            return None
    return [*out, Segment(skeleton)] if full[place:] == skeleton else None


def _between(full: str, skeleton: str, contents: dict[int, list[Segment]]) -> list[Segment] | None:
    """The split at marks around the contents themselves, or None if the template changed one."""
    first, last, end = MARKS
    pieces = re.split(f"{first}(\\d+){last}(.*?){end}", skeleton, flags=re.DOTALL)
    numbers, found = [int(n) for n in pieces[1::3]], pieces[2::3]
    if numbers != list(contents) or found != [_joined(c) for c in contents.values()]:
        return None
    out = [Segment(pieces[0])]
    for content, after in zip(contents.values(), pieces[3::3], strict=True):
        out += [*content, Segment(after)]
    return out if _joined(out) == full else None


def scored_by_spans(segments: Sequence[Segment], spans: Sequence[tuple[int, int]]) -> list[Segment]:
    """Score what lies inside the character spans that the template marked, and nothing else."""
    edges = sorted({edge for span in spans for edge in span})
    out: list[Segment] = []
    place = 0
    for segment in segments:
        cuts = [edge - place for edge in edges if place < edge < place + len(segment.text)]
        for start, stop in zip([0, *cuts], [*cuts, len(segment.text)], strict=True):
            inside = any(low <= place + start and place + stop <= high for low, high in spans)
            out.append(dataclasses.replace(segment, text=segment.text[start:stop], scored=inside))
        place += len(segment.text)
    return out


def scored_ends(segments: Sequence[Segment], specials: Sequence[str]) -> list[Segment]:
    """Score, after every scored content, the markup up to and with its first special token (the end of the turn).

    Markup without a special token is scored if it is the last of the text.
    """
    out: list[Segment] = []
    joined = merged(segments)
    for index, segment in enumerate(joined):
        if segment.content or segment.scored or not (out and out[-1].scored and out[-1].content):
            out.append(segment)
            continue
        ends = [segment.text.find(text) + len(text) for text in specials if text in segment.text]
        end = min(ends) if ends else len(segment.text) * (index == len(joined) - 1)
        out.append(Segment(segment.text[:end], scored=True))
        out.append(Segment(segment.text[end:]))
    return out


def flatten(pieces: Pieces) -> tuple[list[int], list[float]]:
    """(ids, loss mask) of tokenised segments."""
    ids = [i for _, part in pieces for i in part]
    return ids, [float(segment.scored) for segment, part in pieces for _ in part]


def check_mask(ids: list[int], mask: list[float]) -> tuple[list[int], list[float]]:
    """The same pair; raises Drop if there is nothing to predict (the first token cannot be predicted)."""
    if not any(mask[1:]):
        raise Drop("no token to predict")
    return ids, mask


def cut_left(pieces: Pieces, excess: int) -> Pieces | None:
    """Without the first `excess` tokens of the prompt's content; None if it has fewer."""
    out: Pieces = []
    for segment, ids in pieces:
        take = min(excess, len(ids)) if segment.part == "prompt" else 0
        excess -= take
        out.append((segment, ids[take:]))
    return None if excess else out


def cut_answers(pieces: Pieces, excess: int) -> Pieces | None:
    """Without `excess` or one more tokens from the ends of the answers, in proportion to their lengths.

    None if an answer would vanish. What is kept of an answer does not depend on whether it is first or second.
    """
    sizes = {part: sum(len(ids) for s, ids in pieces if s.part == part) for part in ("first", "second")}
    total = sum(sizes.values())
    room = {part: size * (total - excess) // total for part, size in sizes.items() if size}
    if not room or min(room.values()) < 1:
        return None
    out: Pieces = []
    for segment, ids in pieces:
        if segment.part in room:
            ids = ids[: room[segment.part]]
            room[segment.part] -= len(ids)
        out.append((segment, ids))
    return out
