"""The names and layouts of weights in Hugging Face folders: one row per weight, used both ways.

A row's layout says how our dimensions form the other side's: a group of our axes per dimension of theirs. A query
projection is [embed, heads, head_dim] here and [heads * head_dim, embed] there: `((1, 2), (0,))`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gramjax.core import tree
from gramjax.core.errors import UserError
from gramjax.core.spec import is_spec

Layout = tuple[tuple[int, ...], ...]
Index = tuple[slice, ...]

SAME_1D: Layout = ((0,),)
SAME_2D: Layout = ((0,), (1,))
TRANSPOSED: Layout = ((1,), (0,))
HEADS_OUT: Layout = ((1, 2), (0,))  # [D, H, E] <-> [H * E, D]
HEADS_IN: Layout = ((2,), (0, 1))  # [H, E, D] <-> [D, H * E]
HEADS_BIAS: Layout = ((0, 1),)  # [H, E] <-> [H * E]

ROWS: tuple[tuple[str, str, Layout], ...] = (
    ("embed", "model.embed_tokens.weight", SAME_2D),
    ("layers/*/attn_norm", "model.layers.*.input_layernorm.weight", SAME_1D),
    ("layers/*/attn/q", "model.layers.*.self_attn.q_proj.weight", HEADS_OUT),
    ("layers/*/attn/k", "model.layers.*.self_attn.k_proj.weight", HEADS_OUT),
    ("layers/*/attn/v", "model.layers.*.self_attn.v_proj.weight", HEADS_OUT),
    ("layers/*/attn/o", "model.layers.*.self_attn.o_proj.weight", HEADS_IN),
    ("layers/*/attn/q_bias", "model.layers.*.self_attn.q_proj.bias", HEADS_BIAS),
    ("layers/*/attn/k_bias", "model.layers.*.self_attn.k_proj.bias", HEADS_BIAS),
    ("layers/*/attn/v_bias", "model.layers.*.self_attn.v_proj.bias", HEADS_BIAS),
    ("layers/*/attn/q_norm", "model.layers.*.self_attn.q_norm.weight", SAME_1D),
    ("layers/*/attn/k_norm", "model.layers.*.self_attn.k_norm.weight", SAME_1D),
    ("layers/*/attn/q_low", "model.layers.*.self_attn.q_low_proj.weight", HEADS_OUT),
    ("layers/*/attn/k_low", "model.layers.*.self_attn.k_low_proj.weight", HEADS_OUT),
    ("layers/*/attn/align_in", "model.layers.*.self_attn.align_in.weight", TRANSPOSED),
    ("layers/*/attn/align_in_bias", "model.layers.*.self_attn.align_in.bias", SAME_1D),
    ("layers/*/attn/align_out", "model.layers.*.self_attn.align_out.weight", TRANSPOSED),
    ("layers/*/attn/align_out_bias", "model.layers.*.self_attn.align_out.bias", SAME_1D),
    ("layers/*/mlp_norm", "model.layers.*.post_attention_layernorm.weight", SAME_1D),
    ("layers/*/mlp/gate", "model.layers.*.mlp.gate_proj.weight", TRANSPOSED),
    ("layers/*/mlp/up", "model.layers.*.mlp.up_proj.weight", TRANSPOSED),
    ("layers/*/mlp/down", "model.layers.*.mlp.down_proj.weight", TRANSPOSED),
    ("norm", "model.norm.weight", SAME_1D),
    ("lm_head", "lm_head.weight", TRANSPOSED),
    ("score", "score.weight", TRANSPOSED),
    ("score_hidden/weight", "score_hidden.weight", TRANSPOSED),
    ("score_hidden/bias", "score_hidden.bias", SAME_1D),
    ("value/weight", "score.weight", TRANSPOSED),
    ("value/bias", "score.bias", SAME_1D),
    ("preference/token", "preference.token", SAME_1D),
    ("preference/order", "preference.order.weight", TRANSPOSED),
    ("preference/projection", "preference.projection.weight", TRANSPOSED),
    ("margin/hidden", "margin.hidden.weight", TRANSPOSED),
    ("margin/hidden_bias", "margin.hidden.bias", SAME_1D),
    ("margin/out", "margin.out.weight", TRANSPOSED),
    ("margin/bias", "margin.out.bias", SAME_1D),
)
"""Llama, Qwen2, Qwen3 and Mistral: a family has the rows that its specs declare. (Our path, their name, layout.)

