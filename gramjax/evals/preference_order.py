"""Order accuracy of a preference encoder (LRHP): which response does u(s) prefer, with each of them shown first.

u takes the place that the verdict margin of a generative judge has: the numbers are those of `preference`, and
`order_correlation` is corr(u(s), -u(s_T)), 1 where the order of the responses plays no part (or a constant one).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from gramjax.core import judgements, leaderboards, margins, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Drop, Tally, text_length
from gramjax.scoring.representations import Encoder, Read, both_orders

ROW_TYPES = ("preference",)


@dataclasses.dataclass(frozen=True)
class Config:
    """How pairs are judged and counted."""

    batch_size: int = 32
    """Sequences per batch over all devices (a pair is two). Scores do not depend on it."""
    agg: str = "logit"
    """Average of the two orders: `logit` (u(s) - u(s_T), halved) or `prob`."""
    overlong: str = "shorten_responses"
    """What happens to pairs longer than config.data.max_length (see config.data.overlong; empty: the same as there)."""
    limit: int = 0
    """Judge only the first rows; 0: all."""
    bins: int = 10
    """Bins of confidence in the calibration error."""
    bootstrap_samples: int = 1000
    """Resamples of the interval of the accuracy; 0: none."""
    seed: int = 0
    """Of the bootstrap."""


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Encoder:
    """The model as what reads pairs; it compiles once. Raises UserError when the preference head is missing."""
    if "preference" not in model.config.heads:
        raise UserError(
            f"order accuracy needs the head 'preference'; the model has {', '.join(model.config.heads)} "
            "(gramjax train --config=lrhp makes one)"
        )
    if config.agg not in ("prob", "logit"):
        raise UserError(f"config.evals.preference_order.agg is {config.agg!r}; use prob or logit")
    if config.batch_size < 1 or config.bins < 1 or config.limit < 0:
        raise UserError("config.evals.preference_order: batch_size and bins must be positive, limit 0 or more")
    return Encoder(model, None, renderer)


def evaluate(
    model: Any,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
    scorer: Encoder | None = None,
) -> Iterator[tuple[str, Any]]:
    """Judge preference rows in both orders; yield (name, value), plain numbers first. Raises DataError when no pair can
    be judged."""
    encoder = scorer or make_scorer(model, renderer, config, mesh)
    if config.overlong:
        section = dataclasses.replace(renderer.section, overlong=config.overlong)
        renderer = dataclasses.replace(renderer, section=section)
    used: list[Mapping[str, Any]] = []
    sequences: list[Read] = []
    skipped = Tally()
    for index, row in enumerate(list(rows)[: config.limit or None]):
        try:
            sequences += both_orders(renderer, row["prompt"], row["chosen"], row["rejected"])
            used.append(row)
        except Drop as drop:
            skipped.add(str(drop), str(row.get("id", index)))
    if not used:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"no preference pair can be judged: {reasons or 'there are no rows'}")
    u = encoder.read("pair", sequences, config.batch_size, weights)[:, 0].reshape(-1, 2).astype(float)
    scores = statistics.margin_score(u[:, 0], u[:, 1], config.agg)
    records = []
    for i, row in enumerate(used):
        record = {
            "id": str(row.get("id", i)),
            "subset": str(row.get("subset") or ""),
            **leaderboards.columns(row),
            **{f"{name}_length": text_length(row[name]) for name in ("prompt", "chosen", "rejected")},
            "num_tokens": max(len(sequences[2 * i]), len(sequences[2 * i + 1])),
            "order": "both",
            "score_chosen": scores.score[i],
            "score_rejected": 1 - scores.score[i],
            **{name: getattr(scores, name)[i] for name in ("margin", "margin_first", "margin_second")},
            **{name: getattr(scores, name)[i] for name in ("p_first", "p_second")},
            "probability": scores.score[i],
            "log_probability": scores.log_score[i],
            "consistent": bool(scores.consistent[i]),
        }
        records.append(judgements.decide(record))
        if write_row is not None:
            write_row(record)
    yield from judgements.summarise(records, config.bins, config.bootstrap_samples, config.seed)
    yield "order_correlation", margins.order_correlation(u[:, 0], u[:, 1])
    yield "num_skipped", skipped.total
    yield from leaderboards.summarise(records, leaderboards.benchmark_of(records), config.seed)
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}
