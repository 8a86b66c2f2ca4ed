"""The world with rationales: labels and flags follow the hidden permutation, in the forms of the real pipeline."""

import random

import numpy as np
import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.data import judge_prompts, proofs, rationale_rules, rationales, readers, text, tokenizer
from gramjax.data.recipes import permutation_world as recipe

SIZE = 300


def said(row):
    """The flags that a rationale states, per side."""
    read = rationales.read_rationale(row["rationale"])
    return [[word == "yes" for word in part.split(" ")] for part in (read.feedback_a, read.feedback_b)]


def true_flags(row, hidden):
    return [recipe.flags(row["prompt"], response, hidden) for response in row["responses"]]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_rationales_and_labels_follow_the_hidden_permutation(split):
    hidden = recipe.permutation(0)
    assert sorted(hidden) == sorted(hidden.values()) == list(recipe.SYMBOLS)
    for row in readers.read(f"recipe:permutation_world:{split}:{SIZE}", want="rationale").rows:
        one, two = true_flags(row, hidden)
        assert said(row) == [one, two] and sum(one) != sum(two)
        assert row["label"] == ("A" if sum(one) > sum(two) else "B") == rationales.parse(row["rationale"]).verdict
        comparison = rationales.read_rationale(row["rationale"]).comparison
        assert comparison == f"Response A {sum(one)} Response B {sum(two)}"


def expected_right():
    """Right places of a response when pairs of equal responses are left out, by integration over both qualities."""
    q = (np.arange(400) + 0.5) / 400
    right, wrong = q + (1 - q) / 16, (1 - q) / 16
    both_right = np.outer(right, right)
    same = both_right + 15 * np.outer(wrong, wrong)
    return (4 * right.mean() - (4 * both_right * same**3).mean()) / (1 - (same**4).mean())


def test_labels_are_balanced_and_responses_copied_with_qualities_of_their_own():
    rows = recipe.rows("train", 2000)
    assert 0.45 < sum(row["label"] == "A" for row in rows) / 2000 < 0.55
    hidden = recipe.permutation(0)
    unlabelled = recipe.rows("unlabelled", 2000)
    counts = [sum(recipe.flags(r["prompt"], x, hidden)) for r in unlabelled for x in r["responses"]]
    assert np.mean(counts) == pytest.approx(expected_right(), abs=0.06)
    assert np.var(counts) > 1.5 * 4 * 0.5 * 0.5, "more spread than places that are right independently"
    assert any(counts[i] == counts[i + 1] for i in range(0, len(counts), 2)), "ties are kept without labels"
    assert not {"label", "rationale"} & set(unlabelled[0])


def test_gold_labels_of_unlabelled_pairs_are_right_and_absent_for_ties():
    hidden = recipe.permutation(0)
    rows = readers.read(f"recipe:permutation_world:unlabelled:{SIZE}", want="pair_unlabelled").rows
    seen = set()
    for row in rows:
        one, two = map(sum, true_flags(row, hidden))
        assert row.get("gold") == (None if one == two else "A" if one > two else "B")
        seen.add(row.get("gold"))
    assert seen == {None, "A", "B"}
    assert not {"label", "rationale", "chosen"} & set().union(*rows)


def test_a_source_names_split_size_and_seed():
    """`recipe:NAME:SPLIT:SIZE:SEED`: another seed, another permutation; without one it is 0."""
    def read(source):
        return readers.read(source)

    default, zero, one = (read(f"recipe:permutation_world:train:20{seed}") for seed in ("", ":0", ":1"))
    assert default.rows == zero.rows and default.files == zero.files
    assert one.rows[0]["responses"] != zero.rows[0]["responses"] and one.files[0]["name"] != zero.files[0]["name"]
    hidden = recipe.permutation(1)
    assert all(said(row) == true_flags(row, hidden) for row in one.rows)
    for source in ("recipe:permutation_world:train:20:one", "recipe:permutation_world:train:20:0:0"):
        with pytest.raises(UserError, match="write recipe:NAME, .* or …:SPLIT:SIZE:SEED"):
            read(source)
    with pytest.raises(UserError, match="no split 'test'"):
        read("recipe:permutation_world:test:20:1")


