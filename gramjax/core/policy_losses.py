"""Policy-gradient losses on given log-probabilities: no model, no configuration file, one call for all variants.

Shape letters: R rows, T tokens, N sequences packed in a row. A sequence is a completion with its prompt; `mask` is 1
where a token was generated. Everything that stands outside of the mask is replaced by 0 before anything is computed
from it, so that neither value nor gradient knows what is there. Numbers keep the precision that they come in.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from gramjax.core.reinforcement import GrpoSection

Pair = tuple[jax.Array, jax.Array]
"""A total and the weight that it is divided by, once, over all microbatches."""

AGGREGATION = {
    "grpo": "sequence", "bnpo": "batch_token", "dapo": "token", "dr_grpo": "constant", "gspo": "sequence",
    "gspo_token": "sequence", "cispo": "token", "sapo": "sequence", "luspo": "sequence_sum", "vespo": "token",
    "gmpo": "sequence", "reinforce": "token",
}  # fmt: skip
"""What each loss divides by unless told otherwise."""

LOSSES = tuple(AGGREGATION)
CLIPPED = ("grpo", "bnpo", "dapo", "dr_grpo", "gspo", "gspo_token", "luspo")
"""Losses of the form -min(r A, clip(r) A), which know `delta` and `dual_clip`."""

AGGREGATIONS = ("auto", "sequence", "token", "batch_token", "sequence_sum", "constant")
ESTIMATORS = ("k1", "k2", "k3", "k3_is", "k3_k2grad")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
SHAPINGS = ("p_div", "none", "pow", "sqrt", "logp")

BOUND = 20.0
"""Log-ratios are kept within this: e^20 times an advantage is finite in float32."""

LEAST = math.log(1e-8)
"""Smallest log-weight in vespo."""


def per_sequence(values: jax.Array, segment_ids: jax.Array, count: int) -> jax.Array:
    """Sums [..., N] of values per token [..., T] over the tokens of each sequence of a row."""
    member = segment_ids[..., :, None] == jnp.arange(1, count + 1)
    return jnp.sum(jnp.where(member, values[..., :, None], 0), axis=-2)


def per_token(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The values [..., N] of sequences at each of their tokens [..., T]; 0 in the padding."""
    found = jnp.take_along_axis(values, jnp.maximum(segment_ids - 1, 0), axis=-1)
    return jnp.where(segment_ids > 0, found, 0)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the generated tokens of packed sequences are."""

    mask: jax.Array
    """bool [R, T]."""
    segment_ids: jax.Array
    """int [R, T]: sequence n has n + 1, padding 0."""
    count: int
    """N."""

    def clean(self, values: jax.Array) -> jax.Array:
        """0 outside of the mask, in value and gradient."""
        return jnp.where(self.mask, values, 0)

    def sum(self, values: jax.Array) -> jax.Array:
        """[R, N]."""
        return per_sequence(self.clean(values), self.segment_ids, self.count)

    def length(self, like: jax.Array) -> jax.Array:
        """Generated tokens [R, N]."""
        return self.sum(jnp.ones_like(like))

    def mean(self, values: jax.Array) -> jax.Array:
        """[R, N]; 0 for a sequence without tokens."""
        return self.sum(values) / jnp.maximum(self.length(values), 1)

    def spread(self, values: jax.Array) -> jax.Array:
        """Numbers of sequences [R, N] at their tokens [R, T]."""
        return per_token(values, self.segment_ids)


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """A loss per token and what is to be said of it, all [R, T]."""

    loss: jax.Array
    ratio: jax.Array
    """What the advantage was multiplied by before clipping: of tokens, or of the whole sequence."""
    low: jax.Array
    """bool: a fall of the ratio that no longer counts."""
    high: jax.Array
    """bool: a rise that no longer counts."""


def policy_loss(
    logprobs: jax.Array,
    old: jax.Array,
    advantages: jax.Array,
    rows: Rows,
    section: GrpoSection,
    clip: bool = True,
    log_correction: jax.Array | None = None,
) -> PolicyLoss:
    """The loss `section.loss` of every token, to be minimised.

    `old` are the log-probabilities that ratios start from. Without `clip` ratios have no bounds. `log_correction`
    [R, N] is the log-weight that vespo adds for the difference between sampler and trainer.
    """
    name = section.loss
    logprobs, advantages = rows.clean(logprobs), rows.clean(advantages)
    log_ratio = jnp.clip(rows.clean(logprobs - old), -BOUND, BOUND)
    ratio = jnp.exp(log_ratio)
    low, high = (section.epsilon, section.epsilon_high or section.epsilon) if clip else (math.inf, math.inf)
    if name in CLIPPED:
        if name in ("gspo", "luspo", "gspo_token"):
            ratio = jnp.exp(rows.spread(rows.mean(log_ratio)))
        if name == "gspo_token":
            ratio = jax.lax.stop_gradient(ratio) * jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        loss = _clipped(ratio, advantages, low, high, section)
    elif name == "gmpo":
        sign = jnp.sign(advantages)
        bounded = jnp.minimum(sign * log_ratio, sign * jnp.clip(log_ratio, -low, high))
        loss = -advantages * jnp.exp(rows.spread(rows.mean(sign * bounded)))
        low, high = 1 - math.exp(-low), math.exp(high) - 1
    elif name == "cispo":
        loss = -jax.lax.stop_gradient(jnp.minimum(ratio, section.ratio_cap)) * advantages * logprobs
        low, high = math.inf, section.ratio_cap - 1
    elif name == "sapo":
        temperature = jnp.where(advantages > 0, *section.sapo_temperatures)
        loss = -4 / temperature * jax.nn.sigmoid(temperature * (ratio - 1)) * advantages
        low, high = math.inf, math.inf
    elif name == "vespo":
        log_weight = rows.sum(log_ratio) + (0 if log_correction is None else log_correction)
        loss = -_gamma_weights(rows.spread(log_weight), advantages, section) * advantages * logprobs
        low, high = math.inf, math.inf
    elif name == "reinforce":
        loss = -advantages * logprobs
        low, high = math.inf, math.inf
    else:
        raise ValueError(f"no policy loss called {name!r}")
    falls = (ratio < 1 - low) & (advantages < 0) & rows.mask
    return PolicyLoss(loss, ratio, falls, (ratio > 1 + high) & (advantages > 0) & rows.mask)


def _clipped(ratio: jax.Array, advantages: jax.Array, low: float, high: float, section: GrpoSection) -> jax.Array:
    """-min(r A, clip(r) A) with both of its further bounds."""
    bounded = jnp.clip(ratio, 1 - low, 1 + high)
    free = jnp.minimum(ratio, section.delta) if section.delta else ratio
    loss = -jnp.minimum(free * advantages, bounded * advantages)
    if section.dual_clip:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -section.dual_clip * advantages), loss)
    return loss


def _gamma_weights(log_weight: jax.Array, advantages: jax.Array, section: GrpoSection) -> jax.Array:
    """phi(w) = e^lambda w^k e^(-lambda w) of the sequence's weight w, a constant; phi(1) = 1."""
    log_weight = jnp.clip(jax.lax.stop_gradient(log_weight), LEAST, BOUND)
    k, rate = (
        jnp.where(advantages >= 0, *pair) for pair in zip(section.vespo_positive, section.vespo_negative, strict=True)
    )
    return jnp.exp(rate + k * log_weight - rate * jnp.exp(log_weight))


