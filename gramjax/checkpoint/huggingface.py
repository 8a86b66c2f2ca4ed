"""Weights from and to Hugging Face folders: streamed leaf by leaf, no torch either way.

Reading puts every leaf straight onto its sharding, so that each host and device sees its own part only. Writing plans
the files from the shapes and makes one array at a time.
"""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.checkpoint import folder as folders
from gramjax.checkpoint import hf_config, json_file, lisa_torch, shards, tables
from gramjax.checkpoint.hf_config import check_vocab, read_config
from gramjax.checkpoint.loaded import Loaded, initialised, is_fresh, placement
from gramjax.checkpoint.shards import listing
from gramjax.core import spec, tree
from gramjax.core.errors import DataError, UserError
from gramjax.models.decoder import Config
from gramjax.models.decoder import specs as decoder_specs

__all__ = ["Loaded", "check_vocab", "load_params", "read_config", "save"]

MAX_SHARD_BYTES = 5 * 2**30
EMBED, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_params(
    folder: str | Path,
    specs: Any,
    config: Config,
    shardings: Any = None,
    dtype: Any = jnp.float32,
    fresh: Collection[str] = (),
    key: jax.Array | None = None,
    pad_vocab: bool = False,
) -> Loaded:
    """Parameters for `specs` from the safetensors files of a folder.

    `shardings` and `dtype` may be trees like `specs` (default: whole on the first device, float32). `fresh` names
    heads (`score`, `value`, `lm_head`) that may be absent and are then initialised from `key`. `pad_vocab` lets the
    embedding have more rows than the file; new rows get the mean of the others. A head of the folder that `specs` do
    not want is left out with a note.

    Raises DataError for missing, unknown, doubled, misshapen or non-finite weights (all of them in one message).
    """
    folder = Path(folder)
    found = shards.entries(folder)
    table = tables.rows(specs)
    # `score.weight` is a reward or a value head: the architecture says which, and one is not taken for the other.
    heads = read_config(folder).heads
    absent = [path for path in table if path in tables.HEAD_OF and tables.HEAD_OF[path] not in heads]
    wanted = tables.by_name({path: row for path, row in table.items() if path not in absent})
    notes = _leave_out(found, wanted, config, folder)
    absent += [row.path for name, row in wanted.items() if name not in found]
    new = {path for path in absent if path in tables.HEAD_OF and is_fresh(path, fresh)}
    padded = {EMBED, LM_HEAD} if pad_vocab else set()
    _check_names(folder, found, wanted, [table[path] for path in absent if path not in new], padded)

    flat_specs = tree.flatten(specs, is_leaf=spec.is_spec)
    places, dtypes = placement(flat_specs, shardings, dtype)
    flat: dict[str, Any] = {}
    with shards.reader(found) as read:
        for name, row in wanted.items():
            if row.path in new:
                continue
            flat[row.path] = read_leaf(read, found[name], row, places[row.path], dtypes[row.path])
            if (rows := found[name].shape[0]) != row.hf_shape[0]:
                notes.append(f"{row.path}: rows {rows} to {row.hf_shape[0] - 1} are new, set to the mean of the others")
        if LM_HEAD in found and config.tie_word_embeddings:
            _check_tied(read, found, folder)
    flat.update(initialised(flat_specs, new, places, dtypes, key))
    notes += [f"{path} is not in {folder}: initialised" for path in sorted(new)]
    return Loaded(tree.unflatten(dict(sorted(flat.items()))), tuple(sorted(new)), tuple(notes))


def _leave_out(
    found: dict[str, shards.Entry], wanted: Mapping[str, tables.Row], config: Config, folder: Path
) -> list[str]:
    """Remove from `found` what is known and not wanted; returns a note for each."""
    notes = []
    for name in sorted(set(found) - set(wanted)):
        if tables.BUFFERS.fullmatch(name):
            found.pop(name)
            notes.append(f"{name} of {folder} is a function of the config: not read")
        elif name == LM_HEAD and config.tie_word_embeddings:
            notes.append(f"{name} of {folder} is the same as the embedding: read once")
        elif tables.head_of_name(name):
            found.pop(name)
            notes.append(f"{name} of {folder} is a head that is not used here: left out")
    return notes


