"""Answers compared with symbolic algebra (math-verify), in processes that are killed when they take too long.

math-verify keeps its own time with signals, which threads do not get; here its clocks are off and the processes have
deadlines. This module is what the processes import: it must stay light.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import TimeoutError as Late
from typing import Any

from gramjax.core import runtime

EXTRA = "config.rewards.verifiable.grader=math_verify"
MOST_CHARACTERS = 4000
"""Of a text that is parsed: what is longer is cut from the left, since answers stand at the end."""


def verified(gold: str, text: str) -> bool:
    """Whether math-verify finds the right answer in a text; runs in a process of its own."""
    from math_verify import parse, verify

    right = parse(f"${gold}$", parsing_timeout=None) or parse(gold, parsing_timeout=None)
    found = parse(text[-MOST_CHARACTERS:], parsing_timeout=None)
    return bool(right and found and verify(right, found, timeout_seconds=None))


class Checker:
    """A pool of processes; equal questions are asked once."""

    def __init__(self, processes: int, seconds: float) -> None:
        """Raises UserError naming the extra when math-verify or pebble is not installed."""
        import multiprocessing

        runtime.need("math_verify", "math", EXTRA)
        pebble = runtime.need("pebble", "math", EXTRA)
        self.seconds = seconds
        self._pool = pebble.ProcessPool(max_workers=processes, context=multiprocessing.get_context("spawn"))
        self._ask = functools.lru_cache(65536)(self._start)

    def _start(self, gold: str, text: str) -> Any:
        return self._pool.schedule(verified, args=(gold, text), timeout=self.seconds)

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[bool | str]:
        """For each (right answer, text): whether it is right, or the name of what went wrong (`timeout`, `error`)."""
        asked = [self._ask(gold, text) for gold, text in pairs]
        out: list[bool | str] = []
        for future in asked:
            try:
                out.append(future.result())
            except Late:
                out.append("timeout")
            except Exception:  # whatever algebra raises, or a process that died
                out.append("error")
        return out

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()
