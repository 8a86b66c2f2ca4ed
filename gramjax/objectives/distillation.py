"""Teaching layers that share attention (LiSA) what the original model does: language modelling, and terms beside it.

Each term is a mean over the tokens whose prediction is scored, so that microbatches add up exactly; between models it
compares what stands at those tokens. With P the attention weights and S the scores of a layer that shares, of which all
are averaged, and R for the reference, the original model:

    lm          -log p(next token)
    kl_logits   tau^2 KL(p_R || p) of the next token, both at the temperature tau
    js_attn     Jensen-Shannon divergence of P_R and P, mean over heads
    mse_score   (S_R - S)^2, less the mean of a row, mean over the keys it sees and over heads
    mse_hidden  (x_R - x)^2 of the states behind the layer, normed as the next layer (or the head) reads them

`layerwise` trains every layer by itself, all at once, on what it would be handed in the original model: no state of the
student is ever computed, no layer waits for another. It is a cheap start, to be followed by training on the loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import attention_similarity as similar
from gramjax.core.checks import at_least_zero
from gramjax.core.errors import UserError
from gramjax.models import heads, lisa
from gramjax.models.stack import Observer, Seen, unpack
from gramjax.scoring import calibration

ROW_TYPES = ("language_modeling", "prompt_completion")
HEADS = ("tokens",)

OF_LAYERS = ("js_attn", "mse_score")
TERMS = ("lm", "kl_logits", *OF_LAYERS, "mse_hidden")


@dataclasses.dataclass(frozen=True)
class Config:
    """The factor of each term; 0 leaves it out."""

    lm: float = 1.0
    """Cross-entropy of the next token."""
    kl_logits: float = 0.0
    """Divergence from the reference's distribution of the next token."""
    temperature: float = 1.0
    """Of both distributions in `kl_logits`."""
    js_attn: float = 0.0
    """Divergence of the attention weights of the layers that share."""
    mse_score: float = 0.0
    """Squared difference of their scores."""
    mse_hidden: float = 0.0
    """Squared difference of the states behind them."""
    layerwise: bool = False
    """Train each layer on what the original model hands it; with `js_attn` and `mse_score` only."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config, checked."""
    at_least_zero(config, "objective", *TERMS)
    used = [name for name in TERMS if getattr(config, name)]
    if not used:
        raise UserError(f"config.objective: all terms are 0 ({', '.join(TERMS)}): there is nothing to learn")
    if config.temperature <= 0:
        raise UserError(f"config.objective.temperature={config.temperature} must be above 0")
    if config.temperature != 1 and not config.kl_logits:
        raise UserError("config.objective.temperature is that of kl_logits, which is 0")
    if config.layerwise and (outside := [name for name in used if name not in OF_LAYERS]):
        raise UserError(f"config.objective.layerwise knows {' and '.join(OF_LAYERS)} only: set {outside[0]} to 0")
    return config


def needs_reference(config: Config) -> bool:
    """Whether `loss` wants the weights of the original model."""
    return any(getattr(config, name) for name in TERMS[1:])


