"""The page of a self-training recipe: its numbers are those of rounds.json, whatever of it is there already."""

import csv
import json
import math
import sys

import pytest
from made_up_runs import entries, judged, write_run
from test_report import Page

from gramjax.core import voting
from gramjax.core.errors import DataError, UserError
from gramjax.jobs import report as job
from gramjax.plots import report, rounds

VOTES, NAN = 16, math.nan
FIGURES = {"rounds_accuracy", "rounds_filters", "rounds_votes", "rounds_curve"}


def measured(accuracy, correlation=0.35):
    """Test numbers of a judge whose draws repeat some of their mistakes."""
    curve = []
    for votes in range(1, VOTES + 1):
        ideal = voting.majority_accuracy(accuracy, votes)
        found = round(accuracy + (1 - correlation) * (ideal - accuracy), 4)
        curve.append({"votes": votes, "accuracy": found, "binomial": ideal})
    return {"accuracy": curve[7]["accuracy"], "accuracy_low": curve[7]["accuracy"] - 0.04,
            "accuracy_high": curve[7]["accuracy"] + 0.03, "num_pairs": 400, "num_unreadable": 3, "agreement": 0.8,
            "votes_curve": curve}  # fmt: skip


def made_up(count=3):
    """The state of a finished recipe of plausible shape."""
    found = [{"round": 0, "name": "R0", "num_train": 280, "test": measured(0.66)}]
    for i in range(1, count + 1):
        left = [2000, 1200 + 100 * i, 1100 + 120 * i, 1010 + 130 * i, 900 + 140 * i]
        why = ("vote share below 0.75", "no proof passed", "names no response", "more of A than of B")
        filters = [
            {"name": name, "before": a, "after": b, "dropped": {reason: {"count": a - b, "first": f"unlabelled-{i}"}}}
            for name, a, b, reason in zip(("votes", "proofs", "rules", "balance"), left, left[1:], why)
        ]
        shares = {"0": 12, "0.375": 20, "0.5": 180 - 20 * i, "0.625": 500 - 60 * i, "0.75": 480, "0.875": 400,
                  "1": 408 + 80 * i}  # fmt: skip
        found.append({
            "round": i, "name": f"R{i}", "num_train": 280 + left[-1] * i, "num_unlabelled": 2000,
            "pseudo_labels": {"precision_one_draw": 0.6 + 0.05 * i, "precision_vote": 0.66 + 0.05 * i,
                              "precision_kept": 0.78 + 0.04 * i, "num_gold": 1900},
            "filters": filters, "kept_share": left[-1] / 2000, "vote_histogram": shares, "share_of_a": 0.5,
            "test": measured(min(0.66 + 0.04 * i, 0.95)),
        })  # fmt: skip
    rationale = "<think>\n### Criteria\nIt should answer.\n### Analysis\nOnly A does.\n</think>\n<answer>A</answer>"
    rationales = [
        {"round": count, "id": f"unlabelled-{i}", "prompt": "How many legs has a spider?", "rationale": rationale,
         "responses": ["A spider has eight legs.", "It depends."], "label": "A", "gold": ("A", "B", None)[i]}
        for i in range(3)
    ]  # fmt: skip
    steps = [("00-prover", "train"), ("01-proofs", "annotate"), ("02-rules", "select_data"), ("03-R0", "train"),
             ("04-R1-judge", "annotate"), ("05-R1-votes", "select_data")]  # fmt: skip
    return {
        "recipe": "gram_r2",
        "finished": True,
        "steps": [{"name": name, "verb": verb, "seconds": 12.34 * (i + 1), "done": True, "summary": {"loss": 0.1 * i}}
                  for i, (name, verb) in enumerate(steps)],
        "prover": {"num_rows": 384, "dropped": {"longer than max_length 512": {"count": 7, "first": "human-11"}}},
        "proofs": {"num_rows": 300, "kept": 280, "kept_share": 280 / 300, "mean_score": -0.4,
                   "dropped": {"tells the label": {"count": 20, "first": "labelled-4"}}},
        "rounds": found,
        "final": {"round": -1, "name": "final", "num_train": 40, "test": measured(0.8)},
        "rationales": rationales,
    }  # fmt: skip


