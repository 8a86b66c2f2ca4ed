"""What processes with deadlines are asked in tests: functions that answer, sleep, raise, die, or hold on to the GIL."""

import os
import re
import sys
import time

SEEN = []


def remember():
    """Run at the start of a process."""
    SEEN.append("prepared")


def act(word, value=0.0):
    if word == "sleep":
        time.sleep(value)
    if word == "raise":
        raise ValueError(f"no {value}")
    if word == "own timeout":
        raise TimeoutError("its own")
    if word == "die":
        os._exit(3)
    if word == "busy":  # C code that lets no signal in and holds the GIL
        re.match(r"(a+)+$", "a" * 60 + "b")
    if word == "pid":
        return os.getpid()
    if word == "modules":
        return SEEN + [name for name in ("jax", "numpy", "torch", "gramjax") if name in sys.modules]
    return value
