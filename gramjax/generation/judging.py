"""Drawn judgements: a model reads two responses, writes a rationale with a verdict, several times, and the draws vote.

The judge of GRAM-R2 (arXiv 2509.02492, sections 2.4 and 2.6 of the specification here). A verdict is read by
`data.rationales.parse`, which never guesses; the probability of a verdict is the softmax over the two letters where the
answer is written, taken from the draw itself, so that a judgement costs one pass.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import voting
from gramjax.core.config import SamplingSection
from gramjax.core.errors import UserError
from gramjax.data import judge_prompts, rationales
from gramjax.data.rows import Drop
from gramjax.generation.request import Completion, Request, Statistics
from gramjax.generation.sampler import Sampler

Row = Mapping[str, Any]
TOO_LONG = "longer than the model can judge"


@dataclasses.dataclass(frozen=True)
class Judging:
    """How judgements are drawn."""

    sampling: SamplingSection = SamplingSection(max_tokens=1024, temperature=0.75)
    """`sampling.n` is the number of draws that vote."""
    order: str = "alternate"
    """Which response is shown first: `alternate` (half of the draws each way), `random` (a coin per draw), `fixed`."""
    instruction: str = ""
    """The judge's instruction; empty: the package's own wording."""
    overlong: str = "shorten_responses"
    """Pairs longer than config.data.max_length: `shorten_responses` (both by the same share) or `drop`."""

    def __post_init__(self) -> None:
        for name, known in (("order", voting.ORDERS), ("overlong", ("shorten_responses", "drop"))):
            if getattr(self, name) not in known:
                raise UserError(f"judging.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Draw:
    """One judgement. Verdict and probability are about the original order of the responses."""

    reply: str
    swapped: bool
    """The second response was shown first."""
    verdict: str | None
    """`A`, `B`, or None: the reply has no readable verdict."""
    probability: float
    """Of A against B where the answer was written; NaN where the reply has none."""
    tokens: int
    finish_reason: str

    def as_dict(self) -> dict[str, Any]:
        """As rows keep it."""
        known = None if np.isnan(self.probability) else self.probability
        return {**dataclasses.asdict(self), "probability": known}


@dataclasses.dataclass(frozen=True)
class Judged:
    """All draws about one pair."""

    draws: tuple[Draw, ...]
    shortened: bool = False

    def votes(self, identity: str, seed: int = 0) -> voting.Votes:
        """What the draws say together (arrays of one pair)."""
        verdicts = voting.codes([[draw.verdict for draw in self.draws]])
        return voting.vote(verdicts, [[draw.probability for draw in self.draws]], [identity], seed)

    def columns(self, identity: str, seed: int = 0) -> dict[str, Any]:
        """The columns of a judged row: `label`, `vote_share`, `label_probability`, ... and the draws (`judgements`)."""
        (found,) = voting.columns(self.votes(identity, seed))
        return found | {"judgements": [draw.as_dict() for draw in self.draws]}


def judge(
    rows: Iterable[Row],
    sampler: Sampler,
    settings: Judging,
    seed: int = 0,
    refuse: Callable[[Row, str], None] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[tuple[Row, Judged]]:
    """Each row with its judgements, in order. Rows have `id`, `prompt` and `responses` (two).

    Rows that cannot be shown to the model are given to `refuse` with the reason (without one: raised as Drop).
    """
    letters = candidates(sampler)
    kept: dict[str, tuple[np.ndarray, bool]] = {}

    def ask(row: Row) -> Sequence[Request]:
        try:
            prompts, shortened = prompts_of(row, sampler, settings)
        except Drop as drop:
            if refuse is None:
                raise
            refuse(row, drop.args[0])
            return ()
        swapped = voting.presentation([str(row["id"])], settings.sampling.n, settings.order, seed)[0]
        kept[str(row["id"])] = swapped, shortened
        return [
            Request(
                prompts[turned], f"{row['id']}/{'BA' if turned else 'AB'}",
                dataclasses.replace(settings.sampling, n=int(np.sum(swapped == turned))), seed, sampler.end_ids,
                candidates=letters, columns=row,
            )
            for turned in (False, True) if np.any(swapped == turned)
        ]  # fmt: skip

    for row, answers in sampler.answered(rows, ask, statistics):
        if not answers:
            continue
        swapped, shortened = kept.pop(str(row["id"]))
        orders = [turned for turned in (False, True) if np.any(swapped == turned)]
        left = dict(zip(orders, map(iter, answers), strict=True))
        draws = [_draw(next(left[turned]), turned, sampler) for turned in swapped.tolist()]
        yield row, Judged(tuple(draws), shortened)


def prompts_of(row: Row, sampler: Sampler, settings: Judging) -> tuple[dict[bool, list[int]], bool]:
    """Token ids of the judge's prompt by whether the responses are swapped, and whether they were shortened.

    Raises Drop for a pair that is too long even so.
    """
    renderer = sampler.renderer  # the instruction must never be cut, whatever config.data.overlong says
    renderer = dataclasses.replace(renderer, section=dataclasses.replace(renderer.section, overlong="drop"))
    instruction = settings.instruction or judge_prompts.JUDGE_PROMPT
    extra = row.get("chat_template_kwargs") or {}

    def prompts(given: Row) -> dict[bool, list[int]]:
        pair = given["responses"]
        texts = {turned: pair[::-1] if turned else pair for turned in (False, True)}
        return {
            turned: renderer.prompt(judge_prompts.judge_prompt(given["prompt"], shown, instruction), **extra)
            for turned, shown in texts.items()
        }

    def length(given: Row) -> int:
        try:
            return max(map(len, prompts(given).values()))
        except Drop as drop:
            return drop.length

    try:
        return prompts(row), False
    except Drop:
        if settings.overlong == "drop":
            raise
    shown = judge_prompts.shortened(row, renderer.section.max_length, length)
    if shown is None:
        raise Drop(TOO_LONG)
    return prompts(shown), True


def candidates(sampler: Sampler) -> tuple[int, ...]:
    """The tokens of A and B inside an answer; empty where one is no single token: no probability is known then."""
    return _candidates(sampler.renderer.tokenizer)


@functools.lru_cache(maxsize=8)
def _candidates(tokenizer: Any) -> tuple[int, ...]:
    found = [tokenizer.encode_text(letter, continuing=True) for letter in "AB"]
    single = all(len(ids) == 1 for ids in found) and found[0] != found[1]
    return (found[0][0], found[1][0]) if single else ()


def _draw(completion: Completion, swapped: bool, sampler: Sampler) -> Draw:
    verdict = rationales.parse(completion.text).verdict
    probability = first_is_better(completion, sampler) if verdict else float("nan")
    if swapped:
        verdict = {"A": "B", "B": "A", None: None}[verdict]
        probability = 1 - probability
    return Draw(
        completion.text, swapped, verdict, probability, len(completion.token_ids), completion.finish_reason
    )


def first_is_better(completion: Completion, sampler: Sampler) -> float:
    """Softmax over the two letters where the last answer block has its letter, for the response shown first (A).

    NaN where the letter is not a token of its own.
    """
    place = letter_place(completion.token_ids, sampler.decode)
    if place is None or not completion.candidate_logprobs or completion.token_ids[place] not in candidates(sampler):
        return float("nan")
    a, b = completion.candidate_logprobs[place]
    return float(1 / (1 + np.exp(b - a)))


def letter_place(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int | None:
    """The token that begins the content of the last answer block; None if no token does exactly that.

    Looked for from the end, where the block stands.
    """
    for place in range(len(token_ids) - 1, -1, -1):
        before = decode(token_ids[:place])
        if before.rstrip().endswith(rationales.ANSWER[0]):
            after = decode(token_ids[: place + 1])
            if after[len(before) :].strip()[:1].upper() in ("A", "B"):
                return place
    return None
