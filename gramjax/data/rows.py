"""Row types, with TRL's column names, and what it takes for a row to be usable.

A row is a plain dict. Text columns hold either strings ("plain" rows) or lists of messages `{"role", "content"}`
("conversational" rows). `detect` says which type a row has, `normalise` checks it and brings it to one shape.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from gramjax.core.errors import DataError, UserError

LANGUAGE_MODELING = "language_modeling"
PROMPT_ONLY = "prompt_only"
PROMPT_COMPLETION = "prompt_completion"
PREFERENCE = "preference"
UNPAIRED = "unpaired"
STEPWISE = "stepwise"
PAIR_UNLABELLED = "pair_unlabelled"
RESPONSES = "responses"
RATIONALE = "rationale"

NEEDS: dict[str, str] = {
    PREFERENCE: "'chosen' and 'rejected' (optional 'prompt')",
    UNPAIRED: "'prompt', 'completion' and 'label'",
    STEPWISE: "'prompt', 'completions' and 'labels'",
    RATIONALE: "'prompt', 'responses' (two answers), 'label' (A or B) and 'rationale'",
    PAIR_UNLABELLED: "'prompt' and 'responses' (two answers)",
    RESPONSES: "'prompt' and 'responses' (two answers or more)",
    LANGUAGE_MODELING: "'text' or 'messages'",
    PROMPT_COMPLETION: "'prompt' and 'completion'",
    PROMPT_ONLY: "'prompt'",
}
"""The columns each type needs, as said in error messages, in the order of detection."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

OWN_COLUMNS = ("prompt", "chosen", "rejected", "completion", "completions", "label", "labels", "text", "messages",
               "responses", "rationale")  # fmt: skip
"""The columns that decide the type of a row."""

TEMPLATE_OWN = ("messages", "add_generation_prompt", "generation_prompt", "tools", "prompt", "answer", "answers",
                "turns", "self", "bos_token", "eos_token", "pad_token", "unk_token")  # fmt: skip
"""What a chat template is given by us: no row may replace it through `chat_template_kwargs`."""

LIKELY_PROMPTS = ("question", "instruction", "query", "input", "problem", "context")

Message = dict[str, Any]
Text = str | list[Message]


class Drop(Exception):
    """A row that is well formed but cannot be used.

    `args[0]` is a short reason that can be counted; `length` is the token count of an over-long row, else 0.
    """

    def __init__(self, reason: str, length: int = 0) -> None:
        super().__init__(reason)
        self.length = length


class WrongColumns(DataError):
    """A row whose columns are not those of the type that is needed."""


