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
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

KINDS = ("boxed", "number", "choice", "exact")

OK, MISMATCH = "ok", "mismatch"
NO_THINK_END, NO_BOX, PARSE_FAIL, NO_GOLD = "no_think_end", "no_box", "parse_fail", "no_gold"
REASONS = (OK, MISMATCH, NO_THINK_END, NO_BOX, PARSE_FAIL, NO_GOLD)

MOST_CHARACTERS = 2000
"""Of an answer: what is longer is none."""

MOST_DEPTH = 20
"""Of brackets in brackets that are looked into."""

THINK_END = "</think>"
TOLERANCE = Fraction(1, 10**6)
"""Relative difference of a decimal from a fraction (`0.333333` and 1/3)."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why (not)."""

    correct: bool | None
    """None: not judged."""
    reason: str


def grade(text: str, golds: str | Sequence[str] | None, kind: str = "boxed", after_think: bool = False) -> Verdict:
    """Whether the answer found in a text equals one of the right ones; without any it is not judged.

    A right answer may be a worked solution that ends in a box or after `####`.
    """
    given = [golds] if isinstance(golds, str) else golds or []
    right_ones = [right_one(gold, kind) for gold in given if gold and gold.strip()]
    if not right_ones:
        return Verdict(None, NO_GOLD)
    found, reason = extract(text, kind, after_think)
    if found is None:
        return Verdict(False, reason)
    if len(found) > MOST_CHARACTERS:
        return Verdict(False, PARSE_FAIL)
    right = any(equal(found, gold, kind) for gold in right_ones)
    return Verdict(right, OK if right else MISMATCH)


COLUMNS = ("answer", "solution", "ground_truth")
"""Where the right answer is looked for, the first that is there."""
AUTO = "auto"


def grade_all(
    texts: Sequence[str], columns: Mapping[str, Sequence[Any]], column: str = "", kind: str = AUTO,
    after_think: bool = False,
) -> list[Verdict]:  # fmt: skip
    """`grade` of each text by the columns of its row: the right answer (or a list of them) in `column` or the first of
    COLUMNS, and for `auto` the kind in `answer_kind`, else `boxed`. Raises ValueError where there is none."""
    golds, kinds = golds_of(columns, column), kinds_of(columns, kind, len(texts))
    return [grade(*each, after_think) for each in zip(texts, golds, kinds, strict=True)]


def golds_of(columns: Mapping[str, Sequence[Any]], column: str = "") -> list[list[str]]:
    """The right answers of each row. Raises ValueError without the column."""
    name = column or next((name for name in COLUMNS if name in columns), "")
    if name not in columns:
        raise ValueError(f"the rows have no column {column!r}" if column else f"the rows have none of {COLUMNS}")
    several = [gold if isinstance(gold, list | tuple) else [gold] for gold in columns[name]]
    return [[str(gold) for gold in golds if gold is not None] for golds in several]


def kinds_of(columns: Mapping[str, Sequence[Any]], kind: str, size: int) -> list[str]:
    """The kind of answer of each row."""
    return [kind] * size if kind != AUTO else list(columns.get("answer_kind", ["boxed"] * size))


def right_one(gold: str, kind: str = "boxed") -> str:
    """The answer alone, of a right answer that may be given with its solution."""
    if kind == "exact":
        return gold
    inner = boxed(gold)
    if inner is not None:
        return inner
    return gold.rpartition("####")[2].strip() if "####" in gold else gold


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
    number = _number(text, inner)
    return (None, PARSE_FAIL) if number is None else (number, OK)


def _number(text: str, inner: str | None) -> str | None:
    """The number behind the last `####`, else in the box, else the last of the text."""
    if "####" in text:
        inner = text.rpartition("####")[2].strip().partition("\n")[0]
    if inner is None:
        return last_number(text)
    whole = len(inner) <= MOST_CHARACTERS and value_of(normalised(inner)) is not None
    return inner.strip() if whole else last_number(inner)


BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    """The contents of the last `\\boxed{...}` (or `\\fbox{...}`) whose braces close; None without one."""
    waiting: list[int] = []  # where the open braces' contents begin; -1: not a box
    last = (-1, -1)
    for match in BRACES.finditer(text):
        brace = match[0]
        if brace == "}":
            begin = waiting.pop() if waiting else -1
            last = max(last, (begin, match.start()))
        elif brace == "{":
            waiting.append(-1)
        elif brace[-1] == "{" and len(brace) > 2:
            waiting.append(match.end())
    if last[0] >= 0:
        return text[last[0] : last[1]].strip()
    plain = re.findall(r"\\boxed\s+([^\s${]+)", text)
    return plain[-1].rstrip(".") if plain else None


LETTER = re.compile(r"[\s(\[]*([A-Ja-j])[\s)\].:]*(?:$|(?<=[)\].:])\s)")
ALONE = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z'])")
SAID = re.compile(
    r"(?i:answer|option|choice)(?i:\s|is|:)*(?:\(([A-Ja-j])\)|([A-J])(?![A-Za-z'])|([a-j])(?=\s*(?:[).]|$)))", re.M
)


