"""The texts that a layer selection looks at, as batches: which tokens count, and of which language they are."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gramjax.core import progress, sharding
from gramjax.core.config import ProbeSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import buckets, languages
from gramjax.data.languages import LanguageText, Texts
from gramjax.data.rows import Drop, Tally
from gramjax.data.text import Renderer

FILL = -1
"""Language of the rows that only fill a batch."""


@dataclasses.dataclass(frozen=True)
class Probed:
    """A text as tokens."""

    tokens: np.ndarray
    counted: np.ndarray
    """Which tokens count."""
    language: int
    number: int
    """Of the text among those of its language."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Batches that can be gone through several times, all of one number of rows and of few lengths.

    A batch has `tokens`, `segment_ids`, `positions` and `counted` [B, T], and by row `language` (index into
    `languages`; -1: a row that only fills the batch, of which nothing counts) and `number` (of the text among those of
    its language: parallel texts share it).
    """

    languages: tuple[str, ...]
    sequences: Sequence[Probed]
    batch_size: int
    mesh: Mesh | None
    dropped: Tally
    """Texts that were left out, by reason."""
    files: Sequence[dict[str, Any]] = ()

    def __len__(self) -> int:
        """Batches."""
        return len(buckets.plan([len(s.tokens) for s in self.sequences], self.batch_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.host_batches():
            progress.stop_point("a batch of texts")
            yield sharding.place(batch, self.mesh)

    def host_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches before they are put on devices."""
        for indices, padded in buckets.batches([s.tokens for s in self.sequences], self.batch_size):
            batch = {name: padded[name] for name in ("tokens", "segment_ids", "positions")}
            batch["counted"] = np.zeros(batch["tokens"].shape, bool)
            batch["language"] = np.full(self.batch_size, FILL, np.int32)
            batch["number"] = np.zeros(self.batch_size, np.int32)
            for row, index in enumerate(indices):
                sequence = self.sequences[index]
                batch["counted"][row, : len(sequence.counted)] = sequence.counted
                batch["language"][row], batch["number"][row] = sequence.language, sequence.number
            yield batch

    def tokens_by_language(self) -> dict[str, int]:
        """Tokens that count."""
        totals = collections.Counter[int]()
        for sequence in self.sequences:
            totals[sequence.language] += int(sequence.counted.sum())
        return {language: totals[index] for index, language in enumerate(self.languages)}

    def fingerprint(self) -> str:
        """sha256 over all tokens, which of them count, and their languages."""
        hashed = hashlib.sha256(repr(self.languages).encode())
        for sequence in self.sequences:
            hashed.update(sequence.tokens.tobytes() + sequence.counted.tobytes() + bytes([sequence.language % 256]))
        return hashed.hexdigest()


def build(found: Texts, section: ProbeSection, renderer: Renderer, mesh: Mesh | None = None) -> Probe:
    """Texts as batches: of every language as many as have `max_tokens` tokens that count.

    Parallel texts are the same in every language: they end as soon as one language has enough. Raises UserError for
    languages that are not there or share no texts, DataError when nothing counts.
    """
    wanted = languages.chosen(found, section.languages, "config.probe.languages")
    if mesh is not None and section.batch_size % (shards := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(f"config.probe.batch_size={section.batch_size} does not divide over {shards} devices")
    dropped = Tally(found.dropped)
    parallel = section.parallel and len(wanted) > 1
    if parallel:
        found, left_out = languages.parallel(found, wanted)
        if left_out:
            dropped.merge(Tally({"text that another language does not have": (left_out, "")}))
        groups = list(zip(*(found.by_key(language).values() for language in wanted), strict=True))
    else:
        groups = [(text,) for text in found.texts if text.language in wanted]
    sequences: list[Probed] = []
    totals, numbers = [0] * len(wanted), [0] * len(wanted)
    for group in groups:
        own = [wanted.index(text.language) for text in group]
        if any(totals[index] >= section.max_tokens for index in own):
            if parallel:
                break
            continue
        made = _encoded(group, renderer, section.positions, dropped)
        for index, (tokens, counted) in zip(own, made):
            sequences.append(Probed(tokens, counted, index, numbers[index]))
            totals[index] += int(counted.sum())
            numbers[index] += 1
    if not all(totals):
        empty = wanted[totals.index(0)] or "the data"
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in dropped.items())
        raise DataError(f"no token of {empty} counts (config.probe.positions={section.positions}): {reasons}")
    return Probe(wanted, sequences, section.batch_size, mesh, dropped, tuple(found.files))


def _encoded(
    group: Sequence[LanguageText], renderer: Renderer, positions: str, dropped: Tally
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The texts of a group as tokens; none where one of them cannot be used, which is counted."""
    made = []
    for text in group:
        try:
            made.append(tokens_of(text, renderer, positions))
        except Drop as drop:
            dropped.add(drop.args[0], f"{text.language or 'row'} {text.key}")
            return []
    return made


def tokens_of(text: LanguageText, renderer: Renderer, positions: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text, and which of them count. Raises Drop by the length policy."""
    ids, parts = renderer.parts(text.prompt, text.completion)
    wanted = "prompt" if positions == "last" else positions
    counted = np.array([positions == "all" or part == wanted for part in parts], bool)
    if positions == "last":
        counted[: np.max(np.flatnonzero(counted), initial=0)] = False
    return np.array(ids, np.int32), counted
