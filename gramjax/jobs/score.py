"""Score rows with a reward model: rows in, rows with scores out."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjax.checkpoint.lock import RunLock
from gramjax.core import config as configs
from gramjax.core import flags, folder, runtime, signals
from gramjax.core.errors import DataError, UserError
from gramjax.core.row_log import RowLog
from gramjax.data import readers, rows
from gramjax.data.rows import Drop
from gramjax.scoring import references
from gramjax.scoring.references import References

if TYPE_CHECKING:  # JAX is imported by the functions that need it: the help answers at once
    from gramjax.scoring.reward_model import Question, RewardModel

ROW_TYPES = (rows.PREFERENCE, rows.RESPONSES, rows.PROMPT_COMPLETION, rows.UNPAIRED, rows.LANGUAGE_MODELING)
WRITES = {
    rows.PREFERENCE: ("score_chosen", "score_rejected", "score_margin", "probability", "probability_first",
                      "probability_second"),
    rows.RESPONSES: ("scores", "score_margin", "probability", "probability_first", "probability_second"),
    rows.PROMPT_COMPLETION: ("score",),
}  # fmt: skip
"""Columns that are written, by type of row (the others are scored as an answer to a prompt)."""

BOTH = ("num_tokens", "shortened")
"""Columns that are written for rows of every type."""

Row = dict[str, Any]


def main(argv: list[str]) -> int:
    """`gramjax score --config=score --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR`."""
    arguments = flags.parse(argv, "score")
    config = arguments.config
    if config.job != "score":
        raise UserError(f"config {arguments.config_name!r} is for gramjax {config.job}, not for score")
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model that scores")
    if config.model.random_weights:
        raise UserError("config.model.random_weights: weights that were never trained have no scores to give")
    if not config.data.path:
        raise UserError("give --config.data.path=FILE, the rows to score")
    section = configs.section(config.score, configs.ScoreSection, "score")
    known = references.open_references(section.reference, "score.reference") if section.reference else None
    runtime.start(distributed=arguments.distributed, expected=arguments.devices, alone="score")
    import jax

    from gramjax.training import inheritance, rationales, scoring, setup

    inheritance.inherit(config, arguments.overrides)
    rationales.refuse(config.model.path, section.method, "config.score.method")
    found = readers.read(config.data.path, setup.data_section(config), ROW_TYPES)
    check_columns(found, known)
    if arguments.dry_run:
        from gramjax.core import spec

        network = setup.open_network(config)
        print(f"{len(found.rows):,} rows of {found.total:,}, {spec.count(network.model.specs()):,} parameters")
        return 0
    workdir = Path(arguments.workdir)
    with RunLock(workdir):
        folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
        log = RowLog(workdir, jax.process_index() == 0)
        log.check_known((row["id"] for row in found.rows), config.data.path)
        left = [row for row in found.rows if row["id"] not in log.done]
        if len(left) < len(found.rows):
            print(f"{len(found.rows) - len(left):,} of {len(found.rows):,} rows are there already", file=sys.stderr)
        if left:
            model = scoring.open_reward_model(config, *scoring.settings_of(section))
            check_kind(model.kind, left, found.type, known)
            with signals.served(), log:
                score(model, left, found.type, known, log, section.chunk)
        if jax.process_index() == 0:
            print(log.finish(len(found.rows), found.dropped))
    return 0


def check_columns(found: readers.Rows, known: References | None) -> None:
    """Raise for columns that would be lost, and for a column of references that no row has."""
    writes = {*WRITES.get(found.type, WRITES[rows.PROMPT_COMPLETION]), *BOTH}
    for row in found.rows:
        if taken := sorted(writes & {name for name, value in row.items() if value is not None}):
            raise DataError(f"row {row['id']!r} has a column {taken[0]!r}, which would be overwritten; rename it with "
                            f"--config.data.rename=\"('{taken[0]}:given_{taken[0]}',)\"")  # fmt: skip
    if known and known.column and all(row.get(known.column) is None for row in found.rows):
        raise UserError(f"config.score.reference: no file and no column {known.column!r} (the first row has "
                        f"{rows.columns(found.rows[0])})")  # fmt: skip


def check_kind(kind: str, left: Sequence[Row], row_type: str, known: References | None) -> None:
    """Raise UserError for a judge that lacks references, and for references that nobody looks at."""
    pairs = row_type == rows.PREFERENCE or (row_type == rows.RESPONSES and all(len(r["responses"]) == 2 for r in left))
    if kind == "judge" and not pairs and known is None:
        raise UserError("this model judges pairs: it has no score for one answer alone. Give --config.score.reference, "
                        "a column or a file of answers to compare with")  # fmt: skip
    if known is not None and (kind != "judge" or row_type == rows.PREFERENCE):
        why = "the rows are pairs" if kind == "judge" else "the model scores an answer by itself"
        raise UserError(f"config.score.reference is given, but {why}: leave it out")


def score(
    model: "RewardModel", left: Sequence[Row], row_type: str, known: References | None, log: RowLog, chunk: int
) -> None:
    """Score rows `chunk` at a time and write them."""
    began = time.monotonic()
    for start in range(0, len(left), chunk):
        part = left[start : start + chunk]
        asked = [ask(model, row, row_type, known) for row in part]
        values = iter(model.read([question for one in asked if not isinstance(one, str) for question in one]))
        for row, one in zip(part, asked, strict=True):
            if isinstance(one, str):
                log.refuse(row, one)
                continue
            reason, columns = answer(model, one, [next(values) for _ in one], row_type)
            if reason:
                log.refuse(row, reason)
            else:
                log.add({name: value for name, value in row.items() if (name, value) != ("margin", None)} | columns)
        done = min(start + chunk, len(left))
        speed = done / (time.monotonic() - began)
        print(f"row {done:,}/{len(left):,}   {speed:,.1f} rows/s", file=sys.stderr, flush=True)


def ask(model: "RewardModel", row: Row, row_type: str, known: References | None) -> "list[Question] | str":
    """The questions about a row, or why there are none."""
    try:
        if row_type == rows.PREFERENCE:
            return [model.ask_pair((row["prompt"], row["chosen"], row["rejected"]))]
        if row_type == rows.RESPONSES:
            prompt, given = row["prompt"], row["responses"]
            if model.kind == "judge" and known is None:
                return [model.ask_pair((prompt, *given))]
        else:
            prompt, completion = alone(row)
            given = [completion]
        if model.kind != "judge":
            return [model.ask_reward((prompt, one)) for one in given]
        assert known is not None
        if prompt is None:
            return "a judge needs the prompt beside the answer"
        with_prompt = {**row, "prompt": prompt}
        return [model.ask_pair((prompt, one, references.same_form(one, known.of_row(with_prompt)))) for one in given]
    except (Drop, DataError) as error:
        return str(error)


def alone(row: Row) -> tuple[Any, Any]:
    """(prompt, answer) of a row that is no pair; of a text (None, text). Raises Drop for a dialogue without answer."""
    if row.get("completion") is not None:
        return row.get("prompt") or "", row["completion"]
    if row.get("messages") is None:
        return None, row["text"]
    if row["messages"][-1]["role"] != "assistant":
        raise Drop("the last turn is not the assistant's")
    return row["messages"][:-1], row["messages"][-1:]


def answer(
    model: "RewardModel", asked: "list[Question]", values: Sequence[Any], row_type: str
) -> tuple[str, Row]:
    """(why there is no score, the columns of a row)."""
    if reason := next((question.reason for question in asked if not question.sequences), ""):
        return reason, {}
    from gramjax.scoring.reward_model import difference

    out: dict[str, Any] = {}
    tokens = {"num_tokens": max(q.num_tokens for q in asked), "shortened": any(q.shortened for q in asked)}
    if row_type == rows.PREFERENCE or asked[0].order and row_type == rows.RESPONSES and len(asked) == 1:
        said = model.comparison(asked[0], values[0])
        out = {"score_margin": said.margin, "probability": said.score}
        if model.kind == "judge":  # of the first answer, shown first and shown second
            out |= {"probability_first": said.p_first, "probability_second": 1 - said.p_second}
        else:
            out |= dict(zip(("score_chosen", "score_rejected"), said.rewards, strict=True))
    else:
        found = [one_number(model, question, value) for question, value in zip(asked, values, strict=True)]
        out = {"scores": found} if row_type == rows.RESPONSES else {"score": found[0]}
        if row_type == rows.RESPONSES and len(found) == 2 and model.kind != "judge":
            said = difference(*found)
            out |= {"score_margin": said.margin, "probability": said.score}
    flat = [number for value in out.values() for number in (value if isinstance(value, list) else [value])]
    if not all(map(math.isfinite, flat)):
        return "the model gave no finite number", {}
    return "", out | tokens


def one_number(model: "RewardModel", question: "Question", value: Any) -> float:
    """The score of one answer: its reward, or a judge's probability that it beats its reference."""
    if model.kind == "judge":
        return model.comparison(question, value).score
    return model.reward(question, value).value
