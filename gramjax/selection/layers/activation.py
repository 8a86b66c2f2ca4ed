"""Layers that treat languages differently: how often each MLP neuron is active in each language (SLAM, 2501.03681).

One pass over the texts counts, per layer, neuron and language, the tokens at which the gate is above 0. Only these
counts are kept, never anything of the size of the tokens. The scores are in `core.layer_scores`, the rules in
`core.layer_rules`: by default the lowest layers, with a warning where they do not stand out.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import layer_rules, sharding
from gramjax.core import layer_scores as scoring
from gramjax.core.errors import UserError
from gramjax.core.layer_selection import LayerScores
from gramjax.data import language_names
from gramjax.models.stack import Observer, Seen

PLOT = "layers"
LANGUAGES = True

HALVES = 2
"""Texts of a language are counted in two halves, for `msd_split_half`."""
FEW_TOKENS = 1000
"""Fewer tokens of a language than this are worth a warning."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which score decides, and by which rule."""

    score: str = "msd_prob"
    """`msd_prob`, `msd_split_half`, `msd_count`, `msd_count_mean`, `msd_active_mean`, `one_minus_overlap`,
    `one_minus_own_overlap`, `lape_count` or `one_minus_entropy`; all are written."""
    pivot: str = "en"
    """The language that the others are compared with."""
    debias: bool = True
    """Take from `msd_prob` what drawing the tokens adds to it."""
    threshold: float = 0.5
    """Share of tokens above which a neuron counts as active in a language."""
    rule: str = "prefix_topk"
    """`prefix_topk` (the `k` lowest), `prefix_threshold`, `topk`, `window` (lower half), `explicit` or `random`."""
    k: int = 6
    """Layers that are chosen (not by `prefix_threshold` and `explicit`)."""
    kappa: float = 4.0
    """`prefix_threshold`: deviations of the middle third by which a layer must stand above its mean."""
    layers: tuple[int, ...] = ()
    """Those of `explicit`."""
    seed: int = 0
    """Of `random`."""
    lape_share: float = 0.01
    """Share of all neurons that LAPE takes, those of the lowest language entropy."""
    lape_quantile: float = 0.95
    """Quantile of all probabilities that a neuron of LAPE must pass."""

    def __post_init__(self) -> None:
        problems = []
        if self.score not in scoring.NAMES:
            problems.append(f"config.selection.score={self.score!r} is not one of {', '.join(scoring.NAMES)}")
        if self.rule not in layer_rules.RULES:
            problems.append(f"config.selection.rule={self.rule!r} is not one of {', '.join(layer_rules.RULES)}")
        for name in ("threshold", "lape_share", "lape_quantile"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"config.selection.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.kappa < 0:
            problems.append(f"config.selection.kappa is {self.kappa}; it must not be negative")
        counting = tuple(rule for rule in layer_rules.RULES if rule not in ("prefix_threshold", "explicit"))
        for name, rules in (("layers", ("explicit",)), ("kappa", ("prefix_threshold",)), ("seed", ("random",)),
                            ("k", counting)):  # fmt: skip
            if getattr(self, name) != getattr(Config, name) and self.rule not in rules:
                problems.append(f"config.selection.{name} is given, but config.selection.rule is {self.rule!r}")
        if problems:
            raise UserError("; ".join(problems))


def layer_scores(model: Any, weights: Any, batches: Any, config: Config) -> LayerScores:
    """Scores of every layer of a model by the texts of a `data.probe.Probe`, and the layers that a rule chooses."""
    names = batches.languages
    pivot = language_names.code(config.pivot) or config.pivot
    if pivot not in names:
        raise UserError(f"config.selection.pivot={config.pivot!r} is none of the languages {', '.join(names)}")
    counts, totals = activations(model, weights, batches)
    seen = scoring.Activity(counts, totals, names.index(pivot))
    found = scoring.scores(seen, config.debias, config.threshold, config.lape_share, config.lape_quantile)
    if config.score not in found:
        raise UserError(f"config.selection.score={config.score} needs two texts of each language at least")
    rule = layer_rules.Rule(config.rule, config.k, config.kappa, config.layers, config.seed)
    choice = layer_rules.choose(found[config.score].by_layer.tolist(), rule)
    few = [f"{name}: {total:,}" for name, total in zip(names, seen.totals) if total < FEW_TOKENS]
    warnings = (*choice.warnings, *((f"few tokens ({', '.join(few)}): scores are noisy",) if few else ()))
    order = sorted(found, key=lambda name: name != config.score)
    active = seen.probabilities > config.threshold
    facts = {
        "score": config.score,
        "pivot": pivot,
        "by_language": {name: found[name].by_language.tolist() for name in order},
        "active_share": active.mean(axis=2).tolist(),
        "overlap": scoring.overlap(active, seen.pivot).tolist(),
        "own_overlap": scoring.own_overlap(active, seen.pivot).tolist(),
    }
    scores = {name: found[name].by_layer.tolist() for name in order}
    return LayerScores(scores, choice.layers, choice.rule, facts, warnings, {"counts": counts, "totals": totals})


def activations(model: Any, weights: Any, batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Active tokens [K, 2, L, I] and tokens [K, 2] by language and half of its texts."""
    config, groups = model.config, len(batches.languages) * HALVES
    place = None if model.mesh is None else sharding.replicated(model.mesh)
    step = jax.jit(functools.partial(count, model), donate_argnums=0, out_shardings=place)
    shape = (config.num_layers, groups, config.intermediate_size)
    so_far = (jnp.zeros(shape, jnp.int32), jnp.zeros((groups,), jnp.int32))
    for batch in batches:
        so_far = step(so_far, weights, batch)
    counts, totals = (np.asarray(x, np.int64) for x in jax.device_get(so_far))
    layers, _, neurons = shape
    return counts.reshape(layers, -1, HALVES, neurons).transpose(1, 2, 0, 3), totals.reshape(-1, HALVES)


def count(model: Any, so_far: Any, weights: Any, batch: Any) -> Any:
    """(active tokens [L, G, I], tokens [G]) with those of a batch added; G languages times halves."""
    counts_LGI, totals_G = so_far
    counted_BT = batch["counted"]
    group_B = jnp.where(batch["language"] < 0, -1, batch["language"] * HALVES + batch["number"] % HALVES)
    member_BG = jax.nn.one_hot(group_B, totals_G.shape[0], dtype=jnp.int32)

    def see(seen: Seen, memory: Any) -> tuple[Any, jax.Array]:
        active_BTF = (seen.gate_BTF > 0) & counted_BT[..., None]
        per_text_BF = jnp.sum(active_BTF, axis=1, dtype=jnp.int32)
        return memory, jnp.einsum("bg,bf->gf", member_BG, per_text_BF)

    out = model.forward(weights, batch, observer=Observer(see))
    tokens_B = jnp.sum(counted_BT, axis=1, dtype=jnp.int32)
    return counts_LGI + out.observed, totals_G + tokens_B @ member_BG