class Tally(dict[str, tuple[int, str]]):
    """Reasons with their counts and the first example of each: `{reason: (count, first)}`."""

    def add(self, reason: str, first: str, count: int = 1) -> None:
        """Count `reason`; `first` (a row's name) is kept if the reason is new."""
        known = self.get(reason)
        self[reason] = (count, first) if known is None else (known[0] + count, known[1])

    def merge(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        for reason, (count, first) in other.items():
            self.add(reason, first, count)

    @property
    def total(self) -> int:
        """All counts together."""
        return sum(count for count, _ in self.values())


def columns(row: Mapping[str, Any]) -> str:
    """The columns of a row that are filled, as quoted names for messages."""
    return ",".join(f"'{key}'" for key, value in row.items() if value is not None and not str(key).startswith("_"))


def missing(row: Mapping[str, Any], where: str, want: Iterable[str]) -> WrongColumns:
    """The error for a row without the columns that a kind of training needs."""
    wanted = list(want) or [PREFERENCE]
    needs = "; ".join(f"{kind} training needs {NEEDS[kind]}" for kind in wanted)
    texts = [str(key) for key, value in row.items() if isinstance(value, str)]
    free = [key for key in texts if key not in (*OWN_COLUMNS, "id")]
    first = next((key for key in (*LIKELY_PROMPTS, *free) if key in free), "")
    empty = [str(key) for key, value in row.items() if value is None and key in OWN_COLUMNS]
    return WrongColumns(
        f"{where}: has {columns(row) or 'no filled column'}{''.join(f', {key!r} is null' for key in empty)}; {needs}"
        + (f". Rename with --config.data.rename=\"('{first}:prompt',)\"" if first else "")
    )


def detect(row: Mapping[str, Any], where: str = "row") -> str:
    """The type of a row with TRL column names.

    Raises DataError naming both types if the columns fit two, and naming the columns if they fit none.
    """
    has = {key for key, value in row.items() if value is not None}
    found = []
    if {"chosen", "rejected"} <= has:
        found.append(PREFERENCE)
    if {"label", "completion"} <= has:
        found.append(UNPAIRED)
    if {"completions", "labels"} <= has:
        found.append(STEPWISE)
    if {"prompt", "responses"} <= has:
        many = isinstance(row["responses"], list) and len(row["responses"]) > 2
        found.append(RATIONALE if {"label", "rationale"} <= has else RESPONSES if many else PAIR_UNLABELLED)
    if "messages" in has or "text" in has:
        found.append(LANGUAGE_MODELING)
    if {"prompt", "completion"} <= has and UNPAIRED not in found:
        found.append(PROMPT_COMPLETION)
    if not found and "prompt" in has:
        found.append(PROMPT_ONLY)
    if not found:
        raise missing(row, where, ())
    if len(found) > 1:
        raise DataError(
            f"{where}: has {columns(row)}, which fits both {found[0]} and {found[1]}; "
            "remove or rename the columns of one of them (config.data.rename)"
        )
    return found[0]


def messages(value: Any, where: str, field: str) -> list[Message]:
    """Check a list of messages; text parts of a content list are joined. Raises DataError naming field and turn."""
    if not value:
        raise Drop(f"empty {field}")
    out = []
    for turn, message in enumerate(value):
        name = f"{where}: '{field}' turn {turn + 1}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{name} is {_kind(message)}; a message is {{'role': text, 'content': text}}")
        if message["role"] not in ROLES:
            raise DataError(f"{name} has role {message['role']!r}; known roles: {', '.join(ROLES)}")
        message = {key: item for key, item in message.items() if item is not None}
        content = message.get("content", "" if message.get("tool_calls") else None)
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            if not all(isinstance(part, str) for part in parts):
                raise DataError(f"{name} has content parts that are no text; images are not read here")
            content = "".join(map(str, parts))
        if not isinstance(content, str):
            raise DataError(f"{name} has content {_kind(content)}; text was expected")
        out.append({**message, "content": content})
    return out


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def text_field(row: Mapping[str, Any], field: str, where: str) -> Text:
    """A text column: a string, or a checked list of messages. Raises DataError, or Drop if it is empty."""
    if field not in row or row[field] is None:
        raise DataError(f"{where}: '{field}' is {'null' if field in row else 'missing'}")
    value = row[field]
    if isinstance(value, str):
        if not value.strip() and field != "prompt":
            raise Drop(f"empty {field}")
        return value
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{where}: '{field}' is {_kind(value)}; a string or a list of messages was expected")
    turns = messages(value, where, field)
    if field != "prompt" and not turns[-1]["content"].strip() and not turns[-1].get("tool_calls"):
        raise Drop(f"empty {field}")
    return turns


def text_length(value: Any) -> int:
    """Characters of a text or of the contents of a list of messages."""
    if isinstance(value, str):
        return len(value)
    return sum(len(str(message.get("content") or "")) for message in value or ())


