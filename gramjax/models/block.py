"""The decoder block of the Llama line: attention and gated MLP, each behind an RMSNorm, driven by the config.

Shape letters: B batch, T length, S key length, D embed, H heads, K kv heads, E head width, F mlp.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from gramjax.core.sharding import Constrain
from gramjax.core.spec import Spec
from gramjax.models import lora, rotary
from gramjax.models.attention import attention
from gramjax.models.stack import Rows, as_rows, rows_product

INPUT_AXES = {"attn/q": 1, "attn/k": 1, "attn/v": 1, "attn/o": 2, "mlp/gate": 1, "mlp/up": 1, "mlp/down": 1}
"""The projections of a layer, and how many of their first axes are inputs."""

LayerCache = dict[str, jax.Array]
"""Keys and values of one layer, `k` and `v` [B, S, K, E]."""


@struct.dataclass
class Context:
    """What every layer of a pass shares."""

    cos_BTE: jax.Array
    sin_BTE: jax.Array
    segments_BT: jax.Array
    key_segments_BS: jax.Array
    offset_B: jax.Array | None
    """Cache slots filled in each row before this pass; None without a cache."""


def specs(config: Any) -> dict[str, Any]:
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
) -> jax.Array:
    """Contract the last `contracted` axes of x with the first ones of the weight; a `low_rank` pair adds its product.

    Both operands are made two-dimensional: the product and its two gradients then contract one axis each, which is
    what every backend has a fast kernel for. The result is named for remat policies (`stack.REMAT`).
    """
    if isinstance(weight, Rows):
        rows_of_x = x.reshape(-1, weight.matrix.shape[1])
        out = rows_product(rows_of_x, weight.matrix).astype(x.dtype)
        out = out if low_rank is None else out + lora.product(rows_of_x, low_rank, factor)
        return out.reshape(*x.shape[: x.ndim - contracted], *weight.outer)
    lead, inner = x.shape[: x.ndim - contracted], weight.shape[:contracted]
    rows, width = 1, 1
    for size in lead:
        rows *= size
    for size in inner:
        width *= size
    rows_of_x = x.reshape(rows, width)
    out = rows_of_x @ weight.reshape(width, -1)
    out = out if low_rank is None else out + lora.product(rows_of_x, low_rank, factor)
    return checkpoint_name(out, name).reshape(*lead, *weight.shape[contracted:])


def forward(
    weights: Any,
    config: Any,
    x_BTD: jax.Array,
    context: Context,
    cache: LayerCache | None,
    kind: str,
    implementation: str,
    constrain: Constrain,
) -> tuple[jax.Array, LayerCache | None]:
    """One layer: hidden states in and out [B, T, D], and the cache with the keys and values of this pass added."""
    attn, mlp = weights["attn"], weights["mlp"]
    factor = lora.scale(config.lora) if config.lora.rank else 1.0

    def linear(x: jax.Array, part: Any, name: str, contracted: int = 1, saved_as: str = "projection") -> jax.Array:
        return project(x, part[name], contracted, saved_as, part.get(name + lora.SUFFIX), factor)

    h = rms_norm(x_BTD, weights["attn_norm"], config.norm_eps)
    q_BTHE, k_BTKE, v_BTKE = linear(h, attn, "q"), linear(h, attn, "k"), linear(h, attn, "v")
    if config.attention_bias:
        q_BTHE, k_BTKE, v_BTKE = q_BTHE + attn["q_bias"], k_BTKE + attn["k_bias"], v_BTKE + attn["v_bias"]
    if config.qk_norm:
        q_BTHE = rms_norm(q_BTHE, attn["q_norm"], config.norm_eps)
        k_BTKE = rms_norm(k_BTKE, attn["k_norm"], config.norm_eps)
    q_BTHE = rotary.rotate(q_BTHE, context.cos_BTE, context.sin_BTE)
    k_BTKE = rotary.rotate(k_BTKE, context.cos_BTE, context.sin_BTE)
    q_BTHE = constrain(q_BTHE, "batch", "length", "heads", "head_dim")
    k_BTKE = constrain(k_BTKE, "batch", "length", "kv_heads", "head_dim")
    v_BTKE = constrain(v_BTKE, "batch", "length", "kv_heads", "head_dim")
    keys, values = k_BTKE, v_BTKE
    if cache is not None and context.offset_B is not None:
        new = {"k": k_BTKE, "v": v_BTKE}
        axes = ("batch", "length", "kv_heads", "head_dim")
        cache = {name: constrain(write(cache[name], new[name], context.offset_B), *axes) for name in new}
        keys, values = cache["k"].astype(k_BTKE.dtype), cache["v"].astype(v_BTKE.dtype)
    window = config.sliding_window if kind == "window" else 0
    mixed_BTHE = attention(
        q_BTHE, keys, values, context.segments_BT, context.key_segments_BS, context.offset_B, window, implementation
    )
    x_BTD = constrain(x_BTD + linear(mixed_BTHE, attn, "o", 2, "residual"), "batch", "length", "act_embed")

    h = rms_norm(x_BTD, weights["mlp_norm"], config.norm_eps)
    inner_BTF = jax.nn.silu(linear(h, mlp, "gate")) * linear(h, mlp, "up")
    inner_BTF = constrain(inner_BTF, "batch", "length", "mlp")
    return constrain(x_BTD + linear(inner_BTF, mlp, "down", 1, "residual"), "batch", "length", "act_embed"), cache


def write(cache_BSKE: jax.Array, new_BTKE: jax.Array, offset_B: jax.Array) -> jax.Array:
    """Put the new keys or values of each row at its offset."""
    new_BTKE = new_BTKE.astype(cache_BSKE.dtype)
    return jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0))(
        cache_BSKE, new_BTKE, offset_B
    )
