"""Which rows a selection keeps: every reason, parts that cover, sides in balance, rationales of one's own."""

import collections

import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import proofs, rationale_rules, rationales
from gramjax.data.rationale_rules import Rules
from gramjax.data.rationales import Rationale, render_rationale
from gramjax.data.recipes import permutation_world as world
from gramjax.selection.rows import balanced_labels, own_rationales, part, sound_rationales, sure_votes


def voted(number=0, label="A", share=1.0, probability=0.9, tied=False, **columns):
    name = f"r{number}"
    return {"id": name, "prompt": "q", "responses": [f"{name} a", f"{name} b"], "label": label, "vote_share": share,
            "label_probability": probability, "tied": tied, **columns}  # fmt: skip


def counts(tally):
    return {reason: count for reason, (count, _) in tally.items()}


def ids(rows):
    return [row["id"] for row in rows]


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_are_disjoint_cover_and_differ_by_one(parts):
    rows = world.rows("unlabelled", 50)
    found = []
    for number in range(parts):
        kept, dropped = part.select(rows, None, part.Config(number, parts))
        assert ids(kept) == [row["id"] for row in rows if row["id"] in set(ids(kept))], "in order"
        assert dropped.total + len(kept) == 50 and set(dropped) <= {part.OTHER}
        found.append(ids(kept))
    assert sorted(sum(found, [])) == sorted(ids(rows))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_parts_depend_on_seed_and_ids_alone():
    rows, config = world.rows("unlabelled", 50), part.Config(0, 2)
    first = set(ids(part.select(rows, None, config)[0]))
    assert set(ids(part.select(rows[::-1], None, config)[0])) == first
    assert set(ids(part.select(rows, None, config, seed=1)[0])) != first
    assert first != set(ids(rows[:25])) and first != set(ids(rows[::2])), "drawn, not cut"
    for number, parts in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match="config.selection.part"):
            part.select(rows, None, part.Config(number, parts))


# -- votes -------------------------------------------------------------------------------------------------------------


def test_every_reason_of_doubtful_votes():
    rows = [
        voted(0), voted(1, label=None, share=0.0, probability=None), voted(2, share=0.5, tied=True),
        voted(3, share=0.7), voted(4, probability=0.7), voted(5, probability=None),
        voted(6, share=0.75, probability=0.8),
    ]  # fmt: skip
    kept, dropped = sure_votes.select(rows, None, sure_votes.Config())
    assert ids(kept) == ["r0", "r6"], "at the threshold is enough"
    wanted = {rationale_rules.NO_VERDICT: 1, rationale_rules.SPLIT: 1, rationale_rules.LOW_SHARE: 1,
              rationale_rules.LOW_PROBABILITY: 2}  # fmt: skip
    assert counts(dropped) == wanted and dropped[rationale_rules.LOW_PROBABILITY] == (2, "r4")
    open_to_all = sure_votes.Config(Rules(min_vote_share=0.0, min_probability=0.0))
    assert ids(sure_votes.select(rows, None, open_to_all)[0]) == ["r0", "r3", "r4", "r5", "r6"], "no verdict, no label"
    with pytest.raises(DataError, match="row 'r0' has no 'vote_share'"):
        sure_votes.select([{"id": "r0"}], None, sure_votes.Config())


# -- rules and balance -------------------------------------------------------------------------------------------------


def explained(number, label="A", **columns):
    text = render_rationale(Rationale("It is right.", "It is wrong.", "They differ.", label))
    return {"id": f"r{number}", "prompt": "q", "responses": ["x", "y"], "label": label, "rationale": text, **columns}


def sides(labels, make=explained):
    return [make(number, label) for number, label in enumerate(labels)]


def test_rules_then_balance_each_with_its_count():
    rows = sides("AAAAAABB")
    rows += [explained(90, rationale=""), explained(91, label="B", rationale=rows[0]["rationale"])]
    rows += [explained(92, vote_share=0.1, label_probability=1.0, tied=False)]
    leaking = render_rationale(Rationale("The gold label is A.", "Wrong.", "They differ.", "A"))
    rows += [explained(93, rationale=leaking)]
    kept, dropped = sound_rationales.select(rows, None, sound_rationales.Config())
    assert collections.Counter(row["label"] for row in kept) == {"A": 2, "B": 2}
    assert counts(dropped) == {
        rationale_rules.NO_THINK: 1, rationale_rules.OTHER_LABEL: 1, rationale_rules.LOW_SHARE: 1, proofs.LEAK: 1,
        rationale_rules.UNBALANCED: 4,
    }  # fmt: skip
    assert ids(kept) == sorted(ids(kept)), "in order"
    again = sound_rationales.select(rows, None, sound_rationales.Config(), seed=1)[0]
    assert len(again) == 4 and ids(again) != ids(kept), "who goes is drawn"


