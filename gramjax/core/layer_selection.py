"""The layers that a method chose (`layers.json`), and what training only a part of a model's layers means.

`gramjax select_layers` writes the file, `config.select` reads it, and `patterns` makes of layers and targets the
patterns of the parameters that train. Nothing else knows that tuning is selective.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import layer_rules
from gramjax.core.config import SelectSection
from gramjax.core.errors import UserError

FILE = "layers.json"

MEASURED = "measured"

ARCHITECTURE = ("family", "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
"""Sizes in which the model that layers were chosen for and the one that is trained must agree."""


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """What a layer selection found out about a model."""

    scores: Mapping[str, Sequence[float]]
    """By name, one number per layer each (NaN: none). The first is the one that decided."""
    layers: tuple[int, ...]
    """The chosen layers."""
    rule: str
    """How they were chosen, such as `prefix_topk(k=6)`."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else `layers.json` says; JSON."""
    warnings: tuple[str, ...] = ()
    """What speaks against the choice."""
    tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arrays that pictures are drawn from, by name."""


def architecture(config: Any) -> dict[str, Any]:
    """The sizes of a model that its layers are chosen for."""
    return {name: getattr(config, name) for name in ARCHITECTURE if hasattr(config, name)}


def fingerprint(*parts: Any) -> str:
    """sha256 of the sizes of a model, of the texts that it read, and of its tokenizer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def as_json(found: LayerScores) -> dict[str, Any]:
    """The part of `layers.json` that a selection decides."""
    scores = {
        name: [None if math.isnan(value) else float(value) for value in values] for name, values in found.scores.items()
    }
    out = {"rule": found.rule, "layers": sorted(int(layer) for layer in found.layers), "scores": scores}
    return {**out, **found.facts, "warnings": list(found.warnings)}


def read(path: str, where: str = "config.select.path") -> dict[str, Any]:
    """What a `layers.json`, or the folder that holds one, says. Raises UserError naming the setting `where`."""
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, OSError) else f"no readable JSON ({error})"
        raise UserError(f"{where}={path}: {reason}; gramjax select_layers writes {FILE}") from None
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise UserError(f"{where}={path} has no list of layers; gramjax select_layers writes {FILE}")
    return found


def check_same_model(found: Mapping[str, Any], config: Any, where: str = "config.select.path") -> None:
    """Raise UserError when the layers were chosen for a model of other sizes."""
    theirs = found.get("model", {}).get("architecture", {})
    for name, ours in architecture(config).items():
        if name in theirs and theirs[name] != ours:
            raise UserError(
                f"{where}: the layers were chosen for a model with {name}={theirs[name]!r}, this one has {ours!r}"
            )


def chosen(section: SelectSection, config: Any) -> tuple[int, ...]:
    """The layers that `config.select` names, rising; empty when it names none. Raises UserError.

    Any rule but `measured` takes as many layers as `count` says, or as the file or list has that it stands beside.
    """
    if section.path and section.layers:
        raise UserError("config.select.path and config.select.layers are both given; which one?")
    layers = list(section.layers)
    if section.path:
        found = read(section.path)
        check_same_model(found, config)
        layers = found["layers"]
        if not layers and section.rule in ("", MEASURED):
            raise UserError(f"config.select.path={section.path} chose no layer: nothing would train")
    total = config.num_layers
    if outside := [layer for layer in layers if not 0 <= layer < total]:
        raise UserError(f"config.select: layer {outside[0]} does not exist; the model has layers 0 to {total - 1}")
    if section.rule == MEASURED and not layers:
        raise UserError(
            "config.select: which layers? Give --config.select.path=DIR/layers.json (gramjax select_layers) or "
            "--config.select.layers; --config.select.rule= trains everything"
        )
    if section.count and section.rule in ("", MEASURED):
        raise UserError(f"config.select.count={section.count} is for config.select.rule lower, upper or random")
    if section.seed and section.rule != "random":
        raise UserError(f"config.select.seed={section.seed} is for config.select.rule=random")
    if section.rule not in ("", MEASURED):
        layers = by_rule(section.rule, section.count or len(layers), total, section.seed)
    return tuple(sorted(set(layers)))


def by_rule(rule: str, count: int, total: int, seed: int = 0) -> list[int]:
    """`count` of `total` layers: the lowest, the uppermost, or drawn without replacement. Raises UserError."""
    if not 0 < count <= total:
        raise UserError(f"config.select.count={count}: 1 to {total} layers can be chosen by config.select.rule={rule}")
    if rule == "random":
        return list(layer_rules.drawn(count, total, seed))
    return list(range(count)) if rule == "lower" else list(range(total - count, total))


def patterns(section: SelectSection, config: Any) -> tuple[str, ...]:
    """Patterns of the parameters that train, one per target, and `also`; empty when `config.select` chooses nothing.

    Raises UserError for settings that contradict each other, and for layers that do not exist.
    """
    layers = chosen(section, config)
    if not layers:
        plain = SelectSection()
        changed = [name for name in ("targets", "also") if getattr(section, name) != getattr(plain, name)]
        if changed:
            raise UserError(f"config.select.{changed[0]} is given, but no layers: set path, layers or rule beside it")
        return ()
    if not section.targets:
        raise UserError("config.select.targets is empty: nothing would train")
    numbers = "|".join(f"{layer:03d}" for layer in layers)
    parts = [rf"layers/(?:{numbers})/{re.escape(target.strip('/'))}(?:/.*)?" for target in section.targets]
    return (*parts, *section.also)
