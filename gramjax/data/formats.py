"""Foreign rows to TRL-named rows: what other projects' files look like, so that nobody converts by hand.

`adapt(record, where, want)` returns the rows that one record stands for: itself if it is no known foreign shape, one
row, or several (a record with many answers is many pairs). Instructions become one user turn, answers one assistant
turn, so that a chat template applies to them.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gramjax.core import leaderboards, rewardbench
from gramjax.core.errors import DataError
from gramjax.data import helpsteer3, math_rows
from gramjax.data.rows import (
    LANGUAGE_MODELING,
    PAIR_UNLABELLED,
    PREFERENCE,
    PROMPT_COMPLETION,
    PROMPT_ONLY,
    RATIONALE,
    RESPONSES,
    Drop,
    Message,
    coin,
)

START, END = "[The Start of Assistant {}'s Answer]", "[The End of Assistant {}'s Answer]"
QUESTION = "[User Question]"
TIE = "tie"
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}

LANGUAGES = {"de": "German", "en": "English", "zh": "Chinese", "ru": "Russian", "he": "Hebrew", "ja": "Japanese"}
MINOR_ERROR = 1.0
"""Smallest difference of MQM penalties (a minor error counts 1) that says which translation is better."""

Record = Mapping[str, Any]
Want = Sequence[str]


def user(text: str) -> list[Message]:
    """One user turn."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[Message]:
    """One assistant turn."""
    return [{"role": "assistant", "content": text}]


def instruction(record: Record) -> str:
    """Alpaca's `instruction` and `input` as one text, as LLaMA-Factory joins them (a newline between)."""
    parts = [record.get("instruction"), record.get("input")]
    return "\n".join(part for part in parts if isinstance(part, str) and part)