def _check_names(
    folder: Path,
    found: Mapping[str, shards.Entry],
    wanted: Mapping[str, tables.Row],
    missing: list[tables.Row],
    padded: set[str],
) -> None:
    unknown = sorted(name for name in set(found) - set(wanted) if name != LM_HEAD)
    misshapen, mistyped = [], []
    for name in sorted(set(wanted) & set(found)):
        theirs, ours = found[name].shape, wanted[name].hf_shape
        grows = name in padded and theirs[1:] == ours[1:] and 0 < theirs[0] <= ours[0]
        if theirs != ours and not grows:
            misshapen.append(f"{name} is {list(theirs)}, expected {list(ours)}")
        if found[name].dtype not in shards.DTYPES:
            mistyped.append(f"{name} is {found[name].dtype}")
    problems = [
        f"{what}: {listing(names)}"
        for what, names in (
            ("missing", [f"{row.name} ({row.path})" for row in missing]),
            ("unknown", unknown),
            ("misshapen", misshapen),
            (f"not of a dtype that is read ({', '.join(shards.DTYPES)})", mistyped),
        )
        if names
    ]
    if problems:
        heads = sorted({tables.HEAD_OF[row.path] for row in missing if row.path in tables.HEAD_OF})
        hint = f". The folder has no {' or '.join(heads)} head; only training may start one afresh" if heads else ""
        raise DataError(f"{folder} does not hold this model; " + "; ".join(problems) + hint)


def read_leaf(
    read: Callable[..., np.ndarray], entry: shards.Entry, row: tables.Row, sharding: Any, dtype: Any
) -> jax.Array:
    """One leaf on its sharding. Each part is read, checked, cast and moved on its own."""
    rows_there = entry.shape[0]
    mean: list[np.ndarray] = []

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop = index[0].start, index[0].stop
        block = read(row.name, (slice(min(start, rows_there), min(stop, rows_there)), *index[1:]))
        if not np.isfinite(block).all():
            raise DataError(f"{entry.file}: {row.name} holds NaN or infinite values")
        if stop <= rows_there:
            return block
        if not mean:
            mean.append(_mean_row(read, row.name, rows_there))
        extra = np.broadcast_to(mean[0], (stop - max(start, rows_there), mean[0].size))[:, index[1]]
        return np.concatenate([block, extra.astype(block.dtype)])

    cache: dict[Any, np.ndarray] = {}  # replicas on several devices read the file once

    def make(index: tuple[slice, ...] | None) -> np.ndarray:
        index = tuple(index or ()) + (slice(None),) * (len(row.shape) - len(index or ()))
        known = tuple(s.indices(n) for s, n in zip(index, row.shape))
        if known not in cache:
            cache[known] = np.ascontiguousarray(row.from_hf(part, index)).astype(jnp.dtype(dtype), copy=False)
        return cache[known]

    # One leaf at a time: without the wait, host copies of many leaves would pile up behind the transfers.
    return jax.block_until_ready(jax.make_array_from_callback(row.shape, sharding, make))


def _mean_row(read: Callable[..., np.ndarray], name: str, rows: int) -> np.ndarray:
    total: Any = 0.0
    for start in range(0, rows, 4096):
        total = total + read(name, (slice(start, min(start + 4096, rows)), slice(None))).astype(np.float64).sum(0)
    return (total / rows).astype(np.float32)


def _check_tied(read: Callable[..., np.ndarray], found: Mapping[str, shards.Entry], folder: Path) -> None:
    rows = found[EMBED].shape[0]
    same = found[EMBED].shape == found[LM_HEAD].shape
    for start in range(0, rows if same else 0, 4096):
        part = (slice(start, min(start + 4096, rows)), slice(None))
        same = same and np.array_equal(read(EMBED, part), read(LM_HEAD, part))
    if not same:
        raise DataError(f"{folder}: tie_word_embeddings is true, but {LM_HEAD} differs from {EMBED}")


