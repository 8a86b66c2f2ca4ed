"""Large pages: who asks for them, and what a command that does leaves as it was."""

import os
import subprocess
import sys

from gramjax.core import pages


def test_when_it_helps():
    assert pages.helps({}, "always [madvise] never\n")
    assert pages.helps({pages.TUNABLES: "glibc.malloc.arena_max=1"}, "always [madvise] never\n")
    assert not pages.helps({}, "[always] madvise never\n")
    assert not pages.helps({}, "always madvise [never]\n")
    assert not pages.helps({pages.TUNABLES: "glibc.malloc.hugetlb=0"}, "always [madvise] never\n"), "declined"


def test_a_command_is_started_again_once_with_its_words(tmp_path):
    """The number of the process, its arguments and its environment stay; other tunables stay beside ours."""
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    script = tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, sys\nfrom gramjax.core import pages\n"
        f"pages.SETTING = pathlib.Path({str(setting)!r})\nprint(os.getpid(), flush=True)\npages.ask()\n"
        "print(*sys.argv[1:], os.environ.get(pages.TUNABLES, ''), sep='|')\n"
    )
    environment = {**os.environ, pages.TUNABLES: "glibc.malloc.arena_max=8"}
    made = subprocess.run([sys.executable, str(script), "a b", "--c"], env=environment, capture_output=True, text=True)
    lines = made.stdout.splitlines()
    assert made.returncode == 0 and not made.stderr
    if sys.platform == "linux":
        assert len(lines) == 3 and lines[0] == lines[1], "one process, started twice"
        assert lines[2] == "a b|--c|glibc.malloc.arena_max=8:glibc.malloc.hugetlb=1"
