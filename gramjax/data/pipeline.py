"""Examples to batches: a seeded, resumable order for training, and every example once for evaluation.

Letters: B rows of a batch, T tokens, N packed examples per row (1 without packing); pairs add an axis of length 2
after B, chosen first; lists of answers one as long as the longest list allowed.
"""

import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import progress
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import buckets
from gramjax.data.rows import Drop, Tally, digest
from gramjax.data.text import Example

VERSION = 1
"""Counts changes of this file that change the order or the content of batches."""

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class Examples:
    """Rows that became tokens: for each its equally valid renderings (such as the two orders of the answers)."""

    items: list[tuple[Example, ...]]
    ids: list[str]
    """The row's id, one per item."""
    dropped: Tally
    overlong: list[int] = dataclasses.field(default_factory=list)
    """Token counts of the rows that were too long."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> list[int]:
        """Tokens of the longest sequence of each item."""
        return [max(len(tokens) for tokens in item[0].tokens) for item in self.items]

    def fingerprint(self) -> str:
        """sha256 over all tokens, masks and fields: whatever decides them (files, tokenizer, template) is in it."""
        hashed = hashlib.sha256()
        for item in self.items:
            for example in item:
                for tokens, mask in zip(example.tokens, example.loss_mask, strict=True):
                    hashed.update(tokens.tobytes())
                    hashed.update(mask.tobytes())
                hashed.update(repr(sorted(example.fields.items())).encode())
        return hashed.hexdigest()


def _check(row_id: str, renderings: tuple[Example, ...], vocab_size: int) -> None:
    if not renderings:
        raise DataError(f"row {row_id!r} has no rendering")
    shapes = {tuple(len(tokens) for tokens in example.tokens) for example in renderings}
    if len(shapes) > 1:
        raise DataError(f"row {row_id!r}: its renderings differ in length, {sorted(shapes)}; packing needs equal ones")
    for example in renderings:
        for tokens in example.tokens:
            top = int(tokens.max(initial=0))
            if vocab_size and (top >= vocab_size or int(tokens.min(initial=0)) < 0):
                raise DataError(f"row {row_id!r}: token id {top} does not exist in a vocabulary of {vocab_size}")


def encode_rows(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[Mapping[str, Any]], Example | tuple[Example, ...]],
    section: DataSection | None = None,
    vocab_size: int = 0,
    limit_share: bool = True,
    dropped: Tally | None = None,
) -> Examples:
    """Encode every row; rows that cannot be used (`rows.Drop`) are counted with the first id.

    Raises DataError when nothing remains, and when more than `section.max_overlong_share` of the rows are too long
    (`limit_share`); ids outside `vocab_size` (0: not checked) are refused too. Errors name the row. `dropped` is what
    the reader left out already: it is added to the counts.
    """
    section = section or DataSection()
    out = Examples([], [], Tally())
    out.dropped.merge(dropped or Tally())
    count = out.dropped.total
    for row in rows:
        if count % 256 == 0:
            progress.stop_point("the encoding of rows", slow=True)  # weights of other models may be read after it
        count += 1
        name = str(row.get("id", count))
        try:
            made = encode(row)
        except Drop as drop:
            out.dropped.add(drop.args[0], name)
            if drop.length:
                out.overlong.append(drop.length)
            continue
        except DataError as error:
            raise DataError(f"row {name!r}: {error}") from None
        renderings = (made,) if isinstance(made, Example) else tuple(made)
        _check(name, renderings, vocab_size)
        if section.renderings == "all":
            out.items += [(rendering,) for rendering in renderings]
            out.ids += [name] * len(renderings)
        else:
            out.items.append(renderings[:1] if section.renderings == "first" else renderings)
            out.ids.append(name)
    if not out.items:
        raise DataError(_nothing(count, out, section))
    share = len(out.overlong) / count
    if limit_share and share > section.max_overlong_share:
        raise DataError(
            f"{len(out.overlong):,} of {count:,} rows are longer than max_length {section.max_length} (median "
            f"{statistics.median(out.overlong):,.0f} tokens); that is more than config.data.max_overlong_share="
            f"{section.max_overlong_share:g}. {_longer(out)} or allow it"
        )
    return out


def _longer(out: Examples) -> str:
    enough = 1 << (int(statistics.median(out.overlong)) - 1).bit_length()
    return f"Try --config.data.max_length={enough}"


def _nothing(count: int, out: Examples, section: DataSection) -> str:
    if not count:
        return "0 rows"
    parts = []
    for reason, (number, first) in out.dropped.items():
        median = ""
        if out.overlong and reason.startswith("longer than"):
            median = f" (median {statistics.median(out.overlong):,.0f})"
        parts.append(f"{number:,} {reason}{median}, first {first}")
    hint = f". {_longer(out)}" if out.overlong else ""
    return f"0 of {count:,} rows usable: {'; '.join(parts)}{hint}"


def pack_plan(lengths: Sequence[Sequence[int]], capacity: int, order: Sequence[int]) -> list[list[int]]:
    """Groups of examples that share a row: first fit in the given order, every side of a pair within `capacity`.

    `lengths[i]` holds the length of each sequence of example i. Raises DataError for one that fits no row.
    """
    groups: list[list[int]] = []
    free: list[list[int]] = []
    first = 0  # groups before this one are full
    for index in order:
        sizes = lengths[index]
        if max(sizes) > capacity:
            raise DataError(f"example {index} has {max(sizes)} tokens, more than {capacity}")
        for group in range(first, len(groups)):
            if all(size <= room for size, room in zip(sizes, free[group], strict=True)):
                break
        else:
            group = len(groups)
            groups.append([])
            free.append([capacity] * len(sizes))
        groups[group].append(index)
        free[group] = [room - size for room, size in zip(free[group], sizes, strict=True)]
        while first < len(groups) and min(free[first]) < 2:
            first += 1
    return groups


def collate(rows: Sequence[Sequence[Example]], length: int, slots: int = 1, pad_id: int = 0) -> Batch:
    """Arrays of a batch; each row holds at most `slots` examples, one after another.

    Returns `tokens, labels, segment_ids, positions` int32 and `loss_mask` float32, all [B,T] (pairs [B,2,T]); `ends`
    int32 [B,N] (pairs [B,2,N]); `example_mask` float32 and every scalar field [B,N]. `loss_mask[t]` is the weight of
    predicting `labels[t]`, the token at t + 1 of the same example; numbers per token ([B,T] float32) are aligned alike.
    A row without examples is all padding.
    """
    sample = next((example for row in rows for example in row), None)
    if sample is None:
        raise ValueError("a batch without any example")
    sides, size = len(sample.tokens), len(rows)
    shape = (size, sides, length)
    tokens = np.full(shape, pad_id, np.int32)
    labels = np.full(shape, pad_id, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, np.float32)
    ends = np.zeros((size, sides, slots), np.int32)
    example_mask = np.zeros((size, slots), np.float32)
    fields = {
        name: np.zeros((size, slots), np.float32 if isinstance(value, float) else np.int32)
        for name, value in sample.fields.items()
    }
    beside = {name: np.zeros(shape, np.float32) for name in sample.per_token}
    for b, row in enumerate(rows):
        starts = [0] * sides
        for n, example in enumerate(row):
            example_mask[b, n] = 1.0
            for name, value in example.fields.items():
                fields[name][b, n] = value
            for side, (ids, mask) in enumerate(zip(example.tokens, example.loss_mask, strict=True)):
                if not len(ids):  # a list of answers that is shorter than others
                    continue
                start, stop = starts[side], starts[side] + len(ids)
                tokens[b, side, start:stop] = ids
                labels[b, side, start : stop - 1] = ids[1:]
                loss_mask[b, side, start : stop - 1] = mask[1:]
                for name, numbers in beside.items():
                    numbers[b, side, start : stop - 1] = example.per_token[name][side][1:]
                segments[b, side, start:stop] = n + 1
                positions[b, side, start:stop] = np.arange(len(ids))
                ends[b, side, n] = stop - 1
                starts[side] = stop
    batch: Batch = {"tokens": tokens, "labels": labels, "segment_ids": segments, "positions": positions}
    batch = {**batch, "loss_mask": loss_mask, "ends": ends} | beside
    if sides == 1:
        batch = {name: array[:, 0] for name, array in batch.items()}
    return batch | {"example_mask": example_mask} | fields


class Pipeline:
    """The batch source of offline training: `next`, `state`, `restore`.

    Every epoch is a seeded shuffle; batches run over epoch boundaries, so that each epoch shows every example once
    and only the last partial batch of the whole run is left out. Batch k depends on the examples, the settings and k
    alone: not on what was read before, nor on the number of processes, of which each takes its slice of the batch.
    """

    def __init__(
        self,
        examples: Examples,
        section: DataSection,
        batch_size: int,
        seed: int,
        epochs: float = 1.0,
        steps: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        pad_id: int = 0,
        files: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`batch_size` counts rows (packed: rows, not examples) over all processes; `steps` overrides `epochs`.

        Raises UserError if there is less than one batch, or the processes do not divide the batch.
        """
        import grain

        if batch_size < 1 or process_count < 1 or batch_size % process_count:
            raise UserError(f"batch size {batch_size} does not divide among {process_count} processes")
        self._examples, self._section, self._seed, self._pad_id = examples, section, seed, pad_id
        self._groups = self._plan()
        rows = len(self._groups)
        if rows < batch_size:
            what = "packed rows" if section.packing else "examples"
            raise UserError(
                f"{rows} {what} do not fill one batch of {batch_size}, so there would be 0 steps; "
                f"set config.train.batch_size to {rows} or less, or give more data"
            )
        self.batch_size, self._rows = batch_size, rows
        self.steps = steps if steps > 0 else int(epochs * rows + 1e-9) // batch_size
        if self.steps < 1:
            raise UserError(f"config.train.epochs={epochs:g} of {rows} rows is less than one batch of {batch_size}")
        self._slots = max(len(group) for group in self._groups)
        self._order = grain.MapDataset.range(rows).seed(seed).shuffle().repeat()
        local = batch_size // process_count
        self._slice = range(process_index * local, (process_index + 1) * local)
        self._step = 0
        self._files = [dict(file) for file in files]
        self._fingerprint = self._facts()

    def _plan(self) -> list[list[int]]:
        items = self._examples.items
        if not self._section.packing:
            return [[index] for index in range(len(items))]
        order = np.random.default_rng(self._seed).permutation(len(items))
        lengths = [[len(tokens) for tokens in item[0].tokens] for item in items]
        return pack_plan(lengths, self._section.max_length, [int(i) for i in order])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data (at least 1)."""
        return self._rows // self.batch_size

    def epoch(self, step: int) -> float:
        """Passes over the data after `step` batches."""
        return step * self.batch_size / self._rows

    def rows_of(self, step: int) -> list[list[Example]]:
        """The examples of this process's rows of batch `step`, in order."""
        out = []
        for place in self._slice:
            index = step * self.batch_size + place
            epoch = index // self._rows
            out.append([self._draw(i, epoch) for i in self._groups[int(self._order[index])]])
        return out

    def _draw(self, index: int, epoch: int) -> Example:
        """One of the example's renderings: a coin that depends on the seed, the epoch and the example only."""
        renderings = self._examples.items[index]
        return renderings[digest(self._seed, "rendering", epoch, index) % len(renderings)]

    def batch(self, step: int) -> Batch:
        """This process's part of batch `step`."""
        return collate(self.rows_of(step), self._section.max_length, self._slots, self._pad_id)

    def next(self, params: Any = None) -> Batch:
        """The next batch. `params` is not used: a batch source may look at the weights, this one does not."""
        made = self.batch(self._step)
        self._step += 1
        return made

    def metrics(self) -> dict[str, tuple[float, float]]:
        """Nothing: rows say all there is to say."""
        return {}

    def names(self, index: int) -> list[str]:
        """The ids of the rows in a batch, over all processes: for a message."""
        places = range(index * self.batch_size, (index + 1) * self.batch_size)
        return [self._examples.ids[i] for place in places for i in self._groups[int(self._order[place])]]

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a saved position to mean the same batches."""
        return dict(self._fingerprint)

    def _facts(self) -> dict[str, Any]:
        order = [int(self._order[i]) for i in range(min(64, 2 * self._rows))]
        return {
            "version": VERSION,
            "files": self._files,
            "examples": self._examples.fingerprint(),
            "count": len(self._examples),
            "seed": self._seed,
            "batch_size": self.batch_size,
            "max_length": self._section.max_length,
            "packing": self._section.packing,
            "order": hashlib.sha256(repr(order).encode()).hexdigest(),
        }

    def state(self) -> dict[str, Any]:
        """JSON-able position: how many batches were taken, and the fingerprint."""
        return {"step": self._step, "fingerprint": self.fingerprint()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position. Raises UserError naming the first setting or file that differs."""
        saved = state.get("fingerprint")
        if not isinstance(saved, Mapping) or not isinstance(state.get("step"), int) or state["step"] < 0:
            raise UserError("the checkpoint's data state is not one of this pipeline; use --config.overwrite=True")
        if isinstance(saved.get("files"), list) and saved["files"] != self._files:
            what = _difference(saved["files"], self._files)
            raise UserError(
                f"the data files changed since the checkpoint was written: {what}. "
                "Restore the files, or use --config.overwrite=True"
            )
        for name, value in self._fingerprint.items():
            if saved.get(name) != value:
                was = _short(saved.get(name))
                raise UserError(
                    f"the checkpoint was written with data {name}={was}, now it is {_short(value)}; "
                    "the order of the data would change. Use the saved config.json, or --config.overwrite=True"
                )
        self._step = state["step"]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 24 else text


def _difference(saved: list[Any], now: list[Any]) -> str:
    before = {str(file.get("name")): file for file in saved}
    after = {str(file.get("name")): file for file in now}
    for name in [*before, *after]:
        if name not in after:
            return f"{name} is gone"
        if name not in before:
            return f"{name} is new"
        if before[name] != after[name]:
            return f"{name} has other content"
    return "their order or number"


def batches(
    examples: Sequence[Example], batch_size: int, lengths: Sequence[int] = (), pad_id: int = 0
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(indices, batch of exactly `batch_size` rows) for evaluation: every example once, padded to few lengths.

    `lengths` are the padded lengths to use (empty: chosen by `buckets.plan`). Rows that only fill a batch repeat its
    first example, with `example_mask` and `loss_mask` 0.
    """
    sizes = [max(len(tokens) for tokens in example.tokens) for example in examples]
    for length, indices in buckets.plan(sizes, batch_size, lengths):
        chosen = [examples[i] for i in indices]
        fill = batch_size - len(chosen)
        batch = collate([[example] for example in [*chosen, *chosen[:1] * fill]], length, 1, pad_id)
        batch["example_mask"][len(chosen) :] = 0.0
        batch["loss_mask"][len(chosen) :] = 0.0
        yield indices, batch
