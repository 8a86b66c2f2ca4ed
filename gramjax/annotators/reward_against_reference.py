"""A reward for each response: how often a judge with rationales prefers it to a reference (GRAM-R2, 2.6; GRAM, 1.1).

The reference is the policy's own greedy response in reinforcement learning with a judge of pairs, or any fixed one.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gramjax.core.config import SamplingSection
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Drop, text_field
from gramjax.generation import judging
from gramjax.generation.judging import Judged, Judging
from gramjax.generation.request import Statistics
from gramjax.generation.sampler import Sampler

ROW_TYPES = ("prompt_only",)
REWARDS = ("prob", "centered", "logit")
UNREADABLE = "no draw could be read"
SMALLEST = 1e-9


@dataclasses.dataclass(frozen=True)
class Config:
    """How responses are rewarded."""

    judging: Judging = Judging(sampling=SamplingSection(max_tokens=1024, temperature=0.75, n=2))
    """How a response is compared: `sampling.n` draws, by default one in each order."""
    score: str = "probability"
    """What the draws say: share of the `votes`, or mean `probability` of the letter; both orders count the same."""
    reward: str = "centered"
    """`prob`: the score r in [0, 1]; `centered`: scale (r - 1/2), 0 for the reference itself; `logit`: the mean of the
    draws' log-odds (of r, with `votes`), no further from 0 than `most_logit`."""
    scale: float = 1.0
    """Of `centered`."""
    most_logit: float = 5.0
    """Bound of `logit`."""

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise UserError(f"annotator.reward is {self.reward!r}; choose one of {', '.join(REWARDS)}")
        if self.most_logit <= 0:
            raise UserError(f"annotator.most_logit={self.most_logit} must be above 0")


def annotate(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `prompt`, `response` and `reference` with `reward`, `win` (the score r) and the draws (`judgements`, A is
    the response).

    A response equal to its reference needs no judge: its score is 1/2. A row without a readable verdict is refused
    (without `refuse`: raised as Drop), never guessed. Raises DataError for a row without response or reference.
    """
    judging.check_score(config.score, sampler, "annotator.score")
    waiting: collections.deque[tuple[Mapping[str, Any], dict[str, Any] | None]] = collections.deque()
    refused: set[str] = set()

    def pairs() -> Iterator[dict[str, Any]]:
        for row in rows:
            try:
                pair = _pair(row)
            except Drop as drop:
                _refuse(row, drop.args[0], refuse)
                continue
            same = pair["responses"][0] == pair["responses"][1]
            waiting.append((row, None if same else pair))
            if not same:
                yield pair

    def skip(pair: Mapping[str, Any], reason: str) -> None:
        refused.add(pair["id"])
        _refuse(pair["row"], reason, refuse)

    def unasked() -> Iterator[dict[str, Any]]:
        """Rows at the head that wait for no judgement."""
        while waiting and (waiting[0][1] is None or waiting[0][1]["id"] in refused):
            row, pair = waiting.popleft()
            if pair is None:
                yield _rewarded(row, Judged(()), config)

    for _, judged in judging.judge(pairs(), sampler, config.judging, seed, skip, statistics):
        yield from unasked()
        row, _ = waiting.popleft()
        if math.isnan(judged.over_orders(judged.values(config.score))):
            _refuse(row, UNREADABLE, refuse)
        else:
            yield _rewarded(row, judged, config)
    yield from unasked()


def _refuse(row: Mapping[str, Any], reason: str, refuse: Callable[[Mapping[str, Any], str], None] | None) -> None:
    if refuse is None:
        raise Drop(reason)
    refuse(row, reason)


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """Response and reference as a row that can be judged. Raises Drop for an empty one, DataError for a missing one."""
    name = f"row {row.get('id')!r}"
    if row.get("reference") is None:
        raise DataError(
            f"{name} has no 'reference' to compare with. Let the policy write it: gramjax generate --config=generate "
            "--config.model.path=POLICY --config.sampling.temperature=0 --input=FILE --output=WITH_REFERENCES, then "
            "annotate WITH_REFERENCES with --config.data.rename=\"('text:reference',)\""
        )
    responses = [text_field(row, field, name) for field in ("response", "reference")]
    extra = {key: row[key] for key in ("chat_template_kwargs",) if row.get(key)}
    return {"id": str(row["id"]), "prompt": row["prompt"], "responses": responses, **extra, "row": row}


def _rewarded(row: Mapping[str, Any], judged: Judged, config: Config) -> dict[str, Any]:
    """The row with its reward; without draws it is the reference itself."""
    draws = [draw.as_dict() for draw in judged.draws]
    win = judged.over_orders(judged.values(config.score)) if draws else 0.5
    return {
        **row,
        "reward": reward(judged, win, config),
        "win": win,
        "failed": sum(draw["verdict"] is None for draw in draws),
        "shortened": judged.shortened,
        "judgements": draws,
    }


def reward(judged: Judged, win: float, config: Config) -> float:
    """The score r of a response against its reference as a reward."""
    if config.reward == "prob":
        return win
    if config.reward == "centered":
        return config.scale * (win - 0.5)
    values = judged.values("probability") if config.score == "probability" and judged.draws else np.array([win])
    inside = np.clip(values, SMALLEST, 1 - SMALLEST)
    logits = np.log(inside) - np.log1p(-inside)
    mean = judged.over_orders(logits) if len(logits) == len(judged.draws) else float(logits[0])
    return float(np.clip(mean, -config.most_logit, config.most_logit))
