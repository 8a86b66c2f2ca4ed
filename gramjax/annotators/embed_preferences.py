"""A vector for each pair: the representation of the preference that it expresses (LRHP), or a baseline's vector.

`representation`: h at the learned token of a run of `--config=lrhp`, with the chosen response first; of a pair without
a label, with the response first that the model prefers. `hidden_difference`: the hidden state after the chosen response
less that after the rejected one, of any model (a Bradley-Terry reward model in the baseline). `prompt`: the mean hidden
state over the prompt. The vectors stand in `vectors.safetensors` beside the rows.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import margins, representations
from gramjax.core.errors import UserError
from gramjax.data.rows import Drop
from gramjax.scoring.representations import Encoder, Read, both_orders, rendered

ROW_TYPES = ("preference", "pair_unlabelled")
OPENS = "network"
KINDS = ("representation", "hidden_difference", "prompt")
LABELLED_ONLY = "hidden_difference needs to know which response is the chosen one"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which vectors, and how they are made."""

    kind: str = "representation"
    """`representation`, `hidden_difference` or `prompt`."""
    untrained: bool = False
    """Draw the preference head from the seed where the model has none (the baseline of an untrained encoder)."""
    batch_size: int = 32
    """Sequences per batch over all devices."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"annotator.kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.batch_size < 1:
            raise UserError(f"annotator.batch_size is {self.batch_size}; it must be at least 1")
        if self.untrained and self.kind != "representation":
            raise UserError(f"annotator.untrained is for representations; {self.kind} reads no preference head")


def heads(config: Config, have: Sequence[str]) -> tuple[str, ...]:
    """The heads to open a model with, given those that it has. Raises UserError when the preference head is missing."""
    if config.kind != "representation" or "preference" in have:
        return tuple(have)
    if not config.untrained:
        raise UserError(
            f"the model has no preference head (it has: {', '.join(have)}): train one with gramjax train "
            "--config=lrhp, or ask for the baseline with --config.annotator.untrained=True"
        )
    return (*have, "preference")


def annotate(
    rows: Iterable[Mapping[str, Any]],
    encoder: Encoder,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Any = None,
) -> Iterator[dict[str, Any]]:
    """Each row with `vector` (float32 [P]), which the job keeps beside the rows.

    Representations bring `order_margin` = (u(s) - u(s_T)) / 2 for the first response of the vector's order, and both
    logits as `order_first` and `order_second`; a pair without a label also brings `order_label`, A or B.
    """
    read = {"representation": _represent, "hidden_difference": _subtract, "prompt": _prompts}[config.kind]
    for chunk in _chunks(rows, 8 * config.batch_size):
        usable, sequences = rendered(chunk, lambda row: _sequences(row, encoder, config), refuse)
        if usable:
            yield from read(usable, sequences, encoder, config)


def _chunks(rows: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    waiting = iter(rows)
    while chunk := list(itertools.islice(waiting, size)):
        yield chunk


def _sequences(row: Mapping[str, Any], encoder: Encoder, config: Config) -> list[Read]:
    renderer = encoder.renderer
    if config.kind == "prompt":
        ids = renderer.prompt(row["prompt"])
        if not ids:
            raise Drop("empty prompt")
        return [np.asarray(ids, np.int32)]
    if config.kind == "representation":
        first, second = (row["chosen"], row["rejected"]) if "chosen" in row else row["responses"]
        return list(both_orders(renderer, row["prompt"], first, second))
    if "chosen" not in row:
        raise Drop(LABELLED_ONLY)
    pair = renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"])
    return [np.asarray(ids, np.int32) for ids, _ in pair]


def _represent(
    rows: Sequence[Mapping[str, Any]], sequences: Sequence[Read], encoder: Encoder, config: Config
) -> Iterator[dict[str, Any]]:
    found = encoder.read("pair", sequences, config.batch_size)
    for row, (first, second) in zip(rows, found.reshape(len(rows), 2, -1), strict=True):
        extra: dict[str, Any] = {}
        if "chosen" not in row:
            turned = second[0] > first[0]
            first, second = (second, first) if turned else (first, second)
            extra["order_label"] = "B" if turned else "A"
        yield {
            **row,
            "order_margin": float(first[0] - second[0]) / 2,
            "order_first": float(first[0]),
            "order_second": float(second[0]),
            **extra,
            "vector": first[1:],
        }


def _subtract(
    rows: Sequence[Mapping[str, Any]], sequences: Sequence[Read], encoder: Encoder, config: Config
) -> Iterator[dict[str, Any]]:
    found = encoder.read("last", sequences, config.batch_size).reshape(len(rows), 2, -1)
    for row, (chosen, rejected) in zip(rows, found, strict=True):
        yield {**row, "vector": chosen - rejected}


def _prompts(
    rows: Sequence[Mapping[str, Any]], sequences: Sequence[Read], encoder: Encoder, config: Config
) -> Iterator[dict[str, Any]]:
    for row, vector in zip(rows, encoder.read("mean", sequences, config.batch_size), strict=True):
        yield {**row, "vector": vector}


def summarise(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray | None) -> dict[str, Any]:
    """What the vectors are like: effective rank, how well a linear map tells the subsets apart (against the share of
    the largest); for labelled representations order accuracy in both orders and corr(u(s), -u(s_T))."""
    if vectors is None or not len(vectors):
        return {}
    out: dict[str, Any] = {"width": vectors.shape[1], "effective_rank": representations.effective_rank(vectors)}
    subsets = [str(row.get("subset") or "") for row in rows]
    accuracy = representations.probe_accuracy(vectors, subsets)
    if accuracy is not None:
        out["subset_probe_accuracy"] = accuracy
        out["largest_subset_share"] = max(map(subsets.count, set(subsets))) / len(subsets)
    known = [row for row in rows if "order_margin" in row and "chosen" in row]
    if known:
        first, second = (np.array([row[name] for row in known]) for name in ("order_first", "order_second"))
        out["order_accuracy"] = float(np.mean(first - second > 0))
        out["order_accuracy_one_order"] = float((np.mean(first > 0) + np.mean(second < 0)) / 2)
        out["order_correlation"] = margins.order_correlation(first, second)
    return out
