"""Where weights come from: a run folder, a Hugging Face folder or a llama2.c file, seen through one record."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gramjax.checkpoint import adapters, best, huggingface, llama2c, manifest, shards, state, tables
from gramjax.checkpoint import folder as folders
from gramjax.checkpoint.adapters import Adapter, open_adapter
from gramjax.checkpoint.loaded import Loaded, initialised, is_fresh, placement
from gramjax.core import spec, tree
from gramjax.core.config import section
from gramjax.core.errors import DataError, UserError
from gramjax.models import lora
from gramjax.models.decoder import Config
from gramjax.models.decoder import specs as decoder_specs

REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".gguf")


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that can be loaded, and the architecture they are for."""

    kind: str
    """`run`, `huggingface` or `llama2c`."""
    path: Path
    config: Config
    step: int | None = None
    """Of a run: the step asked for; None: the newest that verifies."""
    tokenizer_folder: str = ""
    """Folder with the tokenizer of these weights; empty when there is none."""
    fresh: tuple[str, ...] = ()
    """Paths that still hold initial values there."""
    adapter: Adapter | None = None
    """What belongs to the weights at `path`; `config` is then that of the model with it."""

    def load(
        self,
        specs: Any,
        config: Config,
        shardings: Any = None,
        dtype: Any = jnp.float32,
        fresh: Collection[str] = (),
        key: jax.Array | None = None,
        pad_vocab: bool = False,
    ) -> Loaded:
        """Parameters for `specs` of a model `config`, put on `shardings` in `dtype` (both may be trees).

        They are read one leaf or group of leaves at a time. `fresh` names heads that may be absent and then start
        from `key` (see `huggingface.load_params`). Heads that `specs` do not want are left out with a note. Raises
        UserError or DataError naming every other difference.

        Adapters (`config.lora`) that compute what those of the source compute are read; otherwise those of the source
        are merged into their matrices, and those of `specs` start from `key`.
        """
        flat = tree.flatten(specs, is_leaf=spec.is_spec)
        if not self.config.lora.rank and not any(map(lora.is_rank_leaf, flat)):
            return self._load(specs, config, shardings, dtype, fresh, key, pad_vocab)
        ours = {path: leaf for path, leaf in flat.items() if lora.is_rank_leaf(path)}
        own = tree.flatten(decoder_specs(self.config), is_leaf=spec.is_spec)
        theirs = {path: leaf for path, leaf in own.items() if lora.is_rank_leaf(path)}
        same = _computes(theirs, self.config) == _computes(ours, config)
        whole = set(self.adapter.whole) & set(flat) if self.adapter else set()
        beside = {path for path in whole if tables.HEAD_OF.get(path) not in (None, "tokens")}
        body = {path: leaf for path, leaf in flat.items() if path not in ours and path not in beside}
        places, dtypes = placement(flat, shardings, dtype)
        there, kinds = dict(places), dict(dtypes)
        if not same:  # what is to be merged is thin, and lies whole beside its matrix
            there |= {path: _whole(places[path.rpartition(lora.SUFFIX)[0]]) for path in theirs}
            kinds |= dict.fromkeys(theirs, jnp.dtype(jnp.float32))

        read = tree.unflatten(body if self.adapter else body | theirs)
        loaded = self._load(read, config, tree.unflatten(there), tree.unflatten(kinds), fresh, key, pad_vocab)
        values, new, notes = tree.flatten(loaded.params), set(loaded.fresh), list(loaded.notes)
        if self.adapter:
            values |= self.adapter.load([*theirs, *whole], there, kinds)
        if not same:
            if theirs:
                values = tree.flatten(lora.merge(tree.unflatten(values), self.config))
                where = self.adapter.folder if self.adapter else self.path
                notes.append(f"the adapters of {where} (rank {self.config.lora.rank}) are merged into their matrices")
            values |= initialised(flat, ours, places, dtypes, key)
            new |= set(ours)
        return Loaded(tree.unflatten(dict(sorted(values.items()))), tuple(sorted(new)), tuple(notes))

    def _load(
        self, specs: Any, config: Config, shardings: Any, dtype: Any, fresh: Collection[str], key: Any, pad_vocab: bool
    ) -> Loaded:
        if self.kind == "huggingface":
            return huggingface.load_params(self.path, specs, config, shardings, dtype, fresh, key, pad_vocab)
        flat = tree.flatten(specs, is_leaf=spec.is_spec)
        places, dtypes = placement(flat, shardings, dtype)
        if self.kind == "run":
            leaves = _newest_manifest(self.path, self.step)[1].leaves
            have = {name.removeprefix("params/") for name in leaves if name.startswith("params/")}
            params: dict[str, Any] = {}
        else:
            params = tree.flatten(llama2c.read(self.path)[1])
            have = set(params)
        new = {path for path in flat if path not in have and path in tables.HEAD_OF and is_fresh(path, fresh)}
        unused = have - set(flat)
        if strangers := sorted(path for path in unused if path not in tables.HEAD_OF):
            raise UserError(f"{self.path} holds {shards.listing(strangers)}, which this model does not have")
        notes = [f"{path} of {self.path} is a head that is not used here: left out" for path in sorted(unused)]
        notes += [f"{path} is not in {self.path}: initialised" for path in sorted(new)]
        rest = {path: leaf for path, leaf in flat.items() if path not in new}
        if self.kind == "run":
            abstract = {p: jax.ShapeDtypeStruct(s.shape, dtypes[p], sharding=places[p]) for p, s in rest.items()}
            params = tree.flatten(state.restore_params(self.path, tree.unflatten(abstract), self.step, notes.append))
        else:
            _check_shapes(self.path, params, rest)
            params = {p: jax.device_put(params[p].astype(jnp.dtype(dtypes[p])), places[p]) for p in rest}
        params.update(initialised(flat, new, places, dtypes, key))
        return Loaded(tree.unflatten(dict(sorted(params.items()))), tuple(sorted(new)), tuple(notes))

    def dtype(self) -> Any:
        """The dtype that the weights are stored in: float32 when they differ among themselves."""
        if self.kind == "llama2c":
            return jnp.dtype(jnp.float32)
        if self.kind == "huggingface":
            names = {str(np.dtype(shards.DTYPES.get(e.dtype, np.float32))) for e in shards.entries(self.path).values()}
        else:
            leaves = _newest_manifest(self.path, self.step)[1].leaves
            names = {leaf.dtype for name, leaf in leaves.items() if name.startswith("params/")}
        return jnp.dtype(names.pop() if len(names) == 1 and not names & {"float64"} else jnp.float32)


