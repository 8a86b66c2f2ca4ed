"""The decoder block of the Llama line: attention and gated MLP, each behind an RMSNorm, driven by the config.

Shape letters: B batch, T length, S key length, D embed, H heads, K kv heads, E head width, F mlp.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from gramjax.core.sharding import Constrain
from gramjax.core.spec import Spec
from gramjax.models import lisa, lora, rotary
from gramjax.models.attention import attention, masked, raw_scores, visible, weighted
from gramjax.models.stack import Observer, Rows, Seen, as_rows, rows_product

INPUT_AXES = {"attn/q": 1, "attn/k": 1, "attn/v": 1, "attn/o": 2, "mlp/gate": 1, "mlp/up": 1, "mlp/down": 1,
              "attn/q_low": 1, "attn/k_low": 1}  # fmt: skip
"""The projections of a layer, and how many of their first axes are inputs."""

LayerCache = dict[str, jax.Array]
"""Keys and values of one layer, `k` and `v` [B, S, K, E]; one that shares attention keeps what `lisa.cached` says."""


@struct.dataclass
class Context:
    """What every layer of a pass shares."""

    cos_BTE: jax.Array
    sin_BTE: jax.Array
    segments_BT: jax.Array
    key_segments_BS: jax.Array
    offset_B: jax.Array | None
    """Cache slots filled in each row before this pass; None without a cache."""
    low_cos_BTE: jax.Array | None = None
    low_sin_BTE: jax.Array | None = None
    """Of low-rank queries and keys (`lisa`), where there are any."""
    shared: bool = struct.field(default=False, pytree_node=False)
    """Whether segments have a beginning in common (`attention.SHARED`)."""


@struct.dataclass
class Carry:
    """What goes from layer to layer."""

    x_BTD: jax.Array
    shared: Any = None
    """What the next layer shares: scores [B, H, T, S], or keys and values; None where it does not."""
    memory: Any = ()
    """Of an observer."""


def enter(carry: Carry, kind: str) -> Carry:
    """What a run of this kind takes: nothing to share, unless its layers do."""
    return carry if kind.endswith(lisa.SHARED) else dataclasses.replace(carry, shared=None)


def cached(config: Any, kind: str) -> dict[str, tuple[int, int]]:
    """What a layer keeps of past tokens: heads and width by name."""
    if kind.endswith(lisa.SHARED):
        return lisa.cached(config)
    return dict.fromkeys(("k", "v"), (config.num_kv_heads, config.head_dim))


def specs(config: Any, kind: str = "full") -> dict[str, Any]:
    """Parameters of one layer. Heads are split in the stored weights: q is [embed, heads, head_dim]."""
    D, H, K, E, F = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
    scale = config.init_scale
    attn = {
        "q": Spec((D, H, E), ("embed", "heads", "head_dim"), scale=scale),
        "k": Spec((D, K, E), ("embed", "kv_heads", "head_dim"), scale=scale),
        "v": Spec((D, K, E), ("embed", "kv_heads", "head_dim"), scale=scale),
        "o": Spec((H, E, D), ("heads", "head_dim", "embed"), scale=scale),
    }
    if config.attention_bias:
        attn["q_bias"] = Spec((H, E), ("heads", "head_dim"), "zeros")
        attn["k_bias"] = Spec((K, E), ("kv_heads", "head_dim"), "zeros")
        attn["v_bias"] = Spec((K, E), ("kv_heads", "head_dim"), "zeros")
    if config.qk_norm:
        attn["q_norm"] = Spec((E,), ("head_dim",), "ones")
        attn["k_norm"] = Spec((E,), ("head_dim",), "ones")
    if kind.endswith(lisa.SHARED):
        gone = ("k", "v") if config.lisa.shares == "keys" else ("q", "k")
        attn = {name: leaf for name, leaf in attn.items() if name.partition("_")[0] not in gone}
        attn |= lisa.specs(config)
    return {
        "attn_norm": Spec((D,), ("embed",), "ones"),
        "attn": attn,
        "mlp_norm": Spec((D,), ("embed",), "ones"),
        "mlp": {
            "gate": Spec((D, F), ("embed", "mlp"), scale=scale),
            "up": Spec((D, F), ("embed", "mlp"), scale=scale),
            "down": Spec((F, D), ("mlp", "embed"), scale=scale),
        },
    }


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis; statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def for_decoding(layer: Any) -> Any:
    """The weights of a layer with every projection as rows (`stack.Rows`)."""

    def part(of: str) -> dict[str, Any]:
        axes = {name: INPUT_AXES.get(f"{of}/{name}", 0) for name in layer[of]}
        return {name: as_rows(w, axes[name]) if axes[name] else w for name, w in layer[of].items()}

    return {**layer, "attn": part("attn"), "mlp": part("mlp")}


def project(
    x: jax.Array,
    weight: jax.Array | Rows,
    contracted: int = 1,
    name: str = "projection",
    low_rank: lora.Pair | None = None,
    factor: float = 1.0,
    flat: bool = True,
    rate: float = 0.0,
) -> jax.Array:
    """Contract the last `contracted` axes of x with the first ones of the weight; a `low_rank` pair adds its product.

    Both operands are made two-dimensional: the product and its two gradients then contract one axis each, which is
    what every backend has a fast kernel for. Not so (`flat=False`) where rows and length of x are both spread over
    devices: the two as one axis could not be. The result is named for remat policies (`stack.REMAT`).
    """
    if isinstance(weight, Rows):
        rows_of_x = x.reshape(-1, weight.matrix.shape[1])
        out = rows_product(rows_of_x, weight.matrix).astype(x.dtype)
        out = out if low_rank is None else out + lora.product(rows_of_x, low_rank, factor)
        return out.reshape(*x.shape[: x.ndim - contracted], *weight.outer)
    lead, inner = x.shape[: x.ndim - contracted], weight.shape[:contracted]
    width = math.prod(inner)
    rows_of_x = x.reshape(*((math.prod(lead),) if flat else lead), width)
    out = rows_of_x @ weight.reshape(width, -1)
    out = out if low_rank is None else out + lora.product(rows_of_x, low_rank, factor, rate)
    return checkpoint_name(out, name).reshape(*lead, *weight.shape[contracted:])


def forward(
    weights: Any,
    config: Any,
    carry: Carry,
    context: Context,
    cache: LayerCache | None,
    kind: str,
    implementation: str,
    constrain: Constrain,
    observer: Observer | None = None,
    mesh: Mesh | None = None,
) -> tuple[Carry, tuple[LayerCache | None, Any]]:
    """One layer: the carry with new hidden states, and the cache with the keys and values of this pass added.

    With an observer, what it keeps of the layer stands beside the cache.
    """
    attn, mlp, x_BTD = weights["attn"], weights["mlp"], carry.x_BTD
    linear = _linear(config, context.offset_B is not None or mesh is None or mesh.shape["context"] == 1)
    h = rms_norm(x_BTD, weights["attn_norm"], config.norm_eps)
    q_BTHE, keys, values, cache = _projections(attn, config, linear, h, context, carry.shared, cache, kind, constrain)
    attention_kind, _, ending = kind.partition("+")
    window = config.sliding_window if attention_kind == "window" else 0
    if observer is not None or (ending and config.lisa.shares == "scores"):
        mask_BTS = visible(context.segments_BT, context.key_segments_BS, context.offset_B, window)
    shared, scores_BHTS = None, None
    if kind.endswith(lisa.SHARED) and config.lisa.shares == "scores":
        delta = None if q_BTHE is None else raw_scores(q_BTHE, keys, lisa.delta_factor(config))
        scores_BHTS, weights_BHTS = lisa.combine(attn, carry.shared, delta, mask_BTS, config.lisa)
        shared = carry.shared if config.lisa.source == "anchor" else scores_BHTS.astype(x_BTD.dtype)
        mixed_BTHE = weighted(weights_BHTS, values)
    elif kind.endswith(lisa.SOURCE) and config.lisa.shares == "scores":
        scores_BHTS = raw_scores(q_BTHE, keys)
        weights_BHTS = jax.nn.softmax(masked(scores_BHTS, mask_BTS), axis=-1)
        handed_on = scores_BHTS if config.lisa.share_point == "pre" else weights_BHTS
        shared = constrain(handed_on.astype(x_BTD.dtype), "batch", "heads", "length", None)
        mixed_BTHE = weighted(weights_BHTS, values)
    else:
        shared = (keys, values) if ending else None
        mixed_BTHE = attention(
            q_BTHE, keys, values, context.segments_BT, context.key_segments_BS, context.offset_B, window,
            implementation, mesh, context.shared,
        )  # fmt: skip
    x_BTD = constrain(x_BTD + linear(mixed_BTHE, attn, "o", 2, "residual"), "batch", "length", "act_embed")

    seen_BTD = h
    h = rms_norm(x_BTD, weights["mlp_norm"], config.norm_eps)
    gate_BTF = linear(h, mlp, "gate")
    inner_BTF = jax.nn.silu(gate_BTF) * linear(h, mlp, "up")
    inner_BTF = constrain(inner_BTF, "batch", "length", "mlp")
    x_BTD = constrain(x_BTD + linear(inner_BTF, mlp, "down", 1, "residual"), "batch", "length", "act_embed")
    memory, kept = carry.memory, None
    if observer is not None:
        if scores_BHTS is None:
            scores_BHTS = raw_scores(q_BTHE, keys)
        elif config.lisa.share_point == "post" and kind.endswith(lisa.SHARED):
            scores_BHTS = jnp.log(jnp.maximum(scores_BHTS, 1e-30))  # scores whose softmax are the weights
        memory, kept = observer.see(Seen(seen_BTD, scores_BHTS, mask_BTS, gate_BTF, inner_BTF), memory)
    return Carry(x_BTD, shared, memory), (cache, kept)


def _linear(config: Any, flat: bool) -> Any:
    factor = lora.scale(config.lora) if config.lora.rank else 1.0

    def linear(x: jax.Array, part: Any, name: str, contracted: int = 1, saved_as: str = "projection") -> jax.Array:
        pair = part.get(name + lora.SUFFIX)
        return project(x, part[name], contracted, saved_as, pair, factor, flat, config.lora.dropout)

    return linear


def _projections(
    attn: Any,
    config: Any,
    linear: Any,
    h_BTD: jax.Array,
    context: Context,
    shared: Any,
    cache: LayerCache | None,
    kind: str,
    constrain: Constrain,
) -> tuple[Any, Any, jax.Array, LayerCache | None]:
    """Queries, keys and values (those of past tokens with them where there is a cache), and the cache.

    Those of a layer that shares scores are low-rank queries and keys, or None.
    """
    low = kind.endswith(lisa.SHARED) and config.lisa.shares == "scores"
    cos: jax.Array | None = context.cos_BTE
    sin: jax.Array | None = context.sin_BTE
    if low:
        names = {"q": "q_low", "k": "k_low", "v": "v"} if config.lisa.rank else {"v": "v"}
        cos, sin = context.low_cos_BTE, context.low_sin_BTE
    elif kind.endswith(lisa.SHARED):
        names = {"q": "q"}
    else:
        names = {"q": "q", "k": "k", "v": "v"}
    new: dict[str, jax.Array] = {}
    for name, leaf in names.items():
        x_BTHE = linear(h_BTD, attn, leaf)
        if config.attention_bias and leaf == name:
            x_BTHE = x_BTHE + attn[f"{name}_bias"]
        if config.qk_norm and leaf == name != "v":
            x_BTHE = rms_norm(x_BTHE, attn[f"{name}_norm"], config.norm_eps)
        if name != "v" and cos is not None and sin is not None:
            x_BTHE = rotary.rotate(x_BTHE, cos, sin)
        heads = "heads" if name == "q" or (leaf == "k_low" and config.lisa.delta_kv_heads == "query") else "kv_heads"
        new[name] = constrain(x_BTHE, "batch", "length", heads, "head_dim")
    q_BTHE = new.pop("q", None)
    if not low and "k" not in new:
        return q_BTHE, *shared, cache
    if cache is not None and context.offset_B is not None:
        axes = ("batch", "length", "kv_heads", "head_dim")
        filled = {name: constrain(write(cache[name], x, context.offset_B), *axes) for name, x in new.items()}
        new, cache = {name: x.astype(new[name].dtype) for name, x in filled.items()}, filled
    return q_BTHE, new.get("k"), new["v"], cache


def write(cache_BSKE: jax.Array, new_BTKE: jax.Array, offset_B: jax.Array) -> jax.Array:
    """Put the new keys or values of each row at its offset."""
    new_BTKE = new_BTKE.astype(cache_BSKE.dtype)
    return jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0))(
        cache_BSKE, new_BTKE, offset_B
    )
