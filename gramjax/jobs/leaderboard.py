"""Write the result files that leaderboards merge, from the rows of an evaluation and without its model.

`gramjax leaderboard RUN [--model=ORG/NAME]` reads RUN/eval and the data file that RUN judged, and writes what the
benchmark of the rows asks for (RewardBench 1 and 2, RM-Bench, JudgeBench) to RUN/eval/exports. `gramjax evaluate` has
written the same with the last two parts of the model's path as its name. For any preference rows, --tool writes the
files of the rewardbench command, and --pref-sets those of RewardBench for other preference sets (a score per subset).
"""

from pathlib import Path

from gramjax.core import flags
from gramjax.core.errors import UserError
from gramjax.plots import files
from gramjax.training import exports


def main(argv: list[str]) -> int:
    """Write the files and print where they are."""
    parser = flags.Parser("gramjax leaderboard", description=__doc__)
    parser.add_argument("run", help="folder of an evaluation (gramjax evaluate)")
    parser.add_argument("--model", default="", metavar="ORG/NAME", help="how the model is called in the files")
    parser.add_argument("--data", default="", help="the file that was judged, if it is not where it was")
    layouts = parser.add_mutually_exclusive_group()
    layouts.add_argument("--tool", dest="layout", action="store_const", const="tool", default="",
                         help="files of the rewardbench command instead")
    layouts.add_argument("--pref-sets", dest="layout", action="store_const", const="pref_sets",
                         help="RewardBench's files of other sets, by subset: pref-sets, pref-sets-scores")  # fmt: skip
    arguments = parser.parse_args(argv)
    run = files.read_run(arguments.run)
    written: list[Path] = []
    for name, rows in run.rows.items():
        written += exports.write(run.folder / "eval", run.config, rows, name, arguments.model, arguments.data,
                                 arguments.layout)  # fmt: skip
    if not written:
        raise UserError(f"{arguments.run}: its rows are of no benchmark with files of its own; --tool takes any "
                        "pairs, --pref-sets those with a subset")
    for path in written:
        print(path)
    return 0
