"""JAX's Pallas attention kernel for TPUs ("splash"): blocks of scores in fast memory, forward and backward.

It skips blocks that no query sees, knows grouped heads, windows and segments, and runs on the rows and heads that one
device holds. Segments are compared for equality, so that a beginning which several segments see (`attention.SHARED`)
is beyond it. On a CPU it is interpreted: right and slow, for tests.

Shape letters: B batch, T query length, S key length, H heads, K kv heads, E head width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BACKENDS = ("tpu", "cpu")
LANES = 128
"""What a block of queries or keys is a multiple of, and so the length that each device has; others are padded."""
SUBLANES = 8
BLOCKS = (512, 256, LANES)
"""Sizes of a block, the largest that divides the length is taken: large ones read keys less often."""


def fits(length: int, head_dim: int) -> bool:
    """Whether the kernel takes rows of this length (of each device) and heads of this width as they are."""
    return length % LANES == 0 and head_dim % SUBLANES == 0


@functools.lru_cache(maxsize=32)
def _made(length: int, heads: int, window: int, parts: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    size = next(block for block in BLOCKS if length // parts % block == 0)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
        block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip
    if window:
        seen: Any = splash_attention_mask.LocalMask((length, length), (window - 1, 0), 0)
    else:
        seen = splash_attention_mask.CausalMask((length, length))
    with jax.ensure_compile_time_eval():  # what is kept must not belong to the program that is being traced
        kernel = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([seen] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=parts,
            residual_checkpoint_name="attention", interpret=interpret,
        )  # fmt: skip
        return jax.tree.map(np.asarray, kernel)


def kernel(length: int, heads: int, window: int, backend: str, parts: int = 1) -> Any:
    """The kernel for rows of `length` tokens, `heads` of them on a device, whose queries lie in `parts`.

    It is a tree of arrays that say which blocks are seen, and an argument of the function under `shard_map`. Rows whose
    queries lie in one part may have any length, those in several one that `fits` each of them.
    """
    return _made(padded(length), heads, window, parts, backend != "tpu")


def padded(length: int) -> int:
    """The length up to which rows are padded."""
    return -(-length // LANES) * LANES


def spec(made: Any, mesh: Mesh, over: Any) -> Any:
    """How a kernel lies on a mesh whose axes `over` hold the parts of the queries."""
    return made.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, over)))


def attend(
    made: Any,
    q_BTHE: jax.Array,
    k_BSKE: jax.Array,
    v_BSKE: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
) -> jax.Array:
    """Attention of the rows, heads and queries of one device over the keys of whole rows, [B, T, H, E]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def whole(x: jax.Array) -> jax.Array:  # what is added is padding: segment 0
        more = padded(x.shape[1]) - x.shape[1]
        return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x

    segments = splash_attention_kernel.SegmentIds(whole(segments_BT), whole(key_segments_BS))
    q_BTHE, T = q_BTHE * jnp.asarray(q_BTHE.shape[3] ** -0.5, q_BTHE.dtype), q_BTHE.shape[1]
    q_BHTE, k_BKSE, v_BKSE = (whole(x).swapaxes(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE))
    return jax.vmap(made)(q_BHTE, k_BKSE, v_BKSE, segments).swapaxes(1, 2)[:, :T]
