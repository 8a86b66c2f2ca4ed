"""What a reward model says at the tokens where it is read, batched by length.

`score`: the scalar head at the last token. `judge`: the two verdict logits where the verdict is predicted. `implicit`:
the summed log-probability of the answer, of which DPO's reward is made. Sequences with a common beginning share its
computation (`data.branches`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gramjax.core import progress, sharding
from gramjax.core.errors import UserError
from gramjax.data import branches, buckets
from gramjax.data.branches import Tokens
from gramjax.models import heads

KINDS = {"score": "score", "judge": "tokens", "implicit": "tokens"}
"""Kinds of reward models and the head that each needs."""

MOST = 4
"""Sequences that share one row at most: each is kept from seeing those before it, which costs attention work."""

OVERHEAD = {"cpu": 32, "": 512}
"""Tokens that could be computed in the time that a batch costs besides its tokens, by backend."""

Reader = Callable[[Any, Mapping[str, np.ndarray]], jax.Array]
"""`reader(weights, batch)`: float32 [B, N] rewards or sums of log-probabilities, or [B, N, 2] verdict logits
([B, N, 3] with the log-normaliser)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How sequences are batched; none of this changes a score beyond rounding."""

    batch_size: int = 32
    """Sequences per batch over all devices."""
    buckets: tuple[int, ...] = ()
    """Lengths that rows are padded to; empty: chosen by the data."""
    share: bool = True
    """Compute the beginning that the sequences of a group have in common once."""
    sizes: tuple[int, ...] = ()
    """Rows per batch that may occur; empty: the powers of two up to what `batch_size` allows."""
    places: int = 0
    """Sequences that every row has room for; 0: as many as the data needs, up to `MOST`."""


def kind_of(heads_of_model: Sequence[str], method: str = "auto") -> str:
    """The kind that a method names, or what the heads allow (`auto`: `score` before `judge`).

    Raises UserError for an unknown method and when the model lacks the head.
    """
    if method == "auto":
        method = "score" if "score" in heads_of_model else "judge"
    if method not in KINDS:
        raise UserError(f"the method of scoring is {method!r}; use auto, {', '.join(KINDS)}")
    if KINDS[method] not in heads_of_model:
        raise UserError(
            f"scoring by {method} needs the head {KINDS[method]!r}; the model has {', '.join(heads_of_model)}"
        )
    return method


def make_reader(
    model: Any, kind: str, verdict_ids: tuple[int, int] = (-1, -1), full: bool = False, mesh: Mesh | None = None
) -> Reader:
    """The compiled function from weights in use and a batch of `data.branches` to what is read (see `Reader`).

    The vocabulary is multiplied with the read positions only, two of its columns unless `full` asks for the
    log-normaliser too; `implicit` never holds more than `model.logit_chunk` tokens' logits.
    """

    def read(weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden_BTD = model.forward(weights, batch).hidden
        if kind == "implicit":
            logprobs_BT = heads.token_logprobs(weights, hidden_BTD, batch["labels"], model.logit_chunk, model.mesh)
            member_BNT = batch["segment_ids"][:, None] == jnp.arange(1, batch["ends"].shape[1] + 1)[None, :, None]
            return jnp.sum(member_BNT * (batch["loss_mask"] * logprobs_BT)[:, None], axis=-1)
        hidden_BND = heads.take_positions(hidden_BTD, batch["ends"])
        if kind == "score":
            return heads.score(weights, hidden_BND)
        verdicts_BN2 = heads.verdict_logits(weights, hidden_BND, verdict_ids)
        if not full:
            return verdicts_BN2
        normaliser_BN = jax.nn.logsumexp(heads.logits(weights, hidden_BND), axis=-1)
        return jnp.concatenate([verdicts_BN2, normaliser_BN[..., None]], axis=-1)

    return jax.jit(read, out_shardings=None if mesh is None else sharding.replicated(mesh))


def shares(model: Any) -> bool:
    """Whether a model can share beginnings: a sliding window counts places in the row, not positions."""
    return not getattr(model.config, "sliding_window", 0)


def read_all(
    reader: Reader,
    weights: Any,
    sequences: Sequence[Tokens],
    groups: Sequence[Sequence[int]],
    layout: Layout,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """What the reader says of every sequence, float64 [N] or [N, 2 or 3], in their order.

    `groups` are the indices of sequences that may share a beginning; every index is in one of them.
    """
    groups, twins = _without_twins(sequences, groups)
    laid = rows_of(sequences, groups, layout)
    # Fetch the batch before while the device works on this one. Simulated devices of a CPU share threads: there two
    # programs with collectives in flight can wait for each other for ever.
    ahead = 0 if jax.default_backend() == "cpu" and jax.device_count() > 1 else 1
    out: np.ndarray | None = None
    waiting: list[tuple[list[branches.Row], Any]] = []

    def fetch(keep: int) -> None:
        nonlocal out
        while len(waiting) > keep:
            rows, found = waiting.pop(0)
            values = np.asarray(found, np.float64)
            if out is None:
                out = np.zeros((len(sequences), *values.shape[2:]))
            for b, row in enumerate(rows):
                out[list(row.members)] = values[b, : len(row.members)]

    for rows, batch in _batches(sequences, laid, layout, mesh):
        progress.stop_point("a batch of scoring")
        waiting.append((rows, reader(weights, sharding.place(batch, mesh))))
        fetch(ahead)
    fetch(0)
    if out is None:
        return np.zeros(0)
    for twin, index in twins.items():
        out[twin] = out[index]
    return out


def _batches(
    sequences: Sequence[Tokens], laid: Sequence[branches.Row], layout: Layout, mesh: Mesh | None
) -> Iterator[tuple[list[branches.Row], dict[str, np.ndarray]]]:
    """(rows, padded batch): of the shapes that a layout says (`buckets`, `sizes`), or of one size that suits them."""
    most = layout.places or max((len(row.members) for row in laid), default=1)
    if layout.sizes and layout.buckets:
        sizes = sorted({_whole(size, mesh) for size in layout.sizes})
        overhead = OVERHEAD.get(jax.default_backend(), OVERHEAD[""])
        lengths = [row.length for row in laid]
        for length, size, indices in buckets.cover(lengths, sizes, layout.buckets, overhead):
            rows = [laid[i] for i in indices]
            yield rows, branches.lay_out(sequences, rows, length, size, most)
        return
    full = max(layout.sizes) if layout.sizes else -(-layout.batch_size // most)
    choice = layout.sizes or (*(1 << power for power in range(full.bit_length())), full)
    wanted = next((size for size in sorted(choice) if size >= min(len(laid), full)), max(choice))
    yield from branches.batches(sequences, laid, _whole(wanted, mesh), layout.buckets, most)


def _whole(size: int, mesh: Mesh | None) -> int:
    """The number of rows, as many on every device."""
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-size // shards) * shards


def warm_up(reader: Reader, weights: Any, layout: Layout, mesh: Mesh | None = None, scored: bool = False) -> int:
    """Run the reader once in every shape of a layout that says all of them (`buckets`, `sizes`, `places`); how many."""
    if not (layout.buckets and layout.sizes and layout.places):
        raise ValueError("only a layout with buckets, sizes and places has a known set of shapes")
    shapes = {(length, _whole(size, mesh)) for length in layout.buckets for size in layout.sizes}
    token = Tokens(np.zeros(1, np.int32), np.zeros(1, np.float32) if scored else None)
    for length, size in sorted(shapes):
        batch = branches.lay_out([token], [branches.Row((0,), 0, 1)], length, size, layout.places)
        jax.block_until_ready(reader(weights, sharding.place(batch, mesh)))
    return len(shapes)


def _without_twins(
    sequences: Sequence[Tokens], groups: Sequence[Sequence[int]]
) -> tuple[list[list[int]], dict[int, int]]:
    """The groups with each text once, and whose values the others take: equal texts have equal scores, to the bit."""
    kept, twins = [], {}
    for group in groups:
        first: dict[bytes, int] = {}
        for index in group:
            known = first.setdefault(sequences[index].tokens.tobytes(), index)
            if known != index:
                twins[index] = known
        kept.append(list(first.values()))
    return kept, twins


def rows_of(sequences: Sequence[Tokens], groups: Sequence[Sequence[int]], layout: Layout) -> list[branches.Row]:
    """The rows in which sequences are computed; the sum of their lengths is what is left of the tokens."""
    most = min(layout.places or MOST, MOST) if layout.share else 1
    return branches.rows(sequences, groups, most, max(layout.buckets, default=0))
