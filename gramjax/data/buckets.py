"""Padded batches of single sequences by length, for scoring: few shapes, so few compilations, and little padding."""

from collections.abc import Iterator, Sequence

import numpy as np

MOST_LENGTHS = 6
"""Padded lengths that `plan` chooses at most: each is a compilation."""


def plan(sizes_of: Sequence[int], batch_size: int, padded: Sequence[int] = ()) -> list[tuple[int, np.ndarray]]:
    """Batches as (padded length, indices of at most `batch_size` sequences), short ones first; every index once.

    Without `padded` the sequences are sorted, and at most `MOST_LENGTHS` lengths are chosen that make the padding
    least. With it these are the lengths, and a bucket that would not fill one batch is joined with the next longer one;
    raises ValueError when a sequence is longer than all of them.
    """
    sizes = np.asarray(sizes_of, np.int64)
    if not len(sizes):
        return []
    return _given(sizes, batch_size, sorted(padded)) if len(padded) else _sorted(sizes, batch_size)


def _sorted(sizes: np.ndarray, batch_size: int) -> list[tuple[int, np.ndarray]]:
    """Sorted batches; the one that is not full holds the shortest sequences, where filling it up costs least."""
    order = np.argsort(sizes, kind="stable")
    cuts = np.arange(len(order) % batch_size or batch_size, len(order), batch_size)
    batches = np.split(order, cuts)
    needed = [_rounded(int(sizes[batch].max())) for batch in batches]
    chosen = np.array(_lengths(needed, MOST_LENGTHS))
    return [(int(chosen[np.searchsorted(chosen, need)]), batch) for need, batch in zip(needed, batches, strict=True)]


def _rounded(size: int) -> int:
    """The size rounded up to a multiple of 16, and of a sixteenth of its power of two."""
    unit = max(16, 1 << max(size.bit_length() - 5, 0))
    return -(-size // unit) * unit


def _lengths(needed: Sequence[int], most: int) -> list[int]:
    """At most `most` of the lengths in `needed` such that, each rounded up to one of them, their sum is least."""
    distinct, counts = np.unique(np.asarray(needed), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = {0: (0, [])}  # type: dict[int, tuple[int, list[int]]]
    for _ in range(most):
        longer = dict(best)
        for start, (cost, lengths) in best.items():
            for stop in range(start + 1, len(distinct) + 1):
                total = cost + int(distinct[stop - 1] * (before[stop] - before[start]))
                if stop not in longer or total < longer[stop][0]:
                    longer[stop] = (total, [*lengths, int(distinct[stop - 1])])
        best = longer
    return best[len(distinct)][1]


def _given(sizes: np.ndarray, batch_size: int, padded: Sequence[int]) -> list[tuple[int, np.ndarray]]:
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


def cover(
    sizes_of: Sequence[int], batch_sizes: Sequence[int], padded: Sequence[int], overhead: int = 0
) -> list[tuple[int, int, np.ndarray]]:
    """Batches as (padded length, rows, indices of at most so many sequences) out of given shapes, long ones first.

    Of all ways to fill them in the order of length, the one with the fewest padded tokens, where a batch costs
    `overhead` tokens besides. Raises ValueError when a sequence is longer than every length in `padded`.
    """
    sizes = np.asarray(sizes_of, np.int64)
    padded = tuple(sorted(padded))
    if len(sizes) and sizes.max() > padded[-1]:
        raise ValueError(f"a sequence of {sizes.max()} tokens is longer than the longest bucket, {padded[-1]}")
    order = np.argsort(-sizes, kind="stable")
    lengths_of = [padded[bucket] for bucket in np.searchsorted(padded, sizes[order])]
    best: list[tuple[int, int]] = [(0, 0)] * (len(order) + 1)
    for start in range(len(order) - 1, -1, -1):
        best[start] = min(
            (rows * lengths_of[start] + overhead + best[min(start + rows, len(order))][0], rows) for rows in batch_sizes
        )
    out, start = [], 0
    while start < len(order):
        rows = best[start][1]
        out.append((lengths_of[start], rows, order[start : start + rows]))
        start += rows
    return out


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
