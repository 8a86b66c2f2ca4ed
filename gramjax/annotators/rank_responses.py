"""Put the responses to a prompt in order by a judge of pairs with rationales (list-wise use of GRAM and GRAM-R2)."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gramjax.core import ranking
from gramjax.core.config import SamplingSection
from gramjax.data.rows import Drop
from gramjax.generation import judging
from gramjax.generation.judging import Judging
from gramjax.generation.request import Statistics
from gramjax.generation.sampler import Sampler

ROW_TYPES = ("responses",)
ROWS_AT_ONCE = 64
"""Lists that are ranked together: their comparisons share the sampler's slots."""
TOO_FEW = "fewer than two responses"


@dataclasses.dataclass(frozen=True)
class Config:
    """How lists of responses are put in order."""

    judging: Judging = Judging(sampling=SamplingSection(max_tokens=1024, temperature=0.75, n=2))
    """How one comparison is judged: `sampling.n` votes, by default one in each order."""
    method: str = "auto"
    """`linear`, `knockout`, `round_robin` (everybody meets everybody), or `auto`: `round_robin` up to 16 responses."""
    score: str = "votes"
    """What a comparison says: the share of the `votes`, or the mean `probability` of the letter."""
    top: int = 0
    """Put only the best ones in order (1: best of n); 0: all."""


def annotate(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, Any]]:
    """Each row with `ranking` (indices of `responses`, best first), `wins` (mean win probability of each), `method`,
    `num_comparisons`, `num_judgements`, `num_undecided` (comparisons without a readable verdict, which count as ties)
    and `comparisons`: pair, win probability of its first, and the votes. Equal responses are a tie, unasked.

    A list with a pair that cannot be judged is refused with the reason (without `refuse`: raised as Drop).
    """
    judging.check_score(config.score, sampler, "annotator.score")
    left = iter(rows)
    while chunk := list(itertools.islice(left, ROWS_AT_ONCE)):
        lists = [_List(row) for row in chunk]
        ranked = [item for item in lists if not item.reason]
        asking = [ranking.asking(len(i.responses), config.method, seed, i.name, config.top) for i in ranked]

        def compare(pairs: list[tuple[int, ranking.Pair]], ranked: list[_List] = ranked) -> list[float]:
            return _compare([(ranked[number], pair) for number, pair in pairs], sampler, config, seed, statistics)

        for item, found in zip(ranked, ranking.together(asking, compare), strict=True):
            item.found = found
        for item in lists:
            if not item.reason:
                yield item.columns()
            elif refuse is None:
                raise Drop(item.reason)
            else:
                refuse(item.row, item.reason)


class _List:
    """A row on its way to a ranking."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row, self.name, self.responses = row, str(row["id"]), list(row["responses"])
        self.reason = "" if len(self.responses) > 1 else TOO_FEW
        self.comparisons: list[dict[str, Any]] = []
        self.found: ranking.Ranking | None = None

    def pair(self, i: int, j: int) -> dict[str, Any]:
        """Two of the responses as a row that can be judged."""
        extra = {name: self.row[name] for name in ("chat_template_kwargs",) if self.row.get(name)}
        responses = [self.responses[i], self.responses[j]]
        return {"id": f"{self.name}/{i}-{j}", "prompt": self.row["prompt"], "responses": responses, **extra}

    def columns(self) -> dict[str, Any]:
        """The row with what was found."""
        assert self.found is not None
        votes = [compared["votes_a"] + compared["votes_b"] for compared in self.comparisons]
        return {
            **self.row,
            "ranking": list(self.found.order),
            "wins": list(self.found.wins),
            "method": self.found.method,
            "num_comparisons": self.found.comparisons,
            "num_judgements": sum(votes) + sum(compared["failed"] for compared in self.comparisons),
            "num_undecided": sum(compared["win"] is None for compared in self.comparisons),
            "comparisons": self.comparisons,
        }


def _compare(
    pairs: Sequence[tuple[_List, ranking.Pair]],
    sampler: Sampler,
    config: Config,
    seed: int,
    statistics: Statistics | None,
) -> list[float]:
    """Win probabilities of the first of each pair; the lists keep what was found. Equal responses are a tie unasked."""
    rows = [item.pair(*pair) for item, pair in pairs]
    open_rows = [
        row for row, (item, _) in zip(rows, pairs, strict=True)
        if not item.reason and row["responses"][0] != row["responses"][1]
    ]  # fmt: skip
    refused: dict[str, str] = {}

    def refuse(row: Mapping[str, Any], reason: str) -> None:
        refused[row["id"]] = reason

    judgements = judging.judge(open_rows, sampler, config.judging, seed, refuse, statistics)
    found = {row["id"]: judged for row, judged in judgements}
    out = []
    for row, (item, (i, j)) in zip(rows, pairs, strict=True):
        item.reason = item.reason or refused.get(row["id"], "")
        judged = found.get(row["id"], judging.Judged(()))
        win = judged.over_orders(judged.values(config.score)) if judged.draws else 0.5
        verdicts = [draw.verdict for draw in judged.draws]
        counts = {name: verdicts.count(v) for name, v in (("votes_a", "A"), ("votes_b", "B"), ("failed", None))}
        item.comparisons.append({"pair": [i, j], "win": None if math.isnan(win) else win, **counts})
        out.append(0.5 if math.isnan(win) else win)
    return out