def dialogue(text: str, where: str, field: str) -> list[Message]:
    r"""The messages of an Anthropic dialogue, `\n\nHuman: ...\n\nAssistant: ...`."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if parts[0].strip():
        raise DataError(f"{where}: '{field}' has text before the first Human turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[role], "content": content.strip()} for role, content in turns]


def _hh(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    both = {name: dialogue(record[name], where, name) for name in ("chosen", "rejected")}
    return [{**record, **both}]


def marked(text: str, where: str, field: str) -> tuple[str, str, str]:
    """The text before the answers and the two answers of a text in GRAM's marked form.

    Markers are found as plain strings and must each occur once after the question, in order: a second one means that
    an answer holds a marker, and the row cannot be read with certainty.
    """
    places = []
    for marker in (START.format("A"), END.format("A"), START.format("B"), END.format("B")):
        if text.count(marker) != 1:
            raise DataError(f"{where}: '{field}' holds the marker {marker!r} {text.count(marker)} times, not once")
        places.append((text.index(marker), len(marker)))
    if sorted(places) != places:
        raise DataError(f"{where}: the answer markers in '{field}' are out of order")
    (a, na), (b, _), (c, nc), (d, _) = places

    def body(piece: str) -> str:
        return piece.removeprefix("\n").removesuffix("\n")

    return text[:a], body(text[a + na : b]), body(text[c + nc : d])


def _question(text: str) -> str:
    found = text.rfind(QUESTION)
    return (text[found + len(QUESTION) :] if found >= 0 else text).strip()


def _gram_unlabelled(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    _, first, second = marked(record["output"], where, "output")
    rest = {k: v for k, v in record.items() if k not in ("instruction", "input", "output")}
    question = _question(instruction(record))
    return [{**rest, "prompt": user(question), "responses": [assistant(first), assistant(second)]}]


def _gram_labelled(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    head, first, second = marked(instruction(record), where, "instruction")
    rest = {k: v for k, v in record.items() if k not in ("instruction", "input", "output")}
    verdict = str(record["output"]).strip()
    pair = (first, second) if verdict == "A" else (second, first)
    return [{**rest, **_pair(_question(head), *pair)}]


def _pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": user(prompt), "chosen": assistant(chosen), "rejected": assistant(rejected)}


def _judged(rest: dict[str, Any], prompt: str, answers: Sequence[str], winner: int, want: Want) -> dict[str, Any]:
    """One compared pair; `winner` is 1, 2, or 0 for a tie. A tie is dropped where a label is needed, else kept."""
    if want[:1] == (PAIR_UNLABELLED,):
        return {**rest, "prompt": user(prompt), "responses": [assistant(text) for text in answers]}
    if winner == 0:
        raise Drop(TIE)
    first, second = answers
    return {**rest, **_pair(prompt, *((first, second) if winner == 1 else (second, first)))}


def majority(votes: Sequence[int]) -> int:
    """The verdict (1 or 2) that has most votes, 0 for a tie (also when most voters say tie)."""
    counts = {vote: votes.count(vote) for vote in (0, 1, 2)}
    best = max(counts.values())
    winners = [vote for vote, count in counts.items() if count == best]
    return winners[0] if len(winners) == 1 else 0


def _scalar_text(value: Any, where: str, field: str) -> str:
    """Text, or what a number or a truth value stands for: PandaLM has answers like `True` and `42` without quotes."""
    if not isinstance(value, str | bool | int | float):
        raise DataError(f"{where}: '{field}' is {value!r}; text was expected")
    return str(value)


def _two_outputs(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """LLMBar (`output_1`, `output_2`, `label`) and PandaLM (`response1`, `response2`, `annotator1..n`)."""
    names = ("output_1", "output_2") if "output_1" in record else ("response1", "response2")
    answers = [_scalar_text(record[name], where, name) for name in names]
    voters = sorted(key for key in record if re.fullmatch(r"annotator\d+", str(key)))
    votes = [record[key] for key in voters] if voters else [record.get("label", record.get("preference"))]
    if not all(str(vote) in ("0", "1", "2") for vote in votes):
        raise DataError(f"{where}: the verdict is {votes}; 1, 2 or 0 (tie) was expected")
    winner = majority([int(vote) for vote in votes])
    gone = {"instruction", "input", "label", "preference", *names, *voters}
    rest = {k: v for k, v in record.items() if k not in gone}
    if voters:
        rest["votes"] = [int(vote) for vote in votes]
    return [_judged(rest, instruction(record), answers, winner, want)]


def _helpsteer3(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """HelpSteer3's preference part; with an annotator's rationale where the caller can use it or asks for nothing."""
    gone = ("context", "response1", "response2", "overall_preference", "individual_preference", "chosen", "rejected")
    score = helpsteer3.score_of(record["overall_preference"], where, "overall_preference")
    row = {k: v for k, v in record.items() if k not in gone}
    row |= {"prompt": record["context"], "subset": record.get("domain")}
    first, second = (assistant(_scalar_text(record[name], where, name)) for name in ("response1", "response2"))
    if want[:1] == (PAIR_UNLABELLED,):
        return [{**row, "responses": [first, second]}]
    if score == 0:
        raise Drop(TIE)
    row["margin"] = abs(score)
    if RATIONALE in want or not want:
        label = helpsteer3.label(score)
        return [{**row, "responses": [first, second], "label": label, **helpsteer3.rationale_column(record, where)}]
    chosen, rejected = (first, second) if helpsteer3.label(score) == "A" else (second, first)
    return [{**row, "chosen": chosen, "rejected": rejected}]


def _judgebench(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    label = str(record["label"]).replace(" ", "")
    if label not in ("A>B", "B>A", "A=B"):
        raise DataError(f"{where}: 'label' is {record['label']!r}; 'A>B' or 'B>A' was expected")
    rest = {k: v for k, v in record.items() if k not in ("question", "response_A", "response_B", "label")}
    rest.setdefault("id", record.get("pair_id"))
    rest |= {"subset": str(record.get("source", "")).partition("-")[0], "benchmark": "judgebench"}
    winner = {"A>B": 1, "B>A": 2, "A=B": 0}[label]
    return [_judged(rest, record["question"], [record["response_A"], record["response_B"]], winner, want)]


def _many_models(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """Self-instruct's human evaluation: one instruction, `responses` by model. Every pair of differing answers."""
    rest = {k: v for k, v in record.items() if k not in ("instruction", "input", "responses", "reference")}
    name = record.get("id", where)
    answers = [(model, text.strip()) for model, text in sorted(record["responses"].items()) if isinstance(text, str)]
    out = []
    different = list({text: (model, text) for model, text in reversed(answers) if text}.values())[::-1]
    for (left, first), (right, second) in itertools.combinations(different, 2):
        pair = [(left, first), (right, second)]
        if coin(0, name, left, right):
            pair.reverse()
        out.append(
            {
                **rest,
                "id": f"{name}/{left}+{right}",
                "prompt": user(instruction(record)),
                "responses": [assistant(text) for _, text in pair],
                "models": [model for model, _ in pair],
            }
        )
    if not out:
        raise Drop("fewer than two different answers")
    return out


