"""The result files that leaderboards merge, from judged rows and the benchmark file that they came from.

    rewardbench   eval-set/ORG/MODEL.json (a score per subset), eval-set-scores/ORG/MODEL.json (columns, a row per pair)
    pref_sets     the same two for any preference rows with a subset: pref-sets/..., pref-sets-scores/...
    rewardbench2  the same two; rows are lists of answers with `scores`
    rm_bench      ORG/MODEL.json: the rows of the benchmark with `score_chosen` and `score_rejected`
    judgebench    outputs/dataset=...,judge_model=....jsonl: the pairs of the benchmark with `judgments`
    tool          ORG/MODEL.json, ORG/MODEL_outputs.jsonl, ORG/MODEL_all.jsonl of the rewardbench command, for any pairs

Everything is a function of the judged rows (`eval/*.rows.jsonl`), so the files can be made again without the model.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import leaderboards, rewardbench, rewardbench2
from gramjax.core.errors import DataError, UserError

Record = Mapping[str, Any]
Originals = Mapping[str, Record]
SCALAR, GENERATIVE, DPO, DPO_ALONE = "Seq. Classifier", "Generative RM", "DPO", "DPO Ref. Free"
"""Kinds of models as RewardBench names them."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judged, as the files name it."""

    model: str
    """ORG/MODEL."""
    kind: str = ""
    """One of RewardBench's names; empty: what the rows say (a scalar reward knows no order)."""
    chat_template: str = "tokenizer"
    ref_model: str | None = None
    tokenizer: str = ""

    def of(self, records: Sequence[Record]) -> str:
        """The kind of model."""
        return self.kind or (SCALAR if all(r.get("order") == "none" for r in records) else GENERATIVE)


def model_name(path: str) -> str:
    """ORG/MODEL of a folder: the last two parts of its path."""
    parts = [part for part in Path(path).parts[-2:] if part not in ("", "/", ".", "..")]
    return "/".join(parts if len(parts) == 2 else ["local", *parts]) if parts else "local/model"


def write(folder: Path, benchmark: str, records: Sequence[Record], originals: Originals, judge: Judge) -> list[Path]:
    """Write the files of a benchmark below `folder/BENCHMARK` (`FOLDERS`); returns their paths.

    Raises UserError for a name that is not ORG/MODEL, DataError for a judged row that the benchmark file lacks.
    """
    if judge.model.count("/") != 1 or any(part in ("", ".", "..") for part in judge.model.split("/")):
        raise UserError(f"the leaderboards name models ORG/MODEL, not {judge.model!r}")
    out = []
    for name, text in FILES[benchmark](records, originals, judge).items():
        path = folder / FOLDERS.get(benchmark, benchmark) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text, "utf-8")
        new.replace(path)
        out.append(path)
    return out


def original(originals: Originals, identity: str) -> Record:
    """The row of the benchmark file. Raises DataError if there is none."""
    if identity not in originals:
        raise DataError(f"the judged row {identity!r} is not in the data file: was it changed since?")
    return originals[identity]


def sorted_json(value: Any) -> str:
    """JSON as RewardBench writes it: four spaces, sorted keys."""
    return json.dumps(value, indent=4, sort_keys=True)


def _conversation(prompt: Any, answer: Any) -> list[Any]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
    return [*turns, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]


def _header(judge: Judge, records: Sequence[Record]) -> dict[str, Any]:
    return {"model": judge.model, "model_type": judge.of(records), "chat_template": judge.chat_template}


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _pairs(records: Sequence[Record], originals: Originals) -> dict[str, list[Any]]:
    """The columns that both files with a row per pair have."""
    rows = [original(originals, record["id"]) for record in records]
    return {
        "text_chosen": [_conversation(row.get("prompt"), row["chosen"]) for row in rows],
        "text_rejected": [_conversation(row.get("prompt"), row["rejected"]) for row in rows],
        "results": [_plain(rewardbench.credit(record)) for record in records],
        "scores_chosen": [record.get("score_chosen") for record in records],
        "scores_rejected": [record.get("score_rejected") for record in records],
        "id": [row.get("id", record["id"]) for row, record in zip(rows, records, strict=True)],
    }