def recipe_folder(folder, state):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.json").write_text(json.dumps(state), "utf-8")
    return folder


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(rows, *names):
    return [tuple(row[name] if name in ("round", "filter") else float(row[name]) for name in names) for row in rows]


def test_numbers_behind_the_figures_are_those_of_the_file(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    state = made_up()
    drawn = {figure.name: read(figure.numbers) for figure in rounds.draw_all(state, tmp_path)}
    assert set(drawn) == FIGURES
    judges = [*state["rounds"], state["final"]]
    assert cells(drawn["rounds_accuracy"], "round", "accuracy", "low", "high") == [
        (r["name"], r["test"]["accuracy"], r["test"]["accuracy_low"], r["test"]["accuracy_high"]) for r in judges
    ]
    labels = [(r["name"], r["pseudo_labels"]) for r in state["rounds"][1:]]
    assert cells(drawn["rounds_accuracy"][1:4], "round", "one_draw", "vote", "kept") == [
        (name, p["precision_one_draw"], p["precision_vote"], p["precision_kept"]) for name, p in labels
    ]
    assert drawn["rounds_accuracy"][0]["kept"] == "" and drawn["rounds_accuracy"][-1]["kept"] == ""
    assert cells(drawn["rounds_filters"], "round", "filter", "before", "after") == [
        (r["name"], f["name"], f["before"], f["after"]) for r in state["rounds"][1:] for f in r["filters"]
    ]
    # what the last filter left is the kept share
    last = [row for row in drawn["rounds_filters"] if row["filter"] == "balance"]
    assert [float(row["share_left"]) for row in last] == [r["kept_share"] for r in state["rounds"][1:]]
    assert cells(drawn["rounds_votes"], "round", "vote_share", "pairs") == [
        (r["name"], float(share), pairs) for r in state["rounds"][1:] for share, pairs in r["vote_histogram"].items()
    ]
    for r in state["rounds"][1:]:
        shares = [float(row["share"]) for row in drawn["rounds_votes"] if row["round"] == r["name"]]
        assert sum(shares) == pytest.approx(1)
    assert cells(drawn["rounds_curve"], "round", "votes", "accuracy", "binomial") == [
        (r["name"], p["votes"], p["accuracy"], p["binomial"]) for r in judges for p in r["test"]["votes_curve"]
    ]


def test_what_is_drawn_is_what_was_read():
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    from matplotlib.figure import Figure

    state = made_up(2)
    found = rounds.read(state)
    axis = Figure().subplots()
    rounds._draw_curve(axis, list(enumerate(found)))
    lines = {line.get_linestyle() + line.get_color(): line for line in axis.lines if len(line.get_xdata())}
    for place, r in enumerate(state["rounds"]):
        points = r["test"]["votes_curve"]
        solid, dashed = (lines[mark + rounds.ROUND_COLOURS[place]] for mark in ("-", "--"))
        assert list(solid.get_ydata()) == [p["accuracy"] for p in points]
        assert list(dashed.get_ydata()) == [p["binomial"] for p in points]

    axis = Figure().subplots()
    rounds._draw_filters(axis, found[1:3])
    widths = {bars.get_label(): [bar.get_width() * 2000 for bar in bars] for bars in axis.containers}
    filters = [r["filters"] for r in state["rounds"][1:]]
    assert widths["kept"] == pytest.approx([f[-1]["after"] for f in filters])
    for at, name in enumerate(("votes", "proofs", "rules", "balance")):
        assert widths[f"lost to {name}"] == pytest.approx([f[at]["before"] - f[at]["after"] for f in filters])
    ends = [bar.get_x() + bar.get_width() for bar in axis.containers[-1]]
    assert ends == pytest.approx([1.0, 1.0])  # the parts are the whole


def test_page_of_a_recipe(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    folder = recipe_folder(tmp_path / "self", made_up())
    assert job.main([str(folder)]) == 0 and str(folder / "report.html") in capsys.readouterr().out
    page = Page((folder / "report.html").read_text("utf-8"))
    test = made_up()["rounds"][0]["test"]
    for expected in (
        "self done", f"Test accuracy, R0 {100 * test['accuracy']:.1f} %", "Test accuracy, R3", "Test accuracy, final",
        f"95 % interval {100 * test['accuracy_low']:.1f} % to {100 * test['accuracy_high']:.1f} %, 400 pairs",
        "Pseudo-label precision 90.0 % R3; before filtering 81.0 %, one draw 75.0 %", "Kept share 66.0 % R3, of 2,000",
        "R1 votes 2,000 1,300 65.0 % 65.0 %", "R1 proofs 1,300 1,220 93.8 % 61.0 %",
        "R2 votes vote share below 0.75 600 unlabelled-2", "prover longer than max_length 512 7 human-11",
        "280 of 300 labelled pairs have a proof (93.3 %, mean score -0.4)", "6 of 6 steps are done, 259 s in all",
        "01-proofs annotate done 24.7 loss 0.1", "unlabelled-0 right", "unlabelled-1 wrong",
        "Response A (label, gold) A spider has eight legs.", "Response B (gold) It depends.",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert page.tags.count("img") == page.tags.count("figure") == len(FIGURES)
    assert page.tags.count("pre") == 3 * 4 and "<think> ### Criteria" in page.text
    assert "label A · gold – · R3" in page.text  # a pair without gold is neither right nor wrong
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or (folder / address).exists(), address[:80]


def without(value, name):
    """The same without every entry of that name, wherever it stands."""
    if isinstance(value, dict):
        return {k: without(v, name) for k, v in value.items() if k != name}
    return [without(v, name) for v in value] if isinstance(value, list) else value


def emptied(value):
    """Every number and text unknown, the lists and objects as they were."""
    if isinstance(value, dict):
        return {k: emptied(v) for k, v in value.items()}
    return [emptied(v) for v in value] if isinstance(value, list) else None


def names_in(value):
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values())) if value else set()
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


@pytest.mark.smoke
def test_whatever_is_missing_the_tables_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    state = made_up(2)
    for name in sorted(names_in(state)):
        text = Page(report.write_report(recipe_folder(tmp_path, without(state, name))).read_text("utf-8")).text
        assert "None" not in text and ("Test accuracy, R2" in text or name in ("rounds", "test", "accuracy")), name
    for number in range(1, len(state["steps"])):
        steps = [s if i < number else s | {"done": False, "seconds": None} for i, s in enumerate(state["steps"])]
        young = {"finished": False, "steps": steps, "rounds": state["rounds"][: number // 2]}
        text = Page(report.write_report(recipe_folder(tmp_path, young)).read_text("utf-8")).text
        assert "not finished" in text and f"{number} of 6 steps are done" in text and "not yet" in text
    assert "not finished" in Page(report.write_report(recipe_folder(tmp_path, {})).read_text("utf-8")).text


@pytest.mark.parametrize(
    ("state", "figures"),
    [
        ({}, set()),
        ({"rounds": [{"round": 0}]}, set()),
        ({"rounds": [{"round": 0, "test": {"accuracy": 0.7}}]}, {"rounds_accuracy"}),
        ({"final": {"test": {"accuracy": 1.0, "accuracy_low": 1.0, "accuracy_high": 1.0}}}, {"rounds_accuracy"}),
        (without(made_up(1), "test"), FIGURES - {"rounds_curve"}),
        (without(made_up(1), "pseudo_labels"), FIGURES),
        (without(made_up(1), "binomial"), FIGURES),
        (without(made_up(1), "filters"), FIGURES - {"rounds_filters"}),
        (emptied(made_up(1)), set()),
        ({"rounds": [{"filters": [{"name": "f", "before": 9, "after": 0}, {"name": "rules"}]}]}, {"rounds_filters"}),
        ({"rounds": [{"filters": [{"name": "votes", "before": 9}]}]}, set()),
        ({"rounds": [{"test": {"accuracy": NAN, "votes_curve": [{"votes": 1, "accuracy": 0}]}}]}, {"rounds_curve"}),
    ],
)  # fmt: skip
def test_figures_show_what_there_is(tmp_path, state, figures):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    drawn = rounds.draw_all(state, tmp_path)
    assert {figure.name for figure in drawn} == figures
    assert all(figure.picture.stat().st_size > 3000 for figure in drawn)


def test_many_rounds_and_many_draws_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    state = made_up(9)
    state["rounds"][1]["vote_histogram"] = {str(i / 64): i for i in range(65)}
    assert {figure.name for figure in rounds.draw_all(state, tmp_path)} == FIGURES


def test_text_from_rows_is_never_markup(tmp_path):
    attack = "<script>alert(1)</script>\"'& $x_{"

    def hostile(value, name=""):
        if isinstance(value, dict):
            renamed = {f"{attack}{k}" if name == "dropped" else k: hostile(v, k) for k, v in value.items()}
            return renamed
        if isinstance(value, list):
            return [hostile(v, name) for v in value]
        return f"{attack}{value}" if isinstance(value, str) else value

    state = hostile(made_up(1))
    state["rationales"][0]["prompt"] = [{"role": attack, "content": attack}]
    state["rationales"][1]["label"] = attack
    text = report.write_report(recipe_folder(tmp_path / "x", state)).read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text and text.count("&lt;script&gt;") > 20
    assert f"{attack}: {attack}" in page.text and "b" in page.tags


def test_without_matplotlib_there_are_tables_only(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    first, second = (recipe_folder(tmp_path / name, made_up(n)) for name, n in (("one", 2), ("two", 3)))
    page = Page(report.write_report(first, second).read_text("utf-8"))
    assert 'pip install "gramjax[plot]"' in page.text and "img" not in page.tags
    assert "R1 votes 2,000 1,300" in page.text and "Test accuracy by round" in page.text


def test_two_recipes_are_compared_by_round(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    one, two = made_up(2), made_up(3)
    two["rounds"][1]["test"]["accuracy"] = one["rounds"][1]["test"]["accuracy"] + 0.05
    folders = [recipe_folder(tmp_path / name, state) for name, state in (("one", one), ("two", two))]
    page = Page(report.write_report(*folders, tmp_path / "both.html").read_text("utf-8"))
    accuracy = 100 * one["rounds"][1]["test"]["accuracy"]
    assert f"R1 {accuracy:.1f} % {accuracy + 5:.1f} % -5.0 points" in page.text
    assert "R3 –" in page.text and page.tags.count("img") == len(FIGURES) + 1
    rows = read(folders[0] / "plots" / "overlay_rounds.csv")
    expected = [(name, r["name"], str(r["test"]["accuracy"])) for name, state in (("one", one), ("two", two))
                for r in [*state["rounds"], state["final"]]]  # fmt: skip
    assert [(row["recipe"], row["round"], row["accuracy"]) for row in rows] == expected
    assert rounds.overlay({}, {}, tmp_path, ("a", "b")) is None


def test_a_recipe_and_a_run_are_not_compared(tmp_path):
    recipe, run = recipe_folder(tmp_path / "recipe", made_up(1)), write_run(tmp_path / "run", judged(5), entries(4))
    for folders in ((recipe, run), (run, recipe)):
        with pytest.raises(UserError, match=r"recipe holds a recipe and .*run a single run"):
            report.write_report(*folders)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"rounds": "many"}, "rounds is 'many'; it should be a list"),
        ({"rounds": [3]}, "rounds holds 3 where an object should be"),
        ({"rounds": [{"test": [1]}]}, r"test holds \[1\] where an object"),
        ({"rounds": [{"vote_histogram": {"most": 2}}]}, "vote_histogram has the key 'most'"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, state, message):
    with pytest.raises(DataError, match=message):
        report.write_report(recipe_folder(tmp_path, state))