def test_tokens_of_a_rationale_are_those_of_the_given_tokenizer():
    rows = world.rows("train", 4)  # 21 tokens each, about 150 bytes
    wide = Rules(max_tokens=30, least_share_of_a=0.0, most_share_of_a=1.0)
    config = sound_rationales.Config(wide, "recipe:permutation_world")
    assert len(sound_rationales.select(rows, None, config)[0]) == 4
    kept, dropped = sound_rationales.select(rows, None, sound_rationales.Config(wide))
    assert kept == [] and counts(dropped) == {rationale_rules.TOO_LONG: 4}
    with pytest.raises(UserError, match="config.selection.tokenizer is empty"):
        sound_rationales.select(rows, None, sound_rationales.Config(wide, ""))


def test_the_tokenizer_of_a_run_folder_is_found(tmp_path):
    world.tokenizer().save(tmp_path / "tokenizer")
    config = sound_rationales.Config(Rules(max_tokens=30), str(tmp_path))
    assert sound_rationales.select(sides("AB"), None, config)[1][rationale_rules.TOO_LONG][0] == 2
    loose = sound_rationales.Config(Rules(), str(tmp_path))
    assert len(sound_rationales.select(sides("AB"), None, loose)[0]) == 2


@pytest.mark.parametrize("plugin,make", [(sound_rationales, explained), (balanced_labels, voted)])
def test_most_rows_are_drawn_with_the_sides_in_proportion(plugin, make):
    rows = sides("AB" * 30, make)
    found = {}
    for seed in (0, 1):
        kept, dropped = plugin.select(rows, None, plugin.Config(most=20), seed)
        assert collections.Counter(row["label"] for row in kept) == {"A": 10, "B": 10}
        assert counts(dropped) == {rationale_rules.MORE: 40}
        found[seed] = set(ids(kept))
        assert set(ids(plugin.select(rows[::-1], None, plugin.Config(most=20), seed)[0])) == found[seed]
    assert found[0] != found[1]
    for most in (0, 60, 100):
        assert len(plugin.select(rows, None, plugin.Config(most=most))[0]) == 60


def test_balanced_labels_are_preference_rows():
    rows = [*sides("AAAABB", voted), voted(9, label=None)]
    kept, dropped = balanced_labels.select(rows, None, balanced_labels.Config())
    assert counts(dropped) == {rationale_rules.UNBALANCED: 2, rationale_rules.NO_VERDICT: 1}
    for row in kept:
        better = "a" if row["label"] == "A" else "b"
        assert row["chosen"] == f"{row['id']} {better}" != row["rejected"] and "responses" not in row
    one_side, dropped = balanced_labels.select(sides("AAA", voted), None, balanced_labels.Config())
    assert one_side == [] and counts(dropped) == {rationale_rules.UNBALANCED: 3}
    anything = balanced_labels.Config(Rules(least_share_of_a=0.0, most_share_of_a=1.0))
    assert len(balanced_labels.select(sides("AAA", voted), None, anything)[0]) == 3


# -- rationales of one's own -------------------------------------------------------------------------------------------


def draw(verdict, probability, swapped=False, first="good", second="bad", said=None):
    """A judgement: `verdict` and `probability` (of A) are about the original order, the reply about what was shown."""
    shown = verdict if not swapped else {"A": "B", "B": "A"}[verdict]
    reply = said or render_rationale(Rationale(first, second, "Response A and Response B differ.", shown))
    return {"reply": reply, "swapped": swapped, "verdict": verdict, "probability": probability, "tokens": 1}


def own(label, *draws):
    rows = [voted(0, label=label, judgements=list(draws))]
    kept, dropped = own_rationales.select(rows, None, own_rationales.Config())
    assert len(kept) + dropped.total == 1
    return rationales.read_rationale(kept[0]["rationale"]) if kept else counts(dropped)


def test_the_surest_reply_for_the_label_is_taken():
    found = own("A", draw("A", 0.6, first="weak"), draw("B", 0.1), draw("A", 0.9, first="sure"), draw("A", None))
    assert found == Rationale("sure", "bad", "Response A and Response B differ.", "A")
    found = own("B", draw("B", 0.4, first="weak"), draw("B", 0.05, first="sure"), draw("A", 0.99))
    assert (found.feedback_a, found.verdict) == ("sure", "B")


def test_a_reply_about_the_swapped_pair_is_turned_back():
    """Shown first was the second response: its feedback goes to B, its letters are exchanged."""
    found = own("A", draw("A", 0.9, swapped=True, first="weaker than Response B", second="strong"))
    assert found == Rationale("strong", "weaker than Response A", "Response B and Response A differ.", "A")


def test_replies_that_cannot_be_used_are_passed_over():
    unsure = draw("A", 0.99, swapped=True, first="the former is good")
    assert own("A", unsure, draw("A", 0.6, first="plain")).feedback_a == "plain"
    unformed = draw("A", 0.99, said="<answer>A</answer>")
    none = {own_rationales.NONE: 1}
    assert own("A", unsure, unformed) == none, "nothing is made up"
    assert own("A", draw("B", 0.2)) == none and own(None, draw("A", 0.9)) == none and own("A") == none
    with pytest.raises(DataError, match="row 'r0' has no 'judgements'"):
        own_rationales.select([voted(0)], None, own_rationales.Config())
