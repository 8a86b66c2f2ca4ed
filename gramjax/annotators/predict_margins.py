"""Write the column `margin`: by how much the chosen response of a pair is better, as a model sees it (LRHP, PMP).

`head`: the margin head of a run of `--config=lrhp_margin`. `ridge`: a linear probe on the representations of an
encoder, fitted to the margins of `labelled` rows. Baselines: `order_logit` (half the size of u(s) - u(s_T)),
`reward_difference` (of a Bradley-Terry model), `judge_strength` (a language model is told which response is better and
asked how much, from 1 to 5: the mean over the digits' probabilities and both orders) and `constant` (the mean of
`labelled`); where `labelled` is given, the first three are brought to its scale by a line. The column feeds
`use_margin` of Bradley-Terry and DPO's adaptive margins.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.checkpoint import json_file
from gramjax.core import margins, representations
from gramjax.core.config import section
from gramjax.core.errors import UserError
from gramjax.core.margins import Standardisation
from gramjax.data import readers
from gramjax.scoring.representations import Encoder, Read, both_orders, rendered

ROW_TYPES = ("preference",)
OPENS = "network"
NEEDS = {"head": "margin", "ridge": "preference", "order_logit": "preference", "reward_difference": "score",
         "judge_strength": "tokens", "constant": ""}  # fmt: skip
"""The methods and the head that each reads."""

LINES = ("order_logit", "reward_difference", "judge_strength")
"""Methods with one number of their own, which `labelled` rows bring to scale."""

STRENGTHS = "12345"
STRENGTH_PROMPT = (
    "Two assistants, A and B, have replied to the user below, and it is known which reply is better. Say how much "
    "better it is with one digit: 1 hardly, 2 a little, 3 clearly, 4 much, 5 by far."
)
"""The package's own wording; a config may replace it."""
STRENGTH_CUE = "#Better: {}\n#Strength (1-5):"


@dataclasses.dataclass(frozen=True)
class Config:
    """How margins are predicted."""

    method: str = "ridge"
    """`head`, `ridge`, `order_logit`, `reward_difference`, `judge_strength` or `constant`."""
    labelled: str = ""
    """Rows with true margins (column `margin`): a file or a folder; for `ridge` and `constant`, else for the scale."""
    instruction: str = ""
    """What `judge_strength` asks; empty: the package's own wording."""
    penalty: float = 10.0
    """Of the squared weights of `ridge`, on standardised vectors."""
    signed: bool = False
    """Keep predictions below 0 (the chosen response would be the worse one); otherwise they are 0."""
    batch_size: int = 32
    """Sequences per batch over all devices."""

    def __post_init__(self) -> None:
        if self.method not in NEEDS:
            raise UserError(f"annotator.method is {self.method!r}; choose one of {', '.join(NEEDS)}")
        if self.instruction and self.method != "judge_strength":
            raise UserError(f"annotator.instruction is for judge_strength; {self.method} asks nothing")
        if self.penalty <= 0 or self.batch_size < 1:
            raise UserError("annotator.penalty must be above 0 and annotator.batch_size at least 1")


def heads(config: Config, have: Sequence[str]) -> tuple[str, ...]:
    """The heads to open a model with. Raises UserError when that which is read, or rows to learn from, is missing."""
    if config.method in ("ridge", "constant") and not config.labelled:
        raise UserError(f"annotator.method={config.method} needs config.annotator.labelled, rows with true margins")
    if config.method == "head" and config.labelled:
        raise UserError("config.annotator.labelled is not read by the method 'head', which was trained already")
    needed = NEEDS[config.method]
    if needed and needed not in have:
        raise UserError(
            f"annotator.method={config.method} reads the head {needed!r}; the model has {', '.join(have)}"
        )
    return tuple(have)


def annotate(
    rows: Iterable[Mapping[str, Any]],
    encoder: Encoder,
    config: Config,
    seed: int = 0,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
    statistics: Any = None,
) -> Iterator[dict[str, Any]]:
    """Each row with `margin`; a margin that it had is `true_margin`, the prediction before it was cut off at 0 is
    `predicted_margin`."""
    predict = _predictor(encoder, config)
    waiting = iter(rows)
    while chunk := list(itertools.islice(waiting, 8 * config.batch_size)):
        usable, features = _features(chunk, encoder, config, refuse)
        for row, value in zip(usable, predict(usable, features), strict=True):
            known = {} if row.get("margin") is None else {"true_margin": row["margin"]}
            yield {
                **row,
                **known,
                "margin": float(value if config.signed else max(value, 0.0)),
                "predicted_margin": float(value),
            }


