"""Causal attention with grouped heads, segments and windows: one function, explicit implementations.

Which implementation is fast depends on the backend, and this is the one place that knows:

- `blocked`: queries in static blocks, each meeting only the keys it may see; forward and backward keep a block of
  scores at a time. Half the work of the full square and no score matrix in memory: the fast form on a CPU.
- `xla`: the whole score matrix in one product; the reference, and the path of cached decoding.
- `cudnn`: NVIDIA's fused kernel (bfloat16 or float16 on GPUs).
- `splash`: the Pallas kernel for TPUs (`models.splash`).

On several devices each of them runs under `shard_map`, on the rows and heads that a device holds, so that the
partitioner cannot choose to gather keys and to move scores.

Shape letters: B batch, T query length, S key length, H heads, K kv heads, G heads per kv head, E head width.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from gramjax.core.errors import UserError
from gramjax.core.sharding import DECODING, RULES, mesh_axes, partition, platform
from gramjax.models import splash

IMPLEMENTATIONS = ("auto", "blocked", "xla", "cudnn", "splash")
MASKED = -1e30
SHARED = -1
"""The segment of a beginning that several segments of a row have in common: every later real token sees it."""
BLOCKS, SMALLEST_BLOCK = 8, 64
"""Query blocks of the blocked form and the queries that each has at least: more blocks skip more of the square, larger
ones keep the products large and the program short."""


def choose(
    implementation: str, backend: str | None = None, length: int = 0, head_dim: int = 0, plain: bool = True
) -> str:
    """The implementation that a name means for rows of `length` tokens on this backend (0: of any that suits).

    `plain` rows have no cache and no `SHARED` beginning, and divide over their mesh: what `splash` takes. Others are
    `blocked` in its place. UserError for a name that does not exist, or not on this backend.
    """
    backend = backend or jax.default_backend()
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"config.model.attention={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "splash" and backend not in splash.BACKENDS:
        raise UserError(f"config.model.attention='splash' is a kernel for TPUs, not for {backend}: use 'auto'")
    if implementation == "auto":
        fits = backend == "tpu" and splash.fits(length, head_dim)
        implementation = "splash" if fits else "blocked" if backend in ("cpu", "tpu") else "xla"
    return implementation if plain or implementation != "splash" else "blocked"


def compiler_options(backend: str | None = None) -> dict[str, str]:
    """What XLA must be told to compile a program with remat, by backend.

    On a CPU older XLA drops the barriers of `jax.checkpoint` before it merges equal expressions, and so merges what
    the backward pass computes again with what the forward pass had: unscanned layers then save everything.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if (backend or jax.default_backend()) == "cpu" else {}


