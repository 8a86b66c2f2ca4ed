"""Two repeated evaluations side by side: a sentence about the models only where nothing else differs."""

import json

from gramjax.plots import repeats, report

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 64, "stop": []}
ASKED = {"repeats": 4, "seed": 0, "kind": "auto", "template": "auto", "distractor": "", "sampling": SAMPLING}


def asked(**changed):
    return {"settings": ASKED | changed}


def test_only_settings_that_change_the_question_or_the_answers_count():
    assert repeats.unlike(asked(), asked()) == repeats.unlike(asked(), {}) == repeats.unlike({}, {}) == ""
    assert repeats.unlike(asked(), asked(repeats=64, seed=3)) == "", "they change the noise, which is accounted for"
    assert (
        repeats.unlike(asked(), asked(sampling=SAMPLING | {"temperature": 1.0})) == "sampling.temperature 0.6 and 1.0"
    )
    both = repeats.unlike(asked(template=""), asked(distractor="add_one"))
    assert both == "template '' and 'auto', distractor '' and 'add_one'"


def test_the_comparison_names_them(tmp_path):
    verdicts = {"a": [[1, 1, 1, 0]] * 20, "b": [[1, 0, 0, 0]] * 20, "c": [[1, 1, 1, 0]] * 20}
    for name, given in verdicts.items():
        folder = tmp_path / name / "eval"
        folder.mkdir(parents=True)
        hotter = {"sampling": SAMPLING | {"temperature": 1.0}} if name == "b" else {}
        results = {"avg@k": 0.5, "k": 4, "histogram": [], **asked(**hotter)}
        (folder / "math.json").write_text(json.dumps(results))
        rows = [{"id": f"p{i}", "gold": "7", "verdicts": [bool(v) for v in row]} for i, row in enumerate(given)]
        (folder / "math.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name / "config.json").write_text("{}")
    said = report.compare_runs(tmp_path / "a", tmp_path / "b")["math"]
    assert "clear difference" in said and said.endswith("not asked in the same way: sampling.temperature 0.6 and 1.0")
    same = report.compare_runs(tmp_path / "a", tmp_path / "c")["math"]
    assert "may be noise" in same and "not asked" not in same