def _features(
    rows: Sequence[Mapping[str, Any]],
    encoder: Encoder,
    config: Config,
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """The rows that can be rendered, and the numbers [N, F] that their margins are predicted from."""
    usable, sequences = rendered(rows, lambda row: _sequences(row, encoder, config), refuse)
    if not usable or config.method == "constant":
        return usable, np.zeros((len(usable), 0))
    if config.method == "head":
        return usable, encoder.read("margin", sequences, config.batch_size)
    if config.method == "ridge":
        return usable, encoder.read("pair", sequences, config.batch_size)[:, 1:]
    if config.method == "judge_strength":
        logits = encoder.read("tokens", sequences, config.batch_size, ids=digits(encoder.renderer)).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        strength = shares @ np.arange(1, 1 + len(STRENGTHS)) / shares.sum(axis=1)
        return usable, strength.reshape(-1, 2).mean(axis=1, keepdims=True)
    what = "pair" if config.method == "order_logit" else "reward"
    pairs = encoder.read(what, sequences, config.batch_size)[:, 0].reshape(-1, 2)
    difference = (pairs[:, :1] - pairs[:, 1:]).astype(np.float64)
    return usable, np.abs(difference) / 2 if config.method == "order_logit" else difference


def _sequences(row: Mapping[str, Any], encoder: Encoder, config: Config) -> list[Read]:
    if config.method == "constant":
        return []
    pair = row["prompt"], row["chosen"], row["rejected"]
    if config.method == "reward_difference":
        return [np.asarray(ids, np.int32) for ids, _ in encoder.renderer.completion_pair(*pair)]
    if config.method == "judge_strength":
        prompt, chosen, rejected = pair
        return [_asked(encoder.renderer, prompt, (chosen, rejected), "A", config),
                _asked(encoder.renderer, prompt, (rejected, chosen), "B", config)]  # fmt: skip
    orders = both_orders(encoder.renderer, *pair)
    return list(orders if config.method == "order_logit" else orders[:1])


def _asked(renderer: Any, prompt: Any, shown: tuple[Any, Any], better: str, config: Config) -> np.ndarray:
    """The question how much better the response called `better` is."""
    section = dataclasses.replace(renderer.section, judge_prompt=config.instruction or STRENGTH_PROMPT,
                                  judge_cue=STRENGTH_CUE.format(better))  # fmt: skip
    return np.asarray(dataclasses.replace(renderer, section=section).judge(prompt, *shown), np.int32)


def digits(renderer: Any) -> tuple[int, ...]:
    """The tokens of the five strengths where the question ends. Raises UserError where they are no single tokens."""
    for space in ("", " "):
        found = [renderer.tokenizer.encode_text(space + digit, continuing=True) for digit in STRENGTHS]
        known = [ids[0] for ids in found if len(ids) == 1 and ids[0] != renderer.tokenizer.unk_id]
        if len(set(known)) == len(STRENGTHS):
            return tuple(known)
    raise UserError("annotator.method=judge_strength: the digits 1 to 5 are no single tokens of this tokenizer")


Predictor = Callable[[Sequence[Mapping[str, Any]], np.ndarray], list[float]]


def _predictor(encoder: Encoder, config: Config) -> Predictor:
    """From rows and their features to margins on the scale of the data."""
    if config.method == "head":
        scales = _saved(encoder)
        return lambda rows, features: [scales.restored(row, value) for row, value in zip(rows, features[:, 0])]
    if not config.labelled:
        return lambda rows, features: list(features[:, 0])
    known = readers.read(config.labelled, encoder.renderer.section, ROW_TYPES).rows
    usable, features = _features(known, encoder, config, lambda row, reason: None)
    if not usable:
        raise UserError(f"annotator.labelled={config.labelled}: none of its {len(known):,} rows can be used")
    if config.method in LINES:  # one scale for all: the logit knows no data sets
        scales = Standardisation()
        line = representations.ridge(features, [margins.margin_of(row) for row in usable], 1e-6)
    else:
        scales = margins.standardisation(usable)
        line = representations.ridge(features, [scales.standard(row) for row in usable], config.penalty)
    return lambda rows, features: [scales.restored(row, float(value)) for row, value in zip(rows, line(features))]


def _saved(encoder: Encoder) -> Standardisation:
    """The means and scales that a run of the objective `preference_margin` left."""
    path = Path(encoder.path) / "objective.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: the run of preference_margin says there what its margins mean")
    return section(json_file.read(path).get("standardisation", {}), Standardisation, "objective.standardisation")


def summarise(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray | None) -> dict[str, Any]:
    """How well the predictions agree with the margins that the rows had, over all and by subset."""
    known = [row for row in rows if row.get("true_margin") is not None]
    if len(known) < 2:
        return {}
    out: dict[str, Any] = {"num_margins": len(known), **_agreement(known)}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        groups.setdefault(str(row.get("subset") or ""), []).append(row)
    if len(groups) > 1:
        out["subsets"] = {name: _agreement(group) for name, group in sorted(groups.items()) if len(group) > 1}
    return out


def _agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return margins.agreement([row["predicted_margin"] for row in rows], [row["true_margin"] for row in rows])
