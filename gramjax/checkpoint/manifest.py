"""The record inside every checkpoint: each leaf with shape, dtype and checksum, the data state, and the run's facts.

It carries a checksum of itself, and is committed together with the arrays.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gramjax.checkpoint import json_file
from gramjax.checkpoint.checksum import checksums
from gramjax.checkpoint.shards import listing
from gramjax.core.errors import DataError, NotFinite, UserError

FORMAT = 1
REMEDY = "Use --config.overwrite=True or the saved config.json"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is known of a saved leaf."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The checked record of one checkpoint."""

    leaves: dict[str, Leaf]
    data: dict[str, Any]
    meta: dict[str, Any]


def named(state: Any) -> dict[str, Any]:
    """Leaves of any pytree by path (`params/layers/000/attn/q`, `opt_state/0/mu/...`), in `jax.tree` order."""
    out: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None)))) for k in keys)
        if name in out:
            raise ValueError(f"two leaves of the state are called {name}")
        out[name] = leaf
    return out


def make(leaves: Mapping[str, jax.Array], data: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value of a manifest. Raises NotFinite naming leaves with NaN or infinities, which are not saved."""
    bad: set[str] = set()
    sums = checksums(leaves, bad)
    if bad:
        names = listing([name for name in leaves if name in bad])
        raise NotFinite(f"NaN or infinite values in {names}: this state is not saved, older checkpoints are whole")
    body = {
        "format": FORMAT,
        "leaves": {name: [list(leaf.shape), str(leaf.dtype), sums[name]] for name, leaf in leaves.items()},
        "data": dict(data),
        "meta": dict(meta),
    }
    return {"checksum": _checksum(body), **json.loads(json.dumps(body))}


def _checksum(body: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(body, sort_keys=True).encode()):08x}"


def read(step_folder: Path) -> Manifest:
    """The manifest of a step; raises DataError when it is absent, damaged, or of a format that is not known."""
    path = step_folder / "manifest" / "metadata"
    value = json_file.read(path, lambda: DataError(f"{step_folder}: no manifest, so not a complete checkpoint"))
    body = {name: part for name, part in value.items() if name != "checksum"}
    if value.get("checksum") != _checksum(body):
        raise DataError(f"{path}: damaged (its checksum does not fit)")
    if value.get("format") != FORMAT:
        raise DataError(f"{path}: format {value.get('format')}, this version reads {FORMAT}")
    leaves = {name: Leaf(tuple(shape), dtype, total) for name, (shape, dtype, total) in value["leaves"].items()}
    return Manifest(leaves, value["data"], value["meta"])


def differences(saved: Any, current: Any, name: str) -> list[tuple[str, Any, Any]]:
    """`(name, saved, current)` of every value that differs between two JSON values."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        out = []
        for key in sorted({*saved, *current}):
            out += differences(saved.get(key), current.get(key), f"{name}.{key}" if name else str(key))
        return out
    same = json.dumps(saved, sort_keys=True) == json.dumps(current, sort_keys=True)  # tuples are lists in JSON
    return [] if same else [(name, saved, current)]


def check_meta(step: int, saved: Mapping[str, Any], current: Mapping[str, Any], reset_data: bool = False) -> list[str]:
    """Compare the facts of a checkpoint with those of the run that resumes it; returns notes.

    Sections that both have are compared. `model` and `reference`: any difference is a UserError. `data` and
    `tokenizer`: a UserError unless `reset_data`. `mesh` and all others: a note.
    """
    notes = []
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    for section in sorted(set(saved) & set(current)):
        found = differences(saved[section], current[section], section)
        text = ", ".join(f"{name}={_short(was)}, config has {_short(now)}" for name, was, now in found[:6])
        text += f" and {len(found) - 6} more" if len(found) > 6 else ""
        if not found:
            continue
        if section in ("model", "reference"):
            raise UserError(f"checkpoint {step} was written with {text}. {REMEDY}")
        if section in ("data", "tokenizer") and not reset_data:
            raise UserError(
                f"checkpoint {step} was written with {text}: the data order cannot be continued. "
                "Put the data settings and files back, go on in another order with "
                "--config.safety.reset_data=True, or start anew with --config.overwrite=True"
            )
        if section == "mesh":
            notes.append(f"checkpoint {step} was written with {text}: restoring with the new mesh (data order kept)")
        else:
            notes.append(f"checkpoint {step} was written with {text}")
    return notes


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_leaves(
    step: int, saved: Mapping[str, Leaf], wanted: Mapping[str, Any], all_of_them: bool, dtypes: bool
) -> None:
    """Raise UserError listing every leaf that is missing, unknown (`all_of_them`), misshapen or of another dtype."""
    wrong = [
        f"{name} is {saved[name]}, expected {list(leaf.shape)} {leaf.dtype}"
        for name, leaf in wanted.items()
        if name in saved
        and (saved[name].shape != tuple(leaf.shape) or (dtypes and saved[name].dtype != str(leaf.dtype)))
    ]
    missing = [f"{name} {list(leaf.shape)} {leaf.dtype}" for name, leaf in wanted.items() if name not in saved]
    extra = [f"{name} {saved[name]}" for name in saved if name not in wanted] if all_of_them else []
    parts = (("not in it", missing), ("in it but not wanted", extra), ("different", wrong))
    problems = [f"{what}: {listing(names, 50)}" for what, names in parts if names]
    if problems:
        raise UserError(f"checkpoint {step} does not fit this model; {'; '.join(problems)}. {REMEDY}")
