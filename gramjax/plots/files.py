"""What a run folder holds, read for figures and reports. Missing files are empty: a report shows what there is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError, UserError
from gramjax.core.writer import read_metrics

ROUNDS = "rounds.json"
"""What a self-training recipe writes after every step."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The readable contents of a run folder."""

    folder: Path
    config: dict[str, Any]
    overrides: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    entries: list[dict[str, Any]]
    """Log events of `metrics.jsonl`."""
    evals: dict[str, dict[str, Any]]
    """Results by name of the eval."""
    rows: dict[str, list[dict[str, Any]]]
    """Judged rows by name of the eval."""
    phases: dict[str, "RunFiles"]
    """Earlier phases of the run: folders inside it that are runs themselves."""
    rounds: dict[str, Any] | None
    """Contents of a recipe's `rounds.json`; None where the folder is not a recipe's."""
    done: bool

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is absent. Raises DataError for a broken one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: no readable JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises DataError naming the line of a broken one."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise DataError(f"{path} line {number}: no JSON") from None
    return rows


def read_run(folder: str | Path) -> RunFiles:
    """Read the folder of a training, an evaluation or a recipe. Raises UserError when it is none of them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the --workdir of a run")
    if not any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "eval", ROUNDS)):
        raise UserError(f"{folder} holds no run: it has neither config.json, metrics.jsonl, eval/ nor {ROUNDS}")
    metrics = folder / "metrics.jsonl"
    evals = {path.stem: read_json(path) for path in sorted((folder / "eval").glob("*.json"))}
    rounds = read_json(folder / ROUNDS) if (folder / ROUNDS).is_file() else None
    phases = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    return RunFiles(
        folder=folder,
        config=read_json(folder / "config.json"),
        overrides=read_json(folder / "overrides.json"),
        environment=read_json(folder / "env.json"),
        data=read_json(folder / "data.json"),
        entries=read_metrics(metrics) if metrics.is_file() else [],
        evals=evals,
        rows={name: read_rows(folder / "eval" / f"{name}.rows.jsonl") for name in evals},
        phases={path.name: read_run(path) for path in phases},
        rounds=rounds,
        done=(folder / "DONE").exists() or bool((rounds or {}).get("finished")),
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"optim.lr": 1e-5}`."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def config_name(run: RunFiles) -> str:
    """The `--config=` of the command that made the run, or ""."""
    command = [str(word) for word in run.environment.get("command") or []]
    for word, after in zip(command, [*command[1:], ""]):
        if word.startswith("--config="):
            return word.removeprefix("--config=")
        if word == "--config":
            return after
    return ""