def _persona(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    names = ("answer_matching_behavior", "answer_not_matching_behavior")
    rest = {k: v for k, v in record.items() if k not in ("question", *names)}
    return [{**rest, **_pair(record["question"], record[names[0]].strip(), record[names[1]].strip())}]


def _qa_feedback(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """Four answers and six verdicts, for the pairs (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)."""
    answers, verdicts = record["predictions"], record["preference"]
    pairs = list(itertools.combinations(range(len(answers)), 2))
    if len(pairs) != len(verdicts):
        raise DataError(f"{where}: {len(answers)} 'predictions' need {len(pairs)} verdicts, found {len(verdicts)}")
    passages = "\n\n".join(text for _, text in record.get("passages") or [])
    prompt = f"{passages}\n\n{record['question']}" if passages else record["question"]
    name = record.get("id", record.get("src_row", where))
    out: list[dict[str, Any]] = []
    for (i, j), verdict in zip(pairs, verdicts, strict=True):
        rest = {"id": f"{name}/{i + 1}-{j + 1}", "group": str(name)}
        try:
            out.append(_judged(rest, prompt, [answers[i], answers[j]], int(verdict), want))
        except Drop as drop:
            out.append({"_drop": str(drop), **rest})
    return out


def _mqm(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """WMT's error-annotated translations: one source, `outputs` with `hyp` and the penalty `mqm` (lower is better).

    Pairs whose penalties differ by less than a minor error are ties; the `margin` of a pair is the difference. As a
    list (`responses`) the translations keep their `scores`, the negated penalties.
    """
    rest = {k: v for k, v in record.items() if k not in ("source", "outputs")}
    name = record.get("id", f"{record.get('doc', where)}/{record.get('seg', '')}".rstrip("/"))
    target = str(record.get("lp", ""))[-2:]
    prompt = f"Translate into {LANGUAGES.get(target, target or 'the other language')}:\n\n{record['source']}"
    outputs = [output for output in record["outputs"] if output.get("mqm") is not None]
    if want[:1] == (RESPONSES,):
        answers = [assistant(_scalar_text(o["hyp"], where, "hyp")) for o in outputs]
        scores = [-float(output["mqm"]) for output in outputs]
        return [{**rest, "id": name, "prompt": user(prompt), "responses": answers, "scores": scores}]
    out: list[dict[str, Any]] = []
    for (i, one), (j, two) in itertools.combinations(enumerate(outputs), 2):
        gap = round(two["mqm"] - one["mqm"], 4)  # means over raters, to four digits
        row = {**rest, "id": f"{name}/{i}-{j}", "group": str(name), "margin": abs(gap)}
        try:
            winner = 0 if abs(gap) < MINOR_ERROR or one["hyp"] == two["hyp"] else 1 if gap > 0 else 2
            out.append(_judged(row, prompt, [one["hyp"], two["hyp"]], winner, want))
        except Drop as drop:
            out.append({"_drop": str(drop), **row})
    return out


def _matrix(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """RM-Bench and RewardBench 2: lists of chosen and rejected answers. One row per cell, or the list as it is, chosen
    answers first, for a caller who wants lists."""
    rest = {k: v for k, v in record.items() if k not in ("prompt", "chosen", "rejected")}
    name, chosen, rejected = record.get("id", where), record["chosen"], record["rejected"]
    if record.get("num_correct", len(chosen)) != len(chosen):
        raise DataError(f"{where}: 'num_correct' is {record['num_correct']!r} beside {len(chosen)} chosen answers")
    rest.setdefault("subset", record.get("domain"))
    styles = len(leaderboards.STYLES)
    if "num_correct" in record or "total_completions" in record:
        rest["benchmark"] = "rewardbench2"
    elif "domain" in record and len(chosen) == len(rejected) == styles:
        rest["benchmark"] = "rm_bench"
    if want[:1] == (RESPONSES,):
        answers = [assistant(text) for text in (*chosen, *rejected)]
        own = {} if record.get("id") is None else {"id": str(name)}
        return [{**rest, **own, "num_correct": len(chosen), "prompt": user(record["prompt"]), "responses": answers}]
    cells = itertools.product(enumerate(chosen), enumerate(rejected))
    return [
        {**rest, "id": f"{name}/{i}-{j}", "group": str(name), "matrix_id": f"{i}-{j}", **_pair(record["prompt"], c, r)}
        for (i, c), (j, r) in cells
    ]


def _hhh(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """HHH-Alignment: BIG-bench's `target_scores` (a task file holds many `examples`), or `targets` with labels."""
    if isinstance(record.get("examples"), list):
        group = _hhh_group(record, where)
        parts = [{"subset": group, **example} for example in record["examples"]]
        return [row for n, part in enumerate(parts) for row in _hhh(part, f"{where}.{n + 1}", want)]
    if isinstance(record.get("target_scores"), Mapping):
        scored = list(record["target_scores"].items())
    else:
        scored = list(zip(record["targets"]["choices"], record["targets"]["labels"], strict=True))
    best = max(score for _, score in scored)
    good = [text.strip() for text, score in scored if score == best]
    bad = [text.strip() for text, score in scored if score < best]
    question = record["input"].strip()
    spoken = re.search(r"\n\n(Human|Assistant):", f"\n\n{question}")
    start = "" if re.match(r"(Human|Assistant):", question) else "Human: "
    prompt = dialogue(f"\n\n{start}{question}", where, "input") if spoken else user(question)
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt = prompt[:-1]
    rest = {k: v for k, v in record.items() if k not in ("input", "target_scores", "targets", "examples", "comment")}
    rest |= {"subset": _hhh_group(record, where), "benchmark": "hhh"}
    if not bad:
        return [{"_drop": TIE, **rest}]
    return [{**rest, "prompt": prompt, "chosen": assistant(c), "rejected": assistant(r)} for c in good for r in bad]


def _hhh_group(record: Record, where: str) -> str:
    """The group of a row: a column that says so, the name of its task, or of its file or folder."""
    for text in (*(record.get(name) for name in ("subset", "group", "category", "name")), where):
        found = [group for group in leaderboards.HHH if group in str(text).lower()]
        if len(found) == 1:
            return found[0]
    raise DataError(f"{where}: which of {', '.join(leaderboards.HHH)}? Say it in a column 'subset'")


def _is_hhh(record: Record) -> bool:
    examples = record.get("examples")
    if isinstance(examples, list) and examples:
        return all(isinstance(example, Mapping) and _is_hhh(example) for example in examples)
    targets = record.get("targets")
    with_labels = isinstance(targets, Mapping) and {"choices", "labels"} <= targets.keys()
    return _is_text(record, "input") and (with_labels or isinstance(record.get("target_scores"), Mapping))


def _turn(message: Record) -> Message:
    if "from" in message:
        role = str(message["from"])
        return {"role": SHAREGPT_ROLES.get(role, role), "content": message.get("value")}
    return dict(message)


def _sharegpt(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """LLaMA-Factory's sharegpt: `conversations` (or `messages`) with a ranked pair, a KTO label, or alone."""
    name = "conversations" if "conversations" in record else "messages"
    turns = record[name]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"{where}: '{name}' is no list of turns")
    turns = [_turn(turn) for turn in turns]
    rest = {k: v for k, v in record.items() if k not in (name, "system", "chosen", "rejected", "kto_tag", "label")}
    if isinstance(record.get("system"), str) and record["system"]:
        turns.insert(0, {"role": "system", "content": record["system"]})
    if "chosen" in record:
        return [{**rest, "prompt": turns, "chosen": [_turn(record["chosen"])], "rejected": [_turn(record["rejected"])]}]
    label = record.get("kto_tag", record.get("label"))
    if label is not None:
        return [{**rest, "prompt": turns[:-1], "completion": turns[-1:], "label": label}]
    return [{**rest, "messages": turns}]


def _alpaca(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    """LLaMA-Factory's alpaca: `instruction`, `input` and `output`, a ranked pair, or a `kto_tag`."""
    gone = ("instruction", "input", "output", "chosen", "rejected", "kto_tag", "history", "system")
    rest = {k: v for k, v in record.items() if k not in gone}
    prompt: list[Message] = []
    if record.get("system"):
        prompt.append({"role": "system", "content": record["system"]})
    for question, answer in record.get("history") or []:
        prompt += user(question) + assistant(answer)
    prompt += user(instruction(record))
    if "chosen" in record:
        chosen, rejected = assistant(record["chosen"]), assistant(record["rejected"])
        return [{**rest, "prompt": prompt, "chosen": chosen, "rejected": rejected}]
    answer = {"prompt": prompt, "completion": assistant(record["output"])}
    return [{**rest, **answer, **({} if record.get("kto_tag") is None else {"label": record["kto_tag"]})}]


def _rewardbench(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
    row = {**record, **_pair(record["prompt"], record["chosen"], record["rejected"])}
    return [row | {"benchmark": "rewardbench"} if record.get("subset") in rewardbench.SUBSETS else row]


def _problem(read: Callable[[Record, str], dict[str, Any]]) -> Callable[[Record, str, Want], list[dict[str, Any]]]:
    """A reader of `math_rows` as one of this table; where answers to learn from are wanted, the solution is one."""

    def made(record: Record, where: str, want: Want) -> list[dict[str, Any]]:
        if want and not set(want) & {PROMPT_ONLY, PROMPT_COMPLETION, LANGUAGE_MODELING}:
            return [dict(record)]  # of no use here: refused by its own columns
        row = read(record, where)
        row["prompt"] = user(row["prompt"])
        if PROMPT_COMPLETION in want and PROMPT_ONLY not in want and row.get("solution"):
            row["completion"] = assistant(row["solution"])
        return [row]

    return made


def _is_text(record: Record, *names: str) -> bool:
    return all(isinstance(record.get(name), str) for name in names)


def _has(record: Record, *names: str) -> bool:
    return all(record.get(name) is not None for name in names)


def _is_marked(value: Any) -> bool:
    return isinstance(value, str) and START.format("A") in value


def _is_sharegpt(record: Record) -> bool:
    if "conversations" in record:
        return True
    judged = isinstance(record.get("chosen"), Mapping) or record.get("kto_tag", record.get("label")) is not None
    return isinstance(record.get("messages"), list) and judged and "completion" not in record


FORMATS: tuple[tuple[str, Callable[[Record], bool], Callable[[Record, str, Want], list[dict[str, Any]]]], ...] = (
    ("hh", lambda r: _is_text(r, "chosen", "rejected") and "prompt" not in r
     and all(re.match(r"\s*\n\nHuman:", r[n]) for n in ("chosen", "rejected")), _hh),
    ("gram pre-training", lambda r: _is_text(r, "instruction", "output") and _is_marked(r["output"]), _gram_unlabelled),
    ("gram fine-tuning", lambda r: _is_text(r, "instruction", "output") and r["output"].strip() in ("A", "B")
     and _is_marked(instruction(r)), _gram_labelled),
    ("helpsteer3", lambda r: _has(r, "context", "response1", "response2", "overall_preference"), _helpsteer3),
    ("llmbar", lambda r: _has(r, "output_1", "output_2"), _two_outputs),
    ("pandalm", lambda r: _has(r, "response1", "response2"), _two_outputs),
    ("judgebench", lambda r: _has(r, "question", "response_A", "response_B", "label"), _judgebench),
    ("self-instruct", lambda r: _has(r, "instruction") and isinstance(r.get("responses"), Mapping), _many_models),
    ("persona", lambda r: _is_text(r, "question", "answer_matching_behavior", "answer_not_matching_behavior"),
     _persona),
    ("qa-feedback", lambda r: isinstance(r.get("predictions"), list) and isinstance(r.get("preference"), list),
     _qa_feedback),
    ("mqm", lambda r: _has(r, "source") and isinstance(r.get("outputs"), list) and bool(r["outputs"])
     and all(isinstance(o, Mapping) and "hyp" in o and "mqm" in o for o in r["outputs"]), _mqm),
    ("matrix", lambda r: isinstance(r.get("prompt"), str) and all(
        isinstance(r.get(n), list) and r[n] and all(isinstance(x, str) for x in r[n]) for n in ("chosen", "rejected")),
     _matrix),
    ("hhh-alignment", _is_hhh, _hhh),
    ("rewardbench", lambda r: _is_text(r, "prompt", "chosen", "rejected", "chosen_model"), _rewardbench),
    ("sharegpt", _is_sharegpt, _sharegpt),
    ("alpaca", lambda r: _is_text(r, "instruction") and (_is_text(r, "output") or _is_text(r, "chosen", "rejected")),
     _alpaca),
    *((name, fits, _problem(read)) for name, fits, read in math_rows.SHAPES),
)  # fmt: skip
"""(name, test, reader), tried in this order; the first that fits reads the record."""


def adapt(record: Record, where: str, want: Want = (PREFERENCE,)) -> tuple[str, list[dict[str, Any]]]:
    """(format name, rows with TRL names) for one record; ("trl", [record]) if it is no foreign shape.

    `want` lists the row types that the caller can use, best first: it decides what becomes of a tie. Raises Drop for a
    record without a usable row, DataError for one that is broken. A row `{"_drop": reason}` is one dropped pair of a
    record with several.
    """
    for name, fits, read in FORMATS:
        if fits(record):
            return name, read(record, where, tuple(want))
    return "trl", [dict(record)]
