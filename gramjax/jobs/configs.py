"""List the packaged configs, or print one.

`gramjax configs` lists the names, each with the first line of its docstring; `gramjax configs NAME` prints the file;
`gramjax configs --settings` prints what every setting means.
"""

import ast

from gramjax.core import flags


def main(argv: list[str]) -> int:
    """Print the list or one file; the files are read, not run."""
    parser = flags.Parser("gramjax configs", description=__doc__)
    parser.add_argument("name", nargs="?", help="print this config")
    parser.add_argument("--settings", action="store_true", help="print every setting with type, default and meaning")
    arguments = parser.parse_args(argv)
    if arguments.settings:
        from gramjax.core import settings

        print(settings.pages(), end="")
    elif arguments.name:
        print(flags.config_path(arguments.name).read_text("utf-8"), end="")
    else:
        names = flags.config_names()
        width = max((len(name) for name in names), default=0) + 2
        for name in names:
            print(f"{name:<{width}}{summary(name)}".rstrip())
    return 0


def summary(name: str) -> str:
    """First line of a packaged config's docstring."""
    source = (flags.config_folder() / f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