def offline_loss(logprobs: jax.Array, advantages: jax.Array, section: GrpoSection) -> jax.Array:
    """-A f(p) of tokens that the policy did not draw; whoever did is taken to have been sure of them."""
    kind, gamma = section.offline_shaping, section.offline_gamma
    if kind == "p_div":
        shaped = jax.nn.sigmoid(logprobs - math.log(gamma))  # p / (p + gamma)
    elif kind == "logp":
        shaped = logprobs
    else:
        shaped = jnp.exp({"none": 1.0, "pow": gamma, "sqrt": 0.5}[kind] * logprobs)
    return -advantages * shaped


def kl_tokens(
    logprobs: jax.Array, reference: jax.Array, rows: Rows, kind: str, ratio: jax.Array | float = 1.0
) -> jax.Array:
    """An estimate of KL(policy || reference) at every token [R, T]; `ratio` is for `k3_is`."""
    difference = rows.clean(logprobs - reference)
    if kind == "k1":
        return difference
    square = jnp.square(difference) / 2
    if kind == "k2":
        return square
    k3 = jnp.expm1(-jnp.clip(difference, -BOUND, BOUND)) + difference
    if kind == "k3_is":
        return k3 * ratio
    if kind == "k3_k2grad":
        return jax.lax.stop_gradient(k3 - square) + square
    return k3


