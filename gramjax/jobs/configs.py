"""List the packaged configs, or print one.

`gramjax configs` lists the names, each with the first line of its docstring; `gramjax configs NAME` prints the file.
"""

import ast

from gramjax.core import flags


def main(argv: list[str]) -> int:
    """Print the list or one file; the files are read, not run."""
    parser = flags.Parser("gramjax configs", description=__doc__)
    parser.add_argument("name", nargs="?", help="print this config")
    name = parser.parse_args(argv).name
    if name:
        print(flags.config_path(name).read_text("utf-8"), end="")
        return 0
    names = flags.config_names()
    width = max((len(n) for n in names), default=0) + 2
    for packaged in names:
        doc = ast.get_docstring(ast.parse((flags.config_folder() / f"{packaged}.py").read_text("utf-8"))) or ""
        print(f"{packaged:<{width}}{doc.split(chr(10), 1)[0]}".rstrip())
    return 0
