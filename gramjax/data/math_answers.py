"""Answers to mathematical questions: found in a text, brought to one form, and compared with the right one.

Pure text and exact fractions, nothing is evaluated: it cannot hang or run what a model wrote. What needs symbolic
algebra is the work of math-verify (`config.rewards.verifiable.grader`).

Kinds: `boxed` (the last `\\boxed{}`), `number` (after the last `####`, else in the last box, else the last number),
`choice` (a letter), `exact` (the whole text).
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

KINDS = ("boxed", "number", "choice", "exact")

OK, MISMATCH = "ok", "mismatch"
NO_THINK_END, NO_BOX, PARSE_FAIL, NO_GOLD = "no_think_end", "no_box", "parse_fail", "no_gold"
REASONS = (OK, MISMATCH, NO_THINK_END, NO_BOX, PARSE_FAIL, NO_GOLD)

MOST_CHARACTERS = 2000
"""Of an answer: what is longer is none."""

THINK_END = "</think>"
TOLERANCE = Fraction(1, 10**6)
"""Relative difference of a decimal from a number that is not one (`0.333333` and 1/3)."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why (not)."""

    correct: bool | None
    """None: not judged."""
    reason: str


def grade(text: str, golds: str | Sequence[str] | None, kind: str = "boxed", after_think: bool = False) -> Verdict:
    """Whether the answer found in a text equals one of the right ones; without any it is not judged."""
    if not golds:
        return Verdict(None, NO_GOLD)
    found, reason = extract(text, kind, after_think)
    if found is None:
        return Verdict(False, reason)
    if len(found) > MOST_CHARACTERS:
        return Verdict(False, PARSE_FAIL)
    golds = [golds] if isinstance(golds, str) else golds
    right = any(equal(found, gold, kind) for gold in golds)
    return Verdict(right, OK if right else MISMATCH)


def extract(text: str, kind: str = "boxed", after_think: bool = False) -> tuple[str | None, str]:
    """The answer in a text (None: there is none) and why; with `after_think` only what follows the first `</think>`."""
    if kind not in KINDS:
        raise ValueError(f"no kind of answer {kind!r} (there are: {', '.join(KINDS)})")
    if after_think:
        _, mark, text = text.partition(THINK_END)
        if not mark:
            return None, NO_THINK_END
    if kind == "exact":
        return text.strip(), OK
    inner = boxed(text)
    if kind == "boxed":
        return (None, NO_BOX) if inner is None else (inner, OK)
    if kind == "choice":
        letter = choice(inner if inner is not None else text)
        return (None, PARSE_FAIL) if letter is None else (letter, OK)
    number = last_number(text.rpartition("####")[2] if "####" in text else inner if inner is not None else text)
    return (None, PARSE_FAIL) if number is None else (number, OK)


def boxed(text: str) -> str | None:
    """The contents of the last `\\boxed{...}` (or `\\fbox{...}`) whose braces close; None without one."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[match.end() : place].strip()
    plain = re.findall(r"\\boxed\s+([^\s$]+)", text)
    return plain[-1].rstrip(".") if plain else None


CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-Ja-j])\)?(?![A-Za-z])")
SAID = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?\s*\$?\(?([A-J])\)?(?![A-Za-z])", re.IGNORECASE)


def choice(text: str) -> str | None:
    """The letter that a text chooses: after "answer is" and the like, else a letter that stands alone."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip()
    said = SAID.findall(bare)
    if said:
        return said[-1].upper()
    if first := re.match(r"[\s(\[]*([A-Ja-j])[\s)\].:]*(?:$|(?<=[)\].:])\s)", bare):
        return first[1].upper()
    found = [letter for letter in CHOICE.findall(bare) if letter.isupper() and letter not in "AI"]
    found = found or [letter for letter in re.findall(r"\(([A-J])\)", bare)]
    return found[-1] if found else None


NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?(?:[eE][-+]?\d+)?")


def last_number(text: str) -> str | None:
    """The last number of a text as it is written there: sign, thousands separators, decimals, a/b; digits of other
    scripts are read, too."""
    found = NUMBER.findall(western(text))
    return found[-1].rstrip(",") if found else None


def compatible_number(text: str) -> float:
    """The last number as MathOctopus' evaluation finds it: no sign, and 0 where there is none."""
    found = re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d)", "", text))
    return float(found[-1]) if found else 0.0


