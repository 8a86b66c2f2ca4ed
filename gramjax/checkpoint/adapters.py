"""LoRA adapters from and to PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, no torch either way.

What the settings say and what the file holds must agree, and a feature that the layers here do not have is refused by
its name: an adapter that is applied in part would answer, only worse.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gramjax.checkpoint import folder as folders
from gramjax.checkpoint import huggingface, json_file, shards, tables
from gramjax.checkpoint.shards import listing
from gramjax.core import spec, tree
from gramjax.core.config import LoraSection
from gramjax.core.errors import DataError, UserError
from gramjax.models import block, lora
from gramjax.models.decoder import Config
from gramjax.models.decoder import specs as decoder_specs

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""

TASKS = {"tokens": "CAUSAL_LM", "score": "SEQ_CLS", "value": "TOKEN_CLS"}
"""PEFT's name for a model with each head."""

HEADS = {"score": ("score",), "value": ("value/weight", "value/bias")}
"""Leaves of the heads that PEFT keeps whole, as `score`, without being told (`modules_to_save`)."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "task_type": (None, *TASKS.values()),
}
"""Settings, and the values of them that mean plain LoRA (other starting values of PEFT change the base model)."""

READ = ("r", "lora_alpha", "target_modules", "use_rslora", "layers_to_transform", "layers_pattern", "modules_to_save")
WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "eva_config", "ensure_weight_tying",
)  # fmt: skip
"""Settings of training, of bookkeeping, or of features that have a switch of their own."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A PEFT folder that fits a model."""

    folder: Path
    config: Config
    """Of the model with the adapter: its `lora`, and its heads."""
    whole: tuple[str, ...] = ()
    """Leaves that the folder holds besides, whole: a reward or value head, and others of `modules_to_save`."""

    def load(self, paths: Collection[str], places: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves at some paths of `specs`, on their shardings."""
        found, table = shards.read_header(self.folder / WEIGHTS), rows(self.config, self.whole)
        with shards.reader(found) as read:
            return {
                path: huggingface.read_leaf(read, found[table[path].name], table[path], places[path], dtypes[path])
                for path in paths
            }


def rows(config: Config, whole: Collection[str] = ()) -> dict[str, tables.Row]:
    """The names and layouts, in a PEFT folder, of a model's rank leaves, its reward or value head, and the leaves in
    `whole`.

    `lora_A` is [rank, inputs] and `lora_B` [outputs, rank], where the matrix is [outputs, inputs].
    """
    flat = tree.flatten(decoder_specs(config), is_leaf=spec.is_spec)
    body = tables.rows(tree.unflatten({path: leaf for path, leaf in flat.items() if not lora.is_rank_leaf(path)}))
    out = {}
    for path, leaf in flat.items():
        if lora.is_rank_leaf(path):
            matrix = body[path.rpartition(lora.SUFFIX)[0]]
            outputs, inputs = (len(group) for group in matrix.layout)
            layout = ((inputs,), tuple(range(inputs))) if path.endswith("/a") else (tuple(range(1, outputs + 1)), (0,))
            name = f"{_module(matrix)}.lora_{'A' if path.endswith('/a') else 'B'}.weight"
            out[path] = tables.Row(path, PREFIX + name, layout, tuple(leaf.shape))
    for path in sorted({*whole, *(leaf for leaves in HEADS.values() for leaf in leaves)} & set(body)):
        out[path] = dataclasses.replace(body[path], name=PREFIX + body[path].name)
    return out


def _places(config: Config) -> dict[str, str]:
    """`{model.norm.weight: norm}` of all that a model with these heads has beside rank leaves."""
    return {row.name: path for path, row in tables.rows(decoder_specs(lora.off(config))).items()}


def _module(row: tables.Row) -> str:
    return _module_of(row.name)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _modules(config: Config) -> dict[str, str]:
    """`{model.layers.0.self_attn.q_proj: layers/000/attn/q}` of every projection, in the order of the layers."""
    plain = tables.rows({"layers": decoder_specs(lora.off(config))["layers"]})
    return {_module(row): path for path, row in plain.items() if path.split("/", 2)[2] in block.INPUT_AXES}


def patterns(paths: Collection[str]) -> tuple[str, ...]:
    """Patterns (`config.lora.targets`) that match exactly these projections: one for layers with equal names."""
    by_layer: dict[str, list[str]] = {}
    for path in sorted(paths):
        _, layer, name = path.split("/", 2)
        by_layer.setdefault(layer, []).append(name)
    layers: dict[tuple[str, ...], list[str]] = {}
    for layer, names in by_layer.items():
        layers.setdefault(tuple(names), []).append(layer)
    return tuple(f"layers/({'|'.join(where)})/({'|'.join(names)})" for names, where in layers.items())


def open_adapter(folder: str | Path, config: Config) -> Adapter:
    """The adapter in a PEFT folder, for a model; reads no weights.

    Raises UserError for a folder that is none, a pickle, or a feature that is not supported (by its name), and
    DataError when its files contradict each other or do not fit the model.
    """
    folder = Path(folder).expanduser()
    if not (folder / SETTINGS).is_file():
        raise UserError(f"config.model.adapter: {folder} has no {SETTINGS}: give a PEFT folder")
    settings = json_file.read(folder / SETTINGS)
    check_settings(settings, folder / SETTINGS)
    if not (folder / WEIGHTS).is_file():
        pickle = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), "")
        why = f"only {pickle}, a pickle that can run code when it is read; save it as safetensors" if pickle else ""
        raise UserError(f"{folder}: no {WEIGHTS}{': ' + why if why else ''}")
    found = shards.read_header(folder / WEIGHTS)
    task, kept = settings.get("task_type"), settings.get("modules_to_save") or []
    head = next((head for head, name in TASKS.items() if name == task), "")
    if head not in HEADS and PREFIX + "score.weight" in found:
        head = "score"  # whatever the folder calls its task
    heads = (head,) if head in HEADS else config.heads
    paths, whole = _held(found, dataclasses.replace(config, heads=heads), kept, folder)
    _check_targets(settings, paths, config, folder)
    section = LoraSection(
        settings["r"], float(settings["lora_alpha"]), patterns(paths), bool(settings.get("use_rslora"))
    )
    if missing := [path for path in HEADS.get(heads[0], ()) if path not in whole and heads != config.heads]:
        lost = "score.bias" if missing[0].endswith("bias") else "score.weight"
        raise DataError(f"{folder}: task_type is {task}, but neither it nor its base holds {lost}")
    adapter = Adapter(folder, dataclasses.replace(config, lora=section, heads=heads), whole)
    wrong = [
        f"{row.name} is {list(found[row.name].shape)}, expected {list(row.hf_shape)}"
        for path, row in rows(adapter.config, whole).items()
        if (lora.is_rank_leaf(path) or path in whole) and found[row.name].shape != row.hf_shape
    ]
    strange = [f"{name} is {entry.dtype}" for name, entry in found.items() if entry.dtype not in shards.DTYPES]
    if wrong or strange:
        raise DataError(f"{folder / WEIGHTS} does not fit the model: {listing(wrong + strange)}")
    return adapter


def check_settings(settings: Mapping[str, Any], where: Path) -> None:
    """Raise UserError naming each setting of an `adapter_config.json` that asks for more than plain LoRA."""
    refused = [f"{name} {settings.get(name)!r}" for name, known in PLAIN.items() if settings.get(name) not in known]
    others = set(settings) - set(PLAIN) - set(READ) - set(WITHOUT_EFFECT)
    off: tuple[Any, ...] = (None, False, "", [], {})
    refused += [f"{name} {settings[name]!r}" for name in sorted(others) if settings[name] not in off]
    if refused:
        raise UserError(f"{where}: not supported here: {listing(refused)}")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise DataError(f"{where}: r is {rank!r}; expected a positive whole number")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not np.isfinite(alpha) or alpha <= 0:
        raise DataError(f"{where}: lora_alpha is {alpha!r}; expected a positive number")
    layers = settings.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [0 if layers is None else layers]
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in numbers):
        raise DataError(f"{where}: layers_to_transform is {layers!r}; expected numbers of layers")
    kept = settings.get("modules_to_save")
    if kept is not None and not (isinstance(kept, list) and all(isinstance(name, str) and name for name in kept)):
        raise DataError(f"{where}: modules_to_save is {kept!r}; expected a list of names")
    if settings.get("layers_pattern") not in (None, [], "", "layers", ["layers"]):
        raise UserError(f"{where}: layers_pattern {settings['layers_pattern']!r}: the layers are called 'layers' here")


def _held(
    found: Mapping[str, shards.Entry], config: Config, kept: Collection[str], folder: Path
) -> tuple[list[str], tuple[str, ...]]:
    """The projections that a file has pairs for, and the leaves that it holds whole, which are to be those that `kept`
    (`modules_to_save`) names, and the head."""
    modules, places = _modules(config), _places(config)
    halves: dict[str, set[str]] = {}
    whole, unknown = [], []
    for name in found:
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", name)
        if match and match[1] in modules:
            halves.setdefault(modules[match[1]], set()).add(match[2])
        elif name.startswith(PREFIX) and (own := name.removeprefix(PREFIX)) in places:
            whole.append(own)
        else:
            unknown.append(name)
    if unknown:
        raise DataError(f"{folder / WEIGHTS} holds what this model has no place for: {listing(sorted(unknown))}")
    heads = {"classifier", "score"}
    saved = {name for name in places if any(_module_of(name).endswith(entry) for entry in {*kept} - heads)}
    saved |= {name for name in whole if _module_of(name) in heads}
    names = [entry for entry in kept if entry not in heads and not any(_module_of(n).endswith(entry) for n in places)]
    if names or saved != set(whole):
        raise DataError(
            f"{folder / SETTINGS}: modules_to_save and {WEIGHTS} disagree; named but not in the file: "
            f"{listing([*names, *sorted(saved - set(whole))])}; in the file but not named: "
            f"{listing(sorted(set(whole) - saved))}"
        )
    if torn := sorted(name for name in whole if modules.get(_module_of(name)) in halves):
        raise DataError(f"{folder / WEIGHTS} holds {listing(torn)} whole and adapters for it too")
    if config.tie_word_embeddings and (tied := {"model.embed_tokens.weight", "lm_head.weight"} & set(whole)):
        raise UserError(f"{folder}: {listing(sorted(tied))} is trained apart from what it is tied to in this model")
    if torn := sorted(path for path, parts in halves.items() if len(parts) != 2):
        raise DataError(f"{folder / WEIGHTS} holds one half of the pairs of {listing(torn)}")
    if not halves:
        raise DataError(f"{folder / WEIGHTS} holds no lora_A and lora_B")
    return sorted(halves), tuple(sorted(places[name] for name in whole))


def _check_targets(settings: Mapping[str, Any], paths: list[str], config: Config, folder: Path) -> None:
    """Raise an error unless `target_modules` and `layers_to_transform` name exactly the projections of the file."""
    modules, targets = _modules(config), settings.get("target_modules")
    where = f"{folder / SETTINGS}: target_modules"

    def matches(target: str) -> set[str]:
        return {module for module in modules if module == target or module.endswith("." + target)}

    if targets == "all-linear":
        named = set(modules)
    elif isinstance(targets, str):
        try:
            named = {module for module in modules if re.fullmatch(targets, module)}
        except re.error as error:
            raise DataError(f"{where} {targets!r} is no regular expression ({error})") from None
    elif isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        if strangers := [target for target in targets if not matches(target)]:
            raise UserError(f"{where} names {listing(strangers)}; only projections of the layers have adapters here")
        named = set().union(*(matches(target) for target in targets))
    else:
        raise DataError(f"{where} is {targets!r}; expected a list of names")
    layers = settings.get("layers_to_transform")
    if layers is not None:
        chosen = {f"{layer:03d}" for layer in (layers if isinstance(layers, list) else [layers])}
        named = {module for module in named if modules[module].split("/")[1] in chosen}
    wanted = {modules[module] for module in named}
    if wanted != set(paths):
        raise DataError(
            f"{where} and {WEIGHTS} disagree; named but not in the file: {listing(sorted(wanted - set(paths)))}; "
            f"in the file but not named: {listing(sorted(set(paths) - wanted))}"
        )


def settings_for(config: Config, head: str, base: str, whole: Collection[str] = ()) -> dict[str, Any]:
    """The values of an `adapter_config.json`; `whole` are leaves that go into it besides the head. Raises UserError for
    a head or leaves that PEFT's folder cannot say."""
    if head not in TASKS:
        raise UserError(f"an adapter folder holds no {head} head (there are: {', '.join(TASKS)}): leave out --adapter")
    section = config.lora
    alpha = section.alpha or 2.0 * section.rank
    ranks = {path.rpartition(lora.SUFFIX)[0] for path in rows(config) if lora.is_rank_leaf(path)}
    modules = [module for module, path in _modules(config).items() if path in ranks]
    names = sorted({module.rpartition(".")[2] for module in modules})
    layers = sorted({int(module.split(".")[2]) for module in modules})
    alike = len(modules) == len(names) * len(layers)
    table = tables.rows(decoder_specs(lora.off(config)))
    tied = {"embed", "lm_head"} & set(whole) if config.tie_word_embeddings else set()
    if lost := sorted(path for path in whole if path not in table or _module(table[path]) in modules or path in tied):
        raise UserError(f"an adapter folder cannot hold {listing(lost)}, which trained too: export the whole model "
                        "(without --adapter)")  # fmt: skip
    kept = sorted({_module(table[path]) for path in (*whole, *HEADS.get(head, ()))})
    return {
        "peft_type": "LORA",
        "task_type": TASKS[head],
        "base_model_name_or_path": base,
        "r": section.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": section.rslora,
        "target_modules": names if alike else modules,
        "layers_to_transform": layers if alike and len(layers) < config.num_layers else None,
        "layers_pattern": None,
        "modules_to_save": kept or None,
        "lora_dropout": section.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
        "auto_mapping": None,
        "revision": None,
    }


def save(
    folder: str | Path,
    leaves: Mapping[str, jax.Array],
    config: Config,
    base: str,
    tokenizer_folder: str | Path | None = None,
    dtype: str | None = None,
    fresh: Collection[str] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write rank leaves, the reward or value head of a model that has one, and other whole leaves, as a PEFT folder;
    returns notes.

    `leaves` are by path, `config` has one head, `base` is the model that the adapter belongs to, `dtype` is float32 or
    bfloat16 (default: as they are). The folder appears only when it is complete. Raises UserError for values that are
    not finite and for a head that was never trained.
    """
    (head,) = config.heads
    whole = [path for path in leaves if not lora.is_rank_leaf(path) and path not in HEADS.get(head, ())]
    values = settings_for(config, head, base, whole)
    if head_fresh := [path for path in fresh if path in leaves]:
        raise UserError(f"{listing(head_fresh)} still holds initial values: the exported model would guess")

    def planned(row: tables.Row) -> shards.Planned:
        target = np.dtype(dtype) if dtype else np.dtype(leaves[row.path].dtype)

        def make() -> np.ndarray:
            array = np.asarray(leaves[row.path])
            if not np.isfinite(array).all():
                raise UserError(f"{row.path} holds NaN or infinite values: not exported")
            return row.to_hf(array).astype(target, copy=False)

        return shards.Planned(row.name, row.hf_shape, target, make)

    with folders.replacing(Path(folder), overwrite) as new:
        shards.write_file(new / WEIGHTS, [planned(row) for row in rows(config, whole).values()])
        json_file.write(new / SETTINGS, values)
        return folders.carry_tokenizer(Path(tokenizer_folder), new) if tokenizer_folder else []
