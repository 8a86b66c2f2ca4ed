"""Figures of self-training: what each round's labels were worth, what the filters left, what came of it.

They are made from a recipe's `rounds.json` alone. It is written after every step, so anything may be missing in it: a
missing number is a dash or an absent point.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError
from gramjax.plots import style
from gramjax.plots.style import Drawn

ROUND_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.RED)
"""Colour of a round by its place, the same in every figure; the final tuning is dark."""
LOST_COLOURS = (style.ORANGE, style.SKY, style.PURPLE, style.GREEN, style.MUTED)
"""Colour of a filter by its place; what is kept is blue."""
LIGHT = (style.ORANGE, style.SKY)
"""Colours on which dark text is read."""
LABELS = (("one_draw", "one draw", style.ORANGE), ("vote", "vote", style.PURPLE), ("kept", "kept", style.GREEN))
"""Precisions of pseudo-labels: field of a round, name, colour."""
DASHED = (0, (4, 3))
LONGEST = 24
"""Characters of a name in a figure."""

MOST_BARS = 60
"""More bars than this are drawn as lines."""

Number = int | float


@dataclasses.dataclass(frozen=True)
class Filter:
    """What one filter of a round got and passed on."""

    name: str
    before: Number
    after: Number
    dropped: tuple[tuple[str, Number | None, str | None], ...]
    """Reason, rows, the first of them."""


@dataclasses.dataclass(frozen=True)
class Round:
    """The numbers of one round; None where the file has none yet."""

    name: str
    is_final: bool
    num_train: Number | None
    num_unlabelled: Number | None
    accuracy: Number | None
    low: Number | None
    high: Number | None
    num_pairs: Number | None
    num_unreadable: Number | None
    agreement: Number | None
    one_draw: Number | None
    """Precision of the pseudo-labels if a single judgement decided, ..."""
    vote: Number | None
    """... if the vote decided, before any filter, ..."""
    kept: Number | None
    """... and among those that passed all filters."""
    num_gold: Number | None
    kept_share: Number | None
    share_of_a: Number | None
    filters: tuple[Filter, ...]
    dropped: tuple[tuple[str, Number | None, str | None], ...]
    """Rows that its training left out."""
    votes: Mapping[float, Number]
    """Pairs by the vote share of their label."""
    curve: tuple[tuple[Number, Number | None, Number | None], ...]
    """Votes, measured accuracy, accuracy of as many independent draws."""


# --- reading


def read(state: Mapping[str, Any]) -> tuple[Round, ...]:
    """The rounds in order, the final tuning last. Raises DataError where something is not what it should be."""
    found = [_round(mapping(entry, "rounds"), place) for place, entry in enumerate(listed(state, "rounds"))]
    if final := part(state, "final"):
        found.append(_round(final, len(found), True))
    return tuple(found)


def _round(entry: Mapping[str, Any], place: int, is_final: bool = False) -> Round:
    test, labels = part(entry, "test"), part(entry, "pseudo_labels")
    filters = [mapping(found, "filters") for found in listed(entry, "filters")]
    curve = [mapping(point, "votes_curve") for point in listed(test, "votes_curve")]
    points = [(number(p.get("votes")), number(p.get("accuracy")), number(p.get("binomial"))) for p in curve]
    return Round(
        name=str(entry.get("name") or ("final" if is_final else f"R{entry.get('round', place)}")),
        is_final=is_final,
        num_train=number(entry.get("num_train")),
        num_unlabelled=number(entry.get("num_unlabelled")),
        accuracy=number(test.get("accuracy")),
        low=number(test.get("accuracy_low")),
        high=number(test.get("accuracy_high")),
        num_pairs=number(test.get("num_pairs")),
        num_unreadable=number(test.get("num_unreadable")),
        agreement=number(test.get("agreement")),
        one_draw=number(labels.get("precision_one_draw")),
        vote=number(labels.get("precision_vote")),
        kept=number(labels.get("precision_kept")),
        num_gold=number(labels.get("num_gold")),
        kept_share=number(entry.get("kept_share")),
        share_of_a=number(entry.get("share_of_a")),
        filters=tuple(
            Filter(str(f.get("name", "?")), before, after, reasons(f))
            for f in filters
            for before, after in [(number(f.get("before")), number(f.get("after")))]
            if before is not None and after is not None
        ),
        dropped=reasons(entry),
        votes={_share(share): number(count) or 0 for share, count in part(entry, "vote_histogram").items()},
        curve=tuple((votes, measured, ideal) for votes, measured, ideal in points if votes is not None),
    )


def number(value: Any) -> Number | None:
    """A finite number, or None."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"rounds.json: vote_histogram has the key {text!r}; its keys are shares of votes") from None


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """An object of the file, empty where there is none. `name` is for the error."""
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise DataError(f"rounds.json: {name} holds {value!r:.60} where an object should be")


