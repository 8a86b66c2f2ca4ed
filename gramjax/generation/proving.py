"""Proofs of a given preference: drawn from the prover, scored by what the context adds, the best one as a rationale.

Section 2.3 of GRAM-R2 (arXiv 2509.02492): of k proofs z of a label l the one with the highest
-log p(z | s, l) / log p(z) is kept (equation 5), after proofs that break a rule of their own form were left out.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gramjax.core import voting
from gramjax.core.config import SamplingSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import judge_prompts, proofs, rationale_rules
from gramjax.data.rows import Drop
from gramjax.generation import judging, scoring
from gramjax.generation.request import LENGTH, Completion, Request, Statistics, wrong
from gramjax.generation.sampler import Sampler

Row = Mapping[str, Any]
UNFINISHED = "proof not finished"
PAIRS_AT_ONCE = 16
"""Pairs whose proofs are scored together."""


@dataclasses.dataclass(frozen=True)
class Proving:
    """How proofs are drawn and chosen."""

    sampling: SamplingSection = SamplingSection(max_tokens=1024, temperature=0.75, n=4)
    """`sampling.n` proofs are drawn for each pair."""
    choice: str = "score"
    """`score`: the proof with the best score (5); `first`: the first that passes the rules, without scores."""
    unconditional: str = "blank_template"
    """What log p(z) is conditioned on: `blank_template`, the prover's prompt without its contents, or `bos` alone."""
    min_score: float = -1.0
    """A proof below this is discarded: it is less likely with its context than without."""
    min_surprise: float = 1e-3
    """Smallest |log p(z)| per token, in nats, for which the score says something."""
    instruction: str = ""
    """The prover's instruction; empty: the package's own wording."""
    rules: rationale_rules.Rules = rationale_rules.Rules()
    """What a rationale must pass (the thresholds on votes are not used here)."""

    def __post_init__(self) -> None:
        for name, known in (("choice", ("score", "first")), ("unconditional", ("blank_template", "bos"))):
            if getattr(self, name) not in known:
                raise UserError(f"proving.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if problems := wrong(self.sampling):
            raise UserError(f"proving: {problems[0]}")


@dataclasses.dataclass(frozen=True)
class Proved:
    """What was drawn for one pair."""

    rationale: str | None
    """The rationale behind the chosen proof; None: all were rejected."""
    candidates: tuple[dict[str, Any], ...]
    """Every proof: `proof`, `score` (None where it was not needed), `reason` it was rejected for ("": it was not)."""
    reason: str
    """The first candidate's reason when all were rejected, else ""."""


def prove(
    rows: Iterable[Row],
    sampler: Sampler,
    settings: Proving,
    seed: int = 0,
    refuse: Callable[[Row, str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[tuple[Row, Proved]]:
    """Each row with its proofs, in order. Rows have `id`, `prompt`, `responses` (two) and `label` (A or B).

    Rows that cannot be shown to the model are given to `refuse` with the reason (without one: raised as Drop).
    """

    def ask(row: Row) -> Sequence[Request]:
        if row.get("label") not in ("A", "B"):
            raise DataError(f"row {row.get('id')!r}: label {row.get('label')!r}; a proof needs the better side, A or B")
        try:
            tokens = prompt_of(row, sampler, settings)
        except Drop as drop:
            if refuse is None:
                raise
            refuse(row, drop.args[0])
            return ()
        return [Request(tokens, str(row["id"]), settings.sampling, seed, sampler.end_ids, columns=row)]

    answered = ((row, found[0]) for row, found in sampler.answered(rows, ask, statistics) if found)
    while chunk := list(itertools.islice(answered, PAIRS_AT_ONCE)):
        yield from choose(chunk, sampler, settings)


def prompt_of(row: Row, sampler: Sampler, settings: Proving) -> list[int]:
    """Token ids of the prover's prompt. Raises Drop for one that is too long: nothing of it may be cut."""
    text = judge_prompts.prover_prompt(row["prompt"], row["responses"], row["label"], _instruction(settings))
    return _strict(sampler, settings).prompt(text, **(row.get("chat_template_kwargs") or {}))


def _instruction(settings: Proving) -> str:
    return settings.instruction or judge_prompts.PROVER_PROMPT


def _strict(sampler: Sampler, settings: Proving) -> Any:
    """A renderer that drops what leaves no room for the proof."""
    limit = judging.room(sampler, judging.Judging(settings.sampling))
    section = dataclasses.replace(sampler.renderer.section, overlong="drop", max_length=limit)
    return dataclasses.replace(sampler.renderer, section=section)


def choose(
    drawn: Sequence[tuple[Row, list[Completion]]], sampler: Sampler, settings: Proving
) -> Iterator[tuple[Row, Proved]]:
    """The best proof of each pair among those that were drawn for it."""
    found = [[_checked(c, row["label"], sampler, settings) for c in completions] for row, completions in drawn]
    scores = _scores(drawn, found, sampler, settings) if settings.choice == "score" else None
    for number, (row, completions) in enumerate(drawn):
        rationales, reasons = [r for r, _ in found[number]], [reason for _, reason in found[number]]
        index: int | None
        values: list[float | None] = [None] * len(completions)
        if scores is None:
            index = next((i for i, reason in enumerate(reasons) if not reason), None)
        else:
            conditional, unconditional, sizes = scores[number]
            selection = voting.select_proof(
                conditional, unconditional, sizes, reasons, settings.min_score, settings.min_surprise
            )
            index, reasons = selection.index, list(selection.reasons)
            values = [float(s) if u < 0 else None for s, u in zip(selection.scores, unconditional, strict=True)]
        candidates = tuple(
            {"proof": c.text, "score": value, "reason": reason}
            for c, value, reason in zip(completions, values, reasons, strict=True)
        )
        yield row, Proved(None if index is None else rationales[index], candidates, reasons[0] if index is None else "")


def _checked(completion: Completion, label: str, sampler: Sampler, settings: Proving) -> tuple[str | None, str]:
    """The rationale of a proof and "", or None and the reason why it cannot be used."""
    if completion.finish_reason == LENGTH:
        return None, UNFINISHED
    try:
        rationale = proofs.to_rationale(completion.text, label)
    except Drop as drop:
        return None, drop.args[0]
    count = lambda text: len(sampler.renderer.tokenizer.encode_text(text))  # noqa: E731
    reason = rationale_rules.broken(rationale, label, settings.rules, count)
    return (None, reason) if reason else (rationale, "")


def _scores(
    drawn: Sequence[tuple[Row, list[Completion]]],
    found: Sequence[Sequence[tuple[str | None, str]]],
    sampler: Sampler,
    settings: Proving,
) -> list[tuple[list[float], list[float], list[int]]]:
    """log p(z | s, l), log p(z) and the tokens of every proof; a proof that broke a rule has log p(z) = 0, unasked."""
    blank: list[list[int]] = []
    asked: list[list[int]] = []
    places: list[tuple[int, int]] = []
    unconditional = [[0.0] * len(completions) for _, completions in drawn]
    for number, (row, completions) in enumerate(drawn):
        alone = blank_of(row, sampler, settings)
        for place, completion in enumerate(completions):
            if not found[number][place][1]:
                blank.append(alone)
                asked.append(completion.token_ids)
                places.append((number, place))
    if asked:
        sums = scoring.completion_logprobs(sampler, blank, asked, 4 * scoring.BATCH)
        for (number, place), value in zip(places, sums.tolist(), strict=True):
            unconditional[number][place] = value
    return [
        ([sum(c.model_logprobs) for c in completions], unconditional[number], [len(c.token_ids) for c in completions])
        for number, (_, completions) in enumerate(drawn)
    ]


def blank_of(row: Row, sampler: Sampler, settings: Proving) -> list[int]:
    """Token ids of the prompt of log p(z)."""
    tokenizer = sampler.renderer.tokenizer
    if settings.unconditional == "bos":
        if tokenizer.bos_id is None:
            raise UserError("proving.unconditional='bos' needs a tokenizer with a BOS token; use 'blank_template'")
        return [tokenizer.bos_id]
    text = judge_prompts.blank_prover_prompt(row["prompt"], _instruction(settings))
    return _strict(sampler, settings).prompt(text, **(row.get("chat_template_kwargs") or {}))