def reference_arch(arch: Any) -> Any:
    """The architecture of the reference: that of the student, before its layers shared anything."""
    return dataclasses.replace(arch, lisa=lisa.LisaSection())


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """One sequence; the text, the assistant's turns or the completion are scored."""
    return renderer.example(row)


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Token mean of the weighted terms; each term that is used is a metric."""
    if not model.config.lisa.layers or model.config.lisa.shares != "scores":
        raise UserError(
            "this objective trains layers that share scores (gramjax convert --to=lisa); the model has none"
        )
    if config.layerwise:
        found = local_terms(model, weights, reference, batch, config)
    else:
        found = terms(model, weights, reference, batch, config)
    tokens = jnp.sum(batch["loss_mask"])
    total = sum(getattr(config, name) * value for name, value in found.items())
    return (total, tokens), {name: (value, tokens) for name, value in found.items()}


def terms(model: Any, weights: Any, reference: Any, batch: Mapping[str, jax.Array], config: Config) -> dict[str, Any]:
    """Sums over the scored tokens of every term that is used, the student running through."""
    mask, wanted = batch["loss_mask"], [name for name in OF_LAYERS if getattr(config, name)]
    teacher: Any = None
    stored: Any = None
    if needs_reference(config):
        teacher, stored = taught(model, reference, batch, bool(wanted))
    slots = _slots(model.config)

    def see(seen: Seen, index: Any) -> tuple[Any, Any]:
        zeros = {name: jnp.zeros(mask.shape, jnp.float32) for name in wanted}
        slot = jnp.asarray(slots)[index]
        compare = lambda: differences(seen.scores_BHTS, stored[slot], seen.visible_BTS, wanted)  # noqa: E731
        return index + 1, (jax.lax.cond(slot >= 0, compare, lambda: zeros) if wanted else {}, _states(seen, config))

    out = model.forward(weights, batch, observer=Observer(see, jnp.zeros((), jnp.int32)))
    layers, (between, states) = model.config.lisa.layers, out.observed
    found: dict[str, Any] = {}
    if config.lm:
        found["lm"] = heads.cross_entropy(weights, out.hidden, batch["labels"], mask, model.logit_chunk, model.mesh)
    if config.kl_logits:
        given = (weights, out.hidden, reference, teacher.hidden)
        found["kl_logits"] = heads.divergence(*given, mask, config.temperature, model.logit_chunk, model.mesh)
    for name in wanted:
        found[name] = jnp.sum(mask * jnp.sum(between[name], axis=0)) / len(layers)
    if config.mse_hidden:
        behind = [jnp.concatenate([kept[1:], hidden[None]])[np.array(layers)].astype(jnp.float32)
                  for kept, hidden in ((states, out.hidden), (teacher.observed, teacher.hidden))]  # fmt: skip
        found["mse_hidden"] = jnp.sum(mask * jnp.mean(jnp.square(behind[0] - behind[1]), axis=(0, 3)))
    return found


def _states(seen: Seen, config: Config) -> Any:
    return seen.hidden_BTD if config.mse_hidden else ()


def _slots(arch: Any) -> np.ndarray:
    """For each layer its place among those that share; -1: it does not."""
    out = np.full(arch.num_layers, -1)
    out[list(arch.lisa.layers)] = np.arange(len(arch.lisa.layers))
    return out


def taught(model: Any, reference: Any, batch: Mapping[str, jax.Array], scores: bool) -> tuple[Any, Any]:
    """The pass of the original model, whose observer keeps what each attention reads, and with `scores` those of the
    layers that share, [N, B, H, T, S] in the compute dtype. Nothing of it is differentiated."""
    arch, slots = model.config, _slots(model.config)
    B, T = batch["tokens"].shape
    stored = jnp.zeros((len(arch.lisa.layers) if scores else 0, B, arch.num_heads, T, T), model.compute_dtype)

    def see(seen: Seen, memory: Any) -> tuple[Any, Any]:
        index, stored = memory
        if scores:
            slot = jnp.asarray(slots)[index]
            put = lambda: stored.at[slot].set(seen.scores_BHTS.astype(stored.dtype))  # noqa: E731
            stored = jax.lax.cond(slot >= 0, put, lambda: stored)
        return (index + 1, stored), seen.hidden_BTD

    teacher = dataclasses.replace(model, config=reference_arch(arch))
    out = teacher.forward(reference, batch, observer=Observer(see, (jnp.zeros((), jnp.int32), stored)))
    out = jax.lax.stop_gradient(out)
    return out, out.memory[1]


def differences(student: jax.Array, teacher: jax.Array, visible_BTS: jax.Array, wanted: list[str]) -> dict[str, Any]:
    """By query [B, T], mean over heads: how far scores [B, H, T, S] are from those of the teacher."""
    out: dict[str, Any] = {}
    if "js_attn" in wanted:
        p, q = (similar.log_weights(scores, visible_BTS) for scores in (student, teacher))
        out["js_attn"] = jnp.mean(similar.divergence(p, q), axis=1)
    if "mse_score" in wanted:
        gap = similar.centred(student - teacher.astype(jnp.float32), visible_BTS)
        seen = jnp.maximum(jnp.sum(visible_BTS, axis=-1), 1)
        out["mse_score"] = jnp.mean(jnp.sum(jnp.square(gap), axis=-1), axis=1) / seen
    return out


def local_terms(
    model: Any, weights: Any, reference: Any, batch: Mapping[str, jax.Array], config: Config
) -> dict[str, Any]:
    """Sums over the scored tokens of the terms of layers, each on the input and the shared scores of the reference."""
    arch, section, slots = model.config, model.config.lisa, jnp.asarray(_slots(model.config))
    mask, wanted = batch["loss_mask"], [name for name in OF_LAYERS if getattr(config, name)]
    layers = unpack(weights["layers"])
    own = [{leaf: x for leaf, x in layers[layer]["attn"].items() if leaf.startswith(("align", "q_low", "k_low"))}
           for layer in section.layers]  # fmt: skip
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    angles = calibration.angles_of(batch, arch)

    def see(seen: Seen, memory: Any) -> tuple[Any, Any]:
        index, shared = memory
        slot, zeros = slots[index], {name: jnp.zeros(mask.shape, jnp.float32) for name in wanted}

        def compare() -> dict[str, Any]:
            attn = jax.tree.map(lambda x: x[slot], stacked)
            delta = None
            if section.rank:
                delta = calibration.difference(attn, arch, seen, angles)
            made, _ = lisa.combine(attn, shared, delta, seen.visible_BTS, section)
            made = made if section.share_point == "pre" else jnp.log(jnp.maximum(made, 1e-30))
            return differences(made, seen.scores_BHTS, seen.visible_BTS, wanted)

        found = jax.lax.cond(slot >= 0, compare, lambda: zeros)
        scores = seen.scores_BHTS
        if section.share_point == "post":
            scores = jnp.exp(similar.log_weights(scores, seen.visible_BTS))
        scores = scores.astype(model.compute_dtype)
        keep = (slot >= 0) & (section.source == "anchor")
        return (index + 1, jnp.where(keep, shared, scores)), found

    B, T = batch["tokens"].shape
    first = jnp.zeros((B, arch.num_heads, T, T), model.compute_dtype)
    teacher = dataclasses.replace(model, config=reference_arch(arch))
    out = teacher.forward(reference, batch, observer=Observer(see, (jnp.zeros((), jnp.int32), first)))
    return {name: jnp.sum(mask * jnp.sum(x, axis=0)) / len(section.layers) for name, x in out.observed.items()}
