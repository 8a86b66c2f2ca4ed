"""`gramjax VERB ...`: finds the verb among the files of `gramjax/jobs` and runs its `main(argv) -> int`.

Nothing heavy is imported before the verb is known, and the verbs are described from the first lines of their files.
Exit codes: 0 fine, 1 a bug (with traceback), 2 the command or a setting is wrong, 3 the data is, 75 stopped on request
after a checkpoint was written (run the same command again), 130 interrupted.
"""

import ast
import difflib
import importlib
import os
import sys
import traceback
from pathlib import Path

import gramjax
from gramjax.core.errors import GramjaxError, UserError

JOBS = Path(__file__).parent / "jobs"
ORDER = ("train", "evaluate", "convert", "data", "doctor", "configs", "report")
"""Verbs in the order a newcomer needs them; others follow in alphabetical order."""


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
    return importlib.import_module(f"gramjax.jobs.{verb}").main(argv[1:])


def run(argv: list[str] | None = None) -> None:
    """The console script: run a verb, print errors as one line, exit with the code."""
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except GramjaxError as error:
        if os.environ.get("GRAMJAX_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"gramjax: {' '.join(str(error).split())}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("gramjax: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output went away: `gramjax configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
