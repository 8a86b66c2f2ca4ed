"""Layers whose attention is nearly that of the layer before them, and could share it (LiSA, arXiv 2408.01890).

The text is read once for the Jensen-Shannon divergence of neighbouring layers, head by head and after the best matching
of heads. What it costs to let one layer alone share is measured as the rise of the loss on the same text: once with the
scores of the layer before it as they are, once with a map of heads (and a low-rank pair) fitted to them. The rule takes
similar layers, the least sensitive first, until as many are taken as are asked for.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import attention_similarity as similar
from gramjax.core import progress, sharding, spec
from gramjax.core.checks import at_least_zero, one_of
from gramjax.core.errors import UserError
from gramjax.core.layer_selection import LayerScores
from gramjax.models import block, heads
from gramjax.models.lisa import LisaSection
from gramjax.models.stack import Observer, Seen, unpack
from gramjax.scoring import calibration

PLOT = "similarity"

ORDERS = ("sensitivity_calibrated", "sensitivity_share", "js_matched", "js_same_index")
RULES = ("budget", "deepest")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    """How many layers share, and by which rule they are chosen."""

    rule: str = "budget"
    """`budget`: similar layers, the least sensitive first; `deepest`: the last ones."""
    budget: float = 0.5
    """Layers to choose: a share of all layers below 1, else their number."""
    order: str = "sensitivity_calibrated"
    """What `budget` orders by: `sensitivity_calibrated`, `sensitivity_share`, `js_matched` or `js_same_index`."""
    max_js: float = 0.05
    """`budget`: the divergence of matched heads, in nats, from which on a layer is no candidate."""
    min_layer: int = -1
    """Lowest layer that may share; -1: a sixth of all layers. Layer 0 has none before it."""
    keep_last: int = 0
    """Last layers that may not share."""
    sensitivity: bool = True
    """Measure what sharing costs, layer by layer (False: needs an `order` by divergence, or the rule `deepest`)."""
    batches: int = 8
    """Batches, spread over all of them, that the sensitivity is measured on; 0: all."""
    rank: int = 20
    """Width per head of the low-rank pair, for the predicted sizes and the calibrated sensitivity."""
    delta_kv_heads: str = "query"
    """Heads of the low-rank keys, as in config.model.arch.lisa: `query` or `kv`."""
    low_rank: bool = False
    """Fit a low-rank pair, too, for the calibrated sensitivity (a pass per layer, and unrotated: delta_rope=False)."""
    matrix_gib: float = 1.0
    """Memory for the attention of all layers of a batch, which the matrix of all pairs of layers is made of; batches
    that need more are left out of it, 0 leaves it out."""

    def __post_init__(self) -> None:
        one_of(self, "selection", rule=RULES, order=ORDERS, delta_kv_heads=("query", "kv"))
        at_least_zero(self, "selection", "max_js", "keep_last", "batches", "rank", "matrix_gib")
        problems = []
        if self.budget <= 0 or (self.budget >= 1 and self.budget != int(self.budget)):
            problems.append(f"config.selection.budget is {self.budget}; a share below 1, or a whole number of layers")
        if self.min_layer < -1:
            problems.append(f"config.selection.min_layer is {self.min_layer}; it must be -1 or a layer")
        if self.rule == "budget" and self.order.startswith("sensitivity") and not self.sensitivity:
            problems.append(f"config.selection.order={self.order} needs config.selection.sensitivity=True")
        if self.low_rank and not (self.rank and self.sensitivity):
            problems.append("config.selection.low_rank needs config.selection.rank above 0, and sensitivity=True")
        if not self.rank and self.delta_kv_heads != Config.delta_kv_heads:
            given = f"config.selection.delta_kv_heads={self.delta_kv_heads!r}"
            problems.append(f"{given} needs config.selection.rank above 0")
        if not self.sensitivity and self.batches != Config.batches:
            problems.append(f"config.selection.batches={self.batches} is for config.selection.sensitivity=True")
        if self.rule == "deepest" and self.max_js != Config.max_js:
            problems.append(f"config.selection.max_js={self.max_js} is for config.selection.rule=budget")
        if problems:
            raise UserError("; ".join(problems))


def layer_scores(model: Any, weights: Any, batches: Any, config: Config) -> LayerScores:
    """Divergences and sensitivities of every layer (NaN for layer 0), and the layers that a rule chooses."""
    arch = model.config
    if not hasattr(arch, "lisa") or arch.lisa.layers:
        raise UserError("config.model.path: attention_similarity looks at a plain decoder, whose layers share nothing")
    found = divergences(model, weights, batches, config.matrix_gib)
    nothing = [float("nan")]
    scores = {
        "js_matched": nothing + [similar.matched(table) for table in found.heads[1:]],
        "js_same_index": nothing + [float(np.trace(table) / len(table)) for table in found.heads[1:]],
    }
    facts: dict[str, Any] = {"rows": found.rows}
    if config.sensitivity:
        base, by_name = sensitivities(model, weights, batches, config)
        scores |= {name: nothing + values for name, values in by_name.items()}
        facts["nll"] = base
    layers, warnings = choose(scores, arch.num_layers, config)
    if found.matrix is None and config.matrix_gib:
        warnings.append(f"no batch fits config.selection.matrix_gib={config.matrix_gib:g}: no matrix of all layers")
    names = sorted(scores, key=lambda name: name != config.order)
    facts |= {"order": config.order, "max_js": config.max_js, "share": len(layers) / arch.num_layers}
    facts |= predicted_sizes(model, layers, config)
    rule = f"{config.rule}(budget={config.budget:g})"
    tables = {} if found.matrix is None else {"matrix": found.matrix}
    return LayerScores({name: scores[name] for name in names}, layers, rule, facts, tuple(warnings), tables)


@dataclasses.dataclass(frozen=True)
class Divergences:
    """Mean Jensen-Shannon divergences, in nats."""

    heads: np.ndarray
    """[L, H, H]: heads of the layer before, heads of the layer; those of layer 0 mean nothing."""
    rows: int
    """Queries that were compared."""
    matrix: np.ndarray | None
    """[L, L]: of heads with the same number, over the batches that fit; None: none did."""


def divergences(model: Any, weights: Any, batches: Any, matrix_gib: float) -> Divergences:
    """One pass over the texts: neighbouring layers, and all pairs of layers where a batch has room."""
    L, H = model.config.num_layers, model.config.num_heads
    place = None if model.mesh is None else sharding.replicated(model.mesh)

    def compare(weights: Any, batch: Any, matrix: bool) -> Any:
        counted_BT = calibration.counted(batch)
        B, T = counted_BT.shape

        def see(seen: Seen, memory: Any) -> tuple[Any, Any]:
            index, before, everything = memory
            own = similar.log_weights(seen.scores_BHTS, seen.visible_BTS)
            rows_BT = similar.rows_that_count(seen.visible_BTS, counted_BT)
            against = functools.partial(similar.same_index, own, rows_BT=rows_BT)
            pairs = jax.lax.map(lambda other: jnp.mean(against(other)), everything) if matrix else ()
            if matrix:
                everything = jax.lax.dynamic_update_index_in_dim(everything, own, index, 0)
            kept = (similar.all_heads(before, own, rows_BT), jnp.sum(rows_BT), pairs)
            return (index + 1, own, everything), kept

        zeros = jnp.zeros((B, H, T, T), jnp.float32)
        everything = jnp.zeros((L, B, H, T, T), jnp.float32) if matrix else ()
        return model.forward(
            weights, batch, observer=Observer(see, (jnp.zeros((), jnp.int32), zeros, everything))
        ).observed

    step = jax.jit(compare, static_argnums=2, out_shardings=place)
    sums, rows, matrix_sum, matrix_rows = np.zeros((L, H, H)), 0, np.zeros((L, L)), 0
    for batch in batches:
        B, T = batch["tokens"].shape
        fits = 4 * L * B * H * T * T <= matrix_gib * GIB
        tables, counts, pairs = jax.device_get(step(weights, batch, fits))
        sums += tables
        rows += int(counts[-1])
        if fits:
            matrix_sum, matrix_rows = matrix_sum + pairs, matrix_rows + int(counts[-1])
    lower = np.tril(matrix_sum / max(matrix_rows, 1), -1)
    return Divergences(sums / max(rows, 1), rows, lower + lower.T if matrix_rows else None)


def sensitivities(model: Any, weights: Any, batches: Any, config: Config) -> tuple[float, dict[str, list[float]]]:
    """Loss of the model (nats per token), and by name its rise when layer 1, 2, ... alone shares."""
    arch, every = model.config, list(batches)
    if config.batches and config.batches < len(every):
        every = [every[i] for i in np.linspace(0, len(every) - 1, config.batches).round().astype(int)]
    rank = config.rank if config.low_rank else 0
    section = LisaSection(tuple(range(1, arch.num_layers)), align="linear", rank=rank)
    if rank:
        section = dataclasses.replace(section, delta_rope=False, delta_kv_heads=config.delta_kv_heads)
    fitted = calibration.calibrate(model, weights, every, section, together=False)
    base = nll(model, weights, every)
    out: dict[str, list[float]] = {"sensitivity_share": [], "sensitivity_calibrated": []}
    for layer in section.layers:
        progress.stop_point("the sensitivity of a layer")
        own = dataclasses.replace(section, layers=(layer,))
        sharing = dataclasses.replace(model, config=dataclasses.replace(arch, lisa=own))
        score = jax.jit(functools.partial(_loss, sharing, layer))
        for name in out:
            mixing = fitted.mixing[layer] if name == "sensitivity_calibrated" else np.eye(arch.num_heads)
            leaves = {"align_in": np.asarray(mixing.T, np.float32)}
            if rank:
                used = name == "sensitivity_calibrated"
                pair = (x * used for x in fitted.low_rank[layer])
                leaves |= dict(zip(("q_low", "k_low"), (np.asarray(x, np.float32) for x in pair), strict=True))
            out[name].append(_mean(score(weights, leaves, batch) for batch in every) - base)
    return base, out


def nll(model: Any, weights: Any, batches: Sequence[Any]) -> float:
    """Mean negative log-likelihood of the tokens that count."""
    score = jax.jit(functools.partial(_text_loss, model))
    return _mean(score(weights, batch) for batch in batches)


def _mean(parts: Any) -> float:
    totals = np.asarray([jax.device_get(part) for part in parts], np.float64).sum(axis=0)
    return float(totals[0] / max(totals[1], 1.0))


def _loss(sharing: Any, layer: int, weights: Any, leaves: Mapping[str, Any], batch: Any) -> tuple[Any, Any]:
    """The loss when a layer has these leaves in place of its query and key projections."""
    layers = {f"{number:03d}": tree for number, tree in unpack(weights["layers"]).items()}
    name = f"{layer:03d}"
    kept = {leaf: x for leaf, x in layers[name]["attn"].items() if leaf.partition("_")[0] not in ("q", "k")}
    fresh = {leaf: x.astype(sharing.compute_dtype) for leaf, x in leaves.items()}
    layers[name] = {**layers[name], "attn": kept | fresh}
    return _text_loss(sharing, sharing.pack({**weights, "layers": layers}), batch)


def _text_loss(model: Any, weights: Any, batch: Any) -> tuple[Any, Any]:
    """Summed loss over the tokens that count, each predicted from those before it, and their number."""
    tokens, segments, counted_BT = batch["tokens"], batch["segment_ids"], calibration.counted(batch)
    after = lambda x: jnp.roll(x, -1, axis=1).at[:, -1].set(jnp.zeros((), x.dtype))  # noqa: E731
    mask = (after(counted_BT) & (after(segments) == segments)).astype(jnp.float32)
    hidden = model.forward(weights, batch).hidden
    return heads.cross_entropy(weights, hidden, after(tokens), mask, model.logit_chunk), jnp.sum(mask)


def choose(scores: Mapping[str, Sequence[float]], total: int, config: Config) -> tuple[tuple[int, ...], list[str]]:
    """The layers of a rule, rising, and what speaks against them. Raises UserError for a budget that has no room."""
    wanted = round(config.budget * total) if config.budget < 1 else int(config.budget)
    low = max(1, total // 6 if config.min_layer < 0 else config.min_layer)
    allowed = range(low, total - config.keep_last)
    if not 0 < wanted <= len(allowed):
        raise UserError(
            f"config.selection.budget={config.budget:g} means {wanted} of {total} layers; {len(allowed)} may share "
            f"(config.selection.min_layer, {low} here, to {total - config.keep_last - 1})"
        )
    if config.rule == "deepest":
        return tuple(allowed)[-wanted:], []
    candidates = [layer for layer in allowed if scores["js_matched"][layer] < config.max_js]
    layers = sorted(sorted(candidates, key=lambda layer: scores[config.order][layer])[:wanted])
    if len(layers) == wanted:
        return tuple(layers), []
    nearest = min(scores["js_matched"][layer] for layer in allowed)
    return tuple(layers), [
        f"{len(layers)} of the {wanted} layers asked for: the others differ from the layer before them by "
        f"config.selection.max_js={config.max_js:g} nats or more after matching (the least is {nearest:.3g}); raise "
        "it, or take the rule deepest"
    ]


def predicted_sizes(model: Any, layers: Sequence[int], config: Config) -> dict[str, float]:
    """Cache and weights read per decoded token when these layers share, as shares of what the model has now."""
    section = LisaSection(tuple(layers), rank=config.rank, delta_kv_heads=config.delta_kv_heads,
                          delta_rope=config.rank % 2 == 0)  # fmt: skip
    now, then = model.config, dataclasses.replace(model.config, lisa=section)
    cache = [
        sum(h * e for kind in arch.layer_kinds() for h, e in block.cached(arch, kind).values()) for arch in (now, then)
    ]
    read = [spec.count(model.module.specs(arch)) for arch in (now, then)]
    if not now.tie_word_embeddings:  # a table that is only looked up in
        read = [size - now.vocab_size * now.hidden_size for size in read]
    return {"kv_ratio": cache[1] / cache[0], "weight_ratio": read[1] / read[0]}