The rows from `q_low` to `align_out` are of layers that share attention; no class of transformers has them.
"""

HEAD_OF: dict[str, str] = {
    "lm_head": "tokens", "score": "score", "value/weight": "value", "value/bias": "value",
    **dict.fromkeys(("score_hidden/weight", "score_hidden/bias"), "score"),
    **dict.fromkeys(("preference/token", "preference/order", "preference/projection"), "preference"),
    **dict.fromkeys(("margin/hidden", "margin/hidden_bias", "margin/out", "margin/bias"), "margin"),
}  # fmt: skip
"""The head that a path belongs to. Those without a class in `ARCHITECTURES` are in no Hugging Face folder: a training
starts them afresh, and they are not exported."""

BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Keys of old folders that hold a function of the config and no weight."""

ARCHITECTURES: dict[str, str] = {
    "tokens": "ForCausalLM",
    "score": "ForSequenceClassification",
    "value": "ForTokenClassification",
}
"""Ending of the class that holds each head."""

CLASSES: dict[str, str] = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
"""Beginning of the class names of each family."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight on both sides: `path` and `shape` are ours, `name` and `hf_shape` theirs."""

    path: str
    name: str
    layout: Layout
    shape: tuple[int, ...]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape in the Hugging Face file."""
        return tuple(math.prod(self.shape[a] for a in group) for group in self.layout)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(a for group in self.layout for a in group)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Their array from ours."""
        return array.transpose(self._axes).reshape(self.hf_shape)

    def from_hf(self, read: Callable[[Index], np.ndarray], index: Index) -> np.ndarray:
        """The part `index` of our array; `read` returns a part of theirs, and is asked for no more than needed.

        Within a group only the first axis can be read in part; the others are read whole and cut afterwards.
        """
        ranges = [part.indices(size)[:2] for part, size in zip(index, self.shape)]
        theirs: list[slice] = []
        shape: list[int] = []
        cuts: list[slice] = []
        for first, *rest in self.layout:
            start, stop = ranges[first]
            inner = math.prod(self.shape[a] for a in rest)
            theirs.append(slice(start * inner, stop * inner))
            shape += [stop - start, *(self.shape[a] for a in rest)]
            cuts += [slice(None), *(slice(*ranges[a]) for a in rest)]
        block = read(tuple(theirs)).reshape(shape)[tuple(cuts)]
        return block.transpose(np.argsort(self._axes))


def rows(specs: Any) -> dict[str, Row]:
    """`{path: Row}` for a tree of specs; raises UserError for a parameter that has no name in a Hugging Face folder."""
    table = {path: (name, layout) for path, name, layout in ROWS}
    out: dict[str, Row] = {}
    for path, leaf in tree.flatten(specs, is_leaf=is_spec).items():
        layer = re.match(r"layers/(\d+)/", path)
        generic = re.sub(r"^layers/\d+/", "layers/*/", path)
        if generic not in table:
            raise UserError(f"parameter {path} has no name in Hugging Face folders, so it cannot be read or written")
        name, layout = table[generic]
        out[path] = Row(path, name.replace("*", str(int(layer[1]))) if layer else name, layout, tuple(leaf.shape))
    return out


def by_name(table: Mapping[str, Row]) -> dict[str, Row]:
    """`{Hugging Face name: Row}`; raises UserError when two parameters would share a name."""
    out: dict[str, Row] = {}
    for row in table.values():
        if row.name in out:
            raise UserError(
                f"{out[row.name].path} and {row.path} are both called {row.name} in a Hugging Face folder; "
                "it holds one head: choose score or value"
            )
        out[row.name] = row
    return out


def head_of_name(name: str) -> set[str]:
    """The heads that a Hugging Face key may belong to; empty for the keys of the body."""
    return {HEAD_OF[path] for path, other, _ in ROWS if other == name and path in HEAD_OF}
