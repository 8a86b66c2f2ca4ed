"""What a network says of rows without sampling: representations, hidden states, rewards; batched by length."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import progress, sharding
from gramjax.data import buckets
from gramjax.data.rows import Drop
from gramjax.models import heads

NEEDS = {"pair": "preference", "margin": "margin", "reward": "score", "tokens": "tokens", "last": "", "mean": ""}
"""What can be read, and the head that it needs."""


def rendered(
    rows: Iterable[Mapping[str, Any]],
    render: Callable[[Mapping[str, Any]], Sequence["Read"]],
    refuse: Callable[[Mapping[str, Any], str], None] | None = None,
) -> tuple[list[Mapping[str, Any]], list["Read"]]:
    """The rows that can be rendered, and all their sequences in order. The others go to `refuse` with the reason;
    without it Drop is raised."""
    usable: list[Mapping[str, Any]] = []
    sequences: list[Read] = []
    for row in rows:
        try:
            made = render(row)
        except Drop as drop:
            if refuse is None:
                raise
            refuse(row, drop.args[0])
            continue
        usable.append(row)
        sequences += made
    return usable, sequences


class Marked:
    """A token sequence, and which of its tokens are a response's."""

    def __init__(self, ids: Sequence[int], mask: Sequence[float]) -> None:
        self.ids, self.mask = np.asarray(ids, np.int32), np.asarray(mask, np.float32)

    def __len__(self) -> int:
        return len(self.ids)


Read = np.ndarray | Marked
"""What can be read."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model opened to be read: its weights in use and its renderer. Annotators with `OPENS = "network"` get one."""

    model: Any
    weights: Any
    renderer: Any
    path: str = ""
    """Where its weights come from."""

    @functools.cached_property
    def _readers(self) -> dict[tuple[str, tuple[int, ...]], Callable[..., jax.Array]]:
        return {}

    def read(
        self,
        what: str,
        sequences: Sequence[Read],
        batch_size: int = 32,
        weights: Any = None,
        ids: tuple[int, ...] = (),
    ) -> np.ndarray:
        """One row of numbers per token sequence, float32 [N, K], in their order.

        `pair`: the order logit u, then the representation h, of renderings that end with the learned token; `margin`:
        the predicted margin of such; `reward`: the scalar head at the last token; `last`: the hidden state there;
        `mean`: the mean of the hidden states; `tokens`: the logits of `ids` after the last token. `weights` are used
        instead of the encoder's own when given.
        """
        weights = self.weights if weights is None else weights
        if (what, ids) not in self._readers:
            self._readers[what, ids] = make_reader(self.model, what, ids)
        reader, mesh = self._readers[what, ids], self.model.mesh
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-batch_size // shards) * shards
        out: np.ndarray | None = None
        plain = [sequence.ids if isinstance(sequence, Marked) else sequence for sequence in sequences]
        for indices, batch in buckets.batches(plain, size):
            if what in ("pair", "margin"):
                batch["response_mask"] = _marks([sequences[i] for i in indices], batch["tokens"].shape)
            progress.stop_point("a batch of scoring")
            values = np.asarray(reader(weights, sharding.place(batch, mesh)), np.float32)
            if out is None:
                out = np.zeros((len(sequences), values.shape[1]), np.float32)
            out[indices] = values[: len(indices)]
        return np.zeros((0, 0), np.float32) if out is None else out

    @property
    def order_direction(self) -> np.ndarray | None:
        """w of the order head u = w h, float32 [P]; None for a model without one."""
        head = self.weights.get("preference")
        return None if head is None else np.asarray(head["order"], np.float32)[:, 0]


def _marks(sequences: Sequence[Read], shape: tuple[int, ...]) -> np.ndarray:
    """1 at response tokens, float32, of the shape of a padded batch."""
    out = np.zeros(shape, np.float32)
    for row, sequence in enumerate(sequences):
        if isinstance(sequence, Marked):
            out[row, : len(sequence)] = sequence.mask
    return out


def make_reader(
    model: Any, what: str, ids: tuple[int, ...] = ()
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """The compiled function from weights in use and a batch of `data.buckets` to float32 [B, K]."""

    def read(weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        if what in ("pair", "margin"):
            mask = heads.learned_mask(batch["ends"], batch["example_mask"], batch["tokens"].shape[1])
            batch = {**batch, "learned_mask": mask}
        hidden_BTD = model.forward(weights, batch).hidden
        if what == "mean":
            real = (batch["segment_ids"] != 0).astype(jnp.float32)
            return jnp.einsum("BTD,BT->BD", hidden_BTD.astype(jnp.float32), real) / jnp.sum(real, 1, keepdims=True)
        if what in ("pair", "margin"):
            hidden_B1D = heads.pooled(hidden_BTD, batch, batch["response_mask"], model.config.preference_pool)
        else:
            hidden_B1D = heads.take_positions(hidden_BTD, batch["ends"])
        if what == "last":
            return hidden_B1D[:, 0].astype(jnp.float32)
        if what == "reward":
            return heads.score(weights, hidden_B1D)
        if what == "tokens":
            return heads.verdict_logits(weights, hidden_B1D, ids)[:, 0]
        h_B1P = heads.representation(weights, hidden_B1D)
        if what == "margin":
            return heads.margin(weights, h_B1P)
        return jnp.concatenate([heads.order(weights, h_B1P), h_B1P[:, 0]], axis=-1)

    mesh = model.mesh
    return jax.jit(read, out_shardings=None if mesh is None else sharding.replicated(mesh))


def both_orders(renderer: Any, prompt: Any, first: Any, second: Any) -> tuple[Marked, Marked]:
    """The renderings of a pair in both orders, with their response tokens. Raises Drop by the length policy."""
    orders = ((first, second), (second, first))
    one, two = (renderer.preference(prompt, *order) for order in orders)
    return Marked(*one), Marked(*two)
