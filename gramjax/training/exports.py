"""The result files for leaderboards of an evaluation, in the `eval/exports` of its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import config as configs
from gramjax.core.errors import UserError
from gramjax.data import leaderboard_files, readers


def write(
    folder: Path,
    config: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    name: str,
    model: str = "",
    source: str = "",
    layout: str = "",
) -> list[Path]:
    """Write what the benchmark of judged rows asks for below `folder/exports`; returns the paths (none for other rows).

    `config` is that of the evaluation (its data file is read again, if `source` names no other), `name` its eval,
    `model` ORG/NAME (empty: the last two parts of the model's path). `layout` of `ANY_PAIRS` instead of the
    benchmark's: `tool`, the files of the rewardbench command, or `pref_sets`, those of RewardBench's other sets.
    """
    benchmark = leaderboard_files.benchmark_of(records)
    if layout:
        benchmark = layout if records and all("correct" in record for record in records) else ""
    if not benchmark:
        return []
    source = source or str(config["data"]["path"])
    if not source:
        raise UserError("the evaluation names no data file (config.data.path); give it with --data")
    section = configs.DataSection(rename=tuple(config["data"].get("rename") or ()), on_bad_row="skip")
    originals = readers.originals(source, section)
    if benchmark in leaderboard_files.OF_PAIRS:  # in whatever form the file has them
        pairs = readers.read(source, section, "preference").rows
        originals = {row["id"]: {**row, "id": originals.get(row["id"], row).get("id", row["id"])} for row in pairs}
    judge = leaderboard_files.Judge(
        model=model or leaderboard_files.model_name(str(config["model"]["path"])),
        kind=_kind(config, name),
        chat_template=config["tokenizer"].get("chat_template") or "tokenizer",
        ref_model=_reference(config) or None,
    )
    return leaderboard_files.write(folder / "exports", benchmark, records, originals, judge)


def _kind(config: Mapping[str, Any], name: str) -> str:
    """RewardBench's word for an implicit reward; "" where the rows say what the model is."""
    if config["evals"][name].get("method") != "implicit":
        return ""
    return leaderboard_files.DPO if _reference(config) else leaderboard_files.DPO_ALONE


def _reference(config: Mapping[str, Any]) -> str:
    return str((config.get("reference") or {}).get("path") or "")
