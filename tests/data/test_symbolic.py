"""Symbolic comparison of answers: what it adds to the rules, from any thread, within its deadline."""

import concurrent.futures

import pytest

pytest.importorskip("math_verify", reason="needs the extra math")
pytest.importorskip("pebble", reason="needs the extra math")

from test_math_answers import EQUAL, UNEQUAL, pairs  # noqa: E402

from gramjax.data import symbolic  # noqa: E402

ALGEBRA = [("x^2-1", "(x-1)(x+1)"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"2\pi", r"\pi+\pi"), ("8", "2^3")]
APART = {
    ("18 dollars", "18"), ("५", "5"), (r"\frac\pi2", r"\frac{\pi}{2}"),
    ("(1,2)", "1,2"), (r"\{1,2\}", "(1,2)"), (r"\{1,1,2\}", r"\{1,2,2\}"), ("a", "A"),
}  # fmt: skip
"""Curated pairs that math-verify 0.9 and the rules see differently: units, scripts, brackets and upper case."""


@pytest.fixture(scope="module")
def checker():
    made = symbolic.Checker(2, 20.0)
    yield made
    made.close()


def test_algebra_is_seen_from_a_thread_as_elsewhere(checker):
    asked = [(gold, f"\\boxed{{{found}}}") for gold, found in ALGEBRA] + [("x^2-1", "\\boxed{(x-1)(x+2)}")]
    assert checker.check(asked) == [True] * 4 + [False]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(checker.check, asked).result() == [True] * 4 + [False]


def test_rules_and_algebra_agree_on_the_curated_pairs(checker):
    """E-10: all but the known ones."""
    curated = [(pair, True) for pair in pairs(EQUAL)] + [(pair, False) for pair in pairs(UNEQUAL)]
    found = checker.check([(gold, f"\\boxed{{{text}}}") for (text, gold), _ in curated])
    apart = {pair for (pair, same), said in zip(curated, found, strict=True) if said != same}
    assert apart <= APART and len(curated) >= 85


def test_what_takes_too_long_is_named():
    made = symbolic.Checker(1, 0.3)
    slow = ("(x+1)^{20000}-1", "\\boxed{x(x+1)^{19999}+(x+1)^{19999}-2}")
    assert made.check([slow, ("1", "\\boxed{1}")]) == ["timeout", True]
    made.close()
