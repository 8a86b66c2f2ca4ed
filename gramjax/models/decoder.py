"""Decoder-only language models: Llama 2 and 3, Qwen2/2.5, Qwen3, Mistral, driven by one config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from gramjax.core import runtime
from gramjax.core.config import ELSEWHERE, LoraSection
from gramjax.core.errors import UserError
from gramjax.core.sharding import Constrain, constrainer
from gramjax.core.spec import Spec
from gramjax.models import block, lisa, lora, rotary, stack, vocabulary
from gramjax.models.heads import POOLS
from gramjax.models.lisa import LisaSection

LARGEST_SIZE = 2**31
"""Sizes are below it: places in arrays are 32-bit numbers."""
MOST_LAYERS = 4096
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
HEADS = ("tokens", "score", "value", "preference", "margin")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches of a decoder. Names follow Hugging Face where they mean the same."""

    family: str = "llama"
    """`llama`, `qwen2`, `qwen3` or `mistral`: the Hugging Face model type it is exported as."""
    vocab_size: int = 0
    """Rows of the embedding; 0: as many as the tokenizer has."""
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    """Biases on the q, k and v projections (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head (Qwen3)."""
    sliding_window: int = 0
    """Keys a query sees, itself included; 0: all before it."""
    full_layers: tuple[int, ...] = ()
    """Layers that ignore `sliding_window`."""
    rope_theta: float = 10000.0
    rope_scaling: rotary.Scaling = rotary.Scaling()
    heads: tuple[str, ...] = ("tokens",)
    """Which of `tokens` (vocabulary), `score` (scalar reward), `value` (a value per token), `preference` (learned token
    and order of two responses) and `margin` (of a preference representation) exist."""
    preference_width: int = 0
    """Width that preference representations are projected to; 0: that of the hidden states, no projection."""
    preference_pool: str = "token"
    """What preference representations are made of: the hidden state at the learned `token`, the last one, or the mean
    over the tokens of both responses (`mean_responses`)."""
    score_hidden: int = 0
    """Width of a hidden layer (ReLU) in the reward head, as GRM published it with 1024; 0: the head is linear."""
    init_scale: float = 0.02
    lisa: LisaSection = LisaSection()
    lora: LoraSection = dataclasses.field(default=LoraSection(), metadata=ELSEWHERE)
    """Adapters (`config.lora`); the checkpoints of a run carry them with the architecture."""

    def layer_kinds(self) -> tuple[str, ...]:
        """The block kind of every layer: `full` or `window` attention, and what it shares (`lisa.kinds`)."""
        window = "window" if self.sliding_window else "full"
        attention = tuple("full" if i in self.full_layers else window for i in range(self.num_layers))
        return lisa.kinds(self.lisa, attention)


def check(config: Config) -> None:
    """Raise UserError for sizes that contradict each other."""
    if config.family not in FAMILIES:
        raise UserError(f"model family {config.family!r} is not one of {', '.join(FAMILIES)}")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                 "head_dim", "max_position_embeddings", "norm_eps", "rope_theta"):  # fmt: skip
        if not 0 < getattr(config, name) < LARGEST_SIZE:
            raise UserError(f"{name} is {getattr(config, name)}; it must be positive, and below {LARGEST_SIZE}")
    if config.num_layers > MOST_LAYERS:
        raise UserError(f"num_layers is {config.num_layers}; at most {MOST_LAYERS}")
    if config.num_heads % config.num_kv_heads:
        raise UserError(f"num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}")
    if config.head_dim % 2:
        raise UserError(f"head_dim {config.head_dim} must be even for rotary embeddings")
    if config.sliding_window < 0:
        raise UserError(f"sliding_window is {config.sliding_window}; a window has 0 tokens or more (0: none)")
    for name in ("preference_width", "score_hidden"):
        if not 0 <= getattr(config, name) < LARGEST_SIZE:
            raise UserError(f"{name} is {getattr(config, name)}; it must be 0 or more, and below {LARGEST_SIZE}")
    if config.preference_pool not in POOLS:
        raise UserError(f"preference_pool is {config.preference_pool!r}; use {' or '.join(POOLS)}")
    if "margin" in config.heads and "preference" not in config.heads:
        raise UserError("the head 'margin' reads preference representations: it needs the head 'preference'")
    lisa.check(config.lisa, config.num_layers, config.head_dim)
    unknown = set(config.heads) - set(HEADS)
    if unknown or not config.heads:
        raise UserError(f"heads {config.heads} must be among {', '.join(HEADS)}")