def western(text: str) -> str:
    """The text with the digits of every script as 0 to 9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(c)) if c.isdigit() and unicodedata.digit(c, -1) >= 0 else c for c in text)


def equal(found: str, gold: str, kind: str = "boxed") -> bool:
    """Whether two answers are the same."""
    if kind == "exact":
        return found.strip() == gold.strip()
    if kind == "choice":
        return found.strip().upper() == (choice(gold) or gold.strip().upper())
    one, two = normalised(found), normalised(gold)
    return one == two or same_value(one, two)


WORDS = re.compile(
    r"\\(?:left|right|,|!|;|:|quad|qquad|displaystyle|limits|big|Big|bigl|bigr)(?![a-zA-Z])|\\\s|~|\$"
)
UNITS = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\{\s*(?:[a-zA-Z. ]+|[a-zA-Z]+\^?\d?)\s*\}|\\text\{\s*\})(?:\^\{?\d\}?)?$"
)
PLAIN_UNITS = re.compile(
    r"(?<=\d)\s*(?:degrees?|cm|inch(?:es)?|feet|foot|miles?|hours?|minutes?|seconds?|dollars?|cents?|units?"
    r"|square units?|meters?|metres?|people|students|points?|ways)\.?$"
)


@functools.lru_cache(65536)
def normalised(text: str) -> str:
    """One form for what is written in several ways in LaTeX or plain text."""
    out = western(text.strip()).replace("−", "-").replace("\n", " ")
    out = out.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    out = out.replace("\\%", "%").replace("\\$", "").replace("^\\circ", "").replace("^{\\circ}", "").replace("°", "")
    out = out.replace("\\le ", "\\leq ").replace("\\ge ", "\\geq ").replace("\\neq", "\\ne").replace("\\infty", "∞")
    out = WORDS.sub("", out).strip()
    out = out.removesuffix(".")
    shorter = UNITS.sub("", out).strip()
    out = PLAIN_UNITS.sub("", shorter if shorter else out).strip()
    out = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1", out)
    out = re.sub(r"^[a-zA-Z]\s*(?:=|\\in)\s*(?=\S)", "", out)  # x = 5
    out = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", out)
    out = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", out)
    out = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", out)
    out = re.sub(r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}", out)
    out = re.sub(r"\^\s*\{(\w)\}", r"^\1", out)
    out = re.sub(r"_\s*\{(\w)\}", r"_\1", out)
    out = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", out) if not re.search(r"[(\[{]", out) else out
    out = re.sub(r"\s+", "", out)
    out = re.sub(r"(?<![\d.])\.(\d)", r"0.\1", out)
    out = re.sub(r"(\d+\.\d*?)0+(?!\d)", r"\1", out)
    out = re.sub(r"(\d+)\.(?!\d)", r"\1", out)
    return out.lower() if out.isalpha() and len(out) > 1 else out


def same_value(one: str, two: str) -> bool:
    """Whether two normalised texts are the same number, or lists of the same numbers and texts.

    `(a, b)` and `[a, b)` differ; a set `{a, b}` and a bare list have no order.
    """
    left, right = value_of(one), value_of(two)
    if left is not None and right is not None:
        near = abs(left - right) <= TOLERANCE * max(abs(right), Fraction(1))
        return left == right or (_decimal(one) != _decimal(two) and near)
    first, second = parts_of(one), parts_of(two)
    if first is None or second is None or first[0] != second[0] or len(first[1]) != len(second[1]):
        return False
    same = lambda a, b: a == b or same_value(a, b)  # noqa: E731
    if first[0] not in ("", "{}"):
        return all(same(a, b) for a, b in zip(first[1], second[1], strict=True))
    left_over = list(second[1])
    for item in first[1]:
        match = next((other for other in left_over if same(item, other)), None)
        if match is None:
            return False
        left_over.remove(match)
    return True


def _decimal(text: str) -> bool:
    return "." in text


FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
MIXED = re.compile(r"(-?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
RATIO = re.compile(r"\(?(-?\d+)\)?/\(?(-?\d+)\)?")
DECIMAL = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?", re.IGNORECASE)
POWER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\\times|\\cdot|\*)10\^\{?(-?\d{1,3})\}?")


@functools.lru_cache(65536)
def value_of(text: str) -> Fraction | None:
    """The number that a normalised text is: decimals, fractions, mixed numbers, percent, powers of ten; else None."""
    if text.endswith("%"):
        inner = value_of(text[:-1])
        return None if inner is None else inner / 100
    if DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := FRACTION.fullmatch(text):
        sign, above, below = match.groups()
        return _ratio(above, below, -1 if sign else 1)
    if match := MIXED.fullmatch(text):
        sign, whole, above, below = match.groups()
        rest = _ratio(above, below)
        return None if rest is None else (int(whole) + rest) * (-1 if sign else 1)
    if match := RATIO.fullmatch(text):
        return _ratio(match[1], match[2])
    if match := POWER.fullmatch(text):
        factor, exponent = match.groups()
        return Fraction(factor) * Fraction(10) ** int(exponent)
    return None


def _ratio(above: str, below: str, sign: int = 1) -> Fraction | None:
    return Fraction(sign * int(above), int(below)) if int(below) else None


OPEN, CLOSE = "([{", ")]}"


def parts_of(text: str) -> tuple[str, list[str]] | None:
    """The brackets around a normalised list and its items: `(1,2]` is ("(]", ["1", "2"]); None for a single thing."""
    body, brackets = text, ""
    text = text.replace("\\{", "{").replace("\\}", "}")
    if text and text[0] in OPEN and text[-1] in CLOSE and _closes_at_end(text):
        body, brackets = text[1:-1], text[0] + text[-1]
    items, depth, start = [], 0, 0
    for place, letter in enumerate(body):
        depth += (letter in OPEN) - (letter in CLOSE)
        if letter == "," and depth == 0:
            items.append(body[start:place])
            start = place + 1
    items.append(body[start:])
    if len(items) < 2 and not brackets:
        return None
    return brackets, items


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in OPEN) - (letter in CLOSE)
        if depth == 0:
            return place == len(text) - 1
    return False
