"""The report: one file without outside references, with the numbers of the run, safe against what data may hold."""

import csv
import html.parser
import json
import re
import sys

import numpy as np
import pytest
from made_up_runs import entries, judged, write_run

from gramjax.core import leaderboards, rewardbench, rewardbench2, trivial_judges
from gramjax.core.errors import DataError, UserError
from gramjax.jobs import report as job
from gramjax.plots import benchmarks, report

VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects text, tags and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_report_of_a_run(run_folder):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    path = report.write_report(run_folder)
    assert path == run_folder / "report.html"
    page = Page(path.read_text("utf-8"))
    results = json.loads((run_folder / "eval" / "preference.json").read_text())
    for expected in (
        "quickstart", "done", f"{100 * results['accuracy']:.1f} %", f"{100 * results['swap_consistency']:.1f} %",
        f"{results['position_bias']:+.3f}", f"{results['ece']:.3f}", "600 pairs", "generative_preference · finetune",
        "config.train.steps 400 (command line)", "longer than max_length 256 12 row-17", "reasoning", "0.10.2",
        "Most confident mistakes", "empty chosen 2 pair-900", "3 shortened",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert page.tags.count("img") == page.tags.count("figure") == 6
    # self-contained: pictures are inside, nothing is loaded, links stay in the run folder and exist
    assert "script" not in page.tags and "link" not in page.tags
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or (run_folder / address).exists(), address[:80]
    assert "optimum of the smoothed loss" not in page.text  # it stands in the picture


def test_what_data_holds_is_text_and_never_markup(tmp_path):
    rows = judged(30)
    attack = "<script>alert(1)</script>\"'&"
    rows = [row | {"subset": attack if i % 2 else "b", "id": f"{attack}{i}"} for i, row in enumerate(rows)]
    run = write_run(tmp_path / "run", rows, entries(20), name=attack)
    text = report.write_report(run).read_text("utf-8")
    assert "script" not in Page(text).tags and "<script" not in text
    assert attack.split("&")[0] in Page(text).text


def test_report_without_matplotlib_has_the_tables_and_says_why(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(report.write_report(run_folder).read_text("utf-8"))
    assert 'pip install "gramjax[plot]"' in page.text and "Swap consistency" in page.text and "img" not in page.tags


def test_report_of_two_runs_compares_them_on_the_same_pairs(run_folder, tmp_path, capsys):
    weaker = judged(600, quality=0.3)
    second = write_run(tmp_path / "runs" / "weaker", weaker[:500], entries(seed=3))
    out = tmp_path / "compare.html"
    assert job.main([str(run_folder), str(second), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out) in said and "preference: on 500 pairs that both judged" in said and "clear difference" in said
    text = Page(out.read_text("utf-8")).text
    one = {row["id"]: row["correct"] for row in judged()}
    difference = 100 * sum(one[row["id"]] - row["correct"] for row in weaker[:500]) / 500
    assert "on 500 pairs that both judged" in text and f"is {difference:+.1f} points" in text
    assert re.search(r"p = 0\.0002\)\s*: clear difference", text) and "left out: 100 only by quickstart" in text
    assert "Settings that differ None." in text


def test_figures_and_tables_of_rm_bench(tmp_path):
    """The 3 x 3 matrix is drawn and its numbers stand beside it; trivial judges are in the page."""
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    domains = ["chat", "code", "math", "safety-refuse", "safety-response"]
    rows = judged(9 * 20)
    for number, row in enumerate(rows):
        place, prompt = number % 9, number // 9
        row |= {"domain": domains[prompt % 5], "group": str(prompt), "matrix_id": f"{place // 3}-{place % 3}",
                "subset": domains[prompt % 5]}  # fmt: skip
    run = write_run(tmp_path / "run", rows, entries(20))
    results = json.loads((run / "eval" / "preference.json").read_text())
    results |= dict(leaderboards.summarise(rows, "rm_bench"))
    (run / "eval" / "preference.json").write_text(json.dumps(results))
    page = Page(report.write_report(run).read_text("utf-8"))
    with open(run / "plots" / "rm_bench.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 9 * 5, "all domains, chat, code, math, safety"
    drawn = [float(cell["accuracy"]) for cell in cells if cell["domain"] == "all domains"]
    assert np.reshape(drawn, (3, 3)) == pytest.approx(np.array(results["rm_bench"]["matrix"]))
    assert "Does style beat content?" in page.text and page.tags.count("img") == 7
    for expected in ("RM-Bench", f"{100 * results['rm_bench_overall']:.1f} %", "Judges that do not read", "longer"):
        assert expected in page.text, expected


TABLES = {
    "rewardbench": [{"id": str(n), "subset": name, "correct": n % 3 > 0}
                    for n, name in enumerate([name for name in rewardbench.SUBSETS for _ in range(3)])],
    "judgebench": [{"id": str(n), "subset": "x", "source": "mmlu-pro-law", "pair_id": str(n), "games": [1, 1 - n % 3],
                    "correct": True, "p_first": 0.8, "p_second": 0.4} for n in range(9)],
    "hhh": [{"id": f"{name}{n}", "subset": name, "correct": n > 0, "benchmark": "hhh"}
            for name in ("helpful", "honest", "harmless", "other") for n in range(4)],
}  # fmt: skip


@pytest.mark.parametrize("benchmark", TABLES)
def test_tables_of_benchmarks(benchmark):
    """Every number of the headline is a card and every table is well formed; partial files say what is missing."""
    rows = [row | {"chosen_length": 3, "rejected_length": 2} for row in TABLES[benchmark]]
    results = dict(leaderboards.summarise(rows, benchmark)) | {"trivial_judges": trivial_judges.summarise(rows)}
    page = Page(benchmarks.cards(results) + benchmarks.sections(results))
    headline = next(name for name in benchmarks.HEADLINES if name in results)
    assert page.text.count(f"{100 * results[headline]:.1f} %") >= 2 and "95 % interval" in page.text
    assert "longer" in page.text and "100.0 %" in page.text
    partial = dict(leaderboards.summarise(rows[:2], benchmark))
    text = Page(benchmarks.cards(partial) + benchmarks.sections(partial)).text
    assert benchmark == "judgebench" or ("No overall score" in text and "None" not in text)


def test_tables_of_rewardbench_2():
    lists = [{"id": f"{kind}:1", "subset": "Ties", "scores": [2.0, 1.0, 0.0], "num_correct": right,
              "lengths": [3, 2, 1]} for kind, right in (("ref", 1), ("tied", 2))]  # fmt: skip
    table = rewardbench2.rewardbench2(lists)
    trivial = trivial_judges.summarise_lists(lists)
    text = Page(benchmarks.sections({"rewardbench2": table, "trivial_judges": trivial})).text
    assert "no rows of Factuality, Focus, Math, Precise IF, Safety" in text and "tied accuracy 1" in text


def test_phases_are_shown_in_order(run_folder):
    write_run(run_folder / "1_pretrain", judged(5), entries(40))
    text = Page(report.write_report(run_folder).read_text("utf-8")).text
    assert "Training, phase 1_pretrain" in text and "Phase 1_pretrain" in text and "Last phase" in text


def test_report_of_a_run_that_still_goes_or_has_no_evaluation(tmp_path):
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo', "utf-8")
    text = Page(report.write_report(folder).read_text("utf-8")).text
    assert "young" in text and "not finished" in text and "2.5" in text


def test_bad_folders_are_one_clear_error(tmp_path, run_folder):
    with pytest.raises(UserError, match="is not a folder"):
        job.main([str(tmp_path / "absent")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        job.main([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="report"):
        job.main([])
    (run_folder / "eval" / "preference.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"preference\.json: no readable JSON"):
        report.write_report(run_folder)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"label_smoothing": 0.05}, 2.9444),
        ({"label_smoothing": 0.1, "smoothing_convention": "uniform"}, 2.9444),
        ({"label_smoothing": 0.0}, None),
        ({}, None),
    ],
)
def test_optimum_of_the_smoothed_loss(objective, expected):
    """d* = log((1 - eps) / eps); the released alpha 0.1 is eps 0.05."""
    found = report.optimum({"objective": objective})
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-4))
