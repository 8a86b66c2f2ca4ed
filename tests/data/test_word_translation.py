"""The generated data: right answers by construction, no trivial rule, nothing of the held-out part in training."""

import collections

import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.data import readers, text, tokenizer
from gramjax.data.recipes import word_translation as recipe

SIZE = 400


def split(name, want="preference"):
    return readers.read(f"recipe:word_translation:{name}:{SIZE}", want=want).rows


def partners(answer):
    return answer.removeprefix("Translation: ").split(" ")


def errors(row, answer):
    asked = row["prompt"].removeprefix("Translate: ").split(" ")
    return sum(recipe.DICTIONARY[word] != partner for word, partner in zip(asked, partners(answer), strict=True))


def test_the_chosen_answer_is_right_and_the_rejected_is_not():
    for row in split("train"):
        assert errors(row, row["chosen"]) == 0 and errors(row, row["rejected"]) >= recipe.LEAST_WRONG
        assert row["subset"] == f"{errors(row, row['rejected'])} wrong"


@pytest.mark.parametrize("name", ["train", "valid"])
def test_the_longest_answer_is_right_in_exactly_half_of_the_rows(name):
    rows = split(name)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert longer == SIZE // 2 and all(len(row["chosen"]) != len(row["rejected"]) for row in rows)
    assert all(len(partners(row["chosen"])) == len(partners(row["rejected"])) for row in rows)


def test_single_words_do_not_give_the_answer_away():
    """A judge that only counts which words were chosen before stays near one half on held-out rows."""
    counts = collections.Counter()
    for row in split("train"):
        counts.update(partners(row["chosen"]))
        counts.subtract(partners(row["rejected"]))
    rows = split("valid")
    right = sum(
        sum(counts[w] for w in partners(row["chosen"])) > sum(counts[w] for w in partners(row["rejected"]))
        for row in rows
    )
    assert 0.4 < right / len(rows) < 0.6


def test_held_out_word_sets_are_not_in_training():
    def sets(rows):
        return {frozenset(row["prompt"].split(" ")) for row in rows}

    held_out = sets(split("valid"))
    assert not held_out & sets(split("train")) and not held_out & sets(split("unlabelled", "pair_unlabelled"))
    assert readers.overlap(split("train"), split("valid")) == 0


def test_the_recipe_is_seeded():
    assert recipe.rows("train", 20) == recipe.rows("train", 20) != recipe.rows("train", 20, seed=1)
    assert recipe.rows("train", 10) == recipe.rows("train", 20)[:10]
    with pytest.raises(UserError, match="even number"):
        recipe.rows("train", 3)
    with pytest.raises(UserError, match="no split 'test'"):
        readers.read("recipe:word_translation:test")
    with pytest.raises(UserError, match="write recipe:NAME"):
        readers.read("recipe:word_translation:train:many")


def test_its_tokenizer_has_one_token_per_word_and_marker():
    tok = tokenizer.load("recipe:word_translation")
    one = text.Renderer(tok, DataSection(judge_prompt=recipe.JUDGE_PROMPT, max_length=recipe.MAX_LENGTH))
    row = split("train")[0]
    first, second = (
        one.judge(row["prompt"], row["chosen"], row["rejected"]),
        one.judge(row["prompt"], row["rejected"], row["chosen"]),
    )
    assert len(first) == len(second) == 39 <= recipe.MAX_LENGTH and first[-1] == tok.special(recipe.CUE)
    assert [len(tok.encode_text(f" {word}")) for word in (*recipe.DICTIONARY, *recipe.DICTIONARY.values())] == [1] * 64
    assert len(one.pair_text(row["prompt"], row["chosen"], row["rejected"])[0]) == 32
    assert tok.decode(tok.encode_text("any other text, é 😀")) == "any other text, é 😀"
    assert recipe.CUE in tok.decode(tok.encode_text(recipe.CUE)) and tok.special(recipe.CUE) not in tok.encode_text(
        recipe.CUE
    )
    assert len(one.verdict_ids) == 2


def test_its_tokenizer_survives_saving(tmp_path):
    tok = tokenizer.load("recipe:word_translation")
    tok.save(tmp_path)
    assert tokenizer.load(str(tmp_path)).encode_markup("Translate: river stone") == tok.encode_markup(
        "Translate: river stone"
    )
    assert tokenizer.load(str(tmp_path)).fingerprint == tok.fingerprint
