"""Attention shared across layers (LiSA, arXiv 2408.01890): a light substitute for the attention of a layer.

A shared layer has no query and key projections of its own. It takes the scores of the layer before it, maps its heads
onto its own through a small network on the head axis (alignment), and adds the scores of a low-rank query and key
(difference). Its values, output projection and MLP stay. What the published text leaves open is a setting here; the
baselines of the paper (direct sharing, alignment only, difference only) are settings too, and so is CLA (arXiv
2405.12981), which shares keys and values instead of scores.

Shape letters: B batch, T query length, S key length, D embed, H heads, K heads of the low-rank keys, M align, R rank.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.errors import UserError
from gramjax.core.spec import Spec
from gramjax.models.attention import masked

ALIGN = ("ffn", "linear", "none", "off")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "linear": lambda x: x,
}  # fmt: skip

NEW = r"layers/\d+/attn/(align_(in|out)(_bias)?|[qk]_low)"
"""Pattern of the parameters that only layers with shared scores have: what LiSA trains."""

SOURCE, SHARED = "+source", "+shared"
"""Endings of block kinds: a layer whose scores (or keys and values) the next one shares, and a layer that shares."""


@dataclasses.dataclass(frozen=True)
class LisaSection:
    """Layers that share the attention of the layer before them, and how."""

    layers: tuple[int, ...] = ()
    """Which layers share, in ascending order; never layer 0. Empty: none."""
    shares: str = "scores"
    """`scores`, or `keys` (CLA: keys and values of the layer before, queries of its own)."""
    align: str = "ffn"
    """What becomes of the shared scores: `ffn` (two maps of the head axis), `linear` (one), `none` (used as they are)
    or `off` (not used: the low-rank pair alone)."""
    align_hidden: int = 0
    """Width of the `ffn`; 0: twice the heads, the least that can hold every linear map of the heads."""
    align_act: str = "relu"
    """`relu`, `gelu`, `silu` or `linear`."""
    align_bias: bool = False
    align_residual: bool = False
    """Add the shared scores to what the alignment makes of them."""
    rank: int = 20
    """Width per head of the low-rank query and key; 0: none."""
    delta_kv_heads: str = "query"
    """Heads of the low-rank keys: as many as `query` heads, or as the model has `kv` heads."""
    delta_rope: bool = True
    """Rotate the low-rank queries and keys by their positions."""
    delta_scale: str = "rank"
    """Their scores are divided by the root of the `rank`, or of the width of a `head`."""
    share_point: str = "pre"
    """Share scores before the softmax (`pre`) or attention weights (`post`: mixed, clipped at 0, normalised again)."""
    source: str = "chain"
    """Whose scores a layer shares: of the layer before it (`chain`), or of the last one with its own (`anchor`)."""


OF_NETWORK, OF_PAIR = ("align_hidden", "align_act", "align_bias"), ("delta_kv_heads", "delta_rope", "delta_scale")


def idle(section: LisaSection) -> str:
    """What is set although another setting leaves nothing for it to do, with that setting; empty: nothing is."""
    default, names = LisaSection(), [field.name for field in dataclasses.fields(section)]
    everything = [name for name in names if name not in ("layers", "shares")]
    for holds, reason, without in (
        (not section.layers, "no layers", ["shares", *everything]),
        (section.shares == "keys", "shares='keys'", everything),
        (section.align != "ffn", f"align={section.align!r}", OF_NETWORK),
        (section.align in ("none", "off"), f"align={section.align!r}", ["align_residual"]),
        (section.align == "off", "align='off'", ["source"]),
        (not section.rank, "rank=0", OF_PAIR),
    ):
        for name in without if holds else ():
            if (value := getattr(section, name)) != getattr(default, name):
                return f"{name}={value!r} does nothing with {reason}"
    return ""


def check(section: LisaSection, num_layers: int, head_dim: int) -> None:
    """Raise UserError for layers or settings that cannot be, or do nothing."""
    where, layers = "config.model.arch.lisa", section.layers
    if list(layers) != sorted(set(layers)):
        raise UserError(f"{where}.layers {layers} must ascend, each layer once")
    if layers and not (0 < layers[0] and layers[-1] < num_layers):
        raise UserError(
            f"{where}.layers {layers}: layers 1 to {num_layers - 1} can share (layer 0 has no layer before it)"
        )
    for name, known in (
        ("shares", ("scores", "keys")), ("align", ALIGN), ("align_act", tuple(ACTIVATIONS)),
        ("delta_kv_heads", ("query", "kv")), ("delta_scale", ("rank", "head")), ("share_point", ("pre", "post")),
        ("source", ("chain", "anchor")),
    ):  # fmt: skip
        if getattr(section, name) not in known:
            raise UserError(f"{where}.{name}={getattr(section, name)!r} is not one of {', '.join(known)}")
    if section.rank < 0 or section.align_hidden < 0:
        raise UserError(f"{where}: rank {section.rank} and align_hidden {section.align_hidden} must be 0 or more")
    if layers and section.shares == "scores" and section.align == "off" and not section.rank:
        raise UserError(f"{where}: with align='off' and rank=0 a layer would have no attention at all")
    if found := idle(section):
        raise UserError(f"{where}.{found}: leave it out, or change the other")
    if section.rank % 2 and section.delta_rope:
        raise UserError(f"{where}.rank={section.rank} must be even to be rotated (or set delta_rope=False)")


def kinds(section: LisaSection, attention: tuple[str, ...]) -> tuple[str, ...]:
    """Block kinds of the layers, given the kind of attention that each has (`full`, `window`)."""
    shared = set(section.layers)

    def ending(layer: int) -> str:
        return SHARED if layer in shared else SOURCE if layer + 1 in shared else ""

    return tuple(kind + ending(i) for i, kind in enumerate(attention))


def key_heads(config: Any) -> int:
    """Heads of the low-rank keys of a model config."""
    return config.num_heads if config.lisa.delta_kv_heads == "query" else config.num_kv_heads


def specs(config: Any) -> dict[str, Spec]:
    """What a shared layer has in place of its query and key projections (sharing keys, it keeps the queries)."""
    section, D, H, R = config.lisa, config.hidden_size, config.num_heads, config.lisa.rank
    M = hidden_width(config)
    out: dict[str, Spec] = {}
    if section.shares == "keys":
        return out
    if section.align == "linear":
        out["align_in"] = Spec((H, H), ("heads", None), scale=H**-0.5)
    if section.align == "ffn":
        out["align_in"] = Spec((H, M), ("heads", None), scale=H**-0.5)
        out["align_out"] = Spec((M, H), (None, "heads"), scale=M**-0.5)
        if section.align_bias:
            out["align_in_bias"] = Spec((M,), (None,), "zeros")
            out["align_out_bias"] = Spec((H,), ("heads",), "zeros")
    if R:
        K, axis = key_heads(config), "heads" if section.delta_kv_heads == "query" else "kv_heads"
        out["q_low"] = Spec((D, H, R), ("embed", "heads", "rank"), scale=D**-0.5)
        out["k_low"] = Spec((D, K, R), ("embed", axis, "rank"), "zeros")
    return out


def hidden_width(config: Any) -> int:
    """Width of the alignment network."""
    return config.lisa.align_hidden or 2 * config.num_heads


def cached(config: Any) -> dict[str, tuple[int, int]]:
    """What a shared layer keeps of past tokens: heads and width by name."""
    if config.lisa.shares == "keys":
        return {}
    low = {"k": (key_heads(config), config.lisa.rank)} if config.lisa.rank else {}
    return low | {"v": (config.num_kv_heads, config.head_dim)}


def delta_factor(config: Any) -> float:
    """What the low-rank scores are multiplied with."""
    return (config.lisa.rank if config.lisa.delta_scale == "rank" else config.head_dim) ** -0.5


def align(attn: Mapping[str, jax.Array], shared_BHTS: jax.Array, section: LisaSection) -> jax.Array:
    """Shared scores with the heads of this layer, float32 [B, H, T, S]: the network runs over the axis of heads."""
    if section.align == "none":
        return shared_BHTS.astype(jnp.float32)
    into = attn["align_in"].astype(shared_BHTS.dtype)
    hidden = jnp.einsum("BHTS,HM->BMTS", shared_BHTS, into, preferred_element_type=jnp.float32)
    if section.align == "ffn":
        if section.align_bias:
            hidden = hidden + attn["align_in_bias"][:, None, None]
        hidden = ACTIVATIONS[section.align_act](hidden).astype(shared_BHTS.dtype)
        out_of = attn["align_out"].astype(shared_BHTS.dtype)
        hidden = jnp.einsum("BMTS,MH->BHTS", hidden, out_of, preferred_element_type=jnp.float32)
        if section.align_bias:
            hidden = hidden + attn["align_out_bias"][:, None, None]
    return hidden + shared_BHTS if section.align_residual else hidden


def combine(
    attn: Mapping[str, jax.Array],
    shared_BHTS: jax.Array,
    delta_BHTS: jax.Array | None,
    visible_BTS: jax.Array,
    section: LisaSection,
) -> tuple[jax.Array, jax.Array]:
    """What a shared layer hands on (scores, or attention weights with `post`) and its attention weights, float32.

    Scores are handed on unmasked: the alignment would make something of what a mask puts in their place.
    """
    mixed = jnp.zeros((), jnp.float32) if section.align == "off" else align(attn, shared_BHTS, section)
    mixed = mixed if delta_BHTS is None else mixed + delta_BHTS
    mixed = jnp.broadcast_to(mixed, shared_BHTS.shape)
    if section.share_point == "pre":
        return mixed, jax.nn.softmax(masked(mixed, visible_BTS), axis=-1)
    weights = jnp.where(visible_BTS[:, None], jax.nn.relu(mixed), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    count = jnp.maximum(jnp.sum(visible_BTS, axis=-1), 1)[:, None, :, None]
    # A row that the clipping left with nothing looks at all that it sees alike.
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), visible_BTS[:, None] / count)
    return weights, weights


def head_map(section: LisaSection, mixing_HH: jax.Array, hidden: int, key: jax.Array) -> dict[str, jax.Array]:
    """The leaves of the alignment that computes `mixing @ scores` over the heads, exactly.

    Every activation here satisfies a(x) - a(-x) = x (twice that for `linear`), so that two units a head hold a linear
    map; more units start at random and unread. Raises UserError when the network is too narrow.
    """
    H = mixing_HH.shape[0]
    if section.align_residual:
        mixing_HH = mixing_HH - jnp.eye(H)
    if section.align in ("none", "off"):
        return {}
    if section.align == "linear":
        return {"align_in": mixing_HH.T}
    if hidden < 2 * H:
        raise UserError(f"align_hidden {hidden} cannot hold a linear map of {H} heads: it takes {2 * H}")
    one, half = jnp.eye(H), 0.5 if section.align_act == "linear" else 1.0
    spare = jax.random.normal(key, (H, hidden - 2 * H)) * H**-0.5
    out = {
        "align_in": jnp.concatenate([one, -one, spare], axis=1),
        "align_out": jnp.concatenate([half * mixing_HH.T, -half * mixing_HH.T, jnp.zeros_like(spare.T)]),
    }
    if section.align_bias:
        out |= {"align_in_bias": jnp.zeros((hidden,)), "align_out_bias": jnp.zeros((H,))}
    return out


def convert(
    params: Mapping[str, Any],
    config: Any,
    section: LisaSection,
    key: jax.Array,
    init: str = "share",
    mixing: Mapping[int, jax.Array] | None = None,
    low_rank: Mapping[int, tuple[jax.Array, jax.Array]] | None = None,
) -> tuple[dict[str, Any], Any]:
    """Parameters at rest and config of a plain decoder with the layers of `section` sharing attention.

    Their query and key projections (keys and values, when those are shared) are gone. `init`:

    - `share`: the shared scores are used as they are, the difference is 0 and starts to learn at its keys.
    - `calibrated`: `mixing[layer]` [H, H] maps the shared heads, `low_rank[layer]` are the low-rank query and key
      projections [D, H, R] and [D, K, R] (a layer without: as `share`).
    - `copy`: nothing shared, the projections of the layer as its low-rank pair (rank = head_dim): the same model.

    Raises UserError for a model that shares already, and for `copy` where it cannot be exact.
    """
    if config.lisa.layers:
        raise UserError(f"layers {config.lisa.layers} of this model share attention already: convert the original")
    new = dataclasses.replace(config, lisa=section)
    check(section, config.num_layers, config.head_dim)
    if init not in ("share", "calibrated", "copy"):
        raise UserError(f"init {init!r} is not one of share, calibrated, copy")
    if init == "copy" and (
        config.attention_bias or config.qk_norm or section.rank != config.head_dim or section.shares != "scores"
        or section.share_point != "pre" or section.align == "none" or section.align_residual
        or not section.delta_rope
    ):  # fmt: skip
        raise UserError(
            f"init copy needs rank={config.head_dim} (the width of a head), an alignment that can be 0 (no residual), "
            "rotation, scores shared before the softmax, and a model without biases and norms of queries and keys"
        )
    layers = dict(params["layers"])
    for layer in section.layers:
        name, own = f"{layer:03d}", jax.random.fold_in(key, layer)
        old = layers[name]["attn"]
        gone = ("k", "v") if section.shares == "keys" else ("q", "k")
        attn = {leaf: x for leaf, x in old.items() if leaf.partition("_")[0] not in gone}
        dtype = old["o"].dtype
        fresh: dict[str, jax.Array] = {}
        if section.shares == "scores":
            identity = jnp.eye(config.num_heads)
            mix = 0 * identity if init == "copy" else (mixing or {}).get(layer, identity)
            fresh = head_map(section, mix, hidden_width(new), own)
            if section.rank:
                fresh |= _low_rank(old, new, own, init, (low_rank or {}).get(layer))
        layers[name] = {**layers[name], "attn": attn | {leaf: x.astype(dtype) for leaf, x in fresh.items()}}
    return {**params, "layers": layers}, new


def _low_rank(
    old: Mapping[str, jax.Array], config: Any, key: jax.Array, init: str, given: tuple[jax.Array, jax.Array] | None
) -> dict[str, jax.Array]:
    K = key_heads(config)
    if init == "copy":
        repeats = K // config.num_kv_heads
        return {"q_low": old["q"], "k_low": jnp.repeat(old["k"], repeats, axis=1)}
    if given is not None:
        return {"q_low": given[0], "k_low": given[1]}
    D, H, R = config.hidden_size, config.num_heads, config.lisa.rank
    return {"q_low": jax.random.normal(key, (D, H, R)) * D**-0.5, "k_low": jnp.zeros((D, K, R))}


def truncated(params: Mapping[str, Any], layers: tuple[int, ...], rank: int) -> dict[str, Any]:
    """The parameters with the query and key projections of some layers cut to their best rank, head by head.

    The baseline of low-rank attention: the model stays a plain decoder.
    """
    out = dict(params["layers"])
    for layer in layers:
        attn = dict(out[f"{layer:03d}"]["attn"])
        for leaf in ("q", "k"):
            weight_HDE = attn[leaf].astype(jnp.float32).transpose(1, 0, 2)
            u, s, v = jnp.linalg.svd(weight_HDE, full_matrices=False)
            cut = jnp.einsum("HDR,HR,HRE->DHE", u[:, :, :rank], s[:, :rank], v[:, :rank])
            attn[leaf] = cut.astype(attn[leaf].dtype)
        out[f"{layer:03d}"] = {**out[f"{layer:03d}"], "attn": attn}
    return {**params, "layers": out}