def part(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object that stands under a name."""
    return mapping(entry.get(name), name)


def listed(entry: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The list that stands under a name."""
    value = entry.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise DataError(f"rounds.json: {name} is {value!r:.60}; it should be a list")


def reasons(entry: Mapping[str, Any]) -> tuple[tuple[str, Number | None, str | None], ...]:
    """Reasons for dropped rows, the commonest first."""
    found = [(str(why), mapping(lost, "dropped")) for why, lost in part(entry, "dropped").items()]
    rows = [(why, number(lost.get("count")), lost.get("first")) for why, lost in found]
    return tuple(sorted(rows, key=lambda row: -(row[1] or 0)))


# --- figures


def draw_all(state: Mapping[str, Any], folder: Path) -> list[Drawn]:
    """Every figure that the file allows."""
    rounds = read(state)
    drawn = [accuracy(rounds, folder), filters(rounds, folder), vote_shares(rounds, folder), curve(rounds, folder)]
    return [figure for figure in drawn if figure is not None]


def short(name: str, most: int = LONGEST) -> str:
    """A name that fits into a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def accuracy(rounds: Sequence[Round], folder: Path) -> Drawn | None:
    """Test accuracy by round, and beside it the precision of the pseudo-labels that the round was trained on."""
    tested = any(r.accuracy is not None for r in rounds)
    labelled = any(getattr(r, field) is not None for r in rounds for field, _, _ in LABELS)
    if not (tested or labelled):
        return None
    names = ("accuracy", "low", "high", "one_draw", "vote", "kept")
    rows = [{"round": r.name} | {name: getattr(r, name) for name in names} for r in rounds]
    numbers = style.write_table(folder / "rounds_accuracy.csv", rows)
    panels = {"ncols": int(tested) + int(labelled), "sharey": True, "squeeze": False}
    picture = style.figure(
        _draw_accuracy, folder / "rounds_accuracy.png", (9.2, 3.7), rounds, tested, labelled, **panels
    )
    caption = "Whiskers: 95 % interval. " if tested else ""
    if labelled:
        caption += (
            "The pseudo-labels of a round are drawn by the judge of the round before: by one judgement, by the vote of "
            "several, and what the filters kept of the vote. Each should lie above the one before it. "
        )
    caption += "Dashed: chance."
    return Drawn("rounds_accuracy", "Does each round help?", caption, picture, numbers)


def _draw_accuracy(axes: Any, rounds: Sequence[Round], tested: bool, labelled: bool) -> None:
    panels = list(axes.flatten())
    values = [r.accuracy for r in rounds] + [r.low for r in rounds]
    values += [getattr(r, field) for r in rounds for field, _, _ in LABELS]
    lowest = min(value for value in values if value is not None)
    if tested:
        axis = panels.pop(0)
        axis.set_title("Accuracy on test pairs", pad=26)
        shown = [r for r in rounds if r.accuracy is not None]
        _draw_tests(axis, shown, list(range(len(shown))), style.BLUE, "test accuracy")
        _name_rounds(axis, [r.name for r in shown])
    if labelled:
        axis = panels.pop(0)
        axis.set_title("Precision of pseudo-labels", pad=26)
        shown = [r for r in rounds if any(getattr(r, field) is not None for field, _, _ in LABELS)]
        for field, label, colour in LABELS:
            known = [(place, getattr(r, field)) for place, r in enumerate(shown) if getattr(r, field) is not None]
            axis.plot(*zip(*known), color=colour, marker="o", label=label) if known else None
        _name_rounds(axis, [r.name for r in shown])
    for axis in axes.flatten():
        axis.axhline(0.5, color=style.MUTED, linestyle=DASHED, linewidth=1.2, zorder=1)
        axis.set_ylim(max(min(0.45, lowest - 0.03), -0.02), 1.02)
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=3, columnspacing=1.2)
        style.percent(axis.yaxis)


def _draw_tests(axis: Any, rounds: Sequence[Round], places: Sequence[float], colour: str, label: str) -> None:
    """Accuracies with intervals: rounds are joined, the final tuning stands apart."""
    tested = [(x, r, r.accuracy) for x, r in zip(places, rounds) if r.accuracy is not None]
    joined = [(x, value) for x, r, value in tested if not r.is_final]
    if joined:
        axis.plot(*zip(*joined), color=colour, marker="o", label=label, zorder=3)
    for x, r, value in tested:
        if r.low is not None and r.high is not None:
            reach = [[max(value - r.low, 0)], [max(r.high - value, 0)]]
            axis.errorbar(x, value, reach, ecolor=colour, elinewidth=1.2, capsize=3, fmt="none", alpha=0.8)
        if r.is_final:
            mark = {"color": colour, "markerfacecolor": "white", "markersize": 7, "zorder": 4}
            axis.plot([x], [value], "D", label=None if joined else label, **mark)


def _name_rounds(axis: Any, names: Sequence[str]) -> None:
    labels = [short(name, max(5, 48 // len(names))) for name in names]
    axis.set_xticks(range(len(names)), labels, fontsize=9 if len(names) < 9 else 7.5)
    axis.set_xlim(-0.4, len(names) - 0.6)
    axis.set_xlabel("Round")
    axis.grid(axis="x", visible=False)


def losses(found: Round) -> dict[str, Number]:
    """How many rows each filter of a round took out."""
    return {step.name: step.before - step.after for step in found.filters}


def filters(rounds: Sequence[Round], folder: Path) -> Drawn | None:
    """One bar per round: what is kept, and what each filter took out."""
    shown = [r for r in rounds if r.filters and r.filters[0].before]
    if not shown:
        return None
    rows = [
        {"round": r.name, "filter": f.name, "before": f.before, "after": f.after, "share_left": f.after / total}
        for r in shown for total in [r.filters[0].before] for f in r.filters
    ]  # fmt: skip
    numbers = style.write_table(folder / "rounds_filters.csv", rows)
    size = (9.2, 1.25 + 0.25 * _rows(_legend(shown), 100) + 0.55 * len(shown))
    picture = style.figure(_draw_filters, folder / "rounds_filters.png", size, shown)
    caption = (
        "Each bar is all the pairs that a round judged. The filters act one after the other, so what one of them left "
        "is everything to the left of its own part."
    )
    return Drawn("rounds_filters", "What did the filters leave?", caption, picture, numbers)


def _legend(rounds: Sequence[Round]) -> list[str]:
    """Names of the parts of a bar: what is kept on the left, then back through the filters."""
    names = list(dict.fromkeys(step.name for r in rounds for step in r.filters))
    return ["kept", *(f"lost to {short(name)}" for name in names[::-1])]


def _draw_filters(axis: Any, rounds: Sequence[Round]) -> None:
    names = list(dict.fromkeys(step.name for r in rounds for step in r.filters))
    ends = [0.0] * len(rounds)
    colours = dict(zip(names, itertools.cycle(LOST_COLOURS)))
    for name, label in zip([None, *names[::-1]], _legend(rounds)):
        counts = [r.filters[-1].after if name is None else losses(r).get(name, 0) for r in rounds]
        widths = [count / r.filters[0].before for count, r in zip(counts, rounds)]
        colour = style.BLUE if name is None else colours[name]
        axis.barh(range(len(rounds)), widths, 0.62, left=ends, color=colour, label=label)
        for place, (count, width, left) in enumerate(zip(counts, widths, ends)):
            if width >= 0.009 * len(f"{count:,}") + 0.008:
                ink = style.INK if colour in LIGHT else "white"
                axis.text(left + width / 2, place, f"{count:,}", ha="center", va="center", fontsize=8.5, color=ink)
        ends = [end + width for end, width in zip(ends, widths)]
    axis.set_yticks(range(len(rounds)), [f"{short(r.name)}  ({r.filters[0].before:,} pairs)" for r in rounds])
    axis.set_ylim(len(rounds) - 0.45, -0.55)
    axis.set_xlim(0, max(1.0, *ends))
    axis.grid(axis="y", visible=False)
    axis.set_title("Judged pairs of each round", pad=10 + 16 * _rows(_legend(rounds), 100))
    columns = _columns(_legend(rounds), 100)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=columns, columnspacing=1.2)
    style.percent(axis.xaxis)


def vote_shares(rounds: Sequence[Round], folder: Path) -> Drawn | None:
    """How sure the votes were: pairs by the share of votes that their label got."""
    shown = [(place, r) for place, r in enumerate(rounds) if sum(r.votes.values())]
    if not shown:
        return None
    rows = [
        {"round": r.name, "vote_share": share, "pairs": count, "share": count / sum(r.votes.values())}
        for _, r in shown for share, count in sorted(r.votes.items())
    ]  # fmt: skip
    numbers = style.write_table(folder / "rounds_votes.csv", rows)
    picture = style.figure(_draw_vote_shares, folder / "rounds_votes.png", (5.2, 4.2), shown)
    caption = (
        "Pairs by the share of all draws that voted for the label they got, before any filter. A judge that is sure "
        "and steady has its pairs on the right; at half and below, the vote was tied or draws could not be read."
    )
    return Drawn("rounds_votes", "How sure are the votes?", caption, picture, numbers)


def _draw_vote_shares(axis: Any, rounds: Sequence[tuple[int, Round]]) -> None:
    shares = sorted({share for _, r in rounds for share in r.votes})
    width = 0.8 / len(rounds)
    for at, (place, r) in enumerate(rounds):
        total = sum(r.votes.values())
        heights, look = (
            [r.votes.get(s, 0) / total for s in shares],
            {"color": _colour(place, r), "label": short(r.name)},
        )
        if len(rounds) * len(shares) > MOST_BARS:
            known = [x for x, share in enumerate(shares) if share in r.votes]
            axis.plot(known, [heights[x] for x in known], marker="o", markersize=3, **look)
        else:
            axis.bar([x - 0.4 + width * (at + 0.5) for x in range(len(shares))], heights, width * 0.94, **look)
    every = math.ceil(len(shares) / 9)
    places = range((len(shares) - 1) % every, len(shares), every)
    axis.set_xticks(places, [f"{100 * shares[x]:.3g} %" for x in places], fontsize=8 if len(places) > 5 else 9)
    axis.set_xlim(-0.6, len(shares) - 0.4)
    names = [short(r.name) for _, r in rounds]
    axis.set_title("Votes for the label", pad=10 + 16 * _rows(names, 60))
    axis.set_xlabel("Votes for the label, share of the draws")
    axis.set_ylabel("Pairs of the round")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=_columns(names, 60), columnspacing=1.2)
    style.percent(axis.yaxis)


def _colour(place: int, found: Round) -> str:
    return style.INK if found.is_final else ROUND_COLOURS[place % len(ROUND_COLOURS)]


def _columns(labels: Sequence[str], room: int) -> int:
    """Columns of a legend above axes that are so many characters wide."""
    return max(1, min(len(labels), 6, room // (max(map(len, labels)) + 5)))


def _rows(labels: Sequence[str], room: int) -> int:
    return math.ceil(len(labels) / _columns(labels, room))


def curve(rounds: Sequence[Round], folder: Path) -> Drawn | None:
    """Accuracy by number of votes, measured and as independent draws would give."""
    shown = [(place, r) for place, r in enumerate(rounds) if any(v is not None for p in r.curve for v in p[1:])]
    if not shown:
        return None
    rows = [{"round": r.name} | dict(zip(("votes", "accuracy", "binomial"), p)) for _, r in shown for p in r.curve]
    numbers = style.write_table(folder / "rounds_curve.csv", rows)
    picture = style.figure(_draw_curve, folder / "rounds_curve.png", (5.2, 4.2), shown)
    caption = (
        "Test accuracy of the majority of so many draws. Dashed: what independent draws would reach that are each as "
        "often right (the binomial sum). Where measured stays below it, draws about a pair share their mistakes."
    )
    return Drawn("rounds_curve", "What are more votes worth?", caption, picture, numbers)


def _draw_curve(axis: Any, rounds: Sequence[tuple[int, Round]]) -> None:
    for place, r in rounds:
        colour = _colour(place, r)
        measured = [(votes, value) for votes, value, _ in r.curve if value is not None]
        ideal = [(votes, value) for votes, _, value in r.curve if value is not None]
        axis.plot([], [], color=colour, marker="o", label=short(r.name))
        if ideal:
            axis.plot(*zip(*ideal), color=colour, linestyle=DASHED, linewidth=1.3, alpha=0.9)
        if measured:
            axis.plot(*zip(*measured), color=colour, marker="o", markersize=4, zorder=3)
    axis.plot([], [], color=style.MUTED, linestyle=DASHED, linewidth=1.3, label="independent draws")
    counts = sorted({votes for _, r in rounds for votes, _, _ in r.curve})
    if len(counts) > 8:
        counts = [votes for votes in counts if votes == 1 or votes % 2 == 0]
    axis.set_xticks(counts, [f"{votes:g}" for votes in counts])
    names = [short(r.name) for _, r in rounds]
    columns = 4 if max(map(len, names)) <= 6 else 2
    axis.set_title("Accuracy by number of votes", pad=10 + 16 * math.ceil((len(names) + 1) / columns))
    axis.set_xlabel("Votes")
    axis.set_ylabel("Test accuracy")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=columns, columnspacing=1.0, handlelength=1.8)
    low, high = axis.get_ylim()
    style.percent(axis.yaxis, 0 if high - low > 0.08 else 1)


def in_order(both: Sequence[Sequence[Round]]) -> list[str]:
    """Names of the rounds of several recipes, the final tuning last."""
    finals = {r.name for rounds in both for r in rounds if r.is_final}
    return [*dict.fromkeys(r.name for rounds in both for r in rounds if r.name not in finals), *finals]


def overlay(one: Mapping[str, Any], two: Mapping[str, Any], folder: Path, names: tuple[str, str]) -> Drawn | None:
    """Test accuracy by round of two recipes; None when neither has one."""
    both = [[r for r in read(state) if r.accuracy is not None] for state in (one, two)]
    if not any(both):
        return None
    rows = [
        {"recipe": name, "round": r.name, "accuracy": r.accuracy, "low": r.low, "high": r.high}
        for name, rounds in zip(names, both) for r in rounds
    ]  # fmt: skip
    numbers = style.write_table(folder / "overlay_rounds.csv", rows)
    picture = style.figure(_draw_overlay, folder / "overlay_rounds.png", (9.2, 3.7), both, in_order(both), names)
    caption = "Whiskers: 95 % interval. Dashed: chance."
    return Drawn("overlay_rounds", "Test accuracy by round, two recipes", caption, picture, numbers)


def _draw_overlay(axis: Any, both: Sequence[Sequence[Round]], order: Sequence[str], names: Sequence[str]) -> None:
    for rounds, name, colour, aside in zip(both, names, (style.BLUE, style.ORANGE), (-0.05, 0.05)):
        _draw_tests(axis, rounds, [order.index(r.name) + aside for r in rounds], colour, short(name))
    _name_rounds(axis, order)
    lowest = min(value for rounds in both for r in rounds for value in (r.low, r.accuracy) if value is not None)
    axis.axhline(0.5, color=style.MUTED, linestyle=DASHED, linewidth=1.2, zorder=1)
    axis.set_ylim(max(min(0.45, lowest - 0.03), -0.02), 1.02)
    axis.set_title("Accuracy on test pairs", pad=26)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.995), ncols=2)
    style.percent(axis.yaxis)
