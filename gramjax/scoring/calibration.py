"""Where layers that share attention start from: the best map of heads, and the best low-rank difference, on some text.

The text is read layer by layer in order: a layer is fitted to the scores that the original model has there, from what
the layers before it will hand on once they share (a chain's errors are seen by the layer that can mend them). Only sums
over pairs of a query and a key are kept, never scores; padding counts nowhere.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import attention_similarity as similar
from gramjax.core import progress, sharding
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import buckets, readers, tokenizer
from gramjax.data.rows import Drop
from gramjax.data.text import Renderer
from gramjax.models import decoder, lisa, rotary
from gramjax.models.attention import raw_scores
from gramjax.models.lisa import LisaSection
from gramjax.models.model import Model
from gramjax.models.stack import Observer, Seen

RIDGE = 1e-4
"""Of the map of heads, as a share of the mean variance of the scores."""
UNIFORM = (1.0, 0.1)
"""How much of the weight of a query is spread over all keys, in the fit of the map and of the pair; the rest lies where
its attention lies. A map has few numbers and is best on the whole; a pair spends its rank where it is told to."""
LONGEST = 512
"""Tokens of a text that `from_file` reads."""
ROWS_PER_BATCH = 8

WANTED = ("all", "heads", "pair", "gain")
"""What a pass sums up: for the maps of heads of all layers or of one, for the low-rank pair of one, and for the factor
that fits its scores best."""

ROW_TYPES = ("language_modeling", "prompt_completion")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `models.lisa.convert` takes, by layer."""

    mixing: Mapping[int, np.ndarray]
    """Maps of heads [H, H]; empty where the section has none to fit."""
    low_rank: Mapping[int, tuple[np.ndarray, np.ndarray]]
    """Query and key projections, [D, H, R] and [D, K, R]; empty where there is no closed form."""
    unexplained: Mapping[int, float]
    """Share of the (weighted) variance of a layer's scores that its map of heads leaves, before the low-rank pair."""


def has_map(section: LisaSection) -> bool:
    """Whether there is a map of heads to fit."""
    return section.shares == "scores" and section.align in ("ffn", "linear")


def has_pair(section: LisaSection) -> bool:
    """Whether there is a low-rank pair with a closed form: that of scores before the softmax."""
    return section.shares == "scores" and section.rank > 0 and section.share_point == "pre"


def calibrate(
    model: Model,
    weights: Any,
    batches: Iterable[Mapping[str, Any]],
    section: LisaSection,
    ridge: float = RIDGE,
    uniform: tuple[float, float] = UNIFORM,
    together: bool = True,
) -> Fitted:
    """Fit the layers of a section to a plain model that reads `batches` (gone through several times).

    A batch has `tokens`, and optionally `segment_ids`, `positions` and `counted` (queries that count; default: what is
    no padding). `uniform` is for `attention_similarity.pair_weights` (map, pair). `together=False` fits each layer as
    if it alone were to share.
    """
    if model.config.lisa.layers:
        raise UserError("layers that share attention are fitted to the original model: this one shares already")
    sharing = dataclasses.replace(model.config, lisa=section)
    lisa.check(section, model.config.num_layers, model.config.head_dim)
    state = _start(sharing)
    sums_of = {name: _compiled(model, sharing, name, uniform[name in ("pair", "gain")]) for name in WANTED}

    def total(wanted: str, layer: int) -> Any:
        return _total(sums_of[wanted](weights, batch, state, shares, layer) for batch in batches)

    shares = np.zeros(model.config.num_layers, bool)
    shares[list(section.layers)] = together
    mixing, pairs, left = {}, {}, {}
    of_all = None if together else total("all", 0)
    for layer in section.layers:
        progress.stop_point("the fit of a layer")
        own = total("heads", layer) if together else jax.tree.map(lambda leaf: leaf[layer], of_all)  # noqa: B023
        if has_map(section):
            mixing[layer] = similar.head_map(own, ridge)
            state["mixing"][layer] = mixing[layer]
        left[layer] = float(np.mean(similar.unexplained(own, state["mixing"][layer])))
        if has_pair(section):
            found = similar.low_rank(
                total("pair", layer), section.rank, lisa.key_heads(sharing), lisa.delta_factor(sharing)
            )
            if section.delta_rope:
                found = slow_first(found)
            state["q_low"][layer], state["k_low"][layer] = found.query, found.key
            with_target, squares = total("gain", layer)
            scale = np.maximum(with_target, 0.0) / np.maximum(squares, np.finfo(np.float64).tiny)
            pairs[layer] = (found.query * scale[:, None], found.key)
            state["q_low"][layer] = pairs[layer][0]
    return Fitted(mixing, pairs, left)