def specs(config: Config) -> dict[str, Any]:
    """The declaration of every parameter: `embed`, `layers/NNN/...`, `norm`, the heads, and adapters (`lora`)."""
    check(config)
    width, vocab = config.hidden_size, config.vocab_size
    out: dict[str, Any] = {
        "embed": Spec((vocab, width), ("vocab", "embed"), scale=config.init_scale),
        "layers": {f"{i:03d}": block.specs(config, kind) for i, kind in enumerate(config.layer_kinds())},
        "norm": Spec((width,), ("embed",), "ones"),
    }
    if "tokens" in config.heads and not config.tie_word_embeddings:
        out["lm_head"] = Spec((width, vocab), ("embed", "vocab"), scale=config.init_scale)
    if "score" in config.heads:
        inner = config.score_hidden
        if inner:
            out["score_hidden"] = {
                "weight": Spec((width, inner), ("embed", None), scale=1.0 / width**0.5),
                "bias": Spec((inner,), (None,), "zeros"),
            }
        axis = None if inner else "embed"
        out["score"] = Spec((inner or width, 1), (axis, None), scale=1.0 / ((inner or width) + 1) ** 0.5)
    if "value" in config.heads:
        out["value"] = {
            "weight": Spec((width, 1), ("embed", None), scale=1.0 / (width + 1) ** 0.5),
            "bias": Spec((1,), (None,), "zeros"),
        }
    if "preference" in config.heads:
        out["preference"] = preference_specs(config)
    if "margin" in config.heads:
        out["margin"] = margin_specs(config)
    return lora.declare(out, config.lora, block.INPUT_AXES)


def preference_specs(config: Config) -> dict[str, Spec]:
    """The vector that stands for the last token of a pair, what reads the order there, and the optional projection."""
    width, narrow = config.hidden_size, config.preference_width
    out = {
        "token": Spec((width,), ("embed",), scale=config.init_scale),
        "order": Spec((narrow or width, 1), (None if narrow else "embed", None), scale=((narrow or width) + 1) ** -0.5),
    }
    if narrow:
        out["projection"] = Spec((width, narrow), ("embed", None), scale=1.0 / width**0.5)
    return out


def margin_specs(config: Config) -> dict[str, Spec]:
    """Two layers from a preference representation to a number."""
    width = config.preference_width or config.hidden_size
    axis = None if config.preference_width else "embed"
    return {
        "hidden": Spec((width, width), (axis, None), scale=1.0 / width**0.5),
        "hidden_bias": Spec((width,), (None,), "zeros"),
        "out": Spec((width, 1), (None, None), scale=1.0 / (width + 1) ** 0.5),
        "bias": Spec((1,), (None,), "zeros"),
    }


@struct.dataclass
class Cache:
    """Keys and values of past tokens. Slots fill from the left, each row at its own pace."""

    layers: tuple[Any, ...]
    """Per run: what `block.cached` says, such as `k` and `v` [B, S, K, E], stacked like the weights of the run."""
    segment_ids: jax.Array
    """[B, S]; 0 in slots that are empty or hold padding."""
    lengths: jax.Array
    """[B] index of the slot that the next token of each row takes."""
    positions: jax.Array
    """[B] rotary position of the next token of each row."""


@struct.dataclass
class Output:
    """Hidden states after the final norm [batch, length, embed], and the cache when one was given."""

    hidden: jax.Array
    cache: Cache | None
    observed: Any = None
    """What an observer kept, stacked along a first axis of layers."""
    memory: Any = None
    """What it remembered at last."""