def attention(
    q_BTHE: jax.Array,
    k_BSKE: jax.Array,
    v_BSKE: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    offset_B: jax.Array | None = None,
    window: int = 0,
    implementation: str = "auto",
    mesh: Mesh | None = None,
    shared: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(E)) v over the keys that a query may see, [B, T, H, E] in the dtype of q.

    Query t of row b stands at key index `offset_B[b] + t` (`offset_B=None`: no cache, S = T, offset 0). It sees keys
    of its own segment and of `SHARED` at its index and before, the last `window` of them if `window` is not 0. Scores
    and softmax are float32. A query of padding (segment 0) sees padding only; its output is finite and meaningless.
    `mesh`: the devices that the arrays are spread over; `shared`: segments may be `SHARED`, which not every form knows.
    """
    T, H, E = q_BTHE.shape[1:]
    spread = _spread(q_BTHE.shape, k_BSKE.shape, offset_B, mesh)
    over = mesh_axes(spread[0][1]) if spread else ()  # those that share the length of a row
    parts = math.prod(mesh.shape[axis] for axis in over) if mesh is not None else 1
    divides = (spread is not None or mesh is None or mesh.size == 1) and (parts == 1 or splash.fits(T // parts, E))
    backend = platform(mesh)
    chosen = choose(implementation, backend, T // parts, E, offset_B is None and not shared and divides)
    local = functools.partial(_local, window=window, chosen=chosen, backend=backend, over=over)
    arrays = (q_BTHE, k_BSKE, v_BSKE, segments_BT, key_segments_BS, offset_B)
    if mesh is None or spread is None:
        return local(splash.kernel(T, H, window, backend) if chosen == "splash" else None, *arrays)
    queries, keys = spread
    heads = H // math.prod(mesh.shape[axis] for axis in mesh_axes(queries[2]))
    kernel = splash.kernel(T, heads, window, backend, parts) if chosen == "splash" else None
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            None if kernel is None else splash.spec(kernel, mesh, over or None), queries, keys, keys,
            PartitionSpec(*queries[:2]), PartitionSpec(keys[0]), None if offset_B is None else PartitionSpec(keys[0]),
        ),
        out_specs=queries,
        check_vma=False,
    )(kernel, *arrays)  # fmt: skip


def _spread(
    queries: tuple[int, ...], keys: tuple[int, ...], offset_B: jax.Array | None, mesh: Mesh | None
) -> tuple[PartitionSpec, PartitionSpec] | None:
    """How queries and keys lie on a mesh of several devices; None where a device would lack the keys of its heads."""
    if mesh is None or mesh.size == 1:
        return None
    rules = RULES if offset_B is None else DECODING
    of_queries = partition(("batch", "length", "heads", "head_dim"), queries, mesh, rules)
    of_keys = partition(("batch", "length", "kv_heads", "head_dim"), keys, mesh, rules)
    return (of_queries, of_keys) if of_queries[2] == of_keys[2] else None


def _local(
    kernel: Any,
    q_BTHE: jax.Array,
    k_BSKE: jax.Array,
    v_BSKE: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    offset_B: jax.Array | None,
    *,
    window: int,
    chosen: str,
    backend: str,
    over: tuple[str, ...] = (),
) -> jax.Array:
    """Attention of the rows, heads and queries of one device, which holds a part of the keys if there are axes `over`.

    The parts of the keys are gathered, not sent round a ring: they are few (grouped heads; the scores that need them
    are T times as much work), their gradient is scattered by the same collective, the compiler lets it overlap with the
    projections, and every form, window and segment stays as it is. A causal ring has as many steps as devices, most of
    which would see nothing of a part and wait for the last.
    """
    if over:  # as one array: one collective each way
        both_BSKE = jnp.concatenate([k_BSKE, v_BSKE.astype(k_BSKE.dtype)], axis=2)
        k_BSKE, v_BSKE = jnp.split(jax.lax.all_gather(both_BSKE, over, axis=1, tiled=True), 2, axis=2)
    if chosen == "splash":  # the kernel knows which queries it has
        return splash.attend(kernel, q_BTHE, k_BSKE, v_BSKE, segments_BT, key_segments_BS)
    first = jax.lax.axis_index(over) * q_BTHE.shape[1] if over else None
    if offset_B is None and chosen == "blocked":
        return _blocked(q_BTHE, k_BSKE, v_BSKE, segments_BT, key_segments_BS, first, window)
    if first is not None:
        offset_B = jnp.broadcast_to(first, q_BTHE.shape[:1])
    mask_BTS = visible(segments_BT, key_segments_BS, offset_B, window)
    if chosen == "cudnn":
        return jax.nn.dot_product_attention(q_BTHE, k_BSKE, v_BSKE, mask=mask_BTS[:, None], implementation="cudnn")
    if q_BTHE.shape[1] == 1 and backend == "cpu":
        return _one_query(q_BTHE, k_BSKE, v_BSKE, mask_BTS[:, 0])
    return _dense(q_BTHE, k_BSKE, v_BSKE, mask_BTS)


def visible(segments_BT: jax.Array, key_segments_BS: jax.Array, offset_B: jax.Array | None, window: int) -> jax.Array:
    """The boolean mask [B, T, S] of keys that each query sees."""
    T, S = segments_BT.shape[1], key_segments_BS.shape[1]
    query_index = jnp.arange(T)[None, :, None]
    if offset_B is not None:
        query_index = query_index + offset_B[:, None, None]
    key_index = jnp.arange(S)[None, None, :]
    mask = (key_index <= query_index) & same_segment(segments_BT[:, :, None], key_segments_BS[:, None, :])
    return mask & (query_index - key_index < window) if window else mask


def same_segment(query: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a query of one segment may see a key of another: the same one, or the shared beginning of the row."""
    return (query == key) | ((key == SHARED) & (query != 0))


