"""Parameter trees are nested dicts; a leaf is named by its path, `layers/007/attn/q`."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gramjax.core.errors import UserError

TRAIN, FREEZE = "train", "freeze"


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to `{path: leaf}`, in sorted order of keys (the order of `jax.tree.leaves`)."""
    if not isinstance(tree, Mapping) or (is_leaf is not None and is_leaf(tree)):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key in sorted(tree):
        out.update(flatten(tree[key], is_leaf, f"{prefix}/{key}" if prefix else str(key)))
    return out


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}` to nested dicts."""
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return out


def labels(paths: Sequence[str], trainable: Sequence[str], where: str = "config.train.trainable") -> dict[str, str]:
    """Label every path `train` or `freeze`: `train` if any pattern matches the whole path.

    Raises UserError for a pattern that is no regular expression or matches nothing (most likely a misspelling).
    """
    out = dict.fromkeys(paths, FREEZE)
    for pattern in trainable:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a regular expression ({error})") from None
        hits = [path for path in paths if compiled.fullmatch(path)]
        if not hits:
            raise UserError(f"{where}: {pattern!r} matches no parameter; paths look like {paths[0]!r}, {paths[-1]!r}")
        out.update(dict.fromkeys(hits, TRAIN))
    return out


def split(tree: Any, label: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flat trained leaves and the flat frozen leaves of a tree."""
    flat = flatten(tree)
    return (
        {path: leaf for path, leaf in flat.items() if label[path] == TRAIN},
        {path: leaf for path, leaf in flat.items() if label[path] != TRAIN},
    )


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`: one nested tree from flat parts, with keys in sorted order."""
    flat: dict[str, Any] = {}
    for part in parts:
        flat.update(part)
    return unflatten(dict(sorted(flat.items())))
