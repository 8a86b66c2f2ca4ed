"""Write the result files that leaderboards merge, from the rows of an evaluation and without its model.

`gramjax leaderboard RUN [--model=ORG/NAME]` reads RUN/eval and the data file that RUN judged, and writes what the
benchmark of the rows asks for (RewardBench 1 and 2, RM-Bench, JudgeBench) to RUN/eval/exports. `gramjax evaluate` has
written the same with the last two parts of the model's path as its name. With --tool the files are those of the
rewardbench command, for any preference rows.
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
    parser.add_argument("--tool", action="store_true", help="files of the rewardbench command instead")
    arguments = parser.parse_args(argv)
    run = files.read_run(arguments.run)
    written: list[Path] = []
    for name, rows in run.rows.items():
        written += exports.write(run.folder / "eval", run.config, rows, name, arguments.model, arguments.data,
                                 arguments.tool)  # fmt: skip
    if not written:
        raise UserError(f"{arguments.run}: its rows are of no benchmark with files of its own; --tool takes any pairs")
    for path in written:
        print(path)
    return 0
