"""The sampler written down a second time: fresh forward passes without a cache, sorts in NumPy, keys by hand.

Also the tiny models and the settings that the tests of this folder share, so that they share compiled programs.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))
from small_models import FAMILIES, random_params  # noqa: E402

from gramjax.core.config import GenerationSection  # noqa: E402
from gramjax.generation import request as requests_of  # noqa: E402
from gramjax.generation.request import Completion, Request, Sampling  # noqa: E402
from gramjax.generation.sample import generate  # noqa: E402
from gramjax.models import heads, lisa, model  # noqa: E402

LENGTH, VOCAB = 64, 40
"""Of the tiny models: most positions, tokens."""
SETTINGS = GenerationSection(slots=4, steps_per_call=8, prefill_length=16)
SHARING = dataclasses.replace(FAMILIES["qwen3"], num_layers=3, lisa=lisa.LisaSection((1, 2), rank=4))
CONFIGS = {**FAMILIES, "lisa": SHARING}
"""The last one's layers share attention, and so its cache has parts of several shapes."""


@functools.cache
def tiny(family: str = "qwen2") -> tuple[model.Model, dict, dict]:
    """A tiny model, its parameters at rest (logits of a few units), and its weights packed for decoding."""
    network = model.build("decoder", CONFIGS[family], None, "float32")
    params = jax.tree.map(lambda x: 0.6 * x, random_params(CONFIGS[family]))
    return network, params, network.pack_for_decoding(params)


def letters(ids: Sequence[int]) -> str:
    """A `decode` function: token 0 is `a`, token 26 `A`; 38 is a special token without text, 39 half a character."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL"
    return "".join("" if i == 38 else "\ufffd" if i == 39 else alphabet[i] for i in ids)


def ids(text: str) -> list[int]:
    """The inverse of `letters`."""
    return [ord(c) - ord("a") if c.islower() else ord(c) - ord("A") + 26 for c in text]


def answers(requests, family: str = "qwen2", **choices) -> dict[tuple, Completion]:
    """Completions of requests by id and sample; `choices` are the keywords of `generate`."""
    network, _, weights = tiny(family)
    found = list(generate(network, weights, requests, **{"settings": SETTINGS, "decode": letters, **choices}))
    out = {(c.request.id, c.sample): c for c in found}
    assert len(out) == len(found), "an answer came twice"
    return out


@functools.partial(jax.jit, static_argnames="network")
def _logits(params, tokens, network):
    return heads.logits(params, network.forward(params, {"tokens": tokens}).hidden)


def fresh_logits(completions: Sequence[Completion], family: str = "qwen2") -> list[np.ndarray]:
    """Logits [tokens, V] at every place where a completion drew, from one pass over prompt and answer, float64."""
    network, params, _ = tiny(family)
    tokens = np.zeros((64, LENGTH), np.int32)
    assert len(completions) <= len(tokens)
    for row, c in enumerate(completions):
        sequence = [*c.request.tokens, *c.token_ids][:LENGTH]
        tokens[row, : len(sequence)] = sequence
    logits = np.asarray(_logits(params, tokens, network), np.float64)
    starts = [len(c.request.tokens) - 1 for c in completions]
    return [logits[row, at : at + len(c.token_ids)] for row, (c, at) in enumerate(zip(completions, starts))]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf stays."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_distribution(
    logits: np.ndarray, sampling: Sampling, seen: Sequence[int] = (), allowed: Sequence[int] = ()
) -> np.ndarray:
    """Log-probabilities [V] of the next token as `Sampling` describes them, -inf outside; by sorting."""
    x = np.array(logits, np.float64)
    if allowed:
        x[[i for i in range(len(x)) if i not in allowed]] = -np.inf
    for i in set(seen):
        x[i] = x[i] / sampling.repetition_penalty if x[i] > 0 else x[i] * sampling.repetition_penalty
    if not sampling.temperature:
        return log_softmax(x)
    x = x / sampling.temperature
    if sampling.top_k:
        x[x < np.sort(x)[::-1][: sampling.top_k][-1]] = -np.inf
    if sampling.top_p < 1:
        order = np.argsort(-x)
        mass_before = np.cumsum(np.exp(log_softmax(x))[order]) - np.exp(log_softmax(x))[order]
        x[order[mass_before >= sampling.top_p]] = -np.inf
    x[np.exp(x - x.max()) < sampling.min_p] = -np.inf
    return log_softmax(x)


def distributions(completion: Completion, logits: np.ndarray) -> np.ndarray:
    """`log_distribution` [tokens, V] at every place of a completion."""
    request, drawn = completion.request, completion.token_ids
    return np.stack(
        [
            log_distribution(row, request.sampling, [*request.tokens, *drawn[:t]], request.allowed)
            for t, row in enumerate(logits)
        ]
    )


@functools.partial(jax.jit, static_argnames="count")
def _noise(seed, number, sample, count):
    key = jax.random.key(seed, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, number), sample)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda k: jax.random.gumbel(k, (VOCAB,), jnp.float32))(keys)


def noise(completion: Completion) -> np.ndarray:
    """The Gumbel noise [tokens, V] that a completion was drawn with."""
    request = completion.request
    number = np.uint32(requests_of.number(request.id))
    found = _noise(np.uint32(request.seed), number, np.uint32(completion.sample), LENGTH)
    return np.asarray(found)[: len(completion.token_ids)]


def mixed_requests() -> list[Request]:
    """Requests of every kind; prompts of 1 to 33 tokens, read in up to two pieces, and one that leaves no room.

    The first asks for every mask, so that the slots have their final form from the start; the last ones ask for none.
    All have the whole vocabulary as candidates.
    """
    rng = np.random.default_rng(0)
    masked = tuple(range(3, 30))
    kinds = [
        (11, masked, Sampling(temperature=0.8, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.2)),
        (18, (), Sampling(temperature=0.0, repetition_penalty=1.3)),
        (7, masked, Sampling(repetition_penalty=0.8, n=2)),
        (33, (), Sampling(temperature=1.2, repetition_penalty=1.1)),
        (16, (), Sampling(top_k=5, n=2)),
        (31, (), Sampling(temperature=0.7, n=3)),
        (64, (), Sampling()),
        (2, (), Sampling(min_p=0.1, temperature=1.5, max_tokens=60)),
        (17, (), Sampling(top_p=0.8)),
        (29, (), Sampling(temperature=0.0)),
        (5, (), Sampling(top_k=20, top_p=0.5, n=2)),
        (1, (), Sampling(temperature=0.0)),
        (26, (), Sampling()),
        (1, (), Sampling()),
    ]
    out = []
    for i, (length, allowed, sampling) in enumerate(kinds):
        if sampling.max_tokens == 256:
            sampling = dataclasses.replace(sampling, max_tokens=int(rng.integers(4, 26)))
        prompt = rng.integers(0, VOCAB, length).tolist()
        name = f"row {i}" if i % 3 else i
        stop_ids = (5, 9, 12, 30)[: i % 5]
        out.append(Request(prompt, name, sampling, i % 2, stop_ids, allowed, tuple(range(VOCAB))))
    return out