def save(
    folder: str | Path,
    params: Any,
    config: Config,
    tokenizer_folder: str | Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    head: str = "",
    fresh: Collection[str] = (),
    token_ids: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write parameters as a Hugging Face folder that transformers 4 and 5 read; returns notes.

    `dtype` is `float32`, `bfloat16` or None (as they are; float32 when they differ). `head` chooses one of several.
    `fresh` lists paths that still hold initial values; a head among them is refused. The folder appears only when it
    is complete.

    Raises UserError for parameters that do not fit the config, for a head that is missing or fresh, for a reward model
    without a padding token, and for a folder that exists (without `overwrite`).
    """
    head = hf_config.exported_head(config, head)
    if head_fresh := [path for path in fresh if tables.HEAD_OF.get(path) == head]:
        raise UserError(f"{listing(head_fresh)} still holds initial values: the exported model would guess")
    one_head = dataclasses.replace(config, heads=(head,))
    flat = _check_params(params, config)
    table = tables.by_name(tables.rows(decoder_specs(one_head)))
    left = [path for path in flat if path not in {row.path for row in table.values()}]
    dtypes = {np.dtype(leaf.dtype) for leaf in flat.values()}
    target = np.dtype(dtype) if dtype else (dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32))
    if target not in {np.dtype(d) for d in shards.DTYPES.values()}:
        raise UserError(f"dtype {target} cannot be exported; choose float32 or bfloat16")

    ids = folders.token_ids(tokenizer_folder) if tokenizer_folder else {}
    ids.update(token_ids or {})
    values = hf_config.to_hf(one_head, head, target.name, ids)
    notes = [f"{path} is not part of a {values['architectures'][0]}: left out" for path in left]
    if head == "score" and ids.get("pad_token_id") is None:
        raise UserError("a reward model needs a padding token in its config: give a tokenizer that has one")
    if head == "score" and ids["pad_token_id"] == ids.get("eos_token_id"):
        notes.append("pad and eos share one id: transformers will read scores from the token before the end")

    def planned(row: tables.Row) -> shards.Planned:
        def make() -> np.ndarray:
            array = np.asarray(flat[row.path])
            if not np.isfinite(array).all():
                raise UserError(f"{row.path} holds NaN or infinite values: not exported")
            return row.to_hf(array).astype(target, copy=False)

        return shards.Planned(row.name, row.hf_shape, target, make)

    with folders.replacing(Path(folder), overwrite) as new:
        shards.write(new, [planned(row) for row in table.values()], max_shard_bytes)
        json_file.write(new / "config.json", values)
        if config.lisa.layers:
            shutil.copyfile(lisa_torch.__file__, new / folders.LISA_CODE)
            notes.append(f"transformers has no class for shared attention: {folders.LISA_CODE} in the folder runs it")
        if tokenizer_folder:
            notes += folders.carry_tokenizer(Path(tokenizer_folder), new)
        if head == "tokens":
            folders.write_generation_config(tokenizer_folder, new, ids)
    return notes


def _check_params(params: Any, config: Config) -> dict[str, Any]:
    flat = tree.flatten(params)
    specs = tree.flatten(decoder_specs(config), is_leaf=spec.is_spec)
    missing, extra = sorted(set(specs) - set(flat)), sorted(set(flat) - set(specs))
    wrong = [
        f"{path} is {list(flat[path].shape)}, expected {list(specs[path].shape)}"
        for path in specs
        if path in flat and tuple(flat[path].shape) != specs[path].shape
    ]
    if missing or extra or wrong:
        raise UserError(
            f"the parameters do not fit the model config; missing: {listing(missing)}; unknown: {listing(extra)}; "
            f"misshapen: {listing(wrong)}"
        )
    return flat
