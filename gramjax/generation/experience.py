"""Samples: what was drawn for a prompt and what it is worth, and how samples become the rows of a batch.

Letters: R rows, T tokens, N samples packed in a row; G samples of a group.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.data import pipeline
from gramjax.data.text import Example

MOST_PACKED = 8
"""Most samples in one packed row."""

PER_TOKEN = ("sampler_logprobs", "old_logprobs", "reference_logprobs", "old_values", "advantages", "returns",
             "entropy_coef")  # fmt: skip
"""Numbers of a sample that stand beside the tokens of its completion."""


@dataclasses.dataclass(eq=False)
class Sample:
    """One completion of a prompt. Arrays beside the completion are float32 [its tokens]; None: not known."""

    prompt: int
    """Index of the prompt among those of the training."""
    group: int
    """Number of its group; the samples of a group answer one prompt, drawn together."""
    number: int
    """Which of the group, from 0."""
    start: int
    """Tokens of the prompt."""
    tokens: np.ndarray
    """int32, prompt and completion."""
    text: str
    finish_reason: str
    version: int
    """Optimiser steps that the weights had taken when it was drawn."""
    offline: bool = False
    """Not drawn: a solution from elsewhere."""
    sampler_logprobs: np.ndarray | None = None
    old_logprobs: np.ndarray | None = None
    reference_logprobs: np.ndarray | None = None
    old_values: np.ndarray | None = None
    advantages: np.ndarray | None = None
    returns: np.ndarray | None = None
    entropy_coef: np.ndarray | None = None
    rewards: tuple[float, ...] = ()
    """One per reward function; NaN: not judged."""
    reward: float = 0.0
    """All of them together."""
    greedy: float = 0.0
    """The reward of the greedy answer to its prompt (advantage `remax`)."""
    correct: bool = False
    trained: bool = True
    """False: it was left out and gives no gradient."""
    counted: float = 1.0
    """Its weight in the denominators of the loss."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What reward functions logged beside it, by column."""

    @property
    def length(self) -> int:
        """Tokens of the completion, the end token included."""
        return len(self.tokens) - self.start

    @property
    def truncated(self) -> bool:
        """It ended at the limit, not with an end token or stop text."""
        return self.finish_reason == "length"

    @property
    def advantage(self) -> float:
        """Mean over the tokens."""
        return float(np.mean(self.advantages)) if self.advantages is not None and self.length else 0.0


def as_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON values; float32 numbers survive exactly."""
    values = dataclasses.asdict(sample)
    arrays = {name: value.tolist() for name, value in values.items() if isinstance(value, np.ndarray)}
    rewards = [None if np.isnan(value) else value for value in sample.rewards]
    return {**values, **arrays, "rewards": rewards}


def from_json(values: Mapping[str, Any]) -> Sample:
    """Inverse of `as_json`."""
    out = dict(values)
    out["tokens"] = np.asarray(out["tokens"], np.int32)
    for name in PER_TOKEN:
        out[name] = None if out.get(name) is None else np.asarray(out[name], np.float32)
    out["rewards"] = tuple(float("nan") if value is None else value for value in out["rewards"])
    return Sample(**out)


def example(sample: Sample, names: Sequence[str], limit: int, mixed: bool = False) -> Example:
    """The tokens of a sample with its mask, and its numbers called `names`; `mixed`: say whether it is offline."""
    size = len(sample.tokens)
    mask = np.zeros(size, np.float32)
    mask[sample.start :] = 1.0

    def beside(values: np.ndarray | None) -> np.ndarray:
        out = np.zeros(size, np.float32)
        if values is not None:
            out[sample.start :] = values
        return out

    fields: dict[str, float | int] = {
        "trained": float(sample.trained), "counted": float(sample.counted), "limit": float(limit),
    }  # fmt: skip
    fields |= {"offline": float(sample.offline)} if mixed else {}
    per_token: dict[str, tuple[np.ndarray, ...]] = {name: (beside(getattr(sample, name)),) for name in names}
    return Example((sample.tokens,), (mask,), fields, per_token)


def sizes(count: int, unit: int) -> int:
    """The number of rows that `count` rows are padded to: few different ones, with at most a quarter of padding."""
    blocks = -(-count // unit)
    if blocks <= 8:
        return unit * max(blocks, 1)
    step = 1 << (blocks.bit_length() - 3)
    return unit * (-(-blocks // step) * step)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How samples are laid into rows."""

    length: int
    """Tokens of a row."""
    unit: int
    """Rows come in multiples of this (devices times microbatches)."""
    packing: bool
    pad_id: int
    limit: int
    """Most tokens of a completion."""
    mixed: bool = False
    """Some samples may come from elsewhere (`offline`)."""

    @property
    def slots(self) -> int:
        """Most samples in a row."""
        return MOST_PACKED if self.packing else 1

    def plan(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The samples of each row, longest first: each goes where it leaves the least room (best fit)."""
        order = sorted(range(len(samples)), key=lambda i: -len(samples[i].tokens))
        rows: list[list[int]] = []
        free: list[tuple[int, int]] = []  # (tokens left, row) of the rows that are not full, sorted
        for i in order:
            size = len(samples[i].tokens)
            place = bisect.bisect_left(free, (size, -1))
            if place < len(free):
                left, row = free.pop(place)
            else:
                left, row = self.length, len(rows)
                rows.append([])
            rows[row].append(i)
            if len(rows[row]) < self.slots:
                bisect.insort(free, (left - size, row))
        return rows

    def batch(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[pipeline.Batch, list[list[int]]]:
        """The batch of samples with the per-token numbers `names`, and which samples each row holds.

        Without any sample it is one token of padding that counts for nothing.
        """
        plan = self.plan(samples) if samples else [[0]]
        chosen = list(samples) or [self._nothing()]
        rows = [[example(chosen[i], names, self.limit, self.mixed) for i in group] for group in plan]
        rows += [[]] * (sizes(len(rows), self.unit) - len(rows))
        batch = pipeline.collate(rows, self.length, self.slots, self.pad_id)
        if not samples:
            batch["example_mask"][:] = 0.0
            batch["loss_mask"][:] = 0.0
        return batch, plan

    def _nothing(self) -> Sample:
        tokens = np.full(2, self.pad_id, np.int32)
        return Sample(0, 0, 0, 1, tokens, "", "stop", 0, trained=False, counted=0.0)


def unpack(values_RT: np.ndarray, samples: Sequence[Sample], plan: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The numbers of a batch, which stand beside the labels, as one array per sample beside its completion."""
    out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(samples)
    for row, group in enumerate(plan):
        begin = 0
        for i in group:
            sample = samples[i]
            first = begin + sample.start - 1  # label t is the token at t + 1
            out[i] = np.asarray(values_RT[row, first : first + sample.length], np.float32)
            begin += len(sample.tokens)
    return out
