"""What `gramjax convert --to=lisa` is told, as a record: which layers share attention, and how."""

import ast
import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gramjax.core import layer_selection
from gramjax.core.errors import UserError
from gramjax.models.lisa import LisaSection

METHODS: dict[str, dict[str, Any]] = {
    "lisa": {},
    "linear": {"align": "linear"},
    "share": {"align": "none", "rank": 0},
    "align": {"rank": 0},
    "delta": {"align": "off"},
    "share_delta": {"align": "none"},
    "cla": {"shares": "keys"},
}
"""Names for settings that belong together: LiSA, LiSA with one map of the heads instead of a network, direct sharing,
alignment alone, difference alone, direct sharing with difference, and CLA."""

LOW_RANK = "low_rank"
"""The baseline that shares nothing: query and key projections of lower rank (`lisa.truncated`)."""


def layers_of(text: str, config: Any) -> tuple[int, ...]:
    """Layers from a file that `gramjax select_layers` wrote, a list (`2,3,7-11`) or `deepest:COUNT`.

    Raises UserError for what is none of these, names a layer that is not there, or was chosen for another model.
    """
    num_layers = config.num_layers
    if text.endswith(".json") or Path(text).is_file():
        found = layer_selection.read(text, "--layers")
        layer_selection.check_same_model(found, config, f"--layers={text}")
        layers = found["layers"]
    else:
        layers = _listed(text, num_layers)
    if wrong := [i for i in layers if not 0 < i < num_layers]:
        raise UserError(f"--layers={text}: layer {wrong[0]} cannot share; the model has layers 1 to {num_layers - 1} "
                        "that can (layer 0 has none before it)")  # fmt: skip
    return tuple(sorted(set(layers)))


def _listed(text: str, num_layers: int) -> list[int]:
    name, _, count = text.partition(":")
    try:
        if name == "deepest":
            return list(range(num_layers - int(count), num_layers))
        out: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            out += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UserError(
            f"--layers={text!r} is neither a layers.json, nor a list like 2,3,7-11, nor deepest:COUNT"
        ) from None
    return out


def section_of(layers: tuple[int, ...], method: str, settings: Sequence[str]) -> LisaSection:
    """The record of a method (`METHODS`) with further settings, each `NAME=VALUE`.

    Raises UserError for a name that does not exist and a value of another type.
    """
    known = typing.get_type_hints(LisaSection)
    given: dict[str, Any] = dict(METHODS[method])
    for setting in settings:
        name, equals, text = setting.partition("=")
        if name not in known or name == "layers" or not equals:
            names = ", ".join(sorted(set(known) - {"layers"}))
            raise UserError(f"--set={setting!r} is not NAME=VALUE with one of {names}")
        given[name] = _value(name, text, known[name])
    return dataclasses.replace(LisaSection(layers=layers), **given)


def _value(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if type(value) is not kind:
        raise UserError(f"--set={name}={text}: {name} is of type {kind.__name__}")
    return value


def as_text(section: LisaSection) -> str:
    """The settings that differ from the defaults, on a line."""
    default = LisaSection()
    differs = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)
               if f.name != "layers" and getattr(section, f.name) != getattr(default, f.name)}  # fmt: skip
    return json.dumps(differs) if differs else "as by default"