def _start(config: Any) -> dict[str, np.ndarray]:
    """What is known of every layer so far: scores as they are (or not used at all), no difference."""
    L, H, D = config.num_layers, config.num_heads, config.hidden_size
    identity = np.zeros((H, H)) if config.lisa.align == "off" else np.eye(H)
    state = {"mixing": np.tile(identity, (L, 1, 1)).astype(np.float32)}
    if has_pair(config.lisa):
        for name, heads in (("q_low", H), ("k_low", lisa.key_heads(config))):
            state[name] = np.zeros((L, D, heads, config.lisa.rank), np.float32)
    return state


def _total(parts: Iterator[Any]) -> Any:
    """The sum of what the batches gave, in float64."""
    total: Any = None
    for part in parts:
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(part))
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None:
        raise DataError("there is no text to calibrate on")
    return total


def _compiled(model: Model, sharing: Any, wanted: str, uniform: float) -> Callable[..., Any]:
    """`(weights, batch, state, shares, layer)` to the sums over a batch: of that layer, or of `all`, stacked."""
    place = None if model.mesh is None else sharding.replicated(model.mesh)
    H, D = sharing.num_heads, sharing.hidden_size

    def step(weights: Any, batch: Any, state: Any, shares_L: Any, layer: Any) -> Any:
        B, T = batch["tokens"].shape
        counted_BT, angles = counted(batch), angles_of(batch, sharing)

        def see(seen: Seen, memory: Any) -> tuple[Any, Any]:
            index, handed, total = memory
            visible = seen.visible_BTS
            rows_BT = similar.rows_that_count(visible, counted_BT)
            known = jax.tree.map(lambda leaf: leaf[index], state)
            before = sharing.lisa.share_point == "pre"
            own = seen.scores_BHTS if before else jnp.exp(similar.log_weights(seen.scores_BHTS, visible))
            handed = jnp.where(index == 0, own, handed)

            def fitted() -> Any:
                p_log = similar.log_weights(seen.scores_BHTS, visible)
                w_BHTS = similar.pair_weights(p_log, visible, rows_BT, uniform if before else 1.0)
                if wanted in ("all", "heads"):
                    return similar.moments(handed, own, visible, w_BHTS, before)
                target = own - jnp.einsum("GH,BHTS->BGTS", known["mixing"], handed)
                if wanted == "pair":
                    return similar.pair_moments(target, seen.hidden_BTD, visible, w_BHTS)
                made, target = (similar.centred(x, visible, w_BHTS)
                                for x in (difference(known, sharing, seen, angles), target))  # fmt: skip
                sums = lambda x, y: jnp.sum(w_BHTS * x * y, axis=(0, 2, 3))  # noqa: E731
                return sums(made, target), sums(made, made)

            def shared() -> jax.Array:
                return handed if sharing.lisa.source == "anchor" else handed_on(known, sharing, seen, handed, angles)

            kept = fitted() if wanted == "all" else ()
            if wanted != "all":
                total = jax.lax.cond(index == layer, fitted, lambda: total)
            return (index + 1, jax.lax.cond(shares_L[index], shared, lambda: own), total), kept

        none, square, cube = jnp.zeros((H,)), jnp.zeros((H, H)), jnp.zeros((H, D, D))
        total = {
            "all": (), "heads": similar.Moments(jnp.zeros((H, H, H)), square, none), "gain": (none, none),
            "pair": similar.PairMoments(cube, jnp.zeros((D, D)), cube, jnp.zeros(())),
        }[wanted]  # fmt: skip
        memory = (jnp.zeros((), jnp.int32), jnp.zeros((B, H, T, T), jnp.float32), total)
        out = model.forward(weights, batch, observer=Observer(see, memory))
        return out.observed if wanted == "all" else out.memory[2]

    return jax.jit(step, out_shardings=place)