def _rewardbench(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    table = rewardbench.rewardbench(records)
    scores = {subset: part["score"] for subset, part in table["subsets"].items()}
    kept = [record for record in records if record["subset"] in scores]
    columns = _pairs(kept, originals) | {"subset": [record["subset"] for record in kept]}
    head = _header(judge, records)
    return {
        f"eval-set/{judge.model}.json": sorted_json(head | scores),
        f"eval-set-scores/{judge.model}.json": sorted_json(head | columns),
    }


def _pref_sets(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    """As RewardBench has it for preference sets of others: the plain share of every subset, and the rows."""
    if not all(record.get("subset") for record in records):
        raise UserError("pref-sets has a score per subset: give the rows a column 'subset'")
    worth: dict[str, list[float]] = collections.defaultdict(list)
    for record in records:
        worth[str(record["subset"])].append(rewardbench.credit(record))
    head = _header(judge, records)
    columns = _pairs(records, originals) | {"subset": [record["subset"] for record in records]}
    scores = {subset: sum(values) / len(values) for subset, values in worth.items()}
    if taken := sorted(set(scores) & set(head)):
        raise UserError(f"a subset is called {taken[0]!r}, which the files keep for the model; rename it")
    return {
        f"pref-sets/{judge.model}.json": sorted_json(head | scores),
        f"pref-sets-scores/{judge.model}.json": sorted_json(head | columns),
    }


def _rewardbench2(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    table = rewardbench2.rewardbench2(records)
    rows = [original(originals, record["id"]) for record in records]
    columns = {
        "text": [[_conversation(row["prompt"], text) for text in _answers(row)] for row in rows],
        "scores": [record["scores"] for record in records],
        "results": [None if rewardbench2.is_ties(r) else rewardbench2.best_of(r["scores"]) for r in records],
        "subset": [record["subset"] for record in records],
        "id": [row.get("id", record["id"]) for row, record in zip(rows, records, strict=True)],
        "num_correct": [record["num_correct"] for record in records],
    }
    head = _header(judge, records)
    scores = {name: part["score"] for name, part in table["subsets"].items()}
    return {
        f"eval-set/{judge.model}.json": sorted_json(head | scores),
        f"eval-set-scores/{judge.model}.json": sorted_json(head | columns),
    }


def _answers(row: Record) -> list[Any]:
    """The answers of a list, correct ones first, as the benchmark has them or as `gramjax data convert` writes them."""
    return list(row["responses"]) if "responses" in row else [*row["chosen"], *row["rejected"]]


def _rm_bench(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    """A score per answer. A judge has none, but a probability per cell: both columns are then 3 x 3, row by row of the
    matrix, and a cell is won where the first is larger."""
    cells: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        cells[str(record["group"])].append(record)
    rows = []
    for group, part in cells.items():
        both: list[list[Any]]
        scores = leaderboards.answer_scores(part)
        if scores is None:
            won = {record["matrix_id"]: record for record in part}
            table = [[won.get(f"{i}-{j}", {}) for j in range(3)] for i in range(3)]
            names = ("score_chosen", "score_rejected")
            both = [[[cell.get(name) for cell in line] for line in table] for name in names]
        else:
            both = [[float(value) if value == value else None for value in line] for line in scores]
        rows.append({**original(originals, group), "score_chosen": both[0], "score_rejected": both[1]})
    return {f"{judge.model}.json": json.dumps(rows, indent=4, ensure_ascii=False)}


FLIPPED = {"A>B": "B>A", "B>A": "A>B"}


def _judgebench(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    """One file per model that wrote the answers. A scalar reward plays one game, a judge two, the second with the
    answers exchanged; a game without a verdict is null."""
    kind = judge.of(records)
    name = "generative_reward_model" if kind == GENERATIVE else "reward_model"
    lines: dict[str, list[str]] = collections.defaultdict(list)
    for record in records:
        row = original(originals, record["id"])
        label = str(row["label"]).replace(" ", "")
        words = {1: label, -1: FLIPPED[label], 0: "A=B"}
        first, second = leaderboards.games(record)
        if label == "B>A":  # our first game shows the chosen answer first, the benchmark's shows A first
            first, second = second, first
        one = None if first is None else words[first]
        two = None if second is None else FLIPPED.get(words[second], words[second])
        games = [None if word is None else {"decision": word} for word in (one, two)]
        played = games if kind == GENERATIVE else [{"decision": one}]
        model = str(row.get("response_model") or "unknown").replace("/", "_")
        lines[model].append(json.dumps({**row, "judge_name": name, "judgments": played}, ensure_ascii=False) + "\n")
    end = f"judge_name={name},judge_model={judge.model.replace('/', '_')}.jsonl"
    return {f"outputs/dataset=judgebench,response_model={model},{end}": "".join(part) for model, part in lines.items()}


def _tool(records: Sequence[Record], originals: Originals, judge: Judge) -> dict[str, str]:
    columns = _pairs(records, originals)
    columns = {"prompt": [original(originals, record["id"]).get("prompt") for record in records]} | columns
    subsets = {str(record.get("subset") or "") for record in records}
    if subsets != {""}:
        columns["subset"] = [record.get("subset") for record in records]
    results = columns["results"]
    whole = {
        "accuracy": sum(results) / len(results),
        "num_prompts": len(results),
        "model": judge.model,
        "ref_model": judge.ref_model,
        "tokenizer": judge.tokenizer or judge.model,
        "chat_template": judge.chat_template,
        "extra_results": None,
    }
    outputs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    scores = zip(columns["scores_chosen"], columns["scores_rejected"], strict=True)
    return {
        f"{judge.model}.json": json.dumps(whole),
        f"{judge.model}_outputs.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs),
        f"{judge.model}_all.jsonl": "".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in scores),
    }


FILES: dict[str, Callable[[Sequence[Record], Originals, Judge], dict[str, str]]] = {
    "rewardbench": _rewardbench,
    "pref_sets": _pref_sets,
    "rewardbench2": _rewardbench2,
    "rm_bench": _rm_bench,
    "judgebench": _judgebench,
    "tool": _tool,
}
"""Benchmarks with files of their own: {path below the folder of the benchmark: text}."""

FOLDERS = {"pref_sets": "rewardbench"}
"""Where files lie that do not have a folder of their own."""

OF_PAIRS = ("rewardbench", "pref_sets", "tool")
"""Those that need normalised preference rows as originals; the others need the records of the file."""


def benchmark_of(records: Sequence[Record]) -> str:
    """The benchmark in `FILES` that judged rows belong to, or ""."""
    if records and all("scores" in record and "num_correct" in record for record in records):
        return "rewardbench2"
    found = leaderboards.benchmark_of(records)
    return found if found in FILES else ""
