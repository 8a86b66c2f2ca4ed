"""How rows are rendered for a trained model: as the run that trained it did, unless the command line says otherwise."""

from typing import Any

from gramjax.checkpoint import best
from gramjax.checkpoint import state as checkpoints
from gramjax.core import checks

RENDERING = ("max_length", "judge_prompt", "judge_cue", "verdicts")
"""Settings of `config.data` that a model was trained with and must be used with."""

INSTRUCTION = "evals.rationale.judging.instruction"
"""The judge's instruction, which a training with rationales has in `objective.instruction`."""


def inherit(config: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """Put the rendering settings of the run at `config.model.path` into the config, those in `overrides` (given on the
    command line) apart; returns what was taken, by path. Nothing for weights that are no run."""
    run, _ = best.split(config.model.path)
    if not (run / checkpoints.FOLDER).is_dir():
        return {}
    saved = checks.flatten(checkpoints.read_run(run))
    taken = {}
    with config.unlocked():
        for name in RENDERING:
            path = f"data.{name}"
            if path in saved and path not in overrides:
                value = saved[path]
                config.data[name] = taken[path] = tuple(value) if isinstance(value, list) else value
        if "rationale" in config.get("evals", {}) and INSTRUCTION not in overrides:
            if saved.get("objective.instruction"):
                config.evals.rationale.judging.instruction = taken[INSTRUCTION] = saved["objective.instruction"]
    return taken
