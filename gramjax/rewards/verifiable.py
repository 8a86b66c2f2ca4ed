"""1 for the right answer to a question that has one, 0 for a wrong one; what cannot be checked is not judged.

`grader="rules"` compares texts, numbers, fractions, sets and intervals (`data.math_answers`); `math_verify` does
symbolic algebra in processes of its own with a deadline (`pip install "gramjax[math]"`); `deepscaler` are the rules
that the runs of arXiv 2506.04913 were trained with (`data.deepscaler`), with guarded algebra in the same processes.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.data import deepscaler, math_answers
from gramjax.generation.reward_functions import text_of

GRADERS = ("rules", "math_verify", "deepscaler")
ALGEBRAIC = ("boxed", "number")
"""Kinds of answers that graders other than the rules are asked about: letters and whole texts are not algebra."""


JUDGES = True
"""It says what is right."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How an answer is found and compared."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    kind: str = math_answers.AUTO
    """Where the answer stands: `boxed`, `number` (after `####`, in a box, or the last one), `choice` (a letter),
    `exact` (the whole completion); auto: the column `answer_kind`, which published sets get, else `boxed`."""
    column: str = ""
    """Column with the right answer, or a list of right ones, alone or at the end of a solution; empty: the first that
    is there of `answer`, `solution` and `ground_truth`."""
    after_think: bool = False
    """Only what follows the first `</think>` counts; a completion without it is wrong."""
    grader: str = "rules"
    """`rules`, `math_verify` or `deepscaler`."""
    seconds: float = 5.0
    """Longest time for one answer with `math_verify` or `deepscaler`; one that takes longer is not judged."""


def open(config: Config, resources: Any) -> Any:
    """The pool of processes of `math_verify` and `deepscaler`; None for `rules`."""
    one_of(config, "rewards.verifiable", kind=(math_answers.AUTO, *math_answers.KINDS), grader=GRADERS)
    if config.grader == "rules":
        return None
    from gramjax.data.symbolic import Checker

    return Checker(resources.processes, config.seconds, config.grader)


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: Any = None, **columns: Any,
) -> list[float | None]:  # fmt: skip
    """1, 0 or None for each completion; the reasons are logged as shares, `verifier/REASON`."""
    texts = [text_of(completion) for completion in completions]
    verdicts = math_answers.grade_all(texts, columns, config.column, config.kind, config.after_think)
    if opened is not None:
        verdicts = _with_algebra(verdicts, texts, columns, opened, config)
    counts = collections.Counter(verdict.reason for verdict in verdicts)
    if (log := columns.get("log_metric")) is not None:
        for reason in (*math_answers.REASONS, "timeout", "error"):
            log(f"verifier/{reason}", counts[reason] / len(verdicts))
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


def number(text: str) -> bool:
    """Whether the rules know the value of an answer."""
    return math_answers.value_of(math_answers.normalised(text)) is not None


def _with_algebra(
    verdicts: Sequence[math_answers.Verdict], texts: Sequence[str], columns: Mapping[str, Any], checker: Any,
    config: Config,
) -> list[math_answers.Verdict]:  # fmt: skip
    """The verdicts as the grader has them: `math_verify` looks at what the rules call different, but for two plain
    numbers; `deepscaler` looks at every answer that was found."""
    out = list(verdicts)
    golds = math_answers.golds_of(columns, config.column)
    kinds = math_answers.kinds_of(columns, config.kind, len(texts))
    looked_at = (math_answers.MISMATCH,) if config.grader == "math_verify" else (math_answers.OK, math_answers.MISMATCH)
    asked: list[tuple[int, list[tuple[str, str]]]] = []
    """An answer, and the pairs that must all be equal for it to be right; one answer may stand here several times."""
    for i, verdict in enumerate(verdicts):
        if verdict.reason in looked_at and kinds[i] in ALGEBRAIC:
            answer = math_answers.extract(texts[i], kinds[i], config.after_think)[0] or ""
            right_ones = [math_answers.right_one(gold, kinds[i]) for gold in golds[i] if gold.strip()]
            if config.grader == "math_verify":
                asked += [(i, [(g, f"\\boxed{{{answer}}}")]) for g in right_ones if not (number(g) and number(answer))]
                continue
            said = [deepscaler.same(answer, gold) for gold in right_ones]
            right = any(found is True for found in said)
            out[i] = math_answers.Verdict(right, math_answers.OK if right else math_answers.MISMATCH)
            asked += [] if right else [(i, found) for found in said if not isinstance(found, bool)]
    results = iter(checker.check([pair for _, pairs in asked for pair in pairs]))
    for i, pairs in asked:
        found = [next(results) for _ in pairs]
        if all(result is True for result in found):
            out[i] = math_answers.Verdict(True, math_answers.OK)
        elif (lost := [result for result in found if isinstance(result, str)]) and not out[i].correct:
            out[i] = math_answers.Verdict(None, lost[0])
    return out
