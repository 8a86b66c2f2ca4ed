"""Padded batches of single sequences by length, for scoring: few shapes, so few compilations, and little padding."""

from collections.abc import Iterator, Sequence

import numpy as np


def lengths(longest: int) -> tuple[int, ...]:
    """Padded lengths 16, 24, 32, 48, 64, 96 ... (powers of two and halfway between) up to the first >= `longest`."""
    out: list[int] = []
    power = 16
    while not out or out[-1] < longest:
        out += [power, power + power // 2]
        power *= 2
    return tuple(out[:-1] if len(out) > 1 and out[-2] >= longest else out)


def plan(sizes_of: Sequence[int], batch_size: int, padded: Sequence[int] = ()) -> list[tuple[int, np.ndarray]]:
    """Batches as (padded length, indices of at most `batch_size` sequences), short ones first.

    A bucket that would not fill one batch is joined with the next longer one. Every index occurs exactly once.
    Raises ValueError when a sequence is longer than every length in `padded`.
    """
    sizes = np.asarray(sizes_of, np.int64)
    if not len(sizes):
        return []
    padded = tuple(sorted(padded)) or lengths(int(sizes.max()))
    if sizes.max() > padded[-1]:
        raise ValueError(f"a sequence of {sizes.max()} tokens is longer than the longest bucket, {padded[-1]}")
    bucket = np.searchsorted(padded, sizes)
    batches: list[tuple[int, np.ndarray]] = []
    waiting = np.array([], np.int64)
    for number in range(int(bucket.max()) + 1):
        waiting = np.concatenate([waiting, np.flatnonzero(bucket == number)])
        if len(waiting) < batch_size and number < bucket.max():
            continue
        batches += [(padded[number], waiting[i : i + batch_size]) for i in range(0, len(waiting), batch_size)]
        waiting = np.array([], np.int64)
    return batches


def pad(sequences: Sequence[np.ndarray], length: int, batch_size: int) -> dict[str, np.ndarray]:
    """A batch `tokens`, `segment_ids`, `positions` [batch_size, length] and `ends`, `example_mask` [batch_size, 1].

    Padding is on the right (segment 0). Rows that only fill the batch hold one token, so that no row attends to
    nothing, and have `example_mask` 0.
    """
    batch = {
        "tokens": np.zeros((batch_size, length), np.int32),
        "segment_ids": np.zeros((batch_size, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)),
        "ends": np.zeros((batch_size, 1), np.int32),
        "example_mask": np.zeros((batch_size, 1), np.float32),
    }
    batch["segment_ids"][:, 0] = 1
    for row, sequence in enumerate(sequences):
        batch["tokens"][row, : len(sequence)] = sequence
        batch["segment_ids"][row, : len(sequence)] = 1
        batch["ends"][row] = len(sequence) - 1
        batch["example_mask"][row] = 1.0
    return batch


def batches(
    sequences: Sequence[np.ndarray], batch_size: int, padded: Sequence[int] = ()
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(indices of the sequences, padded batch of exactly `batch_size` rows), every sequence exactly once."""
    for length, indices in plan([len(s) for s in sequences], batch_size, padded):
        yield indices, pad([sequences[i] for i in indices], length, batch_size)