def correction_weights(
    old: jax.Array, sampler: jax.Array, rows: Rows, section: GrpoSection
) -> tuple[jax.Array, jax.Array]:
    """Weights [R, T] for tokens that another distribution than `old` was asked for, and their log per sequence [R, N].

    Both are constants. The weight of a sequence is the product of those of its tokens.
    """
    kind, cap = section.correction, section.correction_cap
    log_ratio = jax.lax.stop_gradient(rows.clean(old - sampler))
    if kind.startswith("sequence"):
        log_ratio = rows.sum(log_ratio)
    weight = jnp.exp(jnp.clip(log_ratio, -BOUND, BOUND))
    if kind.endswith("truncate"):
        weight = jnp.minimum(weight, cap)
    else:
        floor = section.correction_floor if kind == "token_mask" else 0.0
        weight = jnp.where((weight <= cap) & (weight >= floor), weight, 0)
    logs = jnp.clip(jnp.log(weight), LEAST, BOUND)
    if kind.startswith("sequence"):
        return rows.spread(weight), logs
    return weight, rows.sum(logs)


def on_policy_mask(
    logprobs: jax.Array, sampler: jax.Array, advantages: jax.Array, rows: Rows, threshold: float
) -> jax.Array:
    """bool [R, T]: False for tokens of negative advantage in sequences that the policy has become much less likely to
    write than the sampler was (more than `threshold` nats per token)."""
    drift = rows.spread(rows.mean(sampler - jax.lax.stop_gradient(logprobs)))
    return (advantages >= 0) | (drift <= threshold)


def uncertain_tokens(entropies: jax.Array, mask: jax.Array, quantile: float) -> jax.Array:
    """bool [R, T]: the share `quantile` of the tokens of `mask` that have the highest entropies."""
    entropies = jax.lax.stop_gradient(entropies)
    bound = jnp.nanquantile(jnp.where(mask, entropies, jnp.nan), 1 - quantile)
    return mask & (entropies >= bound)


def aggregate(values: jax.Array, rows: Rows, batch: dict[str, jax.Array], name: str) -> Pair:
    """One total and its weight from a loss per token [R, T].

    `trained` [R, N] says which sequences are added up, `counted` [R, N] which stand in the weight. `sequence`: the
    mean of token means; `token`: the mean over tokens; `sequence_sum`: token sums over the number of sequences;
    `constant`: over the number of sequences times the `limit` [R, N] of their lengths; `batch_token`: the mean over
    tokens of this microbatch, whatever the size of the others.
    """
    trained, counted = batch["trained"].astype(values.dtype), batch["counted"].astype(values.dtype)
    length = rows.length(values)
    if name == "sequence":
        return jnp.sum(trained * rows.mean(values)), jnp.sum(counted)
    total = jnp.sum(trained * rows.sum(values))
    if name == "sequence_sum":
        return total, jnp.sum(counted)
    if name == "constant":
        return total, jnp.sum(counted * batch["limit"])
    tokens = jnp.sum(counted * length)
    if name == "batch_token":
        return total / jnp.maximum(tokens, 1), (tokens > 0).astype(values.dtype)
    return total, tokens


def policy_objective(
    logprobs: jax.Array,
    entropies: jax.Array,
    batch: dict[str, jax.Array],
    section: GrpoSection,
    extra: jax.Array | None = None,
) -> tuple[Pair, dict[str, Pair]]:
    """Loss and metrics of log-probabilities and entropies [R, T] of `batch`, the arrays of `objectives.grpo`.

    `extra` [R, T] is added to the loss of every token (the loss of values in ppo).
    """
    rows = Rows(batch["loss_mask"] > 0, batch["segment_ids"], batch["trained"].shape[-1])
    fixed = jax.lax.stop_gradient(logprobs)
    offline = rows.spread(batch["offline"]) > 0 if "offline" in batch else jnp.zeros(rows.mask.shape, bool)
    drawn = rows.mask & ~offline
    trainer = jnp.where(offline, fixed, batch.get("old_logprobs", fixed))
    sampler = jnp.where(offline, trainer, batch.get("sampler_logprobs", trainer))
    old = sampler if section.old_logprobs == "sampler" else trainer
    advantages = rows.clean(batch["advantages"])

    weights, log_weights = None, None
    if section.correction != "none":
        weights, log_weights = correction_weights(trainer, sampler, rows, section)
    clip = section.offline_clip or not section.offline_fraction
    made = policy_loss(logprobs, old, advantages, rows, section, clip, log_weights)
    tokens = made.loss
    if weights is not None and section.loss != "vespo":  # which has them in its own weight
        tokens = tokens * weights
    if section.off_policy_mask_threshold:
        tokens *= on_policy_mask(logprobs, sampler, advantages, rows, section.off_policy_mask_threshold)
    if "offline" in batch:
        tokens = jnp.where(offline, offline_loss(rows.clean(logprobs), advantages, section), tokens)
    used = rows.mask
    if section.top_entropy_quantile < 1:
        used = uncertain_tokens(
            entropies, rows.mask & (rows.spread(batch["trained"]) > 0), section.top_entropy_quantile
        )
    if section.entropy_bonus:
        coefs = rows.clean(batch["entropy_coef"]) if section.use_adaptive_entropy else section.entropy_coef
        tokens -= coefs * rows.clean(entropies)
    tokens = jnp.where(used, tokens, 0)
    metrics: dict[str, Pair] = {}
    if "reference_logprobs" in batch:
        kl = kl_tokens(logprobs, batch["reference_logprobs"], rows, section.kl_estimator, made.ratio)
        metrics["kl"] = _token_mean(kl, drawn)
        if section.kl_in == "loss":
            tokens += section.beta * kl
    if extra is not None:
        tokens += rows.clean(extra)
    name = AGGREGATION[section.loss] if section.aggregation == "auto" else section.aggregation
    metrics |= _metrics(made, entropies, rows, drawn, batch)
    if "sampler_logprobs" in batch:
        metrics |= _sampling_metrics(trainer, sampler, drawn, weights)
    if "offline" in batch:
        p = jnp.exp(rows.clean(fixed))
        metrics["offline/mean_prob"] = _token_mean(p, offline & rows.mask)
        slope = jax.grad(lambda x: -jnp.sum(offline_loss(x, jnp.ones_like(x), section)))(rows.clean(fixed))
        metrics["offline/grad_weight"] = _token_mean(slope, offline & rows.mask)
    return aggregate(tokens, rows, batch, name), metrics


