"""Write the report of a run, or of one run beside another: figures, tables, one HTML file.

`gramjax report RUN [RUN_B] [--output=FILE]` writes RUN/report.html and the figures, with the numbers behind each, to
RUN/plots/. With RUN_B the report compares the two: paired difference of accuracy (said here too, with its interval and
whether it may be noise; rows are matched by id), losses over each other, settings.
The folder of a recipe (it holds rounds.json) gets its rounds: labels, filters, votes, rationales; two, one comparison.
"""

from gramjax.core import flags
from gramjax.plots import report


def main(argv: list[str]) -> int:
    """Write the report and print where it is."""
    parser = flags.Parser("gramjax report", description=__doc__)
    parser.add_argument("run", help="folder of a training, an evaluation or a recipe")
    parser.add_argument("other", nargs="?", help="a second folder of the same kind to compare with")
    parser.add_argument("--output", help="write the page here instead of RUN/report.html")
    arguments = parser.parse_args(argv)
    for name, said in report.compare_runs(arguments.run, arguments.other).items() if arguments.other else ():
        print(f"{name}: {said}")
    print(f"report  {report.write_report(arguments.run, arguments.other, arguments.output)}")
    return 0
