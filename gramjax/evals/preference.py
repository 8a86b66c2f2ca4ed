"""Preference accuracy of a reward model, scalar or generative, with what a reader needs to trust it.

A generative judge sees every pair in both orders and its two verdicts are averaged (GRAM, arXiv 2506.14175, equation
4); a scalar model scores each answer alone. Which one a model is follows from its heads. One JSON row per pair holds
both margins, so that every number and figure can be made again without the model.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gramjax.core import judgements, leaderboards, sharding, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data import buckets
from gramjax.data.rows import Drop, Tally, text_length
from gramjax.models import heads

ROW_TYPES = ("preference",)


@dataclasses.dataclass(frozen=True)
class Config:
    """How preference rows are judged and counted."""

    batch_size: int = 32
    """Sequences per batch over all devices (a pair is two sequences). Scores do not depend on it."""
    method: str = "auto"
    """`judge` (verdict tokens), `score` (scalar head), or `auto`: `score` if the model has that head."""
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


Scorer = Callable[[Any, Mapping[str, np.ndarray]], jax.Array]
"""`scorer(weights, batch)`: float32 [B] rewards or [B, 2] verdict logits ([B, 3] with the log-normaliser)."""


def evaluate(
    model: Any,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
    scorer: Scorer | None = None,
) -> Iterator[tuple[str, Any]]:
    """Judge preference rows; yield (name, value), plain numbers first, then tables (dicts and lists, JSON-able).

    `weights` are in use (packed); `rows` are normalised preference rows. `write_row` receives one dict per pair, in
    the order of the rows. `scorer` is a `make_scorer` of the same model, to compile once for many evaluations.
    Numbers that have no meaning (the swap consistency of a scalar model) are None; "notes" says why.
    Raises DataError when no pair can be judged, UserError for contradictory settings.
    """
    method = kind(model, config)
    rows = list(rows)[: config.limit or None]
    encoded, skipped, shortened = _encode(rows, renderer, config, method)
    if not encoded:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(rows)} preference pairs can be judged: {reasons or 'there are no rows'}")
    mesh = mesh if mesh is not None else getattr(model, "mesh", None)
    scorer = scorer or make_scorer(model, renderer, config, mesh)
    flat = [sequence for item in encoded for sequence in item.sequences]
    raw = score_sequences(scorer, weights, flat, config, mesh)
    records = [_record(row, item) for row, item in ((rows[item.index], item) for item in encoded)]
    fill = _fill_rewards if method == "score" else _fill_verdicts
    fill(records, encoded, raw, config)
    for record in records:
        judgements.decide(record)
        if write_row is not None:
            write_row(record)
    yield from judgements.summarise(
        records, config.bins, config.bootstrap_samples, config.seed, config.length_edges, config.length_difference
    )
    yield "num_skipped", skipped.total
    yield "num_shortened", shortened
    yield from leaderboards.summarise(records, leaderboards.benchmark_of(records), config.seed)
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


def kind(model: Any, config: Config) -> str:
    """`judge` or `score`: the method of the config, or what the heads of the model allow."""
    have = tuple(model.config.heads)
    method = config.method
    if method == "auto":
        method = "score" if "score" in have else "judge"
    needed = {"judge": "tokens", "score": "score"}.get(method)
    if needed is None:
        raise UserError(f"config.evals.preference.method is {method!r}; use auto, judge or score")
    if needed not in have:
        raise UserError(f"preference evaluation by {method} needs the head {needed!r}; the model has {', '.join(have)}")
    for name, value, known in (
        ("agg", config.agg, ("prob", "logit")),
        ("label_space", config.label_space, ("candidates", "full")),
        ("length_difference", config.length_difference, ("relative", "characters")),
    ):
        if value not in known:
            raise UserError(f"config.evals.preference.{name} is {value!r}; use {' or '.join(known)}")
    if config.batch_size < 1 or config.bins < 1 or list(config.length_edges) != sorted(set(config.length_edges)):
        raise UserError("config.evals.preference: batch_size and bins must be positive, length_edges must increase")
    return method


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Scorer:
    """The compiled function from weights and a padded batch to rewards or verdict logits (see `Scorer`).

    Reads the hidden state at `ends` only: the vocabulary is never multiplied with more than one position per sequence,
    and with `candidates` only two of its columns are.
    """
    method = kind(model, config)
    ids = tuple(renderer.verdict_ids) if method == "judge" else ()
    full = config.label_space == "full"

    def score(weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden_BTD = model.forward(weights, batch).hidden
        hidden_B1D = heads.take_positions(hidden_BTD, batch["ends"])
        if method == "score":
            return heads.score(weights, hidden_B1D)[:, 0]
        verdicts_B2 = heads.verdict_logits(weights, hidden_B1D, ids)[:, 0]
        if not full:
            return verdicts_B2
        normaliser_B = jax.nn.logsumexp(heads.logits(weights, hidden_B1D)[:, 0], axis=-1)
        return jnp.concatenate([verdicts_B2, normaliser_B[:, None]], axis=-1)

    return jax.jit(score, out_shardings=None if mesh is None else sharding.replicated(mesh))


def score_sequences(
    scorer: Scorer, weights: Any, sequences: Sequence[np.ndarray], config: Config, mesh: Mesh | None = None
) -> np.ndarray:
    """Scores of token sequences in their order, float64 [N, ...]; what each is does not depend on its neighbours."""
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    wanted = min(config.batch_size, 1 << max(len(sequences) - 1, 0).bit_length())
    batch_size = -(-wanted // shards) * shards
    # Fetch the batch before while the device works on this one. Simulated devices of a CPU share threads: there two
    # programs with collectives in flight can wait for each other for ever.
    ahead = 0 if jax.default_backend() == "cpu" and jax.device_count() > 1 else 1
    parts: list[tuple[np.ndarray, Any]] = []
    for indices, batch in buckets.batches(sequences, batch_size, config.buckets):
        parts.append((indices, scorer(weights, sharding.place(batch, mesh))))
        if len(parts) > ahead:
            parts[-1 - ahead] = (parts[-1 - ahead][0], np.asarray(parts[-1 - ahead][1]))
    out = np.zeros((len(sequences), *parts[0][1].shape[1:]), np.float64)
    for indices, values in parts:
        out[indices] = np.asarray(values)[: len(indices)]
    return out


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """The token sequences of one row: chosen shown first, rejected shown first (or one of them); chosen, rejected."""

    index: int
    sequences: tuple[np.ndarray, ...]
    order: str
    shortened: bool


def _encode(
    rows: Sequence[Mapping[str, Any]], renderer: Any, config: Config, method: str
) -> tuple[list[_Encoded], Tally, int]:
    """Token sequences of all rows, reasons of those that have none (count and first id), and how many were cut."""
    if config.overlong:
        section = dataclasses.replace(renderer.section, overlong=config.overlong)
        strict = dataclasses.replace(renderer, section=dataclasses.replace(section, overlong="drop"))
        renderer = dataclasses.replace(renderer, section=section)
    else:
        strict = renderer
    encoded: list[_Encoded] = []
    skipped = Tally()
    shortened = 0
    for index, row in enumerate(rows):
        order = _order(row, config, method)
        try:
            try:
                sequences, cut = _render(row, strict, order), False
            except Drop:
                sequences, cut = _render(row, renderer, order), True
        except Drop as drop:
            skipped.add(str(drop), str(row.get("id", index)))
            continue
        shortened += cut
        encoded.append(_Encoded(index, sequences, order, cut))
    return encoded, skipped, shortened


def _order(row: Mapping[str, Any], config: Config, method: str) -> str:
    if method == "score":
        return "none"
    if config.both_orders:
        return "both"
    return "chosen_first" if statistics.coin(config.seed, str(row.get("id"))) else "rejected_first"


def _render(row: Mapping[str, Any], renderer: Any, order: str) -> tuple[np.ndarray, ...]:
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if order == "none":
        texts = [ids for ids, _ in renderer.completion_pair(prompt, chosen, rejected)]
    else:
        orders = {"chosen_first": (chosen, rejected), "rejected_first": (rejected, chosen)}
        shown = orders.values() if order == "both" else (orders[order],)
        texts = [renderer.judge(prompt, first, second) for first, second in shown]
    return tuple(np.asarray(ids, np.int32) for ids in texts)


def _record(row: Mapping[str, Any], item: _Encoded) -> dict[str, Any]:
    return {
        "id": str(row.get("id", item.index)),
        "subset": str(row.get("subset") or ""),
        **leaderboards.columns(row),
        "prompt_length": text_length(row["prompt"]),
        "chosen_length": text_length(row["chosen"]),
        "rejected_length": text_length(row["rejected"]),
        "num_tokens": max(len(s) for s in item.sequences),
        "shortened": item.shortened,
        "order": item.order,
    }


def _fill_verdicts(records: list[dict[str, Any]], encoded: list[_Encoded], raw: np.ndarray, config: Config) -> None:
    """Add scores, margins and probabilities of a generative judge from its verdict logits [sequences, 2 or 3]."""
    margins, log_mass = raw[:, 0] - raw[:, 1], np.zeros(len(raw))
    if config.label_space == "full":
        log_mass = np.logaddexp(raw[:, 0], raw[:, 1]) - raw[:, 2]
    if config.both_orders:
        mass = log_mass.reshape(-1, 2).T
        pair = statistics.margin_score(margins[0::2], margins[1::2], config.agg, mass)
        for i, record in enumerate(records):
            one, two = np.exp(mass[0, i]), np.exp(mass[1, i])
            total = 1.0 if config.agg == "logit" else (one + two) / 2
            record |= {
                "score_chosen": total * pair.score[i],
                "score_rejected": total * (1 - pair.score[i]),
                "margin": pair.margin[i],
                "margin_first": pair.margin_first[i],
                "margin_second": pair.margin_second[i],
                "p_first": pair.p_first[i],
                "p_second": pair.p_second[i],
                "probability": pair.score[i],
                "log_probability": pair.log_score[i],
                "consistent": bool(pair.consistent[i]),
            }
            if config.label_space == "full":
                record["verdict_mass"] = (one + two) / 2
        return
    for i, (record, item) in enumerate(zip(records, encoded)):
        chosen_first = item.order == "chosen_first"
        margin = margins[i] if chosen_first else -margins[i]
        p_shown = statistics.sigmoid(margins[i])
        score, mass_i = statistics.sigmoid(margin), np.exp(log_mass[i])
        record |= {
            "score_chosen": mass_i * score,
            "score_rejected": mass_i * (1 - score),
            "margin": margin,
            "margin_first": margins[i] if chosen_first else None,
            "margin_second": None if chosen_first else margins[i],
            "p_first": p_shown if chosen_first else None,
            "p_second": None if chosen_first else p_shown,
            "probability": score,
            "log_probability": statistics.log_sigmoid(margin),
            "consistent": None,
        }
        if config.label_space == "full":
            record["verdict_mass"] = mass_i


def _fill_rewards(records: list[dict[str, Any]], encoded: list[_Encoded], raw: np.ndarray, config: Config) -> None:
    """Add scores and margins of a scalar reward model from its rewards [sequences], chosen before rejected."""
    for record, chosen, rejected in zip(records, raw[0::2], raw[1::2]):
        margin = chosen - rejected
        record |= {
            "score_chosen": chosen,
            "score_rejected": rejected,
            "margin": margin,
            "margin_first": None,
            "margin_second": None,
            "p_first": None,
            "p_second": None,
            "probability": statistics.sigmoid(margin),
            "log_probability": statistics.log_sigmoid(margin),
            "consistent": None,
        }
