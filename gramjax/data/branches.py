"""Several sequences with one beginning as one row: the beginning once, then what is left of each.

The two orders of a judged pair, or the answers to one prompt, begin alike. Laid out as

    [beginning] [rest of 1] [rest of 2] ...

with the beginning in the segment that all later tokens see (`attention.SHARED`) and every rest in a segment of its own
whose positions go on where the beginning ended, each rest has the hidden states that its whole sequence would have,
and the beginning is computed once.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gramjax.data import buckets
from gramjax.models.attention import SHARED

WORTH = 16
"""Shared tokens from which a beginning is laid out once."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids, and which of them are scored (empty: only the end is read)."""

    tokens: np.ndarray
    """int32 [T]."""
    mask: np.ndarray | None = None
    """float32 [T]: the weight of predicting token i; None: nothing is predicted, the last hidden state is read."""

    @property
    def first_read(self) -> int:
        """Index of the first hidden state that is read; the beginning ends there at the latest."""
        if self.mask is None:
            return len(self.tokens) - 1
        scored = np.flatnonzero(self.mask)
        return max(int(scored[0]) - 1, 0) if len(scored) else len(self.tokens) - 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch: `shared` tokens of the beginning, and the sequences that begin with them."""

    members: tuple[int, ...]
    """Which sequences, in the order in which they are laid out."""
    shared: int
    length: int


def beginning(sequences: Sequence[Tokens]) -> int:
    """Tokens that all sequences have in common at the start and of which no hidden state is read."""
    most = min(sequence.first_read for sequence in sequences)
    first = sequences[0].tokens[:most]
    for other in sequences[1:]:
        differs = np.flatnonzero(first != other.tokens[: len(first)])
        if len(differs):
            first = first[: differs[0]]
    return len(first)


def rows(sequences: Sequence[Tokens], groups: Sequence[Sequence[int]], most: int = 0, longest: int = 0) -> list[Row]:
    """The rows of sequences that come in groups: one row per group where that saves tokens, else one per sequence.

    A row holds at most `most` sequences (0: any number) and `longest` tokens (0: any number). The order within a row
    is that of the tokens, so that a row does not depend on the order of its group.
    """
    out: list[Row] = []
    for group in groups:
        members = sorted(group, key=lambda i: (len(sequences[i].tokens), sequences[i].tokens.tobytes()))
        size = most or len(members)
        for start in range(0, len(members), size):
            part = tuple(members[start : start + size])
            shared = beginning([sequences[i] for i in part]) if len(part) > 1 else 0
            length = shared + sum(len(sequences[i].tokens) - shared for i in part)
            if len(part) > 1 and (shared < WORTH or (longest and length > longest)):
                out += [Row((i,), 0, len(sequences[i].tokens)) for i in part]
            else:
                out.append(Row(part, shared, length))
    return out


def lay_out(
    sequences: Sequence[Tokens], chosen: Sequence[Row], length: int, batch_size: int, most: int
) -> dict[str, np.ndarray]:
    """A batch of exactly `batch_size` rows padded on the right: `tokens`, `segment_ids`, `positions` [batch, length],
    `ends` and `example_mask` [batch, most]; with masks also `labels` and `loss_mask` [batch, length]; where rows may
    hold several sequences also `shared` [batch], the tokens of each beginning: a model must know that there may be
    some.

    Rows that only fill the batch hold one token, so that no row attends to nothing.
    """
    shape = (batch_size, length)
    batch: dict[str, np.ndarray] = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
    batch["segment_ids"][:, 0] = 1
    batch["ends"] = np.zeros((batch_size, most), np.int32)
    batch["example_mask"] = np.zeros((batch_size, most), np.float32)
    if most > 1:
        batch["shared"] = np.zeros(batch_size, np.int32)
    if chosen and sequences[chosen[0].members[0]].mask is not None:
        batch["labels"], batch["loss_mask"] = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for b, row in enumerate(chosen):
        shared = row.shared
        batch["tokens"][b, :shared] = sequences[row.members[0]].tokens[:shared]
        batch["positions"][b, :shared] = np.arange(shared)
        batch["segment_ids"][b, :shared] = SHARED
        if most > 1:
            batch["shared"][b] = shared
        place = shared
        for n, member in enumerate(row.members):
            tokens, mask = sequences[member].tokens, sequences[member].mask
            stop = place + len(tokens) - shared
            batch["tokens"][b, place:stop] = tokens[shared:]
            batch["segment_ids"][b, place:stop] = n + 1
            batch["positions"][b, place:stop] = np.arange(shared, len(tokens))
            batch["ends"][b, n] = stop - 1
            batch["example_mask"][b, n] = 1.0
            if mask is not None:
                batch["labels"][b, place : stop - 1] = tokens[shared + 1 :]
                batch["loss_mask"][b, place : stop - 1] = mask[shared + 1 :]
            place = stop
    return batch


def batches(
    sequences: Sequence[Tokens], laid: Sequence[Row], batch_size: int, padded: Sequence[int] = (), most: int = 0
) -> Iterator[tuple[list[Row], dict[str, np.ndarray]]]:
    """(rows, padded batch of exactly `batch_size` rows) by length; every row exactly once. Each has `most` places for
    sequences (0: as many as the fullest needs)."""
    most = most or max((len(row.members) for row in laid), default=1)
    for length, indices in buckets.plan([row.length for row in laid], batch_size, padded):
        chosen = [laid[i] for i in indices]
        yield chosen, lay_out(sequences, chosen, length, batch_size, most)
