"""The run folder: which run a folder holds, whether this command may go on in it, and the files that say what ran.

`config.json` (the resolved config), `overrides.json` (what the command line changed), `env.json` (where it ran).
Everything is written by one process, each file in one move.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gramjax.core import checks, runtime
from gramjax.core.errors import UserError

CONTENTS = ("config.json", "overrides.json", "env.json", "metrics.jsonl", "tb", "checkpoints",
            "checkpoints-refused", "verified.json", "tries.json", "samples", "eval",
            "plots", "tokenizer", "data.json", "report.html", "DONE", "wandb",
            "rows.jsonl", "refused.jsonl", "summary.json", "steps", "rounds.json", "objective.json",
            "pass_rates.jsonl", "layers.json", "scores.csv",
            "vectors.safetensors", "vectors.ids.json", "vectors.part")
"""What a run leaves in its folder; `overwrite` removes exactly these."""

FREE = ("job", "resume", "overwrite", "log", "mesh", "generation", "evals", "data.valid", "model.attention",
        "train.steps", "train.epochs", "train.remat", "train.scan_layers", "train.logit_chunk", "train.log_every",
        "grpo.completions_every", "grpo.completions_shown", "reward.timeout", "reward.threads", "reward.processes",
        "train.eval_every", "train.save_every", "train.keep", "train.keep_best", "train.best_metric",
        "train.best_mode", "safety", "score.batch_size", "score.buckets", "score.share", "score.chunk")
"""Settings that may change when a run goes on: not what a step computes, only how, where and how long."""

DATA = ("data", "tokenizer", "seed", "train.batch_size")
"""Settings that decide which batches there are and in which order; `config.safety.reset_data` lets them change."""


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON in one move: a reader sees the old file or the new one. NaN is refused."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
    new.replace(path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that differ and make it another run: `model.arch.num_layers=24, now 28`."""
    def plain(config: Mapping[str, Any]) -> dict[str, Any]:
        return {path: list(v) if isinstance(v, tuple) else v for path, v in checks.flatten(config).items()}

    # A setting that the old config does not have is newer than that run, which had its default.
    unset = {path: setting.default for path, setting in checks.settings(new).items()} if "model" in new else {}
    before, after = {**plain(unset), **plain(old)}, plain(new)
    before = {path: value for path, value in before.items() if path in after or path in checks.flatten(old)}
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return [
        f"config.{path}={before.get(path)!r}, now {after.get(path)!r}"
        for path in changed if not any(path == free or path.startswith(f"{free}.") for free in FREE)
    ]


def holds_run(workdir: str | Path) -> bool:
    """True if a run in the folder came to results: one that stopped at a wrong setting or file left nothing to lose."""
    folder = Path(workdir)
    checkpoints, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    return (
        (checkpoints.is_dir() and any(checkpoints.iterdir()))
        or (metrics.is_file() and metrics.stat().st_size > 0)
        or any((folder / name).exists() for name in ("eval", "samples", "steps", "rows.jsonl", "DONE"))
    )


def prepare(
    workdir: str | Path,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    resume: bool = True,
    overwrite: bool = False,
    environment: Mapping[str, Any] | None = None,
    reset_data: bool | None = None,
) -> bool:
    """Make the folder ready for a run and write its three files; True if a run that is there goes on.

    `reset_data`: it may go on with other data (`DATA`); None: this kind of job never may.

    Raises UserError when the folder holds a run that this config may not continue, or cannot be written.
    """
    folder = Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    if problem := runtime.unwritable(folder):
        raise UserError(f"--workdir: {problem}")
    there = holds_run(folder)
    if there and overwrite:
        clear(folder)
        there = False
    if there and not resume:
        raise UserError(f"{workdir} holds a run and config.resume is False: choose another --workdir, or "
                        "--config.overwrite=True to replace it")
    saved = folder / "config.json"
    if there and saved.is_file():
        try:
            old = json.loads(saved.read_text("utf-8"))
            if not isinstance(old, dict):
                raise ValueError(f"it holds {type(old).__name__}, an object was expected")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{saved}: no readable JSON ({error}); choose another --workdir") from None
        changed = differences(old, config)
        others = [text for text in changed if not text.startswith(tuple(f"config.{name}" for name in DATA))]
        changed = others if reset_data else changed
        if changed:
            may = reset_data is not None and not others
            other_data = ", go on with other data (--config.safety.reset_data=True)" if may else ""
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{workdir} holds a run with {'; '.join(changed[:3])}{more}: go on with --config={saved}{other_data}, "
                "choose another --workdir, or --config.overwrite=True to replace it")
    write_json(saved, as_dict(config))
    write_json(folder / "overrides.json", as_dict(overrides))
    write_json(folder / "env.json", runtime.facts() if environment is None else environment)
    return there


def clear(folder: Path) -> None:
    """Remove what a run left in a folder, and nothing else."""
    for name in CONTENTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts, with lists for tuples: what `config.json` holds."""
    def plain(value: Any) -> Any:
        if hasattr(value, "items"):
            return {name: plain(v) for name, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(config)
