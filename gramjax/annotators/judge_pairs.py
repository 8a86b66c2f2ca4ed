"""Label pairs by drawn judgements with rationales: n draws, their majority, share and probability (GRAM-R2, 2.4)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gramjax.data.judge_prompts import in_random_order
from gramjax.generation.judging import Judging, judge
from gramjax.generation.request import Statistics
from gramjax.generation.sampler import Sampler

ROW_TYPES = ("rationale", "preference", "pair_unlabelled")
"""The first that a row can be: a preference row keeps its label."""
GONE = ("label", "rationale")


@dataclasses.dataclass(frozen=True)
class Config:
    """How judgements are drawn."""

    judging: Judging = Judging()


def annotate(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, Any]]:
    """Each pair with `label` (the majority; None without a verdict), `vote_share`, `label_probability`, `tied`,
    `votes_a`, `votes_b`, `failed`, `agreement` and the draws (`judgements`).

    A label that a row has already is not shown to the model; it stands in `gold` afterwards, unless there is one.
    """
    for row, judged in judge(map(unlabelled, rows), sampler, config.judging, seed, refuse, statistics):
        yield {**row, **judged.columns(str(row["id"]), seed)}


def unlabelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as a pair without a label; the label it had is `gold` where no other gold label is known."""
    pair = in_random_order(row) if "chosen" in row else row
    gold = pair.get("label") if "chosen" in row or pair.get("gold") is None else pair["gold"]
    kept = {name: value for name, value in pair.items() if name not in GONE}
    return kept if gold is None else {**kept, "gold": gold}
