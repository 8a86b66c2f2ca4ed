"""Drawn judgements: a model reads two responses, writes a rationale with a verdict, several times, and the draws vote.

The judge of GRAM-R2 (arXiv 2509.02492, sections 2.4 and 2.6 of the specification here). A verdict is read by
`data.rationales.parse`, which never guesses; the probability of a verdict is the softmax over the two letters where the
answer is written, taken from the draw itself, so that a judgement costs one pass.
"""

import bisect
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
from gramjax.generation.request import Completion, Request, Statistics, wrong
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
    """Pairs longer than `room`: `shorten_responses` (both by the same share) or `drop`."""

    def __post_init__(self) -> None:
        for name, known in (("order", voting.ORDERS), ("overlong", ("shorten_responses", "drop"))):
            if getattr(self, name) not in known:
                raise UserError(f"judging.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if problems := wrong(self.sampling):
            raise UserError(f"judging: {problems[0]}")


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


SCORES = ("votes", "probability")
"""How draws become one number: the share of the votes, or the mean probability of the letter."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """All draws about one pair."""

    draws: tuple[Draw, ...]
    shortened: bool = False
    prompt_tokens: int = 0
    """Tokens of the prompts that were read, one per order."""

    def votes(self, identity: str, seed: int = 0) -> voting.Votes:
        """What the draws say together (arrays of one pair)."""
        verdicts = voting.codes([[draw.verdict for draw in self.draws]])
        return voting.vote(verdicts, [[draw.probability for draw in self.draws]], [identity], seed)

    def columns(self, identity: str, seed: int = 0) -> dict[str, Any]:
        """The columns of a judged row: `label`, `vote_share`, `label_probability`, ... and the draws (`judgements`)."""
        (found,) = voting.columns(self.votes(identity, seed))
        return found | {"judgements": [draw.as_dict() for draw in self.draws]}

    def values(self, score: str) -> np.ndarray:
        """Each draw's preference for A, by `SCORES`: 0 or 1, or a probability; NaN where it has none."""
        if score == "probability":
            return np.array([draw.probability for draw in self.draws], np.float64)
        return np.array([{"A": 1.0, "B": 0.0, None: np.nan}[draw.verdict] for draw in self.draws])

    def over_orders(self, values: Any) -> float:
        """The mean of what the two orders say, each the mean of its draws' known values: equation (4) of GRAM.

        One order where only one says something; NaN where none does.
        """
        values, swapped = np.asarray(values, np.float64), np.array([draw.swapped for draw in self.draws])
        orders = [values[(swapped == turned) & ~np.isnan(values)] for turned in (False, True)]
        means = [order.mean() for order in orders if order.size]
        return float(np.mean(means)) if means else float("nan")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A row that is about to be judged."""

    row: Row
    swapped: tuple[bool, ...]
    """By draw."""
    requests: tuple[Request, ...]
    """One per order that occurs: as given, then swapped."""
    shortened: bool


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

    def plans() -> Iterator[_Plan]:
        for row in rows:
            try:
                yield _plan(row, sampler, settings, seed)
            except Drop as drop:
                if refuse is None:
                    raise
                refuse(row, drop.args[0])

    for plan, answers in sampler.answered(plans(), lambda plan: plan.requests, statistics):
        left = {request.id: iter(found) for request, found in zip(plan.requests, answers, strict=True)}
        draws = [_draw(next(left[_name(plan.row, turned)]), turned, sampler) for turned in plan.swapped]
        yield plan.row, Judged(tuple(draws), plan.shortened, sum(len(request.tokens) for request in plan.requests))


def _name(row: Row, turned: bool) -> str:
    return f"{row['id']}/{'BA' if turned else 'AB'}"


def _plan(row: Row, sampler: Sampler, settings: Judging, seed: int) -> _Plan:
    """What to ask about a row. Raises Drop for a pair that is too long."""
    prompts, shortened = prompts_of(row, sampler, settings)
    swapped = voting.presentation([str(row["id"])], settings.sampling.n, settings.order, seed)[0].tolist()
    requests = [
        Request(
            prompts[turned], _name(row, turned), dataclasses.replace(settings.sampling, n=swapped.count(turned)), seed,
            sampler.end_ids, candidates=candidates(sampler),
        )
        for turned in (False, True) if turned in swapped
    ]  # fmt: skip
    return _Plan(row, tuple(swapped), tuple(requests), shortened)


def room(sampler: Sampler, settings: Judging) -> int:
    """Longest prompt, in tokens: config.data.max_length, and what the model can read beside a whole reply.

    A reply never claims more than half of what the model can read.
    """
    longest = sampler.settings.max_length or sampler.model.config.max_position_embeddings
    return min(sampler.renderer.section.max_length, longest - min(settings.sampling.max_tokens, longest // 2))


def prompts_of(row: Row, sampler: Sampler, settings: Judging) -> tuple[dict[bool, list[int]], bool]:
    """Token ids of the judge's prompt by whether the responses are swapped, and whether they were shortened.

    Raises Drop for a pair that is too long even so. Only responses are ever cut.
    """
    limit = room(sampler, settings)
    section = dataclasses.replace(sampler.renderer.section, overlong="drop", max_length=limit)
    renderer = dataclasses.replace(sampler.renderer, section=section)
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
    shown = judge_prompts.shortened(row, limit, length)
    if shown is None:
        raise Drop(TOO_LONG)
    return prompts(shown), True


def check_score(score: str, sampler: Sampler, where: str) -> None:
    """Raise UserError for a score that does not exist or that this tokenizer cannot give; `where` names the setting."""
    if score not in SCORES:
        raise UserError(f"{where} is {score!r}; choose one of {', '.join(SCORES)}")
    if score == "probability" and not candidates(sampler):
        raise UserError(f"{where}='probability': A and B are no single tokens of this tokenizer; use 'votes'")


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
    return Draw(completion.text, swapped, verdict, probability, len(completion.token_ids), completion.finish_reason)


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
    """The token that begins with the letter of the verdict (`data.rationales.parse`).

    None without a verdict, and where the tag of the answer block ends inside that token.
    """
    place = rationales.verdict_place(decode(token_ids))
    if place is None:
        return None
    found = bisect.bisect_right(range(len(token_ids)), place, key=lambda count: len(decode(token_ids[:count]))) - 1
    return found if decode(token_ids[:found]).rstrip().endswith(rationales.ANSWER[0]) else None
