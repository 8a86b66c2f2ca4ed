"""Which answers of a rollout are learned from: filters, truncated ones, dead groups, and solutions from elsewhere.

Letters: B answers of a rollout. An answer that is `trained` gives gradients; one that is `counted` stands in the
denominators of the loss. NumPy only.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramjax.core.advantages import Advantages, Groups, any_token
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection

WORDS = ("all", "positive", "negative")
BY = ("correctness", "advantage")
DENOMINATORS = ("full", "kept")
TRUNCATED = ("none", "all", "wrong", "wrong_repetitive")
ZERO_VARIANCE = ("keep", "drop", "renormalise", "resample")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of B answers count."""

    trained: np.ndarray
    """float32 [B]: 1 where the answer gives gradients."""
    counted: np.ndarray
    """float32 [B]: 1 where it stands in the denominators. All 0 when nothing is learned: the step is to be skipped."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return not np.any(self.counted)


def schedule(section: GrpoSection) -> list[tuple[int, str]]:
    """`section.samples_schedule` as (step, word), by step. Raises UserError for an entry that is not `STEP:WORD`."""
    out = []
    for entry in section.samples_schedule:
        step, _, word = entry.partition(":")
        if not step.strip().isdecimal() or word.strip() not in WORDS:
            raise UserError(
                f"config.grpo.samples_schedule has {entry!r}; each entry is STEP:WORD with one of {', '.join(WORDS)}"
            )
        out.append((int(step), word.strip()))
    if len({step for step, _ in out}) < len(out):
        raise UserError(f"config.grpo.samples_schedule={section.samples_schedule} names a step twice")
    return sorted(out)


def samples_at(section: GrpoSection, step: int) -> str:
    """The word of `samples` that holds at an optimiser step."""
    word = section.samples
    for start, change in schedule(section):
        if step >= start:
            word = change
    return word


def select(
    made: Advantages,
    section: GrpoSection,
    word: str = "all",
    correct: Any = None,
    truncated: Any = None,
    repetitive: Any = None,
    rng: np.random.Generator | None = None,
) -> Selection:
    """What is learned from the answers whose advantages were `made`.

    `word` is `samples_at(section, step)`; `correct` [B] is 1, 0 or NaN; `truncated` [B] says which answers met the
    limit without an end, `repetitive` [B] which of them repeat themselves (`repeats`). `rng` decides on answers of the
    other kind (`section.filter_keep_prob`). Answers that nobody judged are left out altogether.
    """
    size = len(made.values)
    right = np.full(size, np.nan) if correct is None else np.asarray(correct, np.float64)
    kept = keep(word, section, made.values, right, rng)
    if truncated is not None:
        kept &= ~truncated_mask(section.mask_truncated, truncated, right, repetitive)
    counted = kept & made.judged if section.filter_denominator == "kept" else made.judged.copy()
    trained = kept & made.judged
    if section.zero_variance != "keep":
        trained &= ~made.dead
    if section.zero_variance in ("renormalise", "resample"):
        counted &= ~made.dead
    moved = section.entropy_bonus or (bool(section.beta) and section.kl_in == "loss")
    if not np.any(trained if moved else trained & any_token(made.per_token)):
        trained, counted = np.zeros(size, bool), np.zeros(size, bool)
    return Selection(trained.astype(np.float32), counted.astype(np.float32))


def keep(
    word: str, section: GrpoSection, advantages: np.ndarray, correct: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    """bool [B]: the answers of the kind `word`, and each other one with probability `section.filter_keep_prob`."""
    if word not in WORDS:
        raise UserError(f"config.grpo.samples={word!r} is not one of {', '.join(WORDS)}")
    if word == "all":
        return np.ones(len(advantages), bool)
    if section.samples_by == "advantage":
        kind = advantages > 0 if word == "positive" else advantages < 0
    else:
        kind = correct == 1 if word == "positive" else correct == 0
    if not section.filter_keep_prob:
        return kind
    if rng is None:
        raise ValueError("filter_keep_prob needs a random generator")
    return kind | (rng.random(len(advantages)) < section.filter_keep_prob)


def truncated_mask(word: str, truncated: Any, correct: Any, repetitive: Any = None) -> np.ndarray:
    """bool [B]: truncated answers that give no gradient.

    `wrong` spares those that repeat themselves, which are to be unlearned; `wrong_repetitive` leaves out just those,
    as the code of the study did against its own comment.
    """
    cut = np.asarray(truncated, bool)
    wrong = np.asarray(correct, np.float64) != 1
    loops = np.zeros(len(cut), bool) if repetitive is None else np.asarray(repetitive, bool)
    if word == "all":
        return cut
    if word == "wrong":
        return cut & wrong & ~loops
    if word == "wrong_repetitive":
        return cut & wrong & loops
    if word != "none":
        raise UserError(f"config.grpo.mask_truncated={word!r} is not one of {', '.join(TRUNCATED)}")
    return np.zeros(len(cut), bool)


def repeated_share(ids: Sequence[int], n: int = 20) -> float:
    """Share of the n-grams of a text that stood in it before."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repeats(ids: Sequence[int], n: int = 20, share: float = 0.5) -> bool:
    """Whether a text goes round in circles: more than `share` of its n-grams stood in it before."""
    return repeated_share([int(i) for i in ids], n) > share


@dataclasses.dataclass(frozen=True)
class Injection:
    """An answer that a solution from elsewhere replaces."""

    answer: int
    """Its place in the rollout."""
    solution: int
    """Number of the solution in the list of its prompt."""


def inject(
    correct: Any, groups: Any, solutions: Sequence[Sequence[int]], section: GrpoSection, limit: int = 0
) -> list[Injection]:
    """Which wrong answers are replaced by which solutions: the first wrong ones by the first solutions that fit.

    `correct` [B] is 1, 0 or NaN; `solutions[g]` holds the length in tokens of each solution of group number g, and
    solutions longer than `limit` (0: none) are passed over. Only groups that are right at most as often as
    `section.offline_fraction` get any.
    """
    if not section.offline_fraction:
        return []
    correct, groups = np.asarray(correct, np.float64), np.asarray(groups)
    judged = ~np.isnan(correct)
    rate = Groups.of(groups, judged).mean(np.nan_to_num(correct))
    out = []
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group)
        if rate[members[0]] > section.offline_fraction or not np.any(judged[members]):
            continue
        wrong = [int(i) for i in members if correct[i] == 0]
        usable = [k for k, length in enumerate(solutions[group]) if not limit or length <= limit]
        most = min(section.offline_per_prompt or len(wrong), len(wrong), len(usable))
        out += [Injection(i, k) for i, k in zip(wrong[:most], usable[:most], strict=True)]
    return out
