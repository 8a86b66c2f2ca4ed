"""Rewards of a reward model of this project, in the same process: scalar, pairwise against a reference, or GRAM-R2.

    a scalar head (Bradley-Terry, GRM)     r(x, y), standardised by `shift` and `scale`
    a judge of pairs (GRAM)                how much it prefers y to the reference answer, both orders averaged
    a judge with rationales (`rationale`)  the share of drawn judgements for y, or their mean probability

The reference is the policy's own greedy answer (`reference="greedy"`, GRAM section on reinforcement learning), a column
of the rows, or a file of answers.
"""

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.core.config import SamplingSection
from gramjax.core.errors import UserError
from gramjax.data.rows import Drop, Text
from gramjax.generation import judging
from gramjax.generation.judging import Judging
from gramjax.scoring import references
from gramjax.scoring.reward_model import RewardModel, Settings, settings_of

GREEDY = "greedy"
REWARDS = ("centered", "prob", "margin")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which model judges, and how."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    path: str = ""
    """Run folder, Hugging Face folder or export of the reward model."""
    tokenizer: str = ""
    """Its tokenizer; empty: the one beside it."""
    max_length: int = 0
    """Longest text that it reads, in tokens; 0: as a run of this project was trained, else 1024."""
    method: str = "auto"
    """`score`, `judge`, `implicit`, or `auto`: by its head; `rationale`: it writes its judgement (GRAM-R2)."""
    agg: str = "prob"
    """Average of the two orders of a judge: `prob` or `logit`."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "shorten_responses"
    """What happens to texts that are too long (config.data.overlong)."""
    reference: str = GREEDY
    """What a judge of pairs compares with: `greedy` (the policy's own greedy answer), a column, or a file (`prompt` or
    `id`, and the answer as `reference`)."""
    reward: str = "centered"
    """Of a pair: `centered` (probability - 1/2), `prob`, or `margin` (log-odds)."""
    shift: float = 0.0
    """Subtracted from scalar rewards."""
    scale: float = 1.0
    """Divides scalar rewards."""
    batch_size: int = 8
    """Texts read at once."""
    votes: str = "probability"
    """Of `rationale`: what the draws say, `votes` or `probability`."""
    judging: Judging = Judging(sampling=SamplingSection(max_tokens=512, temperature=0.75, n=2))
    """Of `rationale`: how judgements are drawn."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """The judge."""

    model: Any
    """A RewardModel, or a Sampler for `rationale`."""
    references: references.References | None
    """None: the greedy answer of the policy, or (scalar) nothing."""
    compares: bool
    """It judges pairs."""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """One call at a time: they share the devices anyway."""


def open(config: Config, resources: Any) -> Opened:
    """Load the model. Raises UserError for settings that do not fit it."""
    one_of(config, "rewards.preference", reward=REWARDS, votes=judging.SCORES)
    if not config.path:
        raise UserError("config.rewards.preference.path is empty: name a reward model")
    if config.scale == 0:
        raise UserError("config.rewards.preference.scale is 0")
    _check_processes()
    compares = config.method == "rationale"
    if compares:
        model = resources.open_sampler(config.path, config.tokenizer, config.max_length)
        judging.check_score(config.votes, model, "rewards.preference.votes")
    else:
        settings: Settings = settings_of(config)
        opener = resources.open_reward_model
        model = opener(config.path, config.tokenizer, config.max_length, settings, config.batch_size)
        compares = model.kind == "judge"
    if config.reference == GREEDY:
        return Opened(model, None, compares)
    if not compares:
        raise UserError(
            f"config.rewards.preference.reference={config.reference!r}, but {config.path} gives a score to an answer "
            "alone: leave it out"
        )
    return Opened(model, references.open_references(config.reference, "rewards.preference.reference"), True)


def _check_processes() -> None:
    import jax

    if jax.process_count() > 1:
        raise UserError(
            f"config.rewards.preference runs in one process, this job has {jax.process_count()}: serve the model "
            "(gramjax serve) and use config.rewards.http"
        )


def needs_greedy(config: Config, opened: Opened) -> bool:
    """Whether the policy's greedy answer to each prompt is asked for, as the column `greedy`."""
    return opened.compares and opened.references is None


def in_turn(resources: Any) -> bool:
    """Beside the sampler on several devices it has to wait for its turn."""
    return resources.mesh is not None and resources.mesh.size > 1


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Opened, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """A reward for each completion; None where the model cannot read it."""
    with opened.lock:
        if opened.compares:
            return _pairwise(prompts, completions, config, opened, columns)
        found = opened.model.rewards(list(zip(prompts, completions, strict=True)))
    return [None if r.reason else (r.value - config.shift) / config.scale for r in found]


def _pairwise(
    prompts: Sequence[Any], completions: Sequence[Any], config: Config, opened: Opened, columns: Mapping[str, Any]
) -> list[float | None]:
    """How much a judge prefers each completion to its reference."""
    against = [_reference(opened, columns, i, *pair) for i, pair in enumerate(zip(prompts, completions, strict=True))]
    # Equal answers need no judge: neither is better.
    asked = [i for i, (own, other) in enumerate(zip(completions, against)) if other is not None and own != other]
    same = _worth(0.5, 0.0, config)
    out: list[float | None] = [None if other is None else same for other in against]
    pairs = [(prompts[i], completions[i], against[i]) for i in asked]
    if config.method == "rationale":
        judged = _written(opened.model, pairs, config, columns)
    else:
        judged = _compared(opened.model, pairs, config)
    for i, value in zip(asked, judged, strict=True):
        out[i] = value
    return out


def _reference(opened: Opened, columns: Mapping[str, Any], i: int, prompt: Text, own: Text) -> Any:
    """The answer that completion number i is compared with, in its form; None where there is none."""
    if opened.references is None:
        return columns["greedy"][i]
    row = {name: values[i] for name, values in columns.items() if isinstance(values, list)}
    try:
        return references.same_form(own, opened.references.of_row({**row, "prompt": prompt}))
    except Drop:
        return None


def _compared(model: RewardModel, pairs: Sequence[tuple[Any, Any, Any]], config: Config) -> list[float | None]:
    """What a judge of pairs says of (prompt, completion, reference)."""
    return [None if said.reason else _worth(said.score, said.margin, config) for said in model.compare(pairs)]


def _worth(share: float, margin: float, config: Config) -> float:
    return {"prob": share, "centered": share - 0.5, "margin": margin}[config.reward]


def _written(
    sampler: Any, pairs: Sequence[Any], config: Config, columns: Mapping[str, Any]
) -> list[float | None]:
    """What a judge with rationales says; its draws depend on the step, the row and the place in the group."""
    name = columns.get("id", [""])[0]
    rows = [{"id": f"{name}/{i}", "place": i, "prompt": prompt, "responses": [own, other]}
            for i, (prompt, own, other) in enumerate(pairs)]  # fmt: skip
    out: list[float | None] = [None] * len(pairs)
    seed = columns["trainer_state"].global_step
    for row, judged in judging.judge(rows, sampler, config.judging, seed, lambda row, reason: None):
        share = judged.over_orders(judged.values(config.votes))
        if not math.isnan(share):
            inside = min(max(share, 1e-6), 1 - 1e-6)
            out[row["place"]] = _worth(share, math.log(inside / (1 - inside)), config)
    return out
