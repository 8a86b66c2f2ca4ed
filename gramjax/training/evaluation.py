"""Evaluate weights and write the results into a run folder; the same function during training and afterwards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from gramjax.models.model import Model


def pack(model: Model, params: Any) -> Any:
    """Weights in use, made once for many batches."""
    return jax.jit(lambda p: model.pack(p))(params)


def write_eval(
    name: str,
    module: ModuleType,
    model: Model,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Any,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run an eval plug-in and write `folder/NAME.json` and one line per example to `folder/NAME.rows.jsonl`.

    Returns the results; `facts` (model, data, step) are added to the file. Only process 0 writes.
    """
    lines: list[str] = []
    found = module.evaluate(
        model,
        weights,
        renderer,
        rows,
        config,
        lambda row: lines.append(json.dumps(row, ensure_ascii=False)),
        model.mesh,
    )
    results = {**dict(found), **(facts or {})}
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.rows.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")
        (folder / f"{name}.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return results


def numbers(name: str, results: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of the results, as metrics `eval/NAME/KEY`."""
    plain = {
        key: value for key, value in results.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {f"eval/{name}/{key}": float(value) for key, value in plain.items()}
