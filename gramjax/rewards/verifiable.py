"""1 for the right answer to a question that has one, 0 for a wrong one; what cannot be checked is not judged.

`grader="rules"` compares texts, numbers, fractions, sets and intervals (`data.math_answers`); `math_verify` does
symbolic algebra in processes of its own with a deadline (`pip install "gramjax[math]"`).
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.data import math_answers

GRADERS = ("rules", "math_verify")


@dataclasses.dataclass(frozen=True)
class Config:
    """How an answer is found and compared."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    kind: str = "boxed"
    """Where the answer stands: `boxed`, `number` (after `####`, in a box, or the last one), `choice` (a letter) or
    `exact` (the whole completion)."""
    column: str = "answer"
    """Column with the right answer, or with a list of right ones."""
    after_think: bool = False
    """Only what follows the first `</think>` counts; a completion without it is wrong."""
    grader: str = "rules"
    """`rules` or `math_verify`."""
    seconds: float = 5.0
    """Longest time for one answer with `math_verify`; one that takes longer is not judged."""


def open(config: Config, resources: Any) -> Any:
    """The pool of processes of `math_verify`; None for `rules`."""
    one_of(config, "rewards.verifiable", kind=math_answers.KINDS, grader=GRADERS)
    if config.grader == "rules":
        return None
    from gramjax.data.symbolic import Checker

    return Checker(resources.processes, config.seconds)


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Any = None, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """1, 0 or None for each completion; the reasons are logged as shares, `verifier/REASON`."""
    if config.column not in columns:
        raise ValueError(f"the rows have no column {config.column!r} (config.rewards.verifiable.column)")
    texts = [c if isinstance(c, str) else "".join(turn["content"] for turn in c) for c in completions]
    golds = [[str(g) for g in gold] if isinstance(gold, list | tuple) else [] if gold is None else [str(gold)]
             for gold in columns[config.column]]  # fmt: skip
    verdicts = [
        math_answers.grade(text, gold, config.kind, config.after_think)
        for text, gold in zip(texts, golds, strict=True)
    ]
    if opened is not None:
        verdicts = _with_algebra(verdicts, texts, golds, opened, config)
    counts = collections.Counter(verdict.reason for verdict in verdicts)
    if (log := columns.get("log_metric")) is not None:
        for reason in (*math_answers.REASONS, "timeout", "error"):
            log(f"verifier/{reason}", counts[reason] / len(verdicts))
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


def _with_algebra(
    verdicts: Sequence[math_answers.Verdict], texts: Sequence[str], golds: Sequence[Sequence[str]], checker: Any,
    config: Config,
) -> list[math_answers.Verdict]:  # fmt: skip
    """The verdicts with those that the rules call different looked at by math-verify."""
    out = list(verdicts)
    open_ones = [i for i, verdict in enumerate(verdicts) if verdict.reason == math_answers.MISMATCH]
    answers = {i: math_answers.extract(texts[i], config.kind, config.after_think)[0] for i in open_ones}
    asked = [(i, gold) for i in open_ones for gold in golds[i]]
    found = checker.check([(gold, f"\\boxed{{{answers[i]}}}") for i, gold in asked])
    for (i, _), result in zip(asked, found, strict=True):
        if result is True:
            out[i] = math_answers.Verdict(True, math_answers.OK)
        elif isinstance(result, str) and not out[i].correct:
            out[i] = math_answers.Verdict(None, result)
    return out
