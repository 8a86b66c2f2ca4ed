"""Large pages for what a program allocates. Imports nothing heavy: it runs before anything else of a command.

A step of XLA:CPU asks for its working memory anew and gives it back. In pages of 4 KiB the system clears them one fault
at a time, which is a third of the processor time of a small model's step; in pages of 2 MiB next to nothing.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
LARGE = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def helps(environment: MutableMapping[str, str], setting: str) -> bool:
    """Whether a program has to ask the system for large pages (`setting`: the words of `SETTING`) and has not yet."""
    return "[madvise]" in setting and LARGE not in environment.get(TUNABLES, "")


def ask() -> None:
    """Start this command again with a C library that asks for large pages, where that helps; once.

    The C library reads the setting when a program starts and at no other time. The process keeps its number, its
    signals and its files. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` in the environment declines.
    """
    words = getattr(sys, "orig_argv", [])[1:]
    if sys.platform != "linux" or not sys.executable or not words or "-" in words:  # a program read from a pipe is gone
        return
    try:
        setting = SETTING.read_text()
    except OSError:
        return
    if not helps(os.environ, setting):
        return
    given = os.environ.get(TUNABLES, "")
    os.environ[TUNABLES] = f"{given}:{LARGE}=1" if given else f"{LARGE}=1"
    try:
        os.execv(sys.executable, sys.orig_argv)
    except OSError:  # the command goes on as it is
        return