def init_cache(weights: Mapping[str, Any], config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache of `length` slots for weights in use (its layout follows their runs)."""
    runs = _packed(weights, config).runs

    def layer(run: stack.Run) -> block.LayerCache:
        lead = (run.stop - run.start,) if run.stacked else ()
        kept = block.cached(config, run.kind)
        return {name: jnp.zeros((*lead, batch, length, *size), dtype) for name, size in kept.items()}

    zeros = jnp.zeros((batch,), jnp.int32)
    return Cache(tuple(layer(run) for run in runs), jnp.zeros((batch, length), jnp.int32), zeros, zeros)


def for_decoding(weights: Mapping[str, Any], rows: bool | None = None) -> dict[str, Any]:
    """Packed weights (unscanned) in the layout that decodes fastest here; the values are the same.

    `rows` stores every matrix as rows per output; None: on Intel's processors only. Measured with 8 rows on two cores:
    there it is 1.3 times as fast as the layout of training, on AMD's it takes 1.25 times as long.
    """
    out, packed = dict(weights), weights["layers"]
    if rows is None:
        rows = jax.default_backend() == "cpu" and runtime.processor() == "GenuineIntel"
    if not rows or any(run.stacked for run in packed.runs):
        return out
    out["layers"] = stack.Packed(tuple(block.for_decoding(layer) for layer in packed.trees), packed.runs)
    if "lm_head" in weights:
        out["lm_head"] = stack.as_rows(weights["lm_head"])
    return out


def forward(
    weights: Mapping[str, Any],
    config: Config,
    batch: Mapping[str, jax.Array],
    cache: Cache | None = None,
    constrain: Constrain = constrainer(None),
    attention: str = "auto",
    remat: str = "none",
    observer: stack.Observer | None = None,
    mesh: Mesh | None = None,
) -> Output:
    """Tokens to hidden states.

    `weights` come from `stack.pack`, or are parameters at rest. `batch` holds `tokens` [batch, length] and optionally
    `segment_ids` (0: padding, anywhere; default: no padding), `positions` (default: counted over the tokens that are
    not padding), `learned_mask` (bool [batch, length]: there the vector `preference/token` replaces the embedding) and
    `shared` (it is there where segments may have a beginning in common, `attention.SHARED`).
    With a cache, the tokens follow those that it holds: several at once (prefill, chunked or not) or one (decode).
    Padding written to the cache on the right is overwritten by later tokens. An `observer` sees every layer. `mesh` is
    the one that `constrain` pins arrays to.
    """
    tokens_BT = batch["tokens"]
    segments_BT = batch.get("segment_ids")
    if segments_BT is None:
        segments_BT = jnp.ones_like(tokens_BT)
    real_BT = (segments_BT != 0).astype(jnp.int32)
    positions_BT = batch.get("positions")
    if positions_BT is None:
        start = cache.positions[:, None] if cache is not None else 0
        positions_BT = start + jnp.maximum(jnp.cumsum(real_BT, axis=1) - 1, 0)
    key_segments, offset = constrain(segments_BT, "batch", None), None  # of whole rows, gathered once for all layers
    if cache is not None:
        offset = cache.lengths
        key_segments = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=0))(
            cache.segment_ids, segments_BT, offset
        )
    cos, sin = rotary.angles(positions_BT, rotary.frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
    low: tuple[Any, Any] = (None, None)
    if config.lisa.layers and config.lisa.rank and config.lisa.delta_rope:
        frequencies = rotary.frequencies(config.lisa.rank, config.rope_theta, config.rope_scaling)
        low = rotary.angles(positions_BT, frequencies)
    context = block.Context(cos, sin, segments_BT, key_segments, offset, *low, "shared" in batch)

    table = weights["embed"]
    if cache is not None:  # one token per row: gather the width first, keep the rows sharded
        table = constrain(table, "vocab", None)
    x_BTD = vocabulary.lookup(table, tokens_BT, mesh if cache is None else None)
    x_BTD = constrain(x_BTD, "batch", "length", "act_embed")
    if "learned_mask" in batch:
        token_D = constrain(weights["preference"]["token"], None).astype(x_BTD.dtype)
        x_BTD = jnp.where(batch["learned_mask"][..., None], token_D, x_BTD)

    def layer(layer_weights: Any, carry: block.Carry, layer_cache: Any, kind: str) -> tuple[block.Carry, Any]:
        with jax.named_scope("layer"):
            return block.forward(
                layer_weights, config, carry, context, layer_cache, kind, attention, constrain, observer, mesh
            )

    packed = _packed(weights, config)
    carry = block.Carry(x_BTD, None, observer.memory if observer is not None else ())
    layer_caches = cache.layers if cache is not None else None
    carry, outs = stack.apply(layer, packed, carry, layer_caches, remat, block.enter)
    hidden = block.rms_norm(carry.x_BTD, weights["norm"], config.norm_eps)
    observed = stack.by_layer([kept for _, kept in outs], packed.runs) if observer is not None else None
    if cache is None:
        return Output(hidden, None, observed, carry.memory)
    last = jnp.max(real_BT * jnp.arange(1, tokens_BT.shape[1] + 1), axis=1)  # slots up to the last real token
    assert offset is not None
    positions = jnp.max(jnp.where(real_BT == 1, positions_BT + 1, cache.positions[:, None]), axis=1)
    caches = tuple(layer_cache for layer_cache, _ in outs)
    return Output(hidden, Cache(caches, key_segments, offset + last, positions), observed, carry.memory)


def _packed(weights: Mapping[str, Any], config: Config) -> stack.Packed:
    layers = weights["layers"]
    if isinstance(layers, stack.Packed):
        return layers
    return stack.pack({"layers": layers}, config.layer_kinds(), layers["000"]["attn"]["q"].dtype, scan=False)["layers"]