def _computes(leaves: dict[str, spec.Spec], config: Config) -> Any:
    """What decides which numbers adapters give."""
    return leaves and (leaves, lora.scale(config.lora))


def _whole(place: Any) -> Any:
    """The sharding of an array that lies whole where another is spread."""
    return NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place


def _newest_manifest(run: Path, step: int | None) -> tuple[int, manifest.Manifest]:
    """The newest step (or the one asked for) whose manifest is whole."""
    problems = []
    for candidate in state.choose(run, step):
        try:
            return candidate, manifest.read(run / state.FOLDER / str(candidate))
        except DataError as error:
            problems.append(str(error))
    raise DataError(f"{run}: no checkpoint can be restored; " + "; ".join(problems))


def _check_shapes(path: Path, params: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing = [p for p in wanted if p not in params]
    wrong = [
        f"{p} is {list(params[p].shape)}, expected {list(s.shape)}"
        for p, s in wanted.items()
        if p in params and params[p].shape != s.shape
    ]
    if missing or wrong:
        raise DataError(
            f"{path} does not hold this model; missing: {shards.listing(missing)}; misshapen: {shards.listing(wrong)}"
        )


def open_source(path: str | Path, step: int | None = None, adapter: str | Path = "") -> Source:
    """Say what stands at `path`, with the PEFT folder `adapter` if given, and which architecture it is for.

    `RUN@best` is the best checkpoint of a run (`best.step_of`). Reads no weights.
    Raises UserError for a path that is absent or is something else (a step folder, an adapter, a pickle), saying
    what to give instead, and DataError for damaged files.
    """
    if adapter:
        found = open_source(path, step)
        if found.config.lora.rank:
            raise UserError(f"{path} has adapters of its own: merge them first (gramjax convert {path} FOLDER)")
        fitted = open_adapter(adapter, found.config)
        return dataclasses.replace(found, config=fitted.config, adapter=fitted)
    path, wants_best = best.split(path)
    if wants_best:
        if step is not None:
            raise UserError(f"{path}{best.SUFFIX} and step {step}: give one of them")
        step = best.step_of(path)
    if not path.exists():
        if path.parent.name == state.FOLDER and path.name.isdigit():
            known = ", ".join(map(str, state.steps_of(path.parent.parent))) or "none"
            raise UserError(f"{path.parent.parent} has no checkpoint of step {path.name} (there are: {known})")
        raise UserError(
            f"offline: {path} not found locally. Copy the model folder and pass its path; gramjax never needs the hub"
        )
    if path.is_file():
        _no_step(path, step)
        return _open_file(path)
    if (path / state.FOLDER).is_dir():
        return _open_run(path, step)
    if path.name == state.FOLDER and any(p.name.isdigit() for p in path.iterdir()):
        raise UserError(f"{path} is the checkpoint folder of a run: give {path.parent}")
    if (path / "state").is_dir() or (path / state.COMMITTED).exists() or (path / "manifest" / "metadata").exists():
        known = ", ".join(map(str, state.steps_of(path.parent.parent))) or "none"
        raise UserError(
            f"{path} is one step of a run (steps there: {known}): give {path.parent.parent} and the step "
            f"by itself (config.model.step={path.name}, or --step={path.name} of convert)"
        )
    if (path / adapters.SETTINGS).exists():
        raise UserError(
            f"{path} is an adapter (LoRA), not a model: give the path of its base model, and this one as "
            f"config.model.adapter; gramjax convert BASE FOLDER --merge={path} makes a model of both"
        )
    if (path / "config.json").exists():
        _no_step(path, step)
        config = huggingface.read_config(path)
        shards.files(path)
        return Source("huggingface", path, config, tokenizer_folder=_tokenizer(path))
    if (path / shards.SINGLE).exists() or (path / shards.INDEX).exists():
        raise UserError(f"{path} has weights but no config.json: copy the whole folder of the model")
    shards.files(path)  # says what is wrong with a folder of pickles, or that there are no weights
    raise UserError(f"{path} is neither a run folder nor a Hugging Face folder: no config.json, no checkpoints")


def _no_step(path: Path, step: int | None) -> None:
    if step is not None:
        raise UserError(f"step {step} of {path}: it is no run folder, it has no steps")


def _tokenizer(path: Path) -> str:
    return str(path) if any((path / name).is_file() for name in folders.TOKENIZER_FILES) else ""


def _open_file(path: Path) -> Source:
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is one file of a model: give the folder, which has config.json too")
    if path.suffix == ".bin":
        return Source("llama2c", path, llama2c.read_config(path))
    if path.suffix in REFUSED:
        raise UserError(f"{path}: {path.suffix} files are not read (pickles can run code); convert to safetensors")
    raise UserError(f"{path} is no model: give a run folder, a Hugging Face folder, or a llama2.c .bin file")


def _open_run(path: Path, step: int | None) -> Source:
    found, record = _newest_manifest(path, step)
    if not isinstance(record.meta.get("model"), dict):
        raise DataError(f"{path}: checkpoint {found} does not say which model it is of")
    config = section(record.meta["model"], Config, "model.arch")
    return Source("run", path, config, step, _tokenizer(path / "tokenizer"), tuple(record.meta.get("fresh", ())))
