"""The rows of benchmarks/real_data.py: read from the public sets, split without leaks, written as JSON lines.

The rule, the same on every machine: bucket = crc32(key, lower case, stripped) % 5. Bucket 0 is held out, bucket 1 is
the part of the training rows on which settings are chosen, 2 to 4 are the rest. The key is the statement (persona),
the first human turn (hh_harmless) or the instruction (self_instruct, pandalm), so rows of one key are on one side.
hh_harmless keeps the rows whose two answers are at most SHORT characters together, so that a judge of 512 positions
with a vocabulary of 512 sees both answers whole.
pandalm and self_instruct share instructions: odd crc32 goes to stage 1, even crc32 to the evaluation.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gramjax.core.config import DataSection
from gramjax.data import readers

TRAITS = ("agreeableness", "conscientiousness", "interest-in-math", "interest-in-science")
SHORT = 300
Rows = list[dict[str, Any]]


def crc(key: str) -> int:
    """The number that places a row."""
    return zlib.crc32(key.strip().lower().encode())


def first_turn(row: Mapping[str, Any]) -> str:
    """The first human turn of a conversational prompt."""
    return row["prompt"][0]["content"]


def answers_length(row: Mapping[str, Any]) -> int:
    """Characters of both answers."""
    return sum(len(message["content"]) for side in ("chosen", "rejected") for message in row[side])


def spread(rows: Iterable[dict[str, Any]]) -> Rows:
    """The rows in an order that does not follow the file: by crc32 of their id."""
    return sorted(rows, key=lambda row: (crc(row["id"]), row["id"]))


def read(data: Path, name: str, want: str, subset: str) -> Rows:
    """The usable rows of one file; `subset` names the set in every table."""
    section = DataSection(on_bad_row="skip", pairs_per_record=6 if want == "pair_unlabelled" else 0)
    found = readers.read(str(data / f"{name}.jsonl.gz"), section, want)
    keep = ("id", "prompt", "chosen", "rejected", "responses", "statement")
    return [{k: row[k] for k in keep if k in row} | {"subset": subset} for row in found.rows]


def parts(data: Path, limit: int) -> dict[str, Rows]:
    """Every split by name. `limit` > 0 keeps the first rows (in the order of `spread`) of each, for a quick run."""
    persona = [row for trait in TRAITS for row in read(data, f"persona/{trait}", "preference", "persona")]
    harmless = read(data, "hh_harmless/dev", "preference", "hh_harmless")
    harmless = [row for row in harmless if answers_length(row) <= SHORT]
    out: dict[str, Rows] = {}
    for name, rows, key in (("persona", persona, lambda r: r["statement"]), ("hh_harmless", harmless, first_turn)):
        bucket = {row["id"]: crc(key(row)) % 5 for row in rows}
        out[f"{name}_test"] = spread(r for r in rows if bucket[r["id"]] == 0)
        out[f"{name}_valid"] = spread(r for r in rows if bucket[r["id"]] == 1)
        out[f"{name}_fit"] = spread(r for r in rows if bucket[r["id"]] > 1)
        out[f"{name}_train"] = spread(r for r in rows if bucket[r["id"]] > 0)
    unlabelled = read(data, "self_instruct/user_oriented_dev", "pair_unlabelled", "self_instruct")
    out["self_instruct_unlabelled"] = spread(r for r in unlabelled if crc(first_turn(r)) % 2)
    for name, subset in (("llmbar/natural", "llmbar natural"), ("llmbar/neighbor", "llmbar neighbor")):
        out[subset.replace(" ", "_")] = spread(
            {**row, "id": f"{subset}-{row['id']}"} for row in read(data, name, "preference", subset)
        )
    pandalm = read(data, "pandalm/dev", "preference", "pandalm")
    out["pandalm"] = spread({**r, "id": f"pandalm-{r['id']}"} for r in pandalm if crc(first_turn(r)) % 2 == 0)
    return {name: rows[: limit or None] for name, rows in out.items()}


def write(data: Path, folder: Path, limit: int = 0) -> dict[str, int]:
    """Write `folder/NAME.jsonl` for every split and return its number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    made = parts(data, limit)
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {name: len(rows) for name, rows in made.items()}


def load(folder: Path, name: str) -> Rows:
    """The rows of one split."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").split("\n") if line]