def counted(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The queries [B, T] of a batch that count."""
    if "counted" in batch:
        return batch["counted"]
    segments = batch.get("segment_ids")
    return jnp.ones(batch["tokens"].shape, bool) if segments is None else segments != 0


def slow_first(pair: similar.LowRank) -> similar.LowRank:
    """The pair with its strongest channels where the rotation is slowest: there it changes the fitted scores least.

    The fit knows no rotation. Channel i is turned with channel i + R/2, the slower the larger i.
    """
    rank = pair.query.shape[-1]
    slow = np.arange(rank // 2)[::-1]
    order = np.empty(rank, int)
    order[np.stack([slow, slow + rank // 2], axis=1).ravel()] = np.arange(rank)
    return similar.LowRank(pair.query[..., order], pair.key[..., order])


def angles_of(batch: Mapping[str, jax.Array], arch: Any) -> tuple[jax.Array, jax.Array] | None:
    """Of the rotation of low-rank queries and keys; None where they are not rotated."""
    if not (arch.lisa.rank and arch.lisa.delta_rope):
        return None
    positions_BT = batch.get("positions")
    if positions_BT is None:
        positions_BT = jnp.maximum(jnp.cumsum(counted(batch), axis=1) - 1, 0)
    return rotary.angles(positions_BT, rotary.frequencies(arch.lisa.rank, arch.rope_theta, arch.rope_scaling))


def difference(attn: Mapping[str, jax.Array], arch: Any, seen: Seen, angles: Any) -> jax.Array:
    """Scores [B, H, T, S] of the low-rank pair of a layer."""
    q, k = (jnp.einsum("BTD,DHR->BTHR", seen.hidden_BTD, attn[name]) for name in ("q_low", "k_low"))
    if angles is not None:
        q, k = (rotary.rotate(x, *angles) for x in (q, k))
    return raw_scores(q, k, lisa.delta_factor(arch))


def handed_on(
    known: Mapping[str, jax.Array], sharing: Any, seen: Seen, handed_BHTS: jax.Array, angles: Any
) -> jax.Array:
    """What a layer hands on that shares with the map of heads and the low-rank pair of `known`."""
    delta = difference(known, sharing, seen, angles) if "q_low" in known else None
    linear = dataclasses.replace(sharing.lisa, align="linear", align_residual=False)
    return lisa.combine({"align_in": known["mixing"].T}, handed_BHTS, delta, seen.visible_BTS, linear)[0]


def from_file(
    params: Any, config: Any, section: LisaSection, path: str, tokenizer_folder: str, rows: int
) -> tuple[dict[int, jax.Array], dict[int, tuple[jax.Array, jax.Array]]]:
    """The maps of heads and low-rank pairs of a plain model, fitted to the first rows of a file of text.

    Computed in float32. Says what each layer's map leaves unexplained.
    """
    if not tokenizer_folder:
        raise UserError("--calibration needs a tokenizer: none lies beside the weights (--tokenizer=FOLDER_OR_FILE)")
    if not has_map(section) and not has_pair(section):
        raise UserError("--calibration: with these settings (--method, --set) there is nothing to fit")
    model = Model(decoder, config)
    weights = jax.jit(model.pack)(params)
    length = min(LONGEST, config.max_position_embeddings)
    batches = read(path, rows, tokenizer.load(tokenizer_folder), length)
    found = calibrate(model, weights, batches, section)
    left = ", ".join(f"{layer}: {100 * share:.1f} %" for layer, share in found.unexplained.items())
    tokens = sum(int(batch["counted"].sum()) for batch in batches)
    print(f"calibrated on {tokens:,} tokens; variance of the scores that the map of heads leaves, by layer: {left}")
    pairs = {layer: (jnp.asarray(q), jnp.asarray(k)) for layer, (q, k) in found.low_rank.items()}
    return {layer: jnp.asarray(mixing) for layer, mixing in found.mixing.items()}, pairs


def read(path: str, rows: int, loaded: Any, length: int) -> list[dict[str, np.ndarray]]:
    """Batches of the first rows of a file of text, cut at `length` tokens."""
    section = DataSection(limit=rows, max_length=length, overlong="truncate_prompt_left")
    renderer = Renderer(loaded, section)
    found = readers.read_all((path,), section, ROW_TYPES)
    sequences = []
    for row in found.rows:
        with contextlib.suppress(Drop):  # what cannot be cut
            sequences.append(np.asarray(renderer.example(row).tokens[0], np.int32))
    if not sequences:
        raise DataError(f"--calibration={path}: none of its first {rows} rows has text of at most {length} tokens")
    longest = -(-max(map(len, sequences)) // 16) * 16
    batches = []
    for indices, padded in buckets.batches(sequences, ROWS_PER_BATCH, (longest,)):  # one shape, one compilation
        batch = {name: padded[name] for name in ("tokens", "segment_ids", "positions")}
        counts = (batch["segment_ids"] != 0) & (np.arange(len(batch["tokens"])) < len(indices))[:, None]
        batches.append({**batch, "counted": counts})
    return batches
