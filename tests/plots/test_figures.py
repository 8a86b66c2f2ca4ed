"""Figures: the numbers beside each say what the files say, pictures are pictures, and odd runs do not break them."""

import csv
import math

import numpy as np
import pytest
from made_up_runs import entries, judged

from gramjax.core import judgements, statistics
from gramjax.core.errors import UserError
from gramjax.plots import preference, style, training

pytest.importorskip("matplotlib", reason="figures need matplotlib")


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5000


def summary(rows):
    return dict(judgements.summarise(rows, bootstrap_samples=10))


def test_figures_of_a_judge(tmp_path):
    rows = judged(300)
    results = summary(rows)
    drawn = {figure.name: figure for figure in preference.draw_all(rows, results, tmp_path, math.log(19))}
    assert set(drawn) == {"reliability", "orders", "margins", "lengths", "subsets"}
    assert all(is_picture(figure.picture) and figure.caption.endswith(".") for figure in drawn.values())

    orders = read(drawn["orders"].numbers)
    assert len(orders) == 300
    # on the diagonal both orders give the same probability; the off-diagonal is the position bias
    off = np.mean([float(p["shown_first"]) - float(p["shown_second"]) for p in orders])
    assert off == pytest.approx(results["position_bias"], abs=1e-9)

    bins = [row for row in read(drawn["reliability"].numbers) if row["scores"] == "both_orders" and row["count"] != "0"]
    ece = sum(int(b["count"]) * abs(float(b["accuracy"]) - float(b["confidence"])) for b in bins) / 300
    assert ece == pytest.approx(results["ece"]) and results["ece"] != results["ece_one_order"]

    histogram = read(drawn["margins"].numbers)
    assert sum(int(b["right"]) for b in histogram) == results["num_correct"]
    assert sum(int(b["right"]) + int(b["wrong"]) for b in histogram) == 300
    lengths = read(drawn["lengths"].numbers)
    assert sum(int(b["num_pairs"]) for b in lengths) == 300 and lengths[0]["from"] == ""


def test_figures_of_a_scalar_model_have_no_orders(tmp_path):
    rows = judged(120, scalar=True)
    names = [figure.name for figure in preference.draw_all(rows, summary(rows), tmp_path)]
    assert names == ["reliability", "margins", "lengths", "subsets"]


@pytest.mark.parametrize("margin", [0.0, 5.0, -5.0, 900.0])
def test_one_pair_all_right_all_wrong_and_ties(tmp_path, margin):
    pair = statistics.margin_score([margin], [-margin])
    row = judged(1)[0] | {
        "margin": margin,
        "probability": float(pair.score[0]),
        "log_probability": float(pair.log_score[0]),
        "p_first": float(pair.p_first[0]),
        "p_second": float(pair.p_second[0]),
        "correct": margin > 0,
        "tie": margin == 0,
        "subset": "costs $5 and $6 <b>",
    }
    for rows in ([row], [row, row | {"subset": "x_{"}]):
        drawn = preference.draw_all(rows, summary(rows), tmp_path)
        assert len(drawn) >= 4 and all(is_picture(figure.picture) for figure in drawn)


def test_rows_without_finite_scores_draw_nothing(tmp_path):
    assert preference.draw_all([judged(1)[0] | {"probability": None}], {}, tmp_path) == []


def test_training_curves(tmp_path):
    drawn = training.curves(entries(100), tmp_path)
    rows = read(drawn.numbers)
    assert is_picture(drawn.picture) and len(rows) == len(entries(100))
    assert {"step", "loss", "accuracy", "learning_rate", "eval/preference/accuracy"} <= set(rows[0])
    assert "held-out" in drawn.caption
    assert training.curves([], tmp_path) is None
    single = training.curves([{"step": 1, "loss": 2.0}], tmp_path, "first")
    assert single.name == "training_first" and is_picture(single.picture) and "held-out" not in single.caption


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert training.smooth([3.0] * 10, 5) == pytest.approx([3.0] * 10)
    assert training.smooth([1.0, 2.0], 5)[0] == pytest.approx(1.0)


def test_overlay_says_whether_a_resumed_run_repeats_the_other(tmp_path):
    one = [entry for entry in entries(60) if "loss" in entry]
    equal = training.overlay(one, one, tmp_path, ("uninterrupted", "killed and resumed"))
    assert "bit for bit" in equal.caption and is_picture(equal.picture)
    assert set(read(equal.numbers)[0]) == {"step", "uninterrupted", "killed and resumed"}
    two = [entry | {"loss": entry["loss"] + (1e-7 if entry["step"] > 30 else 0.0)} for entry in one]
    different = training.overlay(one, two, tmp_path)
    assert "bit for bit" not in different.caption and "1e-07" in different.caption
    assert training.overlay(one, [entry | {"step": entry["step"] + 1} for entry in one], tmp_path) is None


def test_bucket_labels():
    label = preference.bucket_label
    assert label({"from": None, "to": -0.5, "unit": "relative"}) == "below −50 %"
    assert label({"from": -0.05, "to": 0.05, "unit": "relative"}) == "−5 to +5 %"
    assert label({"from": 0.0, "to": 200.0, "unit": "characters"}) == "0 to +200"
    assert label({"from": 0.5, "to": None, "unit": "relative"}) == "+50 % and over"


def test_matplotlib_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'plot needs matplotlib: pip install "gramjax\[plot\]"'):
        style.figure(lambda axes: None, tmp_path / "x.png", (2, 2))
