"""From logits to one token per row: the sampling distribution, the draw and its log-probabilities, on the device.

Every row has its own settings, so that requests of any kind share a program. What no row asks for is not computed.
The order is: allowed tokens, repetition penalty, temperature, top-k, top-p (of what top-k leaves), min-p.

Shape letters: B rows, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

REMOVED = -jnp.inf


@struct.dataclass
class Knobs:
    """The settings of each row, arrays [B]. A temperature of 0 is greedy."""

    temperature: jax.Array
    top_k: jax.Array
    """0: all tokens."""
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@struct.dataclass
class Choice:
    """One token per row, arrays [B]."""

    token: jax.Array
    logprob: jax.Array
    """Under the distribution it was drawn from; of a greedy choice: under that of temperature 1, untruncated."""
    model_logprob: jax.Array
    """Under the softmax of the logits as they came."""


def choose(
    logits_BV: jax.Array,
    knobs: Knobs,
    keys: Callable[[], jax.Array],
    seen_BV: jax.Array | None = None,
    allowed_BV: jax.Array | None = None,
) -> Choice:
    """Draw one token per row. `keys()` makes a random key per row and is called only where a row is not greedy.

    `seen_BV` marks the tokens that the repetition penalty holds against a row, `allowed_BV` those it may choose.
    """
    drawn = knobs.temperature > 0
    scores = scaled(logits_BV, knobs, seen_BV, allowed_BV)
    filters = drawn & ((knobs.top_k > 0) | (knobs.top_p < 1) | (knobs.min_p > 0))
    scores = jax.lax.cond(jnp.any(filters), lambda x: truncated(x, knobs), lambda x: x, scores)

    def noisy(x: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (x.shape[1],), jnp.float32))(keys())
        return jnp.where(drawn[:, None], x + noise, x)

    token = jnp.argmax(jax.lax.cond(jnp.any(drawn), noisy, lambda x: x, scores), axis=-1).astype(jnp.int32)
    return Choice(token, logprob_of(scores, token), logprob_of(logits_BV, token))


def logprob_of(scores_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """log softmax(scores)[token], [B] float32."""
    picked = jnp.take_along_axis(scores_BV, token_B[:, None], axis=-1, mode="clip")[:, 0]
    return picked - jax.nn.logsumexp(scores_BV, axis=-1)


def logprobs_of(logits_BV: jax.Array, tokens_BC: jax.Array) -> jax.Array:
    """log softmax(logits)[tokens], [B, C] float32."""
    picked = jnp.take_along_axis(logits_BV, tokens_BC, axis=-1, mode="clip")
    return picked - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)


def scaled(
    logits_BV: jax.Array, knobs: Knobs, seen_BV: jax.Array | None = None, allowed_BV: jax.Array | None = None
) -> jax.Array:
    """Logits after the allowed tokens, the repetition penalty and the temperature (greedy rows: 1).

    Rows that draw are shifted to a highest score of 0 first, so that low temperatures lose no precision.
    """
    scores = logits_BV.astype(jnp.float32)
    if allowed_BV is not None:
        scores = jnp.where(allowed_BV, scores, REMOVED)
    if seen_BV is not None:
        penalty = knobs.repetition_penalty[:, None]
        scores = jnp.where(seen_BV, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    drawn = knobs.temperature > 0
    shift = jnp.where(drawn, jnp.max(scores, axis=-1), 0.0)
    return (scores - shift[:, None]) / jnp.where(drawn, knobs.temperature, 1.0)[:, None]


def truncated(scores_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """Scores with -inf outside top-k, top-p and min-p. Tokens that tie with the last one kept are kept.

    Each filter is a threshold, found without sorting the vocabulary.
    """
    drawn = knobs.temperature > 0
    order = sortable(scores_BV)
    k = jnp.where(drawn & (knobs.top_k > 0), knobs.top_k, scores_BV.shape[1]).astype(jnp.float32)
    least = threshold(order, jnp.ones_like(scores_BV), k)
    kept = jnp.where(order >= least[:, None], scores_BV, REMOVED)
    p = jnp.where(drawn & (knobs.top_p < 1), knobs.top_p, jnp.inf)  # never reached: everything stays
    least = jnp.maximum(least, threshold(order, jax.nn.softmax(kept, axis=-1), p))
    top = jnp.max(scores_BV, axis=-1, keepdims=True)
    min_p = jnp.where(drawn, knobs.min_p, 0.0)[:, None]
    return jnp.where((order >= least[:, None]) & (scores_BV >= top + jnp.log(min_p)), scores_BV, REMOVED)


def sortable(x: jax.Array) -> jax.Array:
    """float32 as uint32 in the same order; both zeros are one number."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def threshold(order_BV: jax.Array, mass_BV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Largest t [B] for which the mass of the entries with order >= t reaches the target; 0 where none does.

    A binary search over the 32 bits of t, most significant first: exact, and each step is one pass over the row.
    """

    def step(i: jax.Array, t: jax.Array) -> jax.Array:
        higher = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        mass = jnp.sum(jnp.where(order_BV >= higher[:, None], mass_BV, 0.0), axis=-1)
        return jnp.where(mass >= target_B, higher, t)

    return jax.lax.fori_loop(0, 32, step, jnp.zeros(order_BV.shape[:1], jnp.uint32))
