"""Lists put in order by a judge of pairs (list-wise use of GRAM and GRAM-R2). No model here: pairs out, numbers in.

A ranking asks about pairs (i, j) of items, several at once, and is told the probability that i beats j. Each method is
a generator, so that the rankings of many lists can share the judge's batches (`together`). A pair is asked about once,
whatever its order.

    linear       the best so far meets the next item: n - 1 pairs, one after the other
    knockout     winners meet winners: n - 1 pairs in log2(n) rounds
    round_robin  everybody meets everybody: n (n - 1) / 2 pairs at once, order by mean win probability

`linear` and `knockout` find the best item and do the same with the rest; what is known is not asked again. Where the
judge follows one score per item, all three give the order of the scores. Where it goes in circles, only `round_robin`
does not depend on the order of the list.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Generator, Sequence

from gramjax.core.errors import UserError
from gramjax.core.statistics import TIE

METHODS = ("linear", "knockout", "round_robin")
LARGEST_ROUND_ROBIN = 16
"""Items up to which `auto` lets everybody meet everybody; above, it is a knockout."""

Pair = tuple[int, int]
Found = Sequence[float]
Asking = Generator[list[Pair], Found, "Ranking"]
"""Yields new pairs (i, j) with i < j, is sent the probability of i for each, and returns the ranking."""
Ask = Callable[[Sequence[Pair]], Generator[list[Pair], Found, list[float]]]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A list in order, and what it took."""

    order: tuple[int, ...]
    """Items, best first: all of them, or as many as were asked for."""
    wins: tuple[float | None, ...]
    """Mean win probability of each item, by item, over the pairs it was in; None for one that met nobody."""
    comparisons: int
    """Pairs that were judged."""
    method: str
    """Of `METHODS`."""


def rank(
    count: int, compare: Callable[[list[Pair]], Found], method: str = "auto", seed: int = 0, top: int = 0
) -> Ranking:
    """The ranking of one list; `compare` gives the win probability of i for pairs (i, j). See `asking`."""
    (found,) = together([asking(count, method, seed, top=top)], lambda pairs: compare([pair for _, pair in pairs]))
    return found


def together(rankings: Sequence[Asking], compare: Callable[[list[tuple[int, Pair]]], Found]) -> list[Ranking]:
    """Several rankings in lockstep: each call of `compare` has the open pairs of all, as (ranking, (i, j))."""
    done: dict[int, Ranking] = {}
    answers: dict[int, Found | None] = {number: None for number in range(len(rankings))}
    while answers:
        asked: list[tuple[int, Pair]] = []
        for number, answer in answers.items():
            try:
                pairs = rankings[number].send(answer)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as stop:
                done[number] = stop.value
            else:
                asked += [(number, pair) for pair in pairs]
        found = list(compare(asked)) if asked else []
        if len(found) != len(asked):
            raise ValueError(f"{len(asked)} pairs were asked about, {len(found)} answers came back")
        answers = {}
        for (number, _), value in zip(asked, found, strict=True):
            answers.setdefault(number, []).append(value)  # type: ignore[union-attr]
    return [done[number] for number in range(len(rankings))]


def asking(
    count: int, method: str = "auto", seed: int = 0, identity: str = "", top: int = 0, shuffled: bool = True
) -> Asking:
    """A ranking of `count` items as a generator (see `Asking`); `top` of them are put in order, 0: all.

    The list is shuffled by seed and identity first, which decides between equals (not `shuffled`: the caller did).
    Raises UserError for an unknown method, ValueError for an empty list and for an answer outside [0, 1].
    """
    if method not in ("auto", *METHODS):
        raise UserError(f"ranking method {method!r}; choose one of auto, {', '.join(METHODS)}")
    if count < 1:
        raise ValueError("an empty list has no order")
    if method == "auto":
        method = "round_robin" if count <= LARGEST_ROUND_ROBIN else "knockout"
    items = list(range(count))
    if shuffled:
        random.Random(f"{seed}/{identity}/ranking").shuffle(items)
    return _ranking(items, method, top)


def kl(count: int) -> float:
    """Kullback-Leibler divergence of the best of `count` samples from one sample, log n - (n - 1) / n: exact where no
    two samples are equally good, whatever the policy and the reward."""
    return math.log(count) - (count - 1) / count


def _ranking(items: list[int], method: str, top: int) -> Asking:
    count = len(items)
    known: dict[Pair, float] = {}

    def ask(pairs: Sequence[Pair]) -> Generator[list[Pair], Found, list[float]]:
        new = [pair for pair in dict.fromkeys((min(p), max(p)) for p in pairs) if pair not in known]
        if new:
            found = yield new
            if not all(0 <= value <= 1 for value in found):
                raise ValueError(f"a win probability lies in [0, 1], found {list(found)}")
            known.update(zip(new, map(float, found), strict=True))
        return [known[i, j] if i < j else 1 - known[j, i] for i, j in pairs]

    if method == "round_robin":
        yield from ask([(i, j) for i in range(count) for j in range(i + 1, count)])
        means = _means(known, count)
        items.sort(key=lambda item: round(means[item] or 0.0, 9), reverse=True)  # stable: equals stay shuffled
        order = items[: top or None]
    else:
        best = _linear if method == "linear" else _knockout
        order = []
        while items and len(order) < (top or count):
            order.append((yield from best(items, ask)))
            items.remove(order[-1])
    return Ranking(tuple(order), tuple(_means(known, count)), len(known), method)


def _linear(items: Sequence[int], ask: Ask) -> Generator[list[Pair], Found, int]:
    """The best item by a scan; a tie keeps the one that was there."""
    best = items[0]
    for item in items[1:]:
        (probability,) = yield from ask([(best, item)])
        if probability < 0.5 - TIE:
            best = item
    return best


def _knockout(items: Sequence[int], ask: Ask) -> Generator[list[Pair], Found, int]:
    """The best item by rounds; a tie goes to the first of the two, an odd one out moves on."""
    left = list(items)
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        found = yield from ask(pairs)
        odd = left[len(pairs) * 2 :]
        left = [j if probability < 0.5 - TIE else i for (i, j), probability in zip(pairs, found, strict=True)] + odd
    return left[0]


def _means(known: dict[Pair, float], count: int) -> list[float | None]:
    """Mean win probability of each item over the pairs it was in."""
    of: list[list[float]] = [[] for _ in range(count)]
    for (i, j), probability in known.items():
        of[i].append(probability)
        of[j].append(1 - probability)
    return [sum(values) / len(values) if values else None for values in of]