def _token_mean(values: jax.Array, mask: jax.Array) -> Pair:
    return jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask).astype(values.dtype)


def _metrics(
    made: PolicyLoss, entropies: jax.Array, rows: Rows, drawn: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, Pair]:
    """Entropy, ratios and clipped shares of the tokens that the policy drew; extremes are those of sequences."""
    learned = drawn & (rows.spread(batch["trained"]) > 0)
    mine = dataclasses.replace(rows, mask=learned)
    some = mine.length(entropies) > 0
    one = jnp.ones((), entropies.dtype)
    share = lambda hit: mine.mean(hit.astype(entropies.dtype))  # noqa: E731
    return {
        "entropy": _token_mean(entropies, drawn),
        "ratio_mean": _token_mean(made.ratio, learned),
        "clip_ratio/region_mean": _token_mean((made.low | made.high).astype(entropies.dtype), learned),
        "clip_ratio/low_mean": _token_mean(made.low.astype(entropies.dtype), learned),
        "clip_ratio/low_min": (jnp.min(jnp.where(some, share(made.low), 1)), one),
        "clip_ratio/high_mean": _token_mean(made.high.astype(entropies.dtype), learned),
        "clip_ratio/high_max": (jnp.max(jnp.where(some, share(made.high), 0)), one),
    }


def _sampling_metrics(
    trainer: jax.Array, sampler: jax.Array, drawn: jax.Array, weights: jax.Array | None
) -> dict[str, Pair]:
    """How far the sampler's log-probabilities are from the trainer's."""
    difference = jnp.where(drawn, trainer - sampler, 0)
    ratio = jnp.exp(jnp.clip(difference, -BOUND, BOUND))
    one = jnp.ones((), ratio.dtype)
    out = {
        "sampling/logp_diff_mean": _token_mean(jnp.abs(difference), drawn),
        "sampling/logp_diff_max": (jnp.max(jnp.abs(difference)), one),
        "sampling/is_ratio_mean": _token_mean(ratio, drawn),
        "sampling/is_ratio_min": (jnp.min(ratio), one),
        "sampling/is_ratio_max": (jnp.max(ratio), one),
        "sampling/kl3": _token_mean(ratio - 1 - difference, drawn),
    }
    if weights is not None:
        out["sampling/masked"] = _token_mean((weights == 0).astype(ratio.dtype), drawn)
    return out


def value_loss(values: jax.Array, old: jax.Array, returns: jax.Array, clip: float) -> tuple[jax.Array, jax.Array]:
    """Half the squared error of values, the larger of that of the values and that of values that moved from the old
    ones by at most `clip` (0: no such bound); and where the bound decides."""
    plain = jnp.square(values - returns)
    if not clip:
        return plain / 2, jnp.zeros(values.shape, bool)
    bounded = jnp.square(old + jnp.clip(values - old, -clip, clip) - returns)
    return jnp.maximum(plain, bounded) / 2, bounded > plain
