"""The curve of task adaptation: nested subsets, the steps of every start, the area, and one run from end to end."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.core import checks, flags, statistics
from gramjax.core import config as configs
from gramjax.core.errors import UserError
from gramjax.plots import adaptation as plots
from gramjax.recipes import adaptation_curve
from gramjax.selection.rows import nested_subset

TINY = str(Path(__file__).parent.parent / "jobs" / "tiny_adaptation.py")


def planned(name="adaptation", phases=None, **changes):
    """The steps by name (without number), after every config was checked."""
    config = flags.load(name)
    config.data.valid = ("held_out.jsonl",)
    config.recipe.update({"rows": "task.jsonl", "starts": ("base:lm", "gram:runs/gram"), "budgets": (0, 64, 256),
                          "seeds": (0, 1), **changes})  # fmt: skip
    config.phases = configs.ConfigDict(phases or {})
    steps = adaptation_curve.steps(config, Path("runs"))
    for step in steps:
        checks.check(step.config, step.verb)
    assert [step.name[:4] for step in steps] == [f"{number:03d}-" for number in range(len(steps))]
    return {step.name[4:]: step for step in steps}


def test_subsets_of_a_seed_are_nested_and_have_their_size():
    rows = [{"id": f"row-{i}", "place": i} for i in range(300)]
    drawn = {}
    for seed in (0, 1):
        for size in (1, 30, 100, 299, 300):
            kept, dropped = nested_subset.select(rows, None, nested_subset.Config(size), seed)
            ids = {row["id"] for row in kept}
            assert len(ids) == size == 300 - dropped.total
            assert [row["place"] for row in kept] == sorted(row["place"] for row in kept), "in the order of the file"
            again, _ = nested_subset.select(rows[::-1], None, nested_subset.Config(size), seed)
            assert {row["id"] for row in again} == ids, "whatever the order of the file"
            assert drawn.get((seed, "last"), set()) <= ids, "a larger subset takes nothing away"
            drawn[seed, size] = drawn[seed, "last"] = ids
    assert drawn[0, 300] == drawn[1, 300] and 20 < len(drawn[0, 100] & drawn[1, 100]) < 50, "seeds draw for themselves"
    for size in (0, 301):
        with pytest.raises(UserError, match="from 1 to the number of rows, 300"):
            nested_subset.select(rows, None, nested_subset.Config(size), 0)


def test_every_start_is_tuned_on_the_same_subsets():
    steps = planned()
    assert list(steps)[:6] == ["base-0", "gram-0", "s0-64", "s1-64", "s0-256", "s1-256"]
    assert list(steps)[6:] == [f"{n}-{b}-s{s}" for b in (64, 256) for s in (0, 1) for n in ("base", "gram")]
    for name, path in (("base", "lm"), ("gram", "runs/gram")):
        zero = steps[f"{name}-0"]
        assert (zero.verb, zero.config.model.path, zero.config.data.path) == ("evaluate", path, "held_out.jsonl")
        for budget in (64, 256):
            for seed in (0, 1):
                subset, tuning = steps[f"s{seed}-{budget}"], steps[f"{name}-{budget}-s{seed}"].config
                assert (subset.config.selection.size, subset.config.seed) == (budget, seed)
                assert subset.config.data.path == "task.jsonl" and subset.verb == "select_data"
                assert tuning.data.train == (str(Path("runs/steps") / subset.name / "rows.jsonl"),)
                assert (tuning.model.path, tuning.seed, tuning.data.valid) == (path, seed, ("held_out.jsonl",))
                assert tuning.objective.name == "generative_preference" and set(tuning.evals) == {"preference"}


def test_settings_reach_the_tunings_and_starts_may_have_their_own():
    steps = planned(phases={"gram": {"optim": {"lr": 1e-6}}}, most_steps=5)
    assert steps["base-64-s0"].config.optim.lr == 2e-5 and steps["gram-64-s0"].config.optim.lr == 1e-6
    assert steps["base-64-s0"].config.train.steps == 0, "2 epochs of 64 pairs are 2 steps"
    assert steps["base-256-s0"].config.train.steps == 5, "and of 256 pairs 8: bounded"
    assert planned("adaptation:bradley_terry", budgets=(64,))["gram-64-s0"].config.objective.name == "bradley_terry"
    bare = planned(starts=("scratch:", "lm:x"), budgets=(4,))
    assert (bare["scratch-4-s0"].config.model.path, bare["lm-4-s0"].config.model.path) == ("", "x")


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"rows": ""}, "config.recipe.rows is empty"),
        ({"starts": ()}, "config.recipe.starts is empty"),
        ({"starts": ("lm",)}, "'lm'; each is name:path"),
        ({"starts": ("a b:x",)}, "each is name:path"),
        ({"starts": ("a:x", "a:y")}, "two called 'a'"),
        ({"starts": ("new:",)}, "start 'new' has no weights; leave out budget 0"),
        ({"budgets": (64, 64)}, "must increase"),
        ({"budgets": (0,)}, "must increase"),
        ({"budgets": (-1, 5)}, "must increase"),
        ({"seeds": (1, 1)}, "must be different"),
        ({"most_steps": -1}, "most_steps=-1"),
        ({"phases": {"grm": {}}}, "config.phases.grm: the phases of this recipe are its starts, base, gram"),
    ],
)
def test_settings_that_make_no_curve_are_refused(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        planned(**changes)


@pytest.mark.parametrize(
    "section,change,words",
    [
        ("data", {"valid": ()}, "config.data.valid has 0 sources"),
        ("train", {"steps": 3}, "most_steps bounds config.train.epochs"),
        ("train", {"evaluate": False}, "config.train.evaluate True"),
    ],
)
def test_held_out_rows_and_their_evaluation_must_be_there(section, change, words):
    config = flags.load(TINY)
    config[section].update(change)
    with pytest.raises(UserError, match=words):
        adaptation_curve.steps(config, Path("runs"))


def test_the_area_is_a_mean_accuracy_over_either_axis():
    """A flat curve has its height; a straight one over its axis the middle; a hand-made one by hand."""
    for scale in ("log", "linear"):
        assert adaptation_curve.area((0, 10, 1000), (0.7, 0.7, 0.7), scale) == pytest.approx(0.7)
    assert adaptation_curve.area((0, 50, 100), (0.5, 0.6, 0.7), "linear") == pytest.approx(0.6)
    assert adaptation_curve.area((0, 10, 100), (0.5, 0.5, 0.9), "linear") == pytest.approx((10 * 0.5 + 90 * 0.7) / 100)
    widths = math.log(2), math.log(11 / 2)
    by_hand = (widths[0] * 0.5 + widths[1] * 0.7) / sum(widths)
    assert adaptation_curve.area((0, 10, 100), (0.5, 0.5, 0.9)) == pytest.approx(by_hand)


def leave(folder, right, of=10):
    """What a judged step leaves: `right` names the pairs that it got right."""
    (folder / "eval").mkdir(parents=True)
    (folder / "DONE").write_text("")
    rows = [{"id": str(i), "correct": i in right} for i in range(of)]
    (folder / "eval" / "preference.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"accuracy": len(right) / of, "num_pairs": of, "swap_consistency": 0.5, "ece": 0.1}
    results["margin"] = len(right) - 5.0
    (folder / "eval" / "preference.json").write_text(json.dumps(results))


def test_means_intervals_and_differences_of_what_is_there(tmp_path):
    """Two starts, two seeds, by hand; the last tuning of `gram` is still to come."""
    config = flags.load("adaptation")
    config.data.valid = ("held_out.jsonl",)
    config.recipe.update({"rows": "x", "starts": ("base:lm", "gram:g"), "budgets": (0, 2, 4), "seeds": (5, 7)})
    folders = {s.name[4:]: tmp_path / "steps" / s.name for s in adaptation_curve.steps(config, tmp_path)}
    judged = {"base-0": range(5), "gram-0": range(6), "base-2-s5": range(6), "base-2-s7": range(4, 8),
              "gram-2-s5": range(8), "gram-2-s7": range(6), "base-4-s5": range(7), "base-4-s7": range(9),
              "gram-4-s5": range(9)}  # fmt: skip
    for name, right in judged.items():
        leave(folders[name], set(right))
    base, gram = adaptation_curve.summarise(config, tmp_path)["curves"]
    assert [point["accuracy"] for point in base["points"]] == pytest.approx([0.5, 0.5, 0.8])
    assert [point["accuracy"] for point in gram["points"]] == pytest.approx([0.6, 0.7, 0.9])
    assert [[run["seed"] for run in point["runs"]] for point in gram["points"]] == [[None], [5, 7], [5]]
    assert [point["margin"] for point in base["points"]] == [0, 0, 3] and gram["points"][1]["runs"][1]["margin"] == 1
    assert base["points"][1]["accuracy_sd"] == pytest.approx(math.sqrt(0.02)), "0.6 and 0.4"
    assert gram["points"][1]["low"] == pytest.approx(statistics.wilson(7, 10)[0]), "ten pairs, not twenty"
    assert gram["points"][1]["minus_first"]["mean"] == pytest.approx(0.2)
    assert gram["points"][0]["minus_first"] | {"low": 0, "high": 0} == {
        "mean": pytest.approx(0.1), "low": 0, "high": 0, "num_pairs": 10
    }  # fmt: skip
    assert base["area_seeds"] == 2 and gram["area_seeds"] == 1, "only whole curves have an area"
    by_seed = [adaptation_curve.area((0, 2, 4), values) for values in ((0.5, 0.6, 0.7), (0.5, 0.4, 0.9))]
    assert base["area_log"] == pytest.approx(sum(by_seed) / 2)
    assert gram["area_linear"] == pytest.approx((0.7 + 0.85) / 2)
    text = plots.sections(adaptation_curve.summarise(config, tmp_path))
    assert "60.0 %" in text and "+20.0 (" in text and plots.sections({"recipe": "gram_r2"}) == ""


def test_a_tiny_curve_from_end_to_end(tmp_path, capsys):
    """Run, read every number back from its files; then from one of its own tunings, with budget 0; the same again."""

    def run(*settings):
        with pytest.raises(SystemExit) as stopped:
            cli.run(["run", f"--config={TINY}", *settings])
        return stopped.value.code, re.findall(r"^== (\S+) ", capsys.readouterr().out, re.MULTILINE)

    folder = tmp_path / "first"
    code, taken = run(f"--workdir={folder}")
    names = ["s0-8", "s0-32", "scratch-8-s0", "scratch-32-s0"]
    assert code == 0 and [name[4:] for name in taken] == names
    small, large = (
        {json.loads(line)["id"] for line in (folder / "steps" / step / "rows.jsonl").open()} for step in taken[:2]
    )
    assert len(small) == 8 and len(large) == 32 and small < large
    found = json.loads((folder / "rounds.json").read_text())
    (curve,) = found["curves"]
    results = [json.loads((folder / "steps" / step / "eval" / "preference.json").read_text()) for step in taken[2:]]
    heights = [result["accuracy"] for result in results]
    assert found["finished"] and [point["budget"] for point in curve["points"]] == [8, 32]
    assert [point["accuracy"] for point in curve["points"]] == heights and curve["points"][0]["num_pairs"] == 20
    assert curve["area_log"] == pytest.approx(sum(heights) / 2), "a single straight piece"
    page = (folder / "report.html").read_text()
    assert "Adaptation" in page and "Area under the curve" in page
    if importlib.util.find_spec("matplotlib"):
        assert all((folder / "plots" / f"adaptation{end}").exists() for end in (".png", "_margin.png", ".csv"))

    trained = folder / "steps" / taken[-1]
    settings = (f"--workdir={tmp_path / 'second'}", f"--config.recipe.starts=('tuned:{trained}',)",
                "--config.recipe.budgets=(0,8)")  # fmt: skip
    code, taken = run(*settings)
    assert code == 0 and [name[4:] for name in taken] == ["tuned-0", "s0-8", "tuned-8-s0"]
    (curve,) = json.loads((tmp_path / "second" / "rounds.json").read_text())["curves"]
    assert curve["points"][0]["accuracy"] == heights[1], "without tuning it is what it was"
    assert run(*settings) == (0, []), "the same command again runs nothing"
