"""The trivial judges of `benchmarks/baselines.py`: golden counts on real files, and a bag of words that can learn."""

import json

import numpy as np
import pytest

from benchmarks import baselines

GOLDEN = {
    # file: (pairs, chosen longer, chosen shorter, equal), counted by hand from the raw files: characters of the two
    # answers; for hh_harmless of the stripped turns after the shared ones, without 4 pairs that have an empty answer
    "llmbar/natural.jsonl.gz": (100, 56, 43, 1),
    "llmbar/neighbor.jsonl.gz": (134, 16, 118, 0),
    "persona/agreeableness.jsonl.gz": (1000, 500, 500, 0),
    "persona/interest-in-science.jsonl.gz": (1000, 500, 500, 0),
    "hh_harmless/dev.jsonl.gz": (1747, 780, 957, 10),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_length_baselines(name, data_dir, tmp_path, capsys):
    """The whole script on real files: readers, rules, intervals, JSON."""
    out = tmp_path / "out.json"
    assert baselines.main([str(data_dir / name), "--no-tfidf", "--json", str(out)]) == 0
    result = json.loads(out.read_text())[str(data_dir / name)]
    pairs, longer, shorter, equal = GOLDEN[name]
    assert result["num_pairs"] == pairs
    numbers = result["baselines"]
    assert (numbers["longest"]["num_correct"], numbers["longest"]["ties"]) == (longer, equal)
    assert (numbers["shortest"]["num_correct"], numbers["shortest"]["ties"]) == (shorter, equal)
    assert numbers["longest"]["low"] < longer / pairs < numbers["longest"]["high"]
    assert numbers["always_first"]["num_correct"] == 0 and numbers["always_first"]["ties"] == pairs
    assert abs(numbers["random"]["num_correct"] - pairs / 2) < 2.6 * np.sqrt(pairs / 4)
    assert "longest" in capsys.readouterr().out


def preference(count, seed=0):
    """Yes or no, decided by one word of the prompt."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        good = bool(generator.integers(2))
        words = [f"w{n}" for n in generator.integers(0, 30, 5)] + ["sunny" if good else "rainy"]
        answers = ("yes", "no") if good else ("no", "yes")
        rows.append({"id": str(i), "prompt": " ".join(words), "chosen": answers[0], "rejected": answers[1]})
    return rows


def test_bag_of_words_learns_what_the_prompt_decides_and_nothing_from_noise():
    pytest.importorskip("sklearn", reason="the tfidf baseline needs scikit-learn")
    rows = preference(300)
    result = baselines.measure(rows)
    assert result["tfidf"]["accuracy"] > 0.97 and result["tfidf"]["trained_on"] == "5-fold cross-validation"
    held_out = baselines.measure(preference(100, seed=1), train=rows)["tfidf"]
    assert held_out["accuracy"] > 0.97 and held_out["trained_on"] == 300
    coin = np.random.default_rng(2).integers(0, 2, len(rows))
    noise = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if c else row for row, c in zip(rows, coin)]
    assert abs(baselines.measure(noise)["tfidf"]["accuracy"] - 0.5) < 0.12


def test_bag_of_words_ignores_the_order_of_the_answers():
    pytest.importorskip("sklearn", reason="the tfidf baseline needs scikit-learn")
    judge = baselines.fit_tfidf(preference(100))
    rows = preference(20, seed=3)
    exchanged = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    np.testing.assert_allclose(judge(rows), -judge(exchanged), atol=1e-12)


def test_errors_are_one_line(tmp_path, capsys):
    assert baselines.main([str(tmp_path / "absent.jsonl")]) in (2, 3)
    assert "absent.jsonl" in capsys.readouterr().err