def _dense(q_BTHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    scores_BHTS = raw_scores(q_BTHE, k_BSKE)
    return weighted(jax.nn.softmax(masked(scores_BHTS, mask_BTS), axis=-1), v_BSKE)


def raw_scores(q_BTHE: jax.Array, k_BSKE: jax.Array, factor: float | None = None) -> jax.Array:
    """factor q k before mask and softmax, float32 [B, H, T, S]; the factor is 1 / sqrt(E) unless given."""
    B, T, H, E = q_BTHE.shape
    K = k_BSKE.shape[2]
    factor = E**-0.5 if factor is None else factor
    if T == 1 and jax.default_backend() == "cpu":
        return _scores_of_one(q_BTHE, k_BSKE, factor)
    q_BTKGE = q_BTHE.reshape(B, T, K, H // K, E)
    scores = jnp.einsum("BTKGE,BSKE->BKGTS", q_BTKGE, k_BSKE, preferred_element_type=jnp.float32) * factor
    return scores.reshape(B, H, T, -1)


def masked(scores_BHTS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """The scores, with those of keys that a query does not see so low that the softmax gives them nothing."""
    return jnp.where(mask_BTS[:, None], scores_BHTS, MASKED)


def weighted(weights_BHTS: jax.Array, v_BSKE: jax.Array) -> jax.Array:
    """Sums of the values by attention weights, [B, T, H, E] in the dtype of the values."""
    B, H, T, S = weights_BHTS.shape
    K, E = v_BSKE.shape[2:]
    if T == 1 and jax.default_backend() == "cpu":
        return _weighted_for_one(weights_BHTS, v_BSKE)
    weights_BKGTS = weights_BHTS.astype(v_BSKE.dtype).reshape(B, K, H // K, T, S)
    return jnp.einsum("BKGTS,BSKE->BTKGE", weights_BKGTS, v_BSKE).reshape(B, T, H, E)


def _scores_of_one(q_B1HE: jax.Array, k_BSKE: jax.Array, factor: float) -> jax.Array:
    B, _, H, E = q_B1HE.shape
    K = k_BSKE.shape[2]
    if H == K:  # as in `_one_query`
        return _scores_of_one(jnp.repeat(q_B1HE, 2, axis=2), k_BSKE, factor)[:, ::2]
    q_BKGE = q_B1HE.reshape(B, K, H // K, E).astype(jnp.float32) * factor
    scores_BSKG = jnp.sum(q_BKGE[:, None] * k_BSKE[:, :, :, None].astype(jnp.float32), axis=-1)
    return scores_BSKG.transpose(0, 2, 3, 1).reshape(B, H, 1, -1)


def _weighted_for_one(weights_BH1S: jax.Array, v_BSKE: jax.Array) -> jax.Array:
    B, H, _, S = weights_BH1S.shape
    K, E = v_BSKE.shape[2:]
    if H == K:
        return _weighted_for_one(jnp.repeat(weights_BH1S, 2, axis=1), v_BSKE)[:, :, ::2]
    weights_BSKG = weights_BH1S.reshape(B, K, H // K, S).transpose(0, 3, 1, 2)
    out = jnp.sum(weights_BSKG[..., None] * v_BSKE[:, :, :, None].astype(jnp.float32), axis=1)
    return out.reshape(B, 1, H, E).astype(v_BSKE.dtype)


def _one_query(q_B1HE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """One decoding step on a CPU: multiply and reduce, since XLA:CPU runs batched products of one row slowly.

    With one query head per kv head its loop is fifty times slower, so that each is computed twice.
    """
    B, _, H, E = q_B1HE.shape
    K = k_BSKE.shape[2]
    if H == K:
        return _one_query(jnp.repeat(q_B1HE, 2, axis=2), k_BSKE, v_BSKE, mask_BS)[:, :, ::2]
    q_BKGE = q_B1HE.reshape(B, K, H // K, E).astype(jnp.float32) * E**-0.5
    scores_BSKG = jnp.sum(q_BKGE[:, None] * k_BSKE[:, :, :, None].astype(jnp.float32), axis=-1)
    scores_BSKG = jnp.where(mask_BS[:, :, None, None], scores_BSKG, MASKED)
    weights_BSKG = jax.nn.softmax(scores_BSKG, axis=1)
    out = jnp.sum(weights_BSKG[..., None] * v_BSKE[:, :, :, None].astype(jnp.float32), axis=1)
    return out.reshape(B, 1, H, E).astype(q_B1HE.dtype)


# The blocked form. Rows of the products are the G heads of a kv head times the queries of a block, so that the
# products stay large; arrays are [B * K, ...] inside.


def _blocks(length: int) -> list[tuple[int, int]]:
    size = max(-(-length // BLOCKS), min(length, SMALLEST_BLOCK))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _keys(start: int, stop: int, length: int, first: jax.Array | None, window: int) -> tuple[int, int]:
    """The keys, first and last (exclusive), that a block of queries meets: of a part of a row it may be any."""
    if first is not None:
        return 0, length
    return (max(0, start - window + 1) if window else 0), stop


def _blocked(
    q_BTHE: jax.Array,
    k_BSKE: jax.Array,
    v_BSKE: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    first: jax.Array | None,
    window: int,
) -> jax.Array:
    """`first`: the key index of the first query; None: 0, and the blocks are cut to the keys that they may see."""
    B, T, H, E = q_BTHE.shape
    S, K = k_BSKE.shape[1:3]
    q = q_BTHE.reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4).reshape(B * K, H // K, T, E)
    k = k_BSKE.transpose(0, 2, 1, 3).reshape(B * K, S, E)
    v = v_BSKE.transpose(0, 2, 1, 3).reshape(B * K, S, E)
    out = _flash(q, k, v, segments_BT, key_segments_BS, first, window)
    return out.reshape(B, K, H // K, T, E).transpose(0, 3, 1, 2, 4).reshape(B, T, H, E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _flash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    first: jax.Array | None,
    window: int,
) -> jax.Array:
    return _flash_forward(q, k, v, segments_BT, key_segments_BS, first, window)[0]


def _block_bias(
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    queries: tuple[int, int],
    keys: tuple[int, int],
    first: jax.Array | None,
    window: int,
) -> jax.Array:
    """What is added to the scores of one block, [B, t, s]: 0 where a query sees a key."""
    query, key = jnp.arange(*queries)[:, None], jnp.arange(*keys)[None, :]
    query = query if first is None else query + first
    mask = key <= query
    if window:
        mask &= query - key < window
    same = same_segment(segments_BT[:, slice(*queries), None], key_segments_BS[:, None, slice(*keys)])
    return jnp.where(mask[None] & same, 0.0, MASKED)


def _block_scores(q: jax.Array, k: jax.Array, queries: tuple[int, int], keys: tuple[int, int], bias: Any) -> jax.Array:
    """Masked scores [B*K, G, queries, keys] of one block, float32; the bias is made once for the heads of a row."""
    N, G, _, E = q.shape
    B, t, s = bias.shape
    q_block = q[:, :, slice(*queries)].reshape(N, G * t, E)
    scores = jax.lax.dot_general(
        q_block, k[:, slice(*keys)], (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    scores = scores.reshape(B, N // B, G, t, s) * E**-0.5 + bias[:, None, None]
    return scores.reshape(N, G, t, s)


def _flash_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    first: jax.Array | None,
    window: int,
) -> tuple:
    N, G, T, E = q.shape
    outputs, normalisers = [], []
    for start, stop in _blocks(T):
        low, high = keys = _keys(start, stop, k.shape[1], first, window)
        bias = _block_bias(segments_BT, key_segments_BS, (start, stop), keys, first, window)
        scores = _block_scores(q, k, (start, stop), keys, bias)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.reshape(N, G * (stop - start), high - low).astype(v.dtype)
        out = jax.lax.dot_general(
            weights, v[:, low:high], (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
        )
        outputs.append((out.reshape(N, G, stop - start, E) / total).astype(q.dtype))
        normalisers.append((top + jnp.log(total))[..., 0])
    # Named, so that a remat policy may keep them and the backward pass need not run the forward again.
    out = checkpoint_name(jnp.concatenate(outputs, axis=2), "attention")
    normaliser = checkpoint_name(jnp.concatenate(normalisers, axis=2), "attention")
    return out, (q, k, v, segments_BT, key_segments_BS, first, out, normaliser)


def _flash_backward(window: int, saved: tuple, d_out: jax.Array) -> tuple:
    q, k, v, segments_BT, key_segments_BS, first, out, normaliser = saved
    N, G, T, E = q.shape
    # Gradients of keys and values are made turned, width before length: XLA:CPU has no fast product that turns its
    # large operand, the weights (measured: the other way round takes 1.6 to 4 times as long).
    turned = (N, E, k.shape[1])
    d_q, d_k, d_v = [], jnp.zeros(turned, jnp.float32), jnp.zeros(turned, jnp.float32)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    batched = ((0,), (0,))
    for start, stop in _blocks(T):
        low, high = keys = _keys(start, stop, k.shape[1], first, window)
        rows = G * (stop - start)
        bias = _block_bias(segments_BT, key_segments_BS, (start, stop), keys, first, window)
        scores = _block_scores(q, k, (start, stop), keys, bias)
        weights = jnp.exp(scores - normaliser[:, :, start:stop, None])
        d_block = d_out[:, :, start:stop].reshape(N, rows, E)
        d_weights = jax.lax.dot_general(
            d_block, v[:, low:high], (((2,), (2,)), batched), preferred_element_type=jnp.float32
        )
        d_scores = weights * (d_weights.reshape(weights.shape) - delta[:, :, start:stop, None]) * E**-0.5
        d_scores = d_scores.reshape(N, rows, high - low).astype(q.dtype)
        weights = weights.reshape(N, rows, high - low).astype(v.dtype)
        q_block = q[:, :, start:stop].reshape(N, rows, E)
        d_v = d_v.at[:, :, low:high].add(
            jax.lax.dot_general(d_block, weights, (((1,), (1,)), batched), preferred_element_type=jnp.float32)
        )
        d_k = d_k.at[:, :, low:high].add(
            jax.lax.dot_general(q_block, d_scores, (((1,), (1,)), batched), preferred_element_type=jnp.float32)
        )
        d_q_block = jax.lax.dot_general(
            d_scores, k[:, low:high], (((2,), (1,)), batched), preferred_element_type=jnp.float32
        )
        d_q.append(d_q_block.reshape(N, G, stop - start, E).astype(q.dtype))
    d_k, d_v = d_k.swapaxes(1, 2).astype(k.dtype), d_v.swapaxes(1, 2).astype(v.dtype)
    return jnp.concatenate(d_q, axis=2), d_k, d_v, None, None, None


_flash.defvjp(_flash_forward, _flash_backward)
