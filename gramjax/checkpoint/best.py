"""Which checkpoints of a run are the best by a number of its evaluations, as `metrics.jsonl` has it.

A step whose number is missing, NaN or infinite is worse than every other and is never among the best: Orbax keeps a NaN
as the best there is. Of equal ones the earlier is the better.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gramjax.checkpoint import json_file
from gramjax.core.config import TrainSection
from gramjax.core.errors import UserError
from gramjax.core.writer import read_metrics

SUFFIX = "@best"
"""`RUN@best` is the best checkpoint of a run, wherever weights are named by a path."""

SHOWN = 16
"""Names that an error lists."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How many are kept beside the newest, and by what."""

    count: int
    metric: str
    """As in `metrics.jsonl`: `eval/NAME/KEY`."""
    mode: str
    """`max` or `min`."""


def rule_of(train: Any) -> Rule | None:
    """The rule of a `config.train` (or what `config.json` says of it); None: only the newest are kept."""
    given = {name: train.get(name, getattr(TrainSection, name)) for name in ("keep_best", "best_metric", "best_mode")}
    return Rule(*given.values()) if given["keep_best"] else None


def recorded(entries: Iterable[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """The finite values of a metric by step."""
    found = {entry["step"]: _finite(entry[metric]) for entry in entries if metric in entry}
    return {step: value for step, value in found.items() if value is not None}


def _finite(value: Any) -> float | None:
    """A number (no truth value) that others can be compared with, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def ranked(values: Mapping[int, float], steps: Iterable[int], mode: str) -> list[int]:
    """Those of the steps that have a value, the best first."""
    sign = -1 if mode == "max" else 1
    return sorted((step for step in steps if step in values), key=lambda step: (sign * values[step], step))


class Best:
    """What a training knows of its evaluations, and which of its checkpoints stay for that."""

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule
        self.values: dict[int, float] = {}

    def goes_on(self, entries: Iterable[Mapping[str, Any]], last: float = math.inf) -> None:
        """Take what was logged up to a step."""
        if self.rule is not None:
            self.values |= recorded((entry for entry in entries if entry["step"] <= last), self.rule.metric)

    def among(self, steps: Collection[int], count: int | None = None) -> list[int]:
        """The best of these steps, first the best; `count` of them, or as many as the rule keeps."""
        if self.rule is None:
            return []
        return ranked(self.values, steps, self.rule.mode)[: self.rule.count if count is None else count]

    def said(self, step: int) -> str:
        """The number of a step in words: `eval/preference/nll 0.31`."""
        value = self.values.get(step)
        return f"{self.rule.metric if self.rule else ''} {'no value' if value is None else f'{value:.6g}'}"

    def note(self, step: int, results: Mapping[str, Mapping[str, Any]], saved: Collection[int]) -> bool:
        """Take the results of an evaluation (`{eval: results}`); whether this step is one to keep, beside those saved.

        Raises UserError, in all processes alike, when the first evaluation has no such number.
        """
        if self.rule is None:
            return False
        self.values.pop(step, None)
        known = {f"eval/{name}/{key}": value for name, found in results.items() for key, value in found.items()}
        value = known.get(self.rule.metric)
        there = self.rule.metric in known and (value is None or isinstance(value, int | float))
        if not there and not self.values:
            numbers = [name for name, value in known.items() if isinstance(value, int | float)]
            near = difflib.get_close_matches(self.rule.metric, numbers, n=1)
            hint = f"did you mean {near[0]}? There" if near else "there"
            more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
            error = UserError(f"config.train.best_metric={self.rule.metric!r} is no number of this run's evaluations; "
                              f"{hint} are {', '.join(numbers[:SHOWN])}{more}")  # fmt: skip
            error.agreed = True
            raise error
        if (number := _finite(value)) is not None:
            self.values[step] = number
        return step in self.among({*saved, step})


def of_run(workdir: str | Path) -> Best:
    """What a run folder says of its evaluations; nothing where it keeps no best, or has no files that say so."""
    folder = Path(workdir)
    settings = json_file.read(folder / "config.json") if (folder / "config.json").is_file() else {}
    best = Best(rule_of(settings.get("train", {})))
    if best.rule is not None and (folder / "metrics.jsonl").is_file():
        best.goes_on(read_metrics(folder / "metrics.jsonl"))
    return best


def split(path: str | Path) -> tuple[Path, bool]:
    """The run folder of a path, and whether its best step is meant (`RUN@best`, where nothing has that very name)."""
    given = Path(path).expanduser()
    if given.name.endswith(SUFFIX) and given.name != SUFFIX and not given.exists():
        return given.with_name(given.name.removesuffix(SUFFIX)), True
    return given, False


def step_of(workdir: str | Path) -> int:
    """The best committed step of a run. Raises UserError when none is known."""
    from gramjax.checkpoint import state  # with JAX, which those who only split a path do without

    if not (Path(workdir) / state.FOLDER).is_dir():
        raise UserError(f"{workdir}{SUFFIX}: {workdir} is no run folder, it has no checkpoints")
    known = of_run(workdir)
    steps = state.steps_of(workdir)
    if known.rule is None:
        raise UserError(f"{workdir}{SUFFIX}: this run kept no best checkpoint (config.train.keep_best was 0)")
    if best := known.among(steps):
        return best[0]
    raise UserError(
        f"{workdir}{SUFFIX}: none of its checkpoints ({', '.join(map(str, steps)) or 'there are none'}) has a value of "
        f"{known.rule.metric} in metrics.jsonl"
    )
