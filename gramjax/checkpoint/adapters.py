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

TASKS = {"tokens": "CAUSAL_LM", "score": "SEQ_CLS"}
"""PEFT's name for a model with each head."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "modules_to_save": (None, [], ["score"], ["classifier", "score"], ["score", "classifier"]),
    "task_type": (None, *TASKS.values()),
}
"""Settings, and the values of them that mean plain LoRA (other starting values of PEFT change the base model)."""

READ = ("r", "lora_alpha", "target_modules", "use_rslora", "layers_to_transform", "layers_pattern")
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
    has_score: bool
    """Whether the folder holds a reward head."""

    def specs(self) -> dict[str, spec.Spec]:
        """What the folder holds, by path: rank leaves and the reward head."""
        flat = tree.flatten(decoder_specs(self.config), is_leaf=spec.is_spec)
        return {path: leaf for path, leaf in flat.items() if lora.is_rank_leaf(path) or (path == "score")}

    def load(self, paths: Collection[str], places: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves at some paths of `specs`, on their shardings."""
        found, table = shards.read_header(self.folder / WEIGHTS), rows(self.config)
        with shards.reader(found) as read:
            return {
                path: huggingface.read_leaf(read, found[table[path].name], table[path], places[path], dtypes[path])
                for path in paths
            }


def rows(config: Config) -> dict[str, tables.Row]:
    """The names and layouts of the rank leaves of a model, and of its reward head, in a PEFT folder.

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
    if "score" in body:
        out["score"] = dataclasses.replace(body["score"], name=PREFIX + body["score"].name)
    return out


def _module(row: tables.Row) -> str:
    return row.name.removesuffix(".weight")


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
    paths, has_score = _held(found, config, folder)
    _check_targets(settings, paths, config, folder)
    section = LoraSection(
        settings["r"], float(settings["lora_alpha"]), patterns(paths), bool(settings.get("use_rslora"))
    )
    heads = ("score",) if has_score or settings.get("task_type") == "SEQ_CLS" else config.heads
    if heads == ("score",) and not has_score and "score" not in config.heads:
        raise DataError(f"{folder}: task_type is SEQ_CLS, but neither it nor its base holds score.weight")
    adapter = Adapter(folder, dataclasses.replace(config, lora=section, heads=heads), has_score)
    wrong = [
        f"{row.name} is {list(found[row.name].shape)}, expected {list(row.hf_shape)}"
        for row in (rows(adapter.config)[path] for path in adapter.specs() if path != "score" or has_score)
        if found[row.name].shape != row.hf_shape
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
    if settings.get("layers_pattern") not in (None, [], "", "layers", ["layers"]):
        raise UserError(f"{where}: layers_pattern {settings['layers_pattern']!r}: the layers are called 'layers' here")


def _held(found: Mapping[str, shards.Entry], config: Config, folder: Path) -> tuple[list[str], bool]:
    """The projections that a file has pairs for, and whether it has a reward head."""
    modules, score = _modules(config), PREFIX + "score.weight"
    halves: dict[str, set[str]] = {}
    unknown = []
    for name in found:
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", name)
        if match and match[1] in modules:
            halves.setdefault(modules[match[1]], set()).add(match[2])
        elif name != score:
            unknown.append(name)
    if unknown:
        raise DataError(f"{folder / WEIGHTS} holds what this model has no place for: {listing(sorted(unknown))}")
    if torn := sorted(path for path, parts in halves.items() if len(parts) != 2):
        raise DataError(f"{folder / WEIGHTS} holds one half of the pairs of {listing(torn)}")
    if not halves:
        raise DataError(f"{folder / WEIGHTS} holds no lora_A and lora_B")
    return sorted(halves), score in found


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


def settings_for(config: Config, head: str, base: str) -> dict[str, Any]:
    """The values of an `adapter_config.json`. Raises UserError for a head that PEFT's folder cannot say."""
    if head not in TASKS:
        raise UserError(f"an adapter folder holds no {head} head (there are: {', '.join(TASKS)}): leave out --adapter")
    section = config.lora
    alpha = section.alpha or 2.0 * section.rank
    ranks = {path.rpartition(lora.SUFFIX)[0] for path in rows(config) if lora.is_rank_leaf(path)}
    modules = [module for module, path in _modules(config).items() if path in ranks]
    names = sorted({module.rpartition(".")[2] for module in modules})
    layers = sorted({int(module.split(".")[2]) for module in modules})
    whole = len(modules) == len(names) * len(layers)
    return {
        "peft_type": "LORA",
        "task_type": TASKS[head],
        "base_model_name_or_path": base,
        "r": section.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": section.rslora,
        "target_modules": names if whole else modules,
        "layers_to_transform": layers if whole and len(layers) < config.num_layers else None,
        "layers_pattern": None,
        "modules_to_save": ["score"] if head == "score" else None,
        "lora_dropout": 0.0,
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
    """Write rank leaves, and the reward head of a model that has one, as a PEFT folder; returns notes.

    `leaves` are by path, `config` has one head, `base` is the model that the adapter belongs to, `dtype` is float32 or
    bfloat16 (default: as they are). The folder appears only when it is complete. Raises UserError for values that are
    not finite and for a head that was never trained.
    """
    (head,) = config.heads
    values = settings_for(config, head, base)
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
        shards.write_file(new / WEIGHTS, [planned(row) for row in rows(config).values()])
        json_file.write(new / SETTINGS, values)
        return folders.carry_tokenizer(Path(tokenizer_folder), new) if tokenizer_folder else []
