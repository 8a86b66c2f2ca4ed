"""The comparison of answers of the study, by the rules that are known of it."""

import pytest

from gramjax.data import deepscaler

PAIRS = [
    ("\\frac{2}{4}", "\\frac{1}{2}", False),  # lowest terms
    ("0.5", "\\frac12", True),
    ("1/2", "\\dfrac{1}{2}", True),
    ("1.5", "\\frac{3}{2}", True),
    ("\\sqrt{4}", "2", False),  # an integer is written as one
    ("2\\sqrt{3}", "\\sqrt{12}", True),
    ("3\\pi", "\\pi\\cdot 3", True),
    ("(1,2)", "[1,2]", False),  # brackets
    ("(1,\\sqrt{12})", "(1,2\\sqrt3)", True),
    ("2,1", "1,2", False),  # order
    ("(1,2)", "(1,2,3)", False),
    ("y+x", "x+y", True),
    ("x(x+2)", "x^2+2x", True),
    ("z+x+y", "x+y+z", False),  # more than two letters: not asked
    ("x^{12}+1", "1+x^{12}", False),  # a power of two digits: not asked
    ("x=5", "5", True),
    ("5 cm", "5", True),
    ("", "2", False),
    ("\\frac{1}{0}", "x", False),
    ("__import__('os')", "x+2", False),
]


@pytest.mark.parametrize(("found", "gold", "right"), PAIRS)
def test_pairs(found, gold, right):
    pytest.importorskip("sympy", reason="needs the extra math")
    said = deepscaler.same(found, gold)
    assert (said if isinstance(said, bool) else all(deepscaler.algebra(*pair) for pair in said)) is right


def test_names_are_unknowns_and_nothing_is_called():
    """Words of letters that are allowed name nothing of Python or sympy."""
    pytest.importorskip("sympy", reason="needs the extra math")
    for text in ("exit()", "eval(x)", "(lambda:x)", "sqrt(x,y)", "x,y", "x if x else y", "", "(" * 5000 + "x"):
        assert not deepscaler.algebra(text, "x"), text
    assert deepscaler.algebra("exit(2)", "2exit")
    assert deepscaler.algebra("2.5x", "x*5/2") and deepscaler.algebra("-x+E-E", "-x")


def test_what_is_evaluated_holds_no_names():
    for text in ("__import__('os')", "x.real", "lambda:1", "x;y", '"a"', "x[0]", "a_b"):
        assert deepscaler.plain(text) is None