def common_prompt(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading messages two dialogues share as their prompt.

    The longest common prefix of whole messages, shortened until what follows starts with an assistant turn in both.
    """
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    limit = min(len(chosen), len(rejected)) - 1
    shared = min(shared, limit)
    while shared > 0 and not (chosen[shared]["role"] == rejected[shared]["role"] == "assistant"):
        shared -= 1
    return max(shared, 0)


def number(row: Mapping[str, Any], field: str, where: str) -> float | None:
    """An optional finite number. Raises DataError for anything else."""
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: '{field}' is {value!r}; a finite number was expected")
    return float(value)


def _subset(row: Mapping[str, Any]) -> str:
    return "" if row.get("subset") is None else str(row["subset"])


def _as_messages(value: Text, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def same_kind(parts: dict[str, Text], where: str) -> dict[str, Text]:
    """All texts of a row as strings or all as messages.

    A string prompt beside message answers becomes a user turn; any other mixture raises DataError.
    """
    kinds = {name: isinstance(value, str) for name, value in parts.items()}
    if len(set(kinds.values())) == 1:
        return parts
    if kinds.get("prompt") and not any(plain for name, plain in kinds.items() if name != "prompt"):
        return {**parts, "prompt": _as_messages(parts["prompt"], "user")}
    plain = [name for name, is_plain in kinds.items() if is_plain]
    raise DataError(f"{where}: {plain} are strings but the other columns are lists of messages; use one form")


def normalise(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """Check a row of a known type and return it in one shape, other columns kept.

    Preference rows always have `prompt`, `chosen`, `rejected`, `subset` and `margin` afterwards. Raises Drop (empty
    answers; identical ones, except in rows of a `benchmark`) or DataError (missing field, null, wrong type).
    """
    check_template_columns(row, where)
    out = {str(key): value for key, value in row.items()}
    if kind == PREFERENCE:
        parts = {name: text_field(row, name, where) for name in ("chosen", "rejected")}
        if row.get("prompt") is not None:
            parts["prompt"] = text_field(row, "prompt", where)
        parts = same_kind(parts, where)
        chosen, rejected = parts["chosen"], parts["rejected"]
        if chosen == rejected and not row.get("benchmark"):  # a benchmark counts it, as a tie
            raise Drop("identical chosen/rejected")
        if "prompt" not in parts:
            shared = 0
            if isinstance(chosen, list) and isinstance(rejected, list):
                shared = common_prompt(chosen, rejected)
                parts["prompt"] = chosen[:shared]
            else:
                parts["prompt"] = ""
            parts["chosen"], parts["rejected"] = chosen[shared:], rejected[shared:]
        out.update(parts)
        out["margin"] = number(row, "margin", where)
        out["subset"] = _subset(row)
    elif kind == UNPAIRED:
        parts = {"completion": text_field(row, "completion", where)}
        if row.get("prompt") is not None:
            parts["prompt"] = text_field(row, "prompt", where)
        out.update({"prompt": "", **same_kind(parts, where)})
        if not isinstance(row["label"], bool):
            raise DataError(f"{where}: 'label' is {row['label']!r}; true or false was expected")
    elif kind == STEPWISE:
        steps, labels = row["completions"], row["labels"]
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
            raise DataError(f"{where}: 'completions' and 'labels' must be lists of the same length")
        if not all(isinstance(step, str) for step in steps) or not all(isinstance(label, bool) for label in labels):
            raise DataError(f"{where}: 'completions' must hold strings and 'labels' true or false")
        out["prompt"] = text_field(row, "prompt", where)
    elif kind in (PAIR_UNLABELLED, RATIONALE, RESPONSES):
        out["responses"], out["prompt"] = _responses(row, where, kind)
        if kind == RATIONALE:
            _check_rationale(row, where)
    elif kind == PROMPT_COMPLETION:
        out.update(same_kind({name: text_field(row, name, where) for name in ("prompt", "completion")}, where))
    elif kind == PROMPT_ONLY:
        out["prompt"] = text_field(row, "prompt", where)
    elif row.get("messages") is not None:
        out["messages"] = text_field(row, "messages", where)
        if isinstance(out["messages"], str):
            raise DataError(f"{where}: 'messages' is a string; a list of messages was expected")
    else:
        out["text"] = text_field(row, "text", where)
        if not isinstance(out["text"], str):
            raise DataError(f"{where}: 'text' is {_kind(out['text'])}; a string was expected")
    return out


def check_template_columns(row: Mapping[str, Any], where: str) -> None:
    """Raise DataError for what a chat template would be given beside the messages and could not use, or would be
    fooled by (`chat_template_kwargs` that stand for the messages themselves)."""
    extra, tools = row.get("chat_template_kwargs"), row.get("tools")
    if extra is not None and not isinstance(extra, Mapping):
        raise DataError(f"{where}: 'chat_template_kwargs' is {_kind(extra)}; an object with named values was expected")
    taken = [str(name) for name in extra or () if name in TEMPLATE_OWN or not str(name).isidentifier()
             or str(name).startswith("_")]  # fmt: skip
    if taken:
        raise DataError(f"{where}: 'chat_template_kwargs' may not set {taken[0]!r}")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(f"{where}: 'tools' is no list of objects")


def _responses(row: Mapping[str, Any], where: str, kind: str) -> tuple[list[Text], Text]:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2 or (len(responses) > 2 and kind != RESPONSES):
        count = len(responses) if isinstance(responses, list) else _kind(responses)
        wanted = "two or more" if kind == RESPONSES else "two"
        raise DataError(f"{where}: 'responses' has {count} answers; {wanted} were expected")
    parts: dict[str, Text] = {"prompt": text_field(row, "prompt", where)}
    for index, response in enumerate(responses):
        name = f"responses {index + 1}"
        parts[name] = text_field({name: response}, name, where)
    parts = same_kind(parts, where)
    prompt = parts.pop("prompt")
    answers = list(parts.values())
    if kind != RESPONSES and answers[0] == answers[1]:
        raise Drop("identical responses")
    return answers, prompt


def _check_rationale(row: Mapping[str, Any], where: str) -> None:
    if row["label"] not in ("A", "B"):
        raise DataError(f"{where}: 'label' is {row['label']!r}; 'A' (the first response is better) or 'B' was expected")
    if not isinstance(text_field(row, "rationale", where), str):
        raise DataError(f"{where}: 'rationale' is {_kind(row['rationale'])}; a string was expected")


def converted(row: dict[str, Any], kind: str, want: str, seed: int = 0) -> dict[str, Any] | None:
    """A normalised row of type `kind` as one of type `want`, or None where that makes no sense.

    A preference pair becomes an unlabelled one with its answers in an order that depends on the id only, so that the
    label cannot leak through the order; as a list it has `scores` that keep the label. A row with a rationale is a
    preference pair too, and a pair is a short list.
    """
    if kind == want or (kind, want) == (PAIR_UNLABELLED, RESPONSES):
        return row
    if want == RESPONSES:
        short = converted(row, kind, PAIR_UNLABELLED, seed)
        if short is None:
            return None
        better = row["chosen"] if kind == PREFERENCE else row["responses"]["AB".index(row["label"])]
        return {**short, "scores": [float(answer == better) for answer in short["responses"]]}
    if kind == PREFERENCE and want == PAIR_UNLABELLED:
        pair = [row["chosen"], row["rejected"]]
        gone = ("chosen", "rejected", "margin", "score_chosen", "score_rejected")
        kept = {k: v for k, v in row.items() if k not in gone}
        return {**kept, "responses": pair[::-1] if coin(seed, row["id"]) else pair}
    if kind == RATIONALE and want in (PREFERENCE, PAIR_UNLABELLED):
        kept = {k: v for k, v in row.items() if k not in ("label", "rationale")}
        if want == PAIR_UNLABELLED:
            return kept
        first, second = kept.pop("responses")
        chosen, rejected = (first, second) if row["label"] == "A" else (second, first)
        return {**kept, "chosen": chosen, "rejected": rejected, "margin": row.get("margin"), "subset": _subset(row)}
    if kind == PREFERENCE and want == PROMPT_COMPLETION:
        return {**{k: v for k, v in row.items() if k not in ("chosen", "rejected")}, "completion": row["chosen"]}
    if want == PROMPT_ONLY and kind in (PREFERENCE, PROMPT_COMPLETION, UNPAIRED, PAIR_UNLABELLED, RATIONALE, RESPONSES):
        answers = ("chosen", "rejected", "completion", "label", "responses", "rationale")
        return {k: v for k, v in row.items() if k not in answers}
    if kind == PROMPT_COMPLETION and want == LANGUAGE_MODELING and isinstance(row["prompt"], list):
        kept = {k: v for k, v in row.items() if k not in ("prompt", "completion")}
        return {**kept, "messages": [*row["prompt"], *row["completion"]]}
    return None


def margin_for(row: Mapping[str, Any], setting: str) -> float:
    """The column `margin` of a preference row. Raises UserError naming the setting that asks for it if empty."""
    if row.get("margin") is None:
        raise UserError(f"row {row.get('id')}: {setting} needs a column 'margin' (a number)")
    return float(row["margin"])


def digest(seed: int, *parts: Any) -> int:
    """A 64-bit number that depends on its arguments only (the same on every machine and in every process)."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def coin(seed: int, *parts: Any) -> bool:
    """A fair coin from `digest`."""
    return bool(digest(seed, *parts) & 1)
