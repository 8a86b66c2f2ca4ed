"""Plug-ins are files: the name of a method is the name of its file.

`load("objectives", "bradley_terry")` imports `gramjax/objectives/bradley_terry.py`. Only files that stand in the
folder can be named, so a name read from a config or a checkpoint can never import anything else.
"""

import difflib
import importlib
from pathlib import Path
from types import ModuleType

from gramjax.core.errors import UserError

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "models": ("Config", "specs", "forward"),
    "objectives": ("Config", "encode", "loss"),
    "rewards": ("Config", "score"),
    "annotators": ("Config", "annotate"),
    "selection/layers": ("Config", "layer_scores", "PLOT"),
    "selection/rows": ("Config", "select"),
    "evals": ("Config", "evaluate"),
    "recipes": ("Config", "steps", "summarise"),
    "jobs": ("main",),
}
"""What a file in each plug-in folder must define; `tests/test_floors.py` checks every file against it.

What it may define besides: an objective `resolve(config, renderer)`, `fit_rows(config, rows)` (settings that follow
from the training rows), `row_types(config)` and `reference_arch(arch)` (of the model that it compares with, given the
one that trains); an eval `SAMPLES`. An annotator is given a `Sampler`, or with
`OPENS = "network"` and `heads(config, have)` (the heads to open a model with, given its own) a
`scoring.representations.Encoder`; a NumPy `vector` in its rows is kept beside them (`data.vectors`);
`summarise(rows, vectors)` adds to its summary. A row selection names in `FEATURES` the settings that hold a folder of
vectors: `features` then maps each that is set to its `data.vectors.Vectors`.

A layer selection `layer_scores(model, weights, batches, config)` returns a `core.layer_selection.LayerScores`. Its
`batches` are a `data.probe.Probe`, which can be gone through several times. `PLOT` names the file of `gramjax/plots`
whose `draw(found, tables, folder)` makes its pictures out of `layers.json` and `LayerScores.tables`. `LANGUAGES = True`
says that it compares languages.
"""

PARTS_OF_MODELS = (
    "attention", "block", "heads", "stack", "model", "rotary", "lora", "lisa", "sides", "splash", "vocabulary",
)  # fmt: skip
"""Files of `gramjax/models` that are parts of models, not models."""


def names(kind: str) -> list[str]:
    """Names of the plug-ins of a kind, sorted."""
    folder = Path(__file__).parent.parent / kind
    parts = PARTS_OF_MODELS if kind == "models" else ()
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_") and p.stem not in parts)


def load(kind: str, name: str) -> ModuleType:
    """The module of plug-in `name`; raises UserError with the names that exist when there is none."""
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" — did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no {kind} called {name!r}{hint} (there are: {', '.join(known) or 'none'})")
    return importlib.import_module(f"gramjax.{kind.replace('/', '.')}.{name}")
