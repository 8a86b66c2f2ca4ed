"""What a pseudo-labelled pair must pass before it is trained on (section 2.4 of the specification of GRAM-R2).

Every rule has a reason of its own, which is counted. The thresholds are not published; they are settings here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import proofs, rationales
from gramjax.data.rows import Tally, digest
from gramjax.data.sides import SIDES, concluded

TOO_LONG = "rationale too long"
NO_THINK, MANY_THINKS = "no think block", "more than one think block"
NO_ANSWER, MANY_ANSWERS = "no answer block", "more than one answer block"
OUT_OF_ORDER = "blocks out of order"
OUTSIDE = "text outside the blocks"
BAD_ANSWER = "answer is neither A nor B"
OTHER_LABEL = "answer is not the label"
NO_SECTIONS = "sections missing or out of order"
EMPTY_SECTION = "empty section"
NO_CONCLUSION = "conclusion names no side"
OTHER_CONCLUSION = "conclusion names the other side"
REPETITIVE = "too many repeated lines"
LEAK = proofs.LEAK

NO_VERDICT = "no draw gave a verdict"
SPLIT = "even split of the votes"
LOW_SHARE = "vote share too low"
LOW_PROBABILITY = "label probability too low"
UNBALANCED = "surplus of one side"
MORE = "more than asked for"


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds of a self-training round."""

    max_tokens: int = 1024
    """Longest rationale, in tokens of the judge's tokenizer."""
    max_repeated_lines: float = 0.3
    """The share of lines (not empty) that occurred before must be below this."""
    min_vote_share: float = 0.75
    """Smallest share of all draws that voted for the label; an even split is discarded whatever this says."""
    min_probability: float = 0.8
    """Smallest mean probability of the label's token over the draws that voted for it; 0: not asked for."""
    least_share_of_a: float = 0.45
    """Smallest share of rows whose first response is better ..."""
    most_share_of_a: float = 0.55
    """... and the largest; a surplus is left out at random."""

    def __post_init__(self) -> None:
        for name in ("max_repeated_lines", "min_vote_share", "min_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if not 0 <= self.least_share_of_a <= 0.5 <= self.most_share_of_a <= 1:
            raise UserError(
                f"least_share_of_a={self.least_share_of_a} and most_share_of_a={self.most_share_of_a} must enclose 0.5"
            )


def _blocks(text: str) -> str:
    """The reason why a reply is not one think block followed by one answer block and nothing else, or ""."""
    counts = {tag: text.count(tag) for tag in (*rationales.THINK, *rationales.ANSWER)}
    for tags, none, many in ((rationales.THINK, NO_THINK, MANY_THINKS), (rationales.ANSWER, NO_ANSWER, MANY_ANSWERS)):
        if min(counts[tag] for tag in tags) == 0:
            return none
        if max(counts[tag] for tag in tags) > 1:
            return many
    places = [text.index(tag) for tag in counts]
    if places != sorted(places):
        return OUT_OF_ORDER
    between = text[places[1] + len(rationales.THINK[1]) : places[2]]
    outside = text[: places[0]] + between + text[places[3] + len(rationales.ANSWER[1]) :]
    return OUTSIDE if outside.strip() else ""


def repeated_lines(text: str) -> float:
    """Share of the lines with text that are equal to an earlier one; 0 for a text without lines."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def _sections(read: rationales.Judgement) -> str:
    """The reason why the sections of a reply are not in order, or ""; feedback on one side only is an empty section."""
    if not read.headed:
        return NO_SECTIONS
    sided = re.fullmatch(r"Response A:(.*)^Response B:(.*)", read.feedback, re.DOTALL | re.MULTILINE)
    parts = (read.feedback, read.comparison, read.conclusion, *(sided.groups() if sided else ()))
    return "" if all(part.strip() for part in parts) else EMPTY_SECTION


def broken(reply: str, label: str, rules: Rules, tokens: Callable[[str], int]) -> str:
    """The first rule that a rationale with its answer breaks, as its reason; "" for one that passes all.

    `label` is the side it must arrive at; `tokens` counts the tokens of a text.
    """
    if tokens(reply) > rules.max_tokens:
        return TOO_LONG
    if reason := _blocks(reply):
        return reason
    inside = reply.partition(rationales.ANSWER[0])[2].partition(rationales.ANSWER[1])[0].strip()
    if inside not in SIDES:
        return BAD_ANSWER
    if inside != label:
        return OTHER_LABEL
    read = rationales.parse(reply)
    if reason := _sections(read):
        return reason
    side = concluded(read.conclusion)
    if side != label:
        return NO_CONCLUSION if side is None else OTHER_CONCLUSION
    if repeated_lines(reply) >= rules.max_repeated_lines:
        return REPETITIVE
    return LEAK if proofs.leaks(reply) else ""


def doubtful(share: float, probability: float | None, tied: bool, label: str | None, rules: Rules) -> str:
    """The reason why votes are too weak for a pseudo-label, "" if they are not.

    `share`, `probability` and `tied` are those of `core.voting.Votes`; an unknown probability (None or NaN) does not
    pass a threshold above 0.
    """
    if label is None:
        return NO_VERDICT
    if tied:
        return SPLIT
    if not share >= rules.min_vote_share:
        return LOW_SHARE
    known = float("nan") if probability is None else probability
    if rules.min_probability > 0 and not known >= rules.min_probability:
        return LOW_PROBABILITY
    return ""


def balanced(rows: Sequence[Mapping[str, Any]], rules: Rules, seed: int = 0) -> list[bool]:
    """Which rows to keep so that the share with label A lies in the rules' range: all, or all but some of one side.

    Who goes is decided by seed and id. With one side only, nothing can be balanced and nothing is kept.
    """
    sides = {side: [i for i, row in enumerate(rows) if row["label"] == side] for side in SIDES}
    a, b = len(sides["A"]), len(sides["B"])
    most = {"A": _room(b, rules.most_share_of_a), "B": _room(a, 1 - rules.least_share_of_a)}
    keep = [True] * len(rows)
    for side, places in sides.items():
        drawn = sorted(places, key=lambda i: digest(seed, "balance", rows[i]["id"]))
        for place in drawn[most[side] :]:
            keep[place] = False
    return keep


def at_most(rows: Sequence[Mapping[str, Any]], most: int, seed: int = 0) -> list[bool]:
    """Which rows to keep so that there are `most` of them (0: all), each side in proportion; by seed and id."""
    if not 0 < most < len(rows):
        return [True] * len(rows)
    place: dict[int, tuple[float, int]] = {}
    for side in SIDES:
        numbers = {digest(seed, "most", row["id"]): i for i, row in enumerate(rows) if row["label"] == side}
        for rank, number in enumerate(sorted(numbers)):
            place[numbers[number]] = (rank + 0.5) / len(numbers), number
    chosen = set(sorted(place, key=lambda i: place[i])[:most])
    return [i in chosen for i in range(len(rows))]


def _room(others: int, share: float) -> int:
    """How many of one side may stand beside `others` of the other without being more than `share` of all."""
    return int(others * share / (1 - share) + 1e-9) if share < 1 else 10**18


@dataclasses.dataclass
class Kept:
    """The rows that passed a round's rules, and what happened to the others."""

    rows: list[dict[str, Any]]
    dropped: Tally
    share_of_a: float
    """Share of the kept rows whose first response is better; NaN without rows."""


def filtered(rows: Sequence[Mapping[str, Any]], rules: Rules, tokens: Callable[[str], int], seed: int = 0) -> Kept:
    """Apply all rules to rows with `id`, `label`, `rationale` and, where they were voted on, `vote_share`,
    `label_probability` and `tied`: first the votes, then the rationale, then the balance of the two sides.

    Rows without `vote_share` have a given label: their votes are not looked at.
    """
    passed, dropped = [], Tally()
    for row in rows:
        votes = (row.get("vote_share"), row.get("label_probability"), bool(row.get("tied")))
        reason = "" if votes[0] is None else doubtful(votes[0], votes[1], votes[2], row["label"], rules)
        reason = reason or broken(row["rationale"], row["label"], rules, tokens)
        if reason:
            dropped.add(reason, row["id"])
        else:
            passed.append(dict(row))
    kept = []
    for row, keep in zip(passed, balanced(passed, rules, seed), strict=True):
        if keep:
            kept.append(row)
        else:
            dropped.add(UNBALANCED, row["id"])
    share = sum(row["label"] == "A" for row in kept) / len(kept) if kept else float("nan")
    return Kept(kept, dropped, share)
