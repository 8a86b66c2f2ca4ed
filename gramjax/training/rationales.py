"""Runs that were trained to write before they say which (GRAM-R2): a reader of verdicts would look elsewhere."""

from gramjax.checkpoint import best
from gramjax.checkpoint import state as checkpoints
from gramjax.core import checks
from gramjax.core.errors import UserError

OBJECTIVE = "rationale_preference"


def instruction_of(path: str) -> str | None:
    """The instruction (empty: the package's own) that the run at a path was trained with; None for a run of another
    objective, and for weights that are no run."""
    place, _ = best.split(path)
    run = next((p for p in (place, *place.parents[:2]) if (p / checkpoints.FOLDER).is_dir()), None)
    if run is None or not (run / "config.json").is_file():
        return None
    saved = checks.flatten(checkpoints.read_run(run))
    return str(saved.get("objective.instruction") or "") if saved.get("objective.name") == OBJECTIVE else None


def refuse(path: str, method: str, setting: str) -> None:
    """Raise UserError where `auto` would look for the verdict of a judge in a run that writes rationales."""
    if method == "auto" and instruction_of(path) is not None:
        raise UserError(
            f"{path} was trained to write a rationale before its verdict: use gramjax evaluate "
            f"--config=evaluate_rationale, gramjax annotate or gramjax serve ({setting}=judge reads it without one)"
        )
