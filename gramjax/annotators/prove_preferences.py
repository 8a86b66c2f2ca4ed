"""Write a rationale for labelled pairs: k proofs from the preference-proving model, the best by score (GRAM-R2)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gramjax.data.judge_prompts import in_random_order
from gramjax.data.rows import Drop
from gramjax.generation.proving import Proving, prove
from gramjax.generation.request import Statistics
from gramjax.generation.sampler import Sampler

ROW_TYPES = ("rationale", "preference", "pair_unlabelled")
"""The first that a row can be: a preference row keeps its label."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How proofs are drawn and chosen."""

    proving: Proving = Proving()


def annotate(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, Any]]:
    """Each pair with a column `label` and `rationale` (the chosen proof, turned into a rationale), and all `proofs`.

    A pair whose proofs were all rejected is refused, with the reason of its first proof (without `refuse`: raised as
    Drop). A rationale that a row has already is not looked at and replaced.
    """
    labelled = (in_random_order(row) if "chosen" in row else dict(row) for row in rows)
    for row, proved in prove(labelled, sampler, config.proving, seed, refuse, statistics):
        if proved.rationale is not None:
            yield {**row, "rationale": proved.rationale, "proofs": list(proved.candidates)}
        elif refuse is None:
            raise Drop(proved.reason)
        else:
            refuse(row, proved.reason)
