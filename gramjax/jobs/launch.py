"""Start a verb on all GPUs of a host, with SLURM, on a TPU slice or on GKE: prints what that takes, or does it."""

import dataclasses
import difflib
import os
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import flags, launching, plugins, settings, xla_flags
from gramjax.core.errors import UserError

HELP = """usage: gramjax launch TARGET [OPTIONS] [VERB] --config=NAME --workdir=DIR [WORDS OF THE VERB ...]

Prints what starts `gramjax VERB ...` (train, unless another verb is named) there; --submit starts it. Targets:

{targets}

gramjax launch TARGET --help lists the options of one."""


def main(argv: list[str]) -> int:
    """`gramjax launch gpu|slurm|tpu|gke [OPTIONS] [VERB] [WORDS ...]`."""
    if not argv or argv[0] in ("-h", "--help"):
        targets = [f"  {name:<7}{record.__doc__}" for name, record in launching.TARGETS.items()]
        print(HELP.format(targets="\n".join(targets)))
        return 0 if argv else UserError.exit_code
    target, parser = argv[0], parser_of(argv[0])
    given, rest = parser.parse_known_args(argv[1:])
    record = launching.TARGETS[target]
    options = record(**{field.name: getattr(given, field.name) for field in dataclasses.fields(record)})
    verb, words = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("train", rest)
    config = understood(verb, words, record, given.unread)
    if config is not None and "mesh" in config and verb in launching.SEVERAL:
        launching.check_mesh(config.mesh, options)
    wanted = variables(given.xla_flags, target, options) if given.xla_flags else {}
    made = launching.render(target, options, launching.Command(verb, tuple(words), wanted))
    print(made.text, end="")
    if given.write:
        write(made, given.write)
    command = [given.write or "-" if word == "-" else word for word in made.submit]
    if given.submit:
        return submit(command, made.text)
    if "-" in made.submit:
        by_hand = shlex.join(given.write or "FILE" if word == "-" else word for word in made.submit)
        print(f"# not submitted: add --submit, or {'' if given.write else '--write=FILE and '}{by_hand}")
    else:
        print("# not started: add --submit")
    return 0


def parser_of(target: str) -> flags.Parser:
    """The options of a target, from the fields of its record."""
    if target not in launching.TARGETS:
        near = difflib.get_close_matches(target, launching.TARGETS, n=1)
        hint = f" — did you mean {near[0]}?" if near else ""
        raise UserError(f"launch: no target {target!r}{hint} (there are: {', '.join(launching.TARGETS)})")
    record = launching.TARGETS[target]
    about = f"{record.__doc__} What is no option below is a word of the verb."
    usage = f"gramjax launch {target} [OPTIONS] [VERB] --config=NAME --workdir=DIR [WORDS OF THE VERB ...]"
    parser = flags.Parser(f"gramjax launch {target}", usage=usage, description=about, allow_abbrev=False)
    kinds, docs = typing.get_type_hints(record), settings.field_docs(record)
    for field in dataclasses.fields(record):
        if kinds[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=docs[field.name])
        else:
            kind: Callable[[str], Any] = whole(int(bool(field.default))) if kinds[field.name] is int else str
            shown = f"{docs[field.name]}{f' (default: {field.default})' if field.default else ''}".replace("%", "%%")
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=shown, metavar="…")
    parser.add_argument("--xla_flags", default="", metavar="…",
                        help=f"flags of XLA to set: {' or '.join(xla_flags.GROUPS)} (the table of gramjax), or --xla_…")
    parser.add_argument("--unread", action="store_true", help="the config is not on this machine: do not read it")
    parser.add_argument("--write", default="", metavar="FILE", help="write it there as well")
    parser.add_argument("--submit", action="store_true", help="start it")
    return parser


def whole(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number of {least} or more"  # what argparse calls it in its complaint
    return number


def understood(verb: str, words: Sequence[str], record: type[Any], unread: bool) -> Any:
    """The config of the verb; None where none is read.

    Raises UserError for a verb that there is not, and for what the verb would refuse, hours later.
    """
    known = [name for name in plugins.names("jobs") if name != "launch"]
    if verb not in known:
        near = difflib.get_close_matches(verb, known, n=1)
        raise UserError(f"launch: no verb {verb!r}" + (f" — did you mean {near[0]}?" if near else ""))
    if verb not in (*launching.SEVERAL, *launching.ONE) or verb == "generate":  # which have flags of their own
        return None
    of_verb = [*flags.VALUES, *flags.SWITCHES]
    options = [*(field.name for field in dataclasses.fields(record)), "xla_flags", "unread", "write", "submit"]
    for name in (word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")):
        near = difflib.get_close_matches(name, [*options, *of_verb], n=1)
        if "." not in name and name not in of_verb and near and near[0] in options:
            raise UserError(f"launch: unknown option --{name} — did you mean --{near[0]}?")
    return None if unread else flags.parse(list(words), verb, workdir_needed=verb != "serve").config


def variables(text: str, target: str, options: Any) -> dict[str, str]:
    """The variable that sets the flags of XLA which were asked for, known to the compiler of this machine."""
    platform = launching.platform(target, options)
    wanted = xla_flags.chosen(text, platform)
    if not xla_flags.check(wanted, platform):
        print('gramjax: flags not checked, the TPU compiler is not here: pip install "gramjax[plan]"', file=sys.stderr)
    name = xla_flags.VARIABLES[platform]
    here = xla_flags.parse(os.environ.get(name, "")) if target == "gpu" else {}  # kept: it runs in this environment
    return {name: xla_flags.as_text(here | wanted)}


def write(made: launching.Rendered, path: str) -> None:
    """Write the text to a file."""
    try:
        Path(path).write_text(made.text, "utf-8")
    except OSError as error:
        raise UserError(f"--write={path}: {error.strerror}") from error


def submit(command: Sequence[str], text: str) -> int:
    """Run the words that submit a text; its exit code."""
    if shutil.which(command[0]) is None:
        raise UserError(f"--submit: {command[0]} is not on this machine; without --submit the text is only printed")
    sys.stdout.flush()
    if command[0] in ("bash", "env"):
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # this gramjax
        os.execvp(command[0], list(command))  # signals reach the script itself
    words = ["sbatch"] if list(command) == ["sbatch", "-"] else command  # which reads its standard input
    return subprocess.run(words, input=text if "-" in command else None, text=True).returncode
