"""What is asked of the sampler and what it answers: requests, completions, statistics."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from gramjax.core import checks
from gramjax.core.config import SamplingSection as Sampling
from gramjax.core.errors import DataError, UserError

__all__ = ["Completion", "Request", "Sampling", "Statistics", "check", "number"]

STOP, LENGTH, ABORT = "stop", "length", "abort"
"""Why a completion ended: a stop token or text; its limit; the caller's wish."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt and what is wanted for it: `sampling.n` completions that share one prefill."""

    tokens: Sequence[int]
    """The prompt, at least one token."""
    id: str | int = 0
    """Names the request, and with the seed decides its random numbers; nothing else does."""
    sampling: Sampling = Sampling()
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, beside `sampling.stop_ids` (the tokenizer's end token; `sampling.ignore_eos`)."""
    allowed: tuple[int, ...] = ()
    """The only tokens that may be chosen; empty: all."""
    candidates: tuple[int, ...] = ()
    """Tokens whose log-probability is kept at every position (the two verdicts of a judge)."""
    columns: Any = None
    """Carried to the completions untouched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Completion:
    """One answer to a request."""

    request: Request
    sample: int
    """Which of the request's `n` completions, from 0."""
    token_ids: list[int]
    """Without the prompt; with the stop token where one ended it, or the token that completed the stop text."""
    logprobs: list[float]
    """Of each token under the distribution it was drawn from (greedy: that of temperature 1)."""
    model_logprobs: list[float]
    """Of each token under the model: no temperature, penalty, mask or truncation."""
    candidate_logprobs: list[list[float]]
    """Per token, the model's log-probabilities of `request.candidates` where it was drawn."""
    finish_reason: str
    """`stop`, `length` or `abort`."""
    stop: int | str | None = None
    """The token or text that ended it."""
    text: str = ""
    """Without stop token and stop text; empty when the sampler was given no `decode` function."""


@dataclasses.dataclass
class Statistics:
    """Counted while the sampler runs; the caller may read it at any time."""

    completions: int = 0
    tokens: int = 0
    """Tokens drawn and kept."""
    rolled_back: int = 0
    """Tokens drawn after a stop text, and dropped."""
    prompt_tokens: int = 0
    """Tokens of prompts, each prompt counted once for all its samples."""
    prefills: int = 0
    steps: int = 0
    """Decode steps of the device."""
    slot_steps: int = 0
    """Steps times slots: what could have been drawn."""
    calls: int = 0
    seconds: float = 0.0
    """Spent in the sampler, the caller's time between completions left out."""

    @property
    def occupancy(self) -> float:
        """Share of the slot steps that drew a token."""
        return (self.tokens + self.rolled_back) / self.slot_steps if self.slot_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Kept tokens over the seconds in the sampler."""
        return self.tokens / self.seconds if self.seconds else 0.0


def number(identity: str | int) -> int:
    """32 bits that stand for the id of a request in its random key."""
    if isinstance(identity, int):
        return identity % 2**32
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "little")


def check(request: Request, vocab_size: int, longest: int) -> None:
    """Raise for a request that cannot be answered: DataError for its prompt, UserError for its settings."""
    where = f"request {request.id!r}"
    if not len(request.tokens):
        raise DataError(f"{where}: the prompt is empty; a model needs at least one token to go on from")
    named = (*request.tokens, *request.allowed, *request.candidates)
    outside = [token for token in named if not 0 <= token < vocab_size]
    if outside:
        raise DataError(f"{where}: token {outside[0]} is outside the model's vocabulary of {vocab_size}")
    if len(request.tokens) > longest:
        raise DataError(
            f"{where}: the prompt has {len(request.tokens)} tokens, and prompt and completion together may have "
            f"{longest} (config.generation.max_length); shorten it or raise the setting"
        )
    if problems := wrong(request.sampling):
        raise UserError(f"{where}: {problems[0]}")
    if never := [token for token in request.sampling.stop_ids if not 0 <= token < vocab_size]:
        raise UserError(f"{where}: config.sampling.stop_ids: {never[0]} is no token of a vocabulary of {vocab_size}")
    if "" in request.sampling.stop:
        raise UserError(f"{where}: sampling.stop holds an empty text, which would end every answer")


@functools.lru_cache(256)
def wrong(sampling: Sampling) -> list[str]:
    """What is out of range in sampling settings, in words."""
    return checks.problems({"sampling": dataclasses.asdict(sampling)})