def choice(text: str) -> str | None:
    """The letter that a text chooses: after "answer is" and the like, else a letter that stands alone."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    bare = re.sub(r"[*$]|\\[()]", "", bare).strip()
    if said := SAID.findall(bare):
        return "".join(said[-1]).upper()
    if first := LETTER.match(bare):
        return first[1].upper()
    # A and I are also words: alone they count in brackets only.
    found = [letter for letter in ALONE.findall(bare) if letter not in "AI"] or re.findall(r"\(([A-J])\)", bare)
    return found[-1] if found else None


NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-−+]?(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
    r"(?:[eE][-+]?\d+)?"
)
NARROW_SPACES = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")


def last_number(text: str) -> str | None:
    """The last number of a text as it is written there: sign, thousands separators, decimals, a/b; digits of other
    scripts are read, too."""
    found = NUMBER.findall(NARROW_SPACES.sub(",", western(text)))
    return found[-1] if found else None


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
    if kind == "number":  # commas are no lists here
        found, gold = found.replace(",", ""), gold.replace(",", "")
    one, two = normalised(found), normalised(gold)
    return one == two or same_value(one, two)


WORDS = re.compile(
    r"\\(?:left|right|,|!|;|:|quad|qquad|displaystyle|limits|big|Big|bigl|bigr)(?![a-zA-Z])|(?<!\\)\\\s|~|\$"
)
AND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:or|and)\s*\}|(?<=\s)(?:or|and)(?=\s)")
UNITS = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\s*\{ ?(?:[a-zA-Z. ]+|[a-zA-Z]+\^?\d?)\}|\\text\{ ?\})(?:\^\{?\d\}?)?$"
)
PLAIN_UNITS = re.compile(
    r"(?<=\d)\s*(?:degrees?|cm|inch(?:es)?|feet|foot|miles?|hours?|minutes?|seconds?|dollars?|cents?|units?"
    r"|square units?|meters?|metres?|people|students|points?|ways)\.?$"
)
ALIKE = {
    "−": "-", "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\%": "%", "\\$": "", "^\\circ": "",
    "^{\\circ}": "", "°": "", "\\neq": "\\ne", "\\infty": "∞", "{,}": ",",
}  # fmt: skip
"""What is written in two ways."""


@functools.lru_cache(65536)
def normalised(text: str) -> str:
    """One form for what is written in several ways in LaTeX or plain text."""
    out = re.sub(r"\s+", " ", NARROW_SPACES.sub("", western(text.strip())))
    for one, other in ALIKE.items():
        out = out.replace(one, other)
    out = re.sub(r"\\([lg])e(?![a-zA-Z])", r"\\\1eq", out)
    out = AND.sub(",", out)
    out = WORDS.sub("", out).strip().rstrip(" .")
    out = re.sub(r"(?<=\d) ?percent$", "%", out)
    shorter = UNITS.sub("", out).strip()
    out = PLAIN_UNITS.sub("", shorter if shorter else out).strip()
    out = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1", out)
    out = re.sub(r"^[a-zA-Z](?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)", "", out)  # x = 5, f(x) = 5
    out = arguments_in_braces(out)
    out = re.sub(r"([\^_])\s*\{(\w)\}", r"\1\2", out)
    out = re.sub(r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp))\s*\{(\w+)\}", r"\1\2", out)
    out = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", out) if not re.search(r"[(\[{]", out) else out
    out = re.sub(r"\s+", "", out)
    out = re.sub(r"(?<![\d.])\.(\d)", r"0.\1", out)
    out = re.sub(r"(\d+\.\d*?)0+(?!\d)", r"\1", out)
    out = re.sub(r"(\d+)\.(?!\d)", r"\1", out)
    return out.lower() if out.isalpha() and len(out) > 1 else out


BARE = r"\s*(\d|[a-zA-Z]|\\[a-zA-Z]+)"
"""An argument of a command without braces."""


def arguments_in_braces(text: str) -> str:
    """LaTeX with braces around the arguments of roots and fractions: `\\frac12` as `\\frac{1}{2}`."""
    text = re.sub(rf"\\sqrt(?![a-zA-Z]){BARE}", r"\\sqrt{\1}", text)
    text = re.sub(rf"\\frac(?![a-zA-Z]){BARE}", r"\\frac{\1}", text)
    return re.sub(rf"(\\frac\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}){BARE}", r"\1{\2}", text)


def same_value(one: str, two: str, depth: int = 0) -> bool:
    """Whether two normalised texts are the same number, or lists of the same numbers and texts.

    `(a, b)` and `[a, b)` differ; a set `{a, b}` and a bare list have no order. 50% is the same as 1/2, and as a 50 that
    leaves the sign out.
    """
    left, right = value_of(one), value_of(two)
    if left is not None and right is not None:
        return left == right or _without_sign(one, two) or _rounded(one, left, two, right)
    if depth > MOST_DEPTH:
        return False
    first, second = parts_of(one), parts_of(two)
    if first is None or second is None or first[0] != second[0] or len(first[1]) != len(second[1]):
        return False
    same = lambda a, b: a == b or same_value(a, b, depth + 1)  # noqa: E731
    if first[0] not in ("", "{}"):
        return all(same(a, b) for a, b in zip(first[1], second[1], strict=True))
    left_over = list(second[1])
    for item in first[1]:
        match = next((other for other in left_over if same(item, other)), None)
        if match is None:
            return False
        left_over.remove(match)
    return True


def _without_sign(one: str, two: str) -> bool:
    """Whether one is the other with its percent sign left out."""
    return one.endswith("%") != two.endswith("%") and value_of(one.rstrip("%")) == value_of(two.rstrip("%"))


def _rounded(one: str, left: Fraction, two: str, right: Fraction) -> bool:
    """Whether one is a decimal with the leading digits of the other, a fraction."""
    exact = right if "." in one and "." not in two else left if "." in two and "." not in one else Fraction(1)
    return exact.denominator > 1 and abs(left - right) <= TOLERANCE * max(abs(exact), Fraction(1))


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
