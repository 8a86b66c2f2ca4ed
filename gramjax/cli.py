"""`gramjax VERB ...`: finds the verb among the files of `gramjax/jobs` and runs its `main(argv) -> int`.

Nothing heavy is imported before the verb is known, and the verbs are described from the first lines of their files.
Exit codes: 0 fine, 1 a bug (with traceback), 2 the command or a setting is wrong, 3 the data is, 75 stopped on request
with what is done saved (run the same command again), 76 another try would fail in the same place, 77 stuck (the
watchdog ended it; run the same command again), 130 interrupted.
"""

import ast
import difflib
import errno
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

import gramjax
from gramjax.core import signals
from gramjax.core.errors import GramjaxError, UserError

JOBS = Path(__file__).parent / "jobs"
ORDER = ("train", "evaluate", "convert", "data", "doctor", "configs", "report")
"""Verbs in the order a newcomer needs them; others follow in alphabetical order."""


OF_THE_SYSTEM = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
                 errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
"""What a system says of a path that a person gave, or of a full disk: no bug, so it is one line that names the path. A
file that is absent is not among them: a job that looks for one says itself what it is."""


STOPPED = ("train", "evaluate", "score", "annotate", "select_layers", "run")
"""Verbs that go on for hours under a scheduler: asked to stop before their work has begun they say that they are to be
started again, as they do in it (`signals.served`)."""


def verbs() -> list[str]:
    """Names of the verbs: the files of `gramjax/jobs`."""
    found = sorted(path.stem for path in JOBS.glob("*.py") if not path.stem.startswith("_"))
    return sorted(found, key=lambda verb: ORDER.index(verb) if verb in ORDER else len(ORDER))


def first_line(file: Path) -> str:
    """First line of a file's docstring, read without importing it."""
    try:
        doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    except (SyntaxError, OSError):
        return ""
    return doc.split("\n", 1)[0].strip()


def usage() -> str:
    """The text of `gramjax --help`."""
    lines = [f"gramjax {gramjax.__version__}: reward models and preference learning in JAX", "",
             "usage: gramjax VERB [...]          gramjax VERB --help says what it takes", ""]
    lines += [f"  {verb:<14}{first_line(JOBS / f'{verb}.py')}" for verb in verbs()]
    lines += ["", "start here: gramjax train --config=quickstart --workdir=runs/quickstart"]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run a verb; returns the exit code and lets errors through."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("--version", "version"):
        print(f"gramjax {gramjax.__version__}")
        return 0
    verb, known = argv[0], verbs()
    if verb not in known:
        near = difflib.get_close_matches(verb, known, n=1)
        hint = f" — did you mean {near[0]}?" if near else ""
        raise UserError(f"no verb {verb!r}{hint} (there are: {', '.join(known)})")
    try:
        return importlib.import_module(f"gramjax.jobs.{verb}").main(argv[1:])
    except OSError as error:
        if error.errno in OF_THE_SYSTEM and error.filename is not None:
            raise UserError(f"{str(error.filename):.200}: {error.strerror}") from error
        raise


def in_a_group() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def leave(code: int, agreed: bool) -> None:
    """End a process of a group by itself: an orderly end waits for the others, who wait for it in their next step.

    Those who end for the same reason at the same place (`agreed`) wait for each other. Process 0 takes the others down
    with it: it gives those who meet the same error a moment to say so.
    """
    if agreed or not in_a_group():
        return
    sys.stderr.flush()
    sys.stdout.flush()
    if sys.modules["jax"].process_index() == 0:
        time.sleep(1)
    os._exit(code)


def note(code: int) -> None:
    """Tell the launcher that names a file in GRAMJAX_CODES how this process ends: of several, the first says why.

    Those that lose a partner are aborted, with a code of their own that would hide it.
    """
    path = os.environ.get("GRAMJAX_CODES")
    if path:
        try:
            with open(path, "a") as file:
                file.write(f"{code}\n")
        except OSError:
            pass


def run(argv: list[str] | None = None) -> None:
    """The console script: run a verb, print errors as one line, exit with the code."""
    words = sys.argv[1:] if argv is None else argv
    if argv is None and words[:1] and words[0] in STOPPED:  # the process is ours
        signals.before_the_job()
    try:
        code = main(words)
        sys.stdout.flush()
    except GramjaxError as error:
        if os.environ.get("GRAMJAX_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"gramjax: {' '.join(str(error).split())}", file=sys.stderr)
        code = error.exit_code
        note(code)
        leave(code, error.agreed)
    except BrokenPipeError:  # the reader of our output went away: `gramjax configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        note(1)
        if in_a_group():
            traceback.print_exc()
            leave(1, getattr(error, "agreed", False))
        raise
    except KeyboardInterrupt:
        print("gramjax: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
