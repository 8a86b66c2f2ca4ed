"""Answers compared with symbolic algebra (math-verify, or sympy), in processes that are killed when they take too long.

math-verify keeps its own time with signals, which threads do not get; here its clocks are off and the processes have
deadlines. This module is what the processes import: it must stay light.
"""

from collections.abc import Sequence

from gramjax.core import deadlines, runtime
from gramjax.data import deepscaler

WHAT = "config.rewards.verifiable.grader"
MOST_CHARACTERS = 4000
"""Of a text that is parsed: what is longer is cut from the left, since answers stand at the end."""


def verified(gold: str, text: str) -> bool | None:
    """Whether math-verify finds the right answer in a text, None where it cannot read the right answer itself."""
    from math_verify import parse, verify

    right = parse(f"${gold}$", parsing_timeout=None) or parse(gold, parsing_timeout=None)
    if not right:
        return None
    found = parse(text[-MOST_CHARACTERS:], parsing_timeout=None)
    return bool(found and verify(right, found, timeout_seconds=None))


def prepare() -> None:
    """Import what takes long, before the first deadline begins; no warnings about clocks that are off on purpose."""
    import logging

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    verified("\\frac{1}{2}", "\\boxed{0.5}")


def prepare_algebra() -> None:
    """Import what `deepscaler.algebra` needs, before the first deadline begins."""
    deepscaler.algebra("x", "x")


GRADERS = {"math_verify": (verified, prepare), "deepscaler": (deepscaler.algebra, prepare_algebra)}
"""What each grader asks of two texts, and what it imports."""


class Checker:
    """A pool of processes; equal questions are asked once."""

    def __init__(self, processes: int, seconds: float, grader: str = "math_verify") -> None:
        """Raises UserError naming the extra when math-verify (which brings sympy) or pebble is not installed."""
        what = f"{WHAT}={grader}"
        runtime.need("math_verify", "math", what)
        function, begin = GRADERS[grader]
        self.pool = deadlines.Pool(function, processes, seconds, what, prepare=begin)

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[bool | str]:
        """For each (right answer, text): whether it is right, or the name of what went wrong (`timeout`, `error`)."""
        found = self.pool.call([(gold, text) for gold, text in pairs])
        return [answer.reason if isinstance(answer, deadlines.Failed) else bool(answer) for answer in found]

    def close(self) -> None:
        """End the processes."""
        self.pool.close()
