"""Preference accuracy of a reward model, scalar or generative, with what a reader needs to trust it.

A generative judge sees every pair in both orders and its two verdicts are averaged (GRAM, arXiv 2506.14175, equation
4); a scalar model scores each answer alone. Which one a model is follows from its heads. One JSON row per pair holds
both margins, so that every number and figure can be made again without the model.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from gramjax.core import judgements, leaderboards, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Tally, text_length
from gramjax.scoring import reward_model
from gramjax.scoring.reading import Layout, Reader
from gramjax.scoring.reward_model import Comparison, settings_of

ROW_TYPES = ("preference",)
REFERENCE = True


@dataclasses.dataclass(frozen=True)
class Config:
    """How preference rows are judged and counted."""

    batch_size: int = 32
    """Sequences per batch over all devices (a pair is two sequences). Scores do not depend on it."""
    method: str = "auto"
    """`judge` (verdict tokens), `score` (scalar head), `implicit` (log-probability of the answer, less that of
    config.reference if there is one), or `auto`: `score` if the model has that head, else `judge`."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    share: bool = True
    """Compute what the texts of a pair have in common at the start once; scores change by rounding only."""
    both_orders: bool = True
    """Judge every pair in both orders; False: in one, drawn by `seed` and the id of the row."""
    agg: str = "prob"
    """Average of the two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    overlong: str = "shorten_responses"
    """What happens to pairs longer than config.data.max_length (see config.data.overlong; empty: the same as there)."""
    limit: int = 0
    """Judge only the first rows; 0: all."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: chosen by the data."""
    length_difference: str = "relative"
    """`relative`: (chosen - rejected) / longer, in characters; `characters`: chosen - rejected."""
    length_edges: tuple[float, ...] = (-0.5, -0.2, -0.05, 0.05, 0.2, 0.5)
    """Edges between the buckets of length difference."""
    bins: int = 10
    """Bins of confidence in the calibration error."""
    bootstrap_samples: int = 1000
    seed: int = 0


def evaluate(
    model: Any,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
    scorer: Reader | None = None,
    reference: Any = None,
) -> Iterator[tuple[str, Any]]:
    """Judge preference rows; yield (name, value), plain numbers first, then tables (dicts and lists, JSON-able).

    `weights` (and those of the `reference` of an implicit reward) are in use (packed); `rows` are normalised preference
    rows. `write_row` receives one dict per pair, in the order of the rows. `scorer` is a `make_scorer` of the same
    model, to compile once for many evaluations. Numbers that have no meaning (the swap consistency of a scalar model)
    are None; "notes" says why. Raises DataError when no pair can be judged, UserError for contradictory settings.
    """
    check(model, config)
    rows = list(rows)[: config.limit or None]
    scorer = scorer or make_scorer(model, renderer, config, mesh)
    layout = Layout(config.batch_size, config.buckets, config.share)
    judge = reward_model.build(model, weights, renderer, settings_of(config), layout, scorer, reference)
    orders = [_order(row, config, judge.kind) for row in rows]
    shown = ["both" if order == "none" else order for order in orders]
    found = judge.compare([(row["prompt"], row["chosen"], row["rejected"]) for row in rows], shown)
    skipped, records = Tally(), []
    for index, (row, order, said) in enumerate(zip(rows, orders, found, strict=True)):
        if said.reason:
            skipped.add(said.reason, str(row.get("id", index)))
        else:
            record = judgements.decide(_record(row, index, ORDERS[order]) | _said(said, ORDERS[order], config))
            records.append(record)
            if write_row is not None:
                write_row(record)
    if not records:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(rows)} preference pairs can be judged: {reasons or 'there are no rows'}")
    yield from judgements.summarise(
        records, config.bins, config.bootstrap_samples, config.seed, config.length_edges, config.length_difference
    )
    yield "num_skipped", skipped.total
    yield "num_shortened", sum(record["shortened"] for record in records)
    yield from leaderboards.summarise(records, leaderboards.benchmark_of(records), config.seed)
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


ORDERS = {"none": "none", "both": "both", "first": "chosen_first", "second": "rejected_first"}
"""How a pair is shown (the chosen answer is the first of the pair) and what its row says of it."""


def check(model: Any, config: Config) -> None:
    """Raise UserError for settings that contradict each other or the model."""
    reward_model.check(model, settings_of(config))
    if config.length_difference not in ("relative", "characters"):
        raise UserError(
            f"config.evals.preference.length_difference is {config.length_difference!r}; use relative or characters"
        )
    if config.batch_size < 1 or config.bins < 1 or list(config.length_edges) != sorted(set(config.length_edges)):
        raise UserError("config.evals.preference: batch_size and bins must be positive, length_edges must increase")


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Reader:
    """The compiled function from weights and a padded batch to rewards or verdict logits (`scoring.reading`)."""
    model = model if mesh is None else dataclasses.replace(model, mesh=mesh)
    return reward_model.make_reader(model, renderer, settings_of(config))


def _order(row: Mapping[str, Any], config: Config, kind: str) -> str:
    if kind != "judge":
        return "none"
    if config.both_orders:
        return "both"
    return "first" if statistics.coin(config.seed, str(row.get("id"))) else "second"


def _record(row: Mapping[str, Any], index: int, order: str) -> dict[str, Any]:
    return {
        "id": str(row.get("id", index)),
        "subset": str(row.get("subset") or ""),
        **leaderboards.columns(row),
        "prompt_length": text_length(row["prompt"]),
        "chosen_length": text_length(row["chosen"]),
        "rejected_length": text_length(row["rejected"]),
        "order": order,
    }


def _said(said: Comparison, order: str, config: Config) -> dict[str, Any]:
    """The columns of a comparison whose first answer is the chosen one; what was not asked is None."""

    def asked(value: float, *orders: str) -> float | None:
        return value if order in orders else None

    out = {
        "num_tokens": said.num_tokens,
        "shortened": said.shortened,
        "score_chosen": said.rewards[0],
        "score_rejected": said.rewards[1],
        "margin": said.margin,
        "margin_first": asked(said.margin_first, "both", "chosen_first"),
        "margin_second": asked(said.margin_second, "both", "rejected_first"),
        "p_first": asked(said.p_first, "both", "chosen_first"),
        "p_second": asked(said.p_second, "both", "rejected_first"),
        "probability": said.score,
        "log_probability": said.log_score,
        "consistent": None,
    }
    if order == "both":
        out["consistent"] = _sign(said.margin_first) == -_sign(said.margin_second)
    if config.label_space == "full" and order != "none":
        out["verdict_mass"] = said.verdict_mass
    return out


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
