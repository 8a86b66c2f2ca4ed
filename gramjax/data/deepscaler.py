"""The comparison of answers that the runs of arXiv 2506.04913 were trained with (DeepScaleR's), written from its rules.

Two answers are the same when they are one text after normalisation, or one value by algebra, where these hold:

- an integer is only the same as that integer written as one, and of two fractions of integers both must be written
  alike: a right answer in lowest terms asks for lowest terms;
- tuples and intervals have the same brackets, and their items are the same one by one;
- algebra is not asked about texts with more than two different letters (besides those of `sqrt`, `frac`, `cdot` and
  `times`), with `^{`, `^(`, with two powers in a row, or with powers of two digits or more.

`algebra` needs sympy and belongs into a process with a deadline (`data.symbolic`).
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from gramjax.data import math_answers

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"-?\\frac\{-?\d+\}\{\d+\}")
RATIO = re.compile(r"(-?\d+)/(-?\d+)")
REFUSED = re.compile(r"\^[{(]|\^\d+\^|\^\d\d+")
READABLE = re.compile(r"(?:\d+(?:\.\d+)?|sqrt|pi|[a-zA-Z]|\*\*|[-+*/(),])+")
"""What a text that algebra is asked about consists of."""
OPERATIONS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


def one_form(text: str) -> str:
    """A text as it is compared: normalised, `a/b` and 0.5 as fractions in LaTeX."""
    out = math_answers.normalised(text)
    if match := RATIO.fullmatch(out):
        return f"\\frac{{{match[1]}}}{{{match[2]}}}"
    return "\\frac{1}{2}" if out == "0.5" else out


def items(text: str) -> tuple[str, list[str]]:
    """The brackets around a text in one form, and its items; a text without commas is one item and has none."""
    found = math_answers.parts_of(text)
    return found if found is not None and len(found[1]) > 1 else ("", [text])


def same(found: str, gold: str) -> bool | list[tuple[str, str]]:
    """Whether an answer is the right one; where only algebra can say, the pairs that it must find equal."""
    one, two = one_form(gold), one_form(found)
    if one == two:
        return True
    (brackets, wanted), (others, given) = items(one), items(two)
    if not two or brackets != others or len(wanted) != len(given):
        return False
    asked = []
    for left, right in zip(map(one_form, wanted), map(one_form, given), strict=True):
        if left == right:
            continue
        fractions = FRACTION.fullmatch(left) and FRACTION.fullmatch(right)
        if fractions or INTEGER.fullmatch(left) or INTEGER.fullmatch(right):
            return False
        if not (askable(left) and askable(right)):
            return False
        asked.append((left, right))
    return asked or True


def askable(text: str) -> bool:
    """Whether algebra may be asked about a text."""
    letters = {letter for letter in re.sub("sqrt|frac|cdot|times", "", text) if letter.isalpha()}
    return len(letters) <= 2 and not REFUSED.search(text)


def plain(text: str) -> str | None:
    """LaTeX in one form as arithmetic; None where something else stands in it."""
    for _ in range(math_answers.MOST_DEPTH):
        shorter = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
        shorter = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", shorter)
        if shorter == text:
            break
        text = shorter
    text = re.sub(r"\\(?:cdot|times)", "*", text).replace("\\pi", "pi").replace("^", "**")
    text = re.sub(r"(?<=[\d)])(?=[a-zA-Z(])|(?<=\))(?=\d)", "*", text)
    return text if READABLE.fullmatch(text) else None


def algebra(left: str, right: str) -> bool:
    """Whether two texts of `same` have one value."""
    import sympy

    sides = [plain(left), plain(right)]
    try:
        one, two = (value(ast.parse(side or "", mode="eval").body) for side in sides)
        return bool(sympy.simplify(one - two) == 0)
    except (SyntaxError, TypeError, ValueError, AttributeError, ZeroDivisionError, RecursionError, MemoryError):
        return False


def value(node: ast.AST) -> Any:
    """The value of arithmetic that Python's parser has read; nothing is executed (sympy's own reader would).

    A name is an unknown, but for `pi`, `E` and `I`; a name before brackets multiplies them, but for `sqrt`. Raises
    ValueError for everything else.
    """
    import sympy

    match node:
        case ast.Constant(value=int() as number):
            return sympy.Integer(number)
        case ast.Constant(value=float() as number):
            return sympy.Float(number)
        case ast.Name(id=name):
            return {"pi": sympy.pi, "E": sympy.E, "I": sympy.I}.get(name) or sympy.Symbol(name)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
            return -value(inner) if isinstance(sign, ast.USub) else value(inner)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in OPERATIONS:
            return OPERATIONS[type(operation)](value(left), value(right))
        case ast.Call(func=ast.Name(id="sqrt"), args=[inner], keywords=[]):
            return sympy.sqrt(value(inner))
        case ast.Call(func=function, args=[inner], keywords=[]):
            return value(function) * value(inner)
    raise ValueError(f"{type(node).__name__} is no arithmetic")
