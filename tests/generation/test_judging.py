"""Drawn judgements: verdicts about the original order, probabilities of a fresh pass, nothing guessed, nothing cut."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import written_judge as written

from gramjax.core.config import DataSection, SamplingSection
from gramjax.core.errors import UserError
from gramjax.data import judge_prompts, rationales, text, tokenizer
from gramjax.data.recipes import permutation_world as world
from gramjax.data.rows import Drop
from gramjax.generation import judging
from gramjax.models import heads


def judged(rows, sampler=None, seed=0, **choices):
    """The judgements by id of the row."""
    given = written.judging(**choices)
    return {row["id"]: found for row, found in judging.judge(rows, sampler or written.sampler(), given, seed)}


def plain(found):
    """Draws as they are compared between runs: texts and verdicts exactly, probabilities to float32."""
    return {i: [(d.reply, d.swapped, d.verdict, round(d.probability, 4)) for d in j.draws] for i, j in found.items()}


def test_a_judge_that_takes_the_first_is_split_by_alternating_orders():
    """Swapped presentations are mapped back: half of the votes each way, whatever the pair."""
    for found in judged(written.pairs(), written.sampler(lean=16.0)).values():
        assert [d.verdict for d in found.draws] == ["B" if d.swapped else "A" for d in found.draws]
        votes = found.votes("x")
        assert (votes.votes_a[0], votes.votes_b[0], votes.tied[0]) == (2, 2, True)
        assert found.over_orders(found.values("votes")) == 0.5
        assert found.over_orders(found.values("probability")) == pytest.approx(0.5, abs=1e-3)
    fixed = judged(written.pairs(), written.sampler(lean=16.0), order="fixed")
    assert {d.verdict for found in fixed.values() for d in found.draws} == {"A"}


def test_the_probability_is_the_two_letter_softmax_of_a_fresh_pass():
    """Prompt, rationale and tag up to the answer, once more without a cache; of A in the original order."""
    sampler, rows = written.sampler(), written.pairs(5)
    network, params = sampler.model, sampler.model.pack(written.params())
    seen = []
    for row in rows:
        for draw in judged([row], sampler, n=2)[row["id"]].draws:
            before, _, _ = draw.reply.rpartition("A</answer>" if draw.reply.endswith("A</answer>") else "B</answer>")
            ids = sampler.renderer.prompt(written.asked(row, draw.swapped)) + sampler.renderer.tokenizer.encode_text(
                before, continuing=True
            )
            hidden = network.forward(params, {"tokens": jnp.array([ids])}).hidden
            logits = heads.logits(params, hidden)[0, -1, np.array([written.single("A"), written.single("B")])]
            shown_first = float(np.exp(logits[0]) / np.exp(logits).sum())
            want = 1 - shown_first if draw.swapped else shown_first
            assert draw.probability == pytest.approx(want, abs=1e-4)
            seen.append(want)
    assert np.std(seen) > 0.05, "the comparison above could fail"


def test_draws_depend_on_row_and_seed_alone():
    """Other neighbours, another order of the rows, one slot or many: the same replies."""
    rows = written.pairs(8)
    reference = plain(judged(rows))
    assert list(reference) == [row["id"] for row in rows], "in order"
    assert plain(judged(rows[::-1])) == reference
    assert plain(judged(rows[3:5])) == {row["id"]: reference[row["id"]] for row in rows[3:5]}
    assert plain(judged(rows, written.sampler(slots=3))) == reference
    other = plain(judged(rows, seed=1))
    assert other != reference and judged(rows[:1]) == judged(rows[:1])


def test_draws_follow_the_probability_that_they_report():
    """At temperature 1 the share of votes for A is the probability of A, order by order."""
    (found,) = judged(written.pairs(1), n=400).values()
    for turned in (False, True):
        draws = [d for d in found.draws if d.swapped == turned]
        assert len(draws) == 200 and len({round(d.probability, 4) for d in draws}) == 1
        p = draws[0].probability
        share = np.mean([d.verdict == "A" for d in draws])
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 200)


@pytest.mark.parametrize("order", ["alternate", "random", "fixed"])
def test_every_draw_has_its_order(order):
    rows = written.pairs(6)
    for n in (1, 3):
        found = judged(rows, order=order, n=n)
        swapped = np.array([[d.swapped for d in found[row["id"]].draws] for row in rows])
        assert swapped.shape == (6, n)
        if order == "alternate":
            assert set(swapped.sum(1).tolist()) == ({0, 1} if n == 1 else {1, 2})
        else:
            assert swapped.any() == (order == "random")


def test_what_cannot_be_read_is_no_vote():
    """About a third of the answers is neither A nor B."""
    found = judged(written.pairs(), written.sampler(unreadable=0.0), n=8)
    draws = [draw for each in found.values() for draw in each.draws]
    unread = [draw for draw in draws if draw.verdict is None]
    assert 0.15 < len(unread) / len(draws) < 0.6
    assert all(written.UNREADABLE in draw.reply and np.isnan(draw.probability) for draw in unread)
    assert all(draw.as_dict()["probability"] is None for draw in unread)
    for name, each in found.items():
        columns, votes = each.columns(name), [draw.verdict for draw in each.draws]
        counts = {"votes_a": votes.count("A"), "votes_b": votes.count("B"), "failed": votes.count(None)}
        assert {key: columns[key] for key in counts} == counts
        values = each.values("votes")
        assert np.isnan(values).sum() == counts["failed"] and each.columns(name) == columns
    nothing = judged(written.pairs(2), written.sampler(unreadable=40.0))
    for each in nothing.values():
        assert each.columns("x")["label"] is None and np.isnan(each.over_orders(each.values("probability")))


def test_replies_that_are_cut_have_no_verdict():
    found = judged(written.pairs(2), sampling=SamplingSection(max_tokens=4, n=2))
    for draw in (draw for each in found.values() for draw in each.draws):
        assert (draw.verdict, draw.finish_reason, draw.tokens) == (None, "length", 4)


LONG = {"id": "long", "prompt": "Map: c h a p", "responses": ["Out: d f a k " * 30, "Out: " + "f " * 10]}


def test_long_pairs_lose_the_ends_of_their_responses_only():
    sampler = written.sampler()
    prompts, cut = judging.prompts_of(LONG, sampler, written.judging())
    assert cut and max(map(len, prompts.values())) <= world.MAX_LENGTH
    for turned, ids in prompts.items():
        said = sampler.renderer.tokenizer.decode(ids)
        shown = [part.partition("\n")[2].partition("\n[The End")[0] for part in said.split("[The Start of")[1:]]
        own = LONG["responses"][::-1] if turned else LONG["responses"]
        assert all(whole.startswith(kept) for whole, kept in zip(own, shown, strict=True))
        shares = [len(kept) / len(whole) for whole, kept in zip(own, shown, strict=True)]
        assert abs(shares[0] - shares[1]) < 0.06 and 0 < min(shares) < 0.5
        frame = said.replace(shown[0], "", 1).replace(shown[1], "", 1)
        whole = written.asked({**LONG, "responses": ["", ""]})
        assert frame.replace("<|bos|>", "").strip() == whole.strip(), "instruction, question and headers are whole"
    (found,) = judged([LONG]).values()
    assert found.shortened and found.votes("x").failed[0] == 0
    assert not any(each.shortened for each in judged(written.pairs(2)).values())


def test_pairs_that_cannot_be_shown_are_refused_with_a_reason():
    rows = [*written.pairs(2), LONG, {**LONG, "id": "question", "prompt": "Map: c " * 60}]
    refused = []
    given = written.judging(overlong="drop")
    kept = list(judging.judge(rows, written.sampler(), given, 0, lambda row, why: refused.append((row["id"], why))))
    assert [row["id"] for row, _ in kept] == ["unlabelled-0", "unlabelled-1"]
    assert [name for name, _ in refused] == ["long", "question"]
    assert all("longer than max_length 48" in why for _, why in refused)
    refused.clear()
    given = written.judging()
    list(judging.judge(rows, written.sampler(), given, 0, lambda row, why: refused.append((row["id"], why))))
    assert refused == [("question", judging.TOO_LONG)]
    with pytest.raises(Drop, match=judging.TOO_LONG):
        list(judging.judge(rows, written.sampler(), given))


def test_a_prompt_leaves_room_for_the_reply():
    sampler = written.sampler(max_length=1000)
    assert judging.room(sampler, written.judging()) == 128 - 16
    assert judging.room(sampler, written.judging(sampling=SamplingSection(max_tokens=4000))) == 64
    assert judging.room(written.sampler(), written.judging()) == world.MAX_LENGTH
    long = {**LONG, "responses": ["Out: d f a k " * 60, "Out: " + "f " * 99]}
    (found,) = judged([long], sampler).values()
    assert found.shortened and {draw.finish_reason for draw in found.draws} == {"stop"}


def test_the_place_of_the_letter():
    """The letter of the block that is read, however the text falls into tokens; none where a tag ends inside it."""

    def place(*pieces):
        found = judging.letter_place(range(len(pieces)), lambda ids: "".join(pieces[i] for i in ids))
        return found if found is None else pieces[found]

    assert place("<think>A</think>", "<answer>", "B", "</answer>", "") == "B"
    assert place("<answer>", " ", " b", " is", "</answer>") == " b"
    assert place("<answer>", "A", "</answer>", "<answer>", "B") == "A", "the last block is not complete"
    assert place("<answer>", "A", "</answer>", "<answer>", "C", "</answer>") is None
    assert place("<ans", "wer>A", "</answer>") is None and place("no", "answer") is None
    assert place(*"<answer>A</answer>") == "A"
    for reply in ("<answer> A</answer>x", "<answer>a</answer>", "<answer>B"):
        found = rationales.verdict_place(reply)
        assert (found is None) == (rationales.parse(reply).verdict is None)
        assert found is None or reply[found].upper() == rationales.parse(reply).verdict


def test_both_orders_count_the_same():
    """Equation (4): three draws of one order and one of the other."""
    draw = judging.Draw("", False, "A", 0.9, 1, "stop")
    other = dataclasses.replace(draw, swapped=True, verdict="B", probability=0.3)
    found = judging.Judged((draw, draw, dataclasses.replace(draw, verdict=None, probability=np.nan), other))
    assert found.over_orders(found.values("votes")) == 0.5
    assert found.over_orders(found.values("probability")) == pytest.approx(0.6)
    assert judging.Judged((draw,)).over_orders([0.9]) == 0.9


def test_settings_are_checked():
    with pytest.raises(UserError, match="judging.order is 'both'"):
        judging.Judging(order="both")
    with pytest.raises(UserError, match="judging.overlong"):
        judging.Judging(overlong="truncate_prompt_left")
    with pytest.raises(UserError, match="judging: .*sampling.n is 0"):
        judging.Judging(sampling=SamplingSection(n=0))


def test_a_conversation_is_shortened_inside_its_template():
    """Messages under a chat template: one user turn with the whole instruction, ready for the reply."""
    renderer = text.Renderer(tokenizer.load("bytes", chat_template="chatml"), DataSection(max_length=1500))
    settings = dataclasses.replace(written.sampler().settings, max_length=4000)
    sampler = dataclasses.replace(written.sampler(), renderer=renderer, settings=settings)
    question = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Name a colour."}]  # fmt: skip
    answers = [[{"role": "assistant", "content": word * 300}] for word in ("Red. ", "Blue! ")]
    row = {"id": "x", "prompt": question, "responses": answers}
    prompts, cut = judging.prompts_of(row, sampler, judging.Judging())
    assert cut and 1400 < max(map(len, prompts.values())) <= 1500
    for turned, ids in prompts.items():
        said = renderer.tokenizer.decode(ids)
        assert judge_prompts.JUDGE_PROMPT in said and "User: Hi" in said and "User: Name a colour." in said
        assert said.endswith("<|im_start|>assistant\n") and said.count("<|im_start|>") == 2
        assert (said.index("Blue!") < said.index("Red.")) == turned
        assert judge_prompts.END.format("B") in said
