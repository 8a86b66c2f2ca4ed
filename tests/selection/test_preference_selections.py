"""Selections by similarity, margin, words and chance: budgets, thresholds, reasons, and what belongs together."""

import json

import numpy as np
import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data.vectors import Vectors
from gramjax.selection.rows import margin_filter, preference_similarity, prompt_tfidf, random_rows

RNG = np.random.default_rng(0)
CENTRES = np.eye(5)[:3] * 4
KIND = np.arange(90) % 3
POOL = (CENTRES[KIND] + RNG.normal(size=(90, 5))).astype(np.float32)
TARGET = (CENTRES[np.zeros(12, int)] + RNG.normal(size=(12, 5))).astype(np.float32)
ROWS = [{"id": f"r{i}", "prompt": "q", "chosen": "a", "rejected": "b", "subset": str(k), "margin": float(i % 7)}
        for i, k in enumerate(KIND)]  # fmt: skip
FEATURES = {
    "vectors": Vectors(tuple(row["id"] for row in ROWS), POOL, np.eye(5)[4].astype(np.float32)),
    "target_vectors": Vectors(tuple(f"t{i}" for i in range(12)), TARGET),
}


def pick(**settings):
    kept, dropped = preference_similarity.select(ROWS, FEATURES, preference_similarity.Config(**settings))
    assert len(kept) + dropped.total == len(ROWS)
    assert [row["id"] for row in kept] == [row["id"] for row in ROWS if row["id"] in {r["id"] for r in kept}]
    return kept, dropped


@pytest.mark.parametrize(
    "settings", [{}, {"scoring": "centroid"}, {"deflate": True}, {"distance": "mahalanobis"}, {"mode": "diverse"}]
)
def test_the_rows_of_the_kind_of_the_target_set_are_found(settings):
    kept, dropped = pick(most=20, **settings)
    assert len(kept) == 20 and np.mean([row["subset"] == "0" for row in kept]) >= 0.9
    assert set(dropped) <= {preference_similarity.LESS, preference_similarity.REDUNDANT}
    assert (preference_similarity.REDUNDANT in dropped) <= (settings.get("mode") == "diverse")


def test_the_adaptive_threshold_is_a_quantile_inside_the_target_set():
    kept, _ = pick(mode="adaptive")
    assert 24 <= len(kept) <= 40 and sum(row["subset"] == "0" for row in kept) >= 24
    assert len(pick(mode="adaptive", quantile=1.0)[0]) < len(kept) < len(pick(mode="adaptive", quantile=0.0)[0]) + 1
    assert len(pick(mode="adaptive", most=5)[0]) == 5
    scores = [row["similarity"] for row in kept]
    rest = [row["similarity"] for row in pick(most=90)[0] if row["id"] not in {r["id"] for r in kept}]
    assert min(scores) > max(rest)


def test_without_diversity_a_diverse_selection_is_the_budget():
    names = lambda **settings: [row["id"] for row in pick(most=15, **settings)[0]]  # noqa: E731
    assert names(mode="diverse", diversity=0.0) == names() != names(mode="diverse", diversity=1.0)


def test_vectors_are_matched_by_id_not_by_place():
    turned = {**FEATURES, "vectors": Vectors(FEATURES["vectors"].ids[::-1], POOL[::-1])}
    kept, _ = preference_similarity.select(ROWS, turned, preference_similarity.Config(most=20))
    assert [row["id"] for row in kept] == [row["id"] for row in pick(most=20)[0]]


@pytest.mark.parametrize(
    "features,settings,words",
    [
        ({}, {"most": 3}, "give --config.selection.vectors=FOLDER"),
        ({"target_vectors": None}, {"most": 3}, "give --config.selection.target_vectors=FOLDER"),
        ({"target_vectors": Vectors(("t",), TARGET[:1])}, {"most": 3}, "has 1 vectors"),
        ({"target_vectors": Vectors(("t", "u"), TARGET[:2, :3])}, {"most": 3}, "are 5 wide, those of the target set 3"),
        (FEATURES, {}, "needs config.selection.most"),
        ({"vectors": Vectors(FEATURES["vectors"].ids, POOL)}, {"most": 3, "deflate": True}, "no order direction"),
        (FEATURES, {"mode": "best"}, "config.selection.mode is 'best'"),
        (FEATURES, {"quantile": 1.5}, "config.selection.quantile is 1.5; it must be from 0 to 1"),
        (FEATURES, {"mode": "diverse", "distance": "mahalanobis", "most": 3}, "covers by cosine"),
    ],
)
def test_what_does_not_fit_is_named(features, settings, words):
    given = {name: value for name, value in ({**FEATURES, **features} if features else {}).items() if value}
    with pytest.raises(UserError, match=words):
        preference_similarity.select(ROWS, given, preference_similarity.Config(**settings))