def test_training_rows_are_views_of_the_same_pairs():
    pairs = {row["id"]: row for row in recipe.rows("train", 20)}
    for split in ("judge", "label_only", "prover"):
        for row in readers.read(f"recipe:permutation_world:{split}:20").rows:
            pair = pairs[row["id"]]
            if split == "prover":
                assert proofs.to_rationale(row["completion"], pair["label"]) == pair["rationale"]
                assert row["prompt"].endswith(f"{judge_prompts.BETTER}\n{pair['label']}\n\n")
            else:
                assert rationales.parse(row["completion"]).verdict == pair["label"]
                assert judge_prompts.BETTER not in row["prompt"]


def test_the_recipe_is_seeded():
    assert recipe.rows("train", 20) == recipe.rows("train", 20) != recipe.rows("train", 20, seed=1)
    assert recipe.rows("judge", 10) == recipe.rows("judge", 20)[:10]
    assert recipe.permutation(0) != recipe.permutation(1)
    with pytest.raises(UserError, match="no split 'test'"):
        recipe.rows("test")
    with pytest.raises(UserError, match="corrupt=1.5"):
        recipe.rows("train", 2, corrupt=1.5)


def test_corruption_touches_a_share_of_the_rationales_and_no_label():
    clean, spoilt = recipe.rows("train", 1000), recipe.rows("train", 1000, corrupt=0.4)
    changed = sum(a["rationale"] != b["rationale"] for a, b in zip(clean, spoilt))
    assert 330 < changed < 460, "400 expected, less those that are drawn as they were"
    for a, b in zip(clean, spoilt):
        assert {k: v for k, v in a.items() if k != "rationale"} == {k: v for k, v in b.items() if k != "rationale"}
        assert rationales.parse(b["rationale"]).verdict == a["label"]
    assert recipe.rows("train", 50, corrupt=0.0) == clean[:50]
    rules = rationale_rules.Rules()
    assert all(not rationale_rules.broken(row["rationale"], row["label"], rules, len) for row in spoilt)
    assert said({"rationale": recipe.corrupted(clean[0]["rationale"], random.Random(1))}) != said(clean[0])


def test_its_tokenizer_has_one_token_per_symbol_and_piece(tmp_path):
    tok = tokenizer.load("recipe:permutation_world")
    one = text.Renderer(tok, DataSection(max_length=recipe.MAX_LENGTH, judge_prompt=recipe.JUDGE_PROMPT))
    lengths = {"judge": (20, 22), "label_only": (20, 4), "prover": (22, 22)}
    for split, (asked, answered) in lengths.items():
        for row in recipe.rows(split, 30):
            prompt = one.prompt(row["prompt"])
            ids, mask = one.completion(row["prompt"], row["completion"])
            assert (len(prompt), len(ids) - len(prompt)) == (asked, answered) and ids[:asked] == prompt
            assert mask == [0.0] * asked + [1.0] * answered
            assert tok.decode(ids[1:-1]) == row["prompt"] + row["completion"]
    blank = one.prompt(judge_prompts.blank_prover_prompt("", recipe.PROVER_PROMPT))
    full = one.prompt(recipe.rows("prover", 1)[0]["prompt"])
    assert set(blank) <= set(full) and len(blank) == len(full) - 3 - 12 - 1, "the fixed pieces are the same"
    assert all(len(tok.encode_text(f" {symbol}")) == 1 for symbol in recipe.SYMBOLS)
    row = readers.read("recipe:permutation_world:valid:1", want="preference").rows[0]
    assert len(one.judge(row["prompt"], row["chosen"], row["rejected"])) <= recipe.MAX_LENGTH
    tok.save(tmp_path)
    assert tokenizer.load(str(tmp_path)).encode_text(row["prompt"]) == tok.encode_text(row["prompt"])
    assert tok.decode(tok.encode_text("Any other text, é 😀 apple")) == "Any other text, é 😀 apple"
