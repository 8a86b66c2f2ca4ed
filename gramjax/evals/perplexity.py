"""Perplexity of a language model on texts or completions: exp of the mean negative log-likelihood of a scored token.

Beside it the next-token accuracy: how often the likeliest token is the one that stands there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gramjax.core import progress, sharding, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data import buckets
from gramjax.data.rows import Drop, Tally
from gramjax.models import heads

ROW_TYPES = ("language_modeling", "prompt_completion")

Scorer = Callable[[Any, Mapping[str, np.ndarray]], jax.Array]
"""`scorer(weights, batch)`: float32 [B, 2], negative log-likelihoods of the scored tokens and how many of them were
the likeliest, each summed over a row."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How texts are scored."""

    batch_size: int = 8
    """Sequences per batch over all devices. Numbers do not depend on it."""
    limit: int = 0
    """Score only the first rows; 0: all."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: chosen by the data."""
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
    scorer: Scorer | None = None,
) -> Iterator[tuple[str, Any]]:
    """Score rows of text; yield `perplexity`, `nll` (nats per token), `accuracy`, counts, and the reasons of rows left
    out.

    `write_row` receives id, subset, nll (sum), num_scored, num_right and perplexity per row. Raises DataError when no
    row can be scored, UserError when the model has no token head.
    """
    if "tokens" not in model.config.heads:
        raise UserError(f"perplexity needs the head 'tokens'; the model has {', '.join(model.config.heads)}")
    rows = list(rows)[: config.limit or None]
    kept, skipped = [], Tally()
    for index, row in enumerate(rows):
        try:
            example = renderer.example(row)
        except Drop as drop:
            skipped.add(str(drop), str(row.get("id", index)))
            continue
        kept.append((row, np.asarray(example.tokens[0], np.int32), np.asarray(example.loss_mask[0], np.float32)))
    if not kept:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(rows)} rows can be scored: {reasons or 'there are no rows'}")
    mesh = mesh if mesh is not None else getattr(model, "mesh", None)
    scorer = scorer or make_scorer(model, renderer, config, mesh)
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.batch_size // shards) * shards
    sums = np.zeros((len(kept), 2))
    for indices, batch in buckets.batches([tokens for _, tokens, _ in kept], batch_size, config.buckets):
        progress.stop_point("a batch of scoring")
        batch["labels"], batch["loss_mask"] = (
            np.zeros_like(batch["tokens"]),
            np.zeros(batch["tokens"].shape, np.float32),
        )
        for place, i in enumerate(indices):  # the mask of a token is the weight of predicting it, one position earlier
            _, tokens, mask = kept[i]
            batch["labels"][place, : len(tokens) - 1] = tokens[1:]
            batch["loss_mask"][place, : len(tokens) - 1] = mask[1:]
        sums[indices] = np.asarray(scorer(weights, sharding.place(batch, mesh)))[: len(indices)]
    counts = np.array([float(mask[1:].sum()) for _, _, mask in kept])
    for (row, tokens, _), (nll, right), count in zip(kept, sums, counts):
        if write_row is not None:
            record = {"id": str(row.get("id", "")), "subset": str(row.get("subset") or ""), "num_tokens": len(tokens)}
            record |= {"nll": float(nll), "num_scored": count, "num_right": float(right)}
            write_row(record | {"perplexity": perplexity(nll, count)})
    total = max(counts.sum(), 1.0)
    yield "perplexity", perplexity(sums[:, 0].sum(), counts.sum())
    yield "nll", float(sums[:, 0].sum() / total)
    yield "accuracy", float(sums[:, 1].sum() / total)
    low, high = statistics.bootstrap_ratio(sums[:, 0], counts, config.bootstrap_samples, config.seed)
    yield "nll_low", low if math.isfinite(low) else None
    yield "nll_high", high if math.isfinite(high) else None
    yield "num_rows", len(kept)
    yield "num_scored", float(counts.sum())
    yield "num_skipped", skipped.total
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Scorer:
    """The compiled function from weights and a padded batch to what `Scorer` says.

    `model.logit_chunk` tokens of the batch have vocabulary logits at a time.
    """

    def score(weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden_BTD = model.forward(weights, batch).hidden
        logprobs, hits = heads.predictions(weights, hidden_BTD, batch["labels"], model.logit_chunk, mesh)
        mask = batch["loss_mask"]
        return jnp.stack([-jnp.sum(mask * logprobs, axis=1), jnp.sum(mask * hits, axis=1)], axis=1)

    return jax.jit(score, out_shardings=None if mesh is None else sharding.replicated(mesh))


def perplexity(nll: float, count: float) -> float | None:
    """exp(nll / count); None where it is no finite number."""
    mean = float(nll) / count if count else math.nan
    return math.exp(mean) if mean < 700 else None