def test_random_rows_are_nested_and_depend_on_ids_alone():
    names = lambda rows, most, seed=0: {  # noqa: E731
        row["id"] for row in random_rows.select(rows, None, random_rows.Config(most), seed)[0]
    }
    assert names(ROWS, 10) < names(ROWS, 30) and len(names(ROWS, 30)) == 30
    assert names(ROWS[::-1], 30) == names(ROWS, 30) != names(ROWS, 30, seed=1)
    assert random_rows.select(ROWS, None, random_rows.Config(80))[1][random_rows.NOT_DRAWN][0] == 10
    with pytest.raises(UserError, match="config.selection.most is 0"):
        random_rows.select(ROWS, None, random_rows.Config())


def test_the_margin_filter_keeps_a_range_and_of_it_the_largest_or_smallest():
    def kept(**settings):
        rows, dropped = margin_filter.select(ROWS, None, margin_filter.Config(**settings))
        assert len(rows) + dropped.total == 90
        return [row["margin"] for row in rows], {reason: count for reason, (count, _) in dropped.items()}

    inside, reasons = kept(least=2.0, largest=4.0)
    assert set(inside) == {2, 3, 4} and set(reasons) == {margin_filter.BELOW, margin_filter.ABOVE}
    assert set(kept(most=10)[0]) == {6.0} and set(kept(most=10, prefer="small")[0]) == {0.0}
    assert kept(most=10)[1] == {margin_filter.MORE: 80} and len(kept()[0]) == 90
    with pytest.raises(DataError, match="row 'r0' has no number in the column 'reward_margin'"):
        margin_filter.select(ROWS, None, margin_filter.Config(column="reward_margin"))
    with pytest.raises(UserError, match="prefer is 'big'"):
        margin_filter.select(ROWS, None, margin_filter.Config(prefer="big"))


TEXTS = ["how do I bake bread at home", "bread, bread and butter", "what is the capital of France",
         "Translate to French: the house", "is rye bread a healthy bread", "a b c"]  # fmt: skip
ASKED = ["which bread should I bake", "butter on bread"]


def test_tfidf_similarities_are_scikit_learns():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    fitted = text.TfidfVectorizer().fit(TEXTS + ASKED)
    cosine = (fitted.transform(TEXTS) @ fitted.transform(ASKED).T).toarray()
    words = lambda texts: [prompt_tfidf.words({"prompt": t}) for t in texts]  # noqa: E731
    for neighbours, wanted in ((1, cosine.max(axis=1)), (2, cosine.mean(axis=1)), (8, cosine.mean(axis=1))):
        np.testing.assert_allclose(prompt_tfidf.similarities(words(TEXTS), words(ASKED), neighbours), wanted, atol=1e-6)


def test_prompts_with_the_words_of_the_target_set_are_kept(tmp_path):
    row = lambda i, text: {"id": f"r{i}", "prompt": text, "chosen": "x", "rejected": "y"}  # noqa: E731
    path = tmp_path / "target.jsonl"
    path.write_text("".join(json.dumps(row(i, text)) + "\n" for i, text in enumerate(ASKED)))
    rows = [row(i, text) for i, text in enumerate(TEXTS)]
    kept, dropped = prompt_tfidf.select(rows, None, prompt_tfidf.Config(target=str(path), most=3))
    assert [r["id"] for r in kept] == ["r0", "r1", "r4"] and dropped[prompt_tfidf.LESS][0] == 3
    talk = [{"role": "user", "content": "bake"}, {"role": "assistant", "content": "bread"}]
    assert prompt_tfidf.words({"prompt": talk}) == ["bake", "bread"]
    with pytest.raises(UserError, match="--config.selection.target"):
        prompt_tfidf.select(rows, None, prompt_tfidf.Config(most=3))
