"""The objective of GRAM-R2: which tokens each part scores, weights of the label, swapped pairs, and its loss."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.data import judge_prompts, pipeline, proofs, rationales, tokenizer
from gramjax.data.rationales import Rationale, render_rationale
from gramjax.data.recipes import permutation_world as world
from gramjax.data.text import Renderer
from gramjax.objectives import cross_entropy
from gramjax.objectives import rationale_preference as objective
from gramjax.objectives.rationale_preference import Config

PARTS = {"judge": world.JUDGE_PROMPT, "label": world.JUDGE_PROMPT, "prover": world.PROVER_PROMPT}
SPLITS = {"judge": "judge", "label": "label_only", "prover": "prover"}
ROWS = world.rows("train", 8)


def renderer(path="recipe:permutation_world", template="", max_length=world.MAX_LENGTH):
    return Renderer(tokenizer.load(path, "", template), DataSection(max_length=max_length))


def config(part="judge", **choices):
    return Config(part, PARTS[part], **choices)


def replies(row):
    """What each part learns to write for a row."""
    return {"judge": row["rationale"], "label": f"<answer>{row['label']}</answer>",
            "prover": proofs.to_proof(row["rationale"])}  # fmt: skip


def scored(example, given):
    """The text of the scored tokens, and of the others."""
    (tokens,), (mask,) = example.tokens, example.loss_mask
    return tuple(given.tokenizer.decode(tokens[keep]) for keep in (mask > 0, mask == 0))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("row", [ROWS[0], ROWS[1]], ids=["A", "B"])
def test_exactly_the_reply_and_its_end_are_scored(part, row):
    given = renderer()
    example = objective.encode(row, given, config(part))
    said, asked = scored(example, given)
    assert said == replies(row)[part] + given.tokenizer.text_of(given.tokenizer.eos_id)
    assert set(example.loss_mask[0].tolist()) == {0.0, 1.0}
    shown = f"{judge_prompts.BETTER}\n{row['label']}" in asked
    assert shown == (part == "prover"), "only the prover is given the label"
    for letter, response in zip("AB", row["responses"], strict=True):
        assert f"{judge_prompts.START.format(letter)}\n{response}\n" in asked
    assert "<think>" not in asked and rationales.parse(asked).verdict is None


def test_both_labels_are_among_the_rows():
    assert {ROWS[0]["label"], ROWS[1]["label"]} == {"A", "B"}


@pytest.mark.parametrize("part", PARTS)
def test_conversations_score_the_assistants_turn_alone(part):
    given = renderer("bytes", "chatml", 4096)
    turns = [{"role": "user", "content": "Which is right?"}]
    row = {**ROWS[0], "prompt": turns}
    row["responses"] = [[{"role": "assistant", "content": text}] for text in row["responses"]]
    said, asked = scored(objective.encode(row, given, config(part)), given)
    assert said.rstrip("\n").removesuffix("<|im_end|>") == replies(row)[part]
    assert asked.count("<|im_start|>user") == 1 and asked.rstrip("\n").endswith("<|im_start|>assistant")
    assert "Which is right?" in asked and ROWS[0]["responses"][1] in asked


@pytest.mark.parametrize("part", PARTS)
def test_examples_and_loss_are_those_of_next_token_cross_entropy(part):
    """The rows written out as prompts and completions, trained on by the plain objective."""
    given, plain = renderer(), world.rows(SPLITS[part], 8)
    batches = []
    for module, rows, own in ((objective, ROWS, config(part)), (cross_entropy, plain, cross_entropy.Config())):
        examples = pipeline.encode_rows(rows, lambda row, m=module, c=own: m.encode(row, given, c), given.section)
        batches.append(pipeline.Pipeline(examples, given.section, 4, 0).batch(0))
    assert batches[0]["loss_mask"].sum() > 0
    for name, array in batches[0].items():
        np.testing.assert_array_equal(array, batches[1][name], err_msg=name)
    (a, weight_a), metrics = loss_of(objective, batches[0], config(part))
    (b, weight_b), _ = loss_of(cross_entropy, batches[1], cross_entropy.Config())
    assert float(a) == float(b) > 0 and float(weight_a) == float(weight_b) == batches[0]["loss_mask"].sum()
    assert metrics["nll"] == (a, weight_a)


class FreeLogits:
    """A model whose logits are drawn at random, whatever the tokens."""

    logit_chunk, mesh = 64, None

    def forward(self, weights, batch):
        return types.SimpleNamespace(hidden=weights["hidden"][:, : batch["tokens"].shape[1]])


def weights(count=4):
    hidden = jax.random.normal(jax.random.key(0), (count, world.MAX_LENGTH, 16))
    return {"hidden": hidden, "embed": jax.random.normal(jax.random.key(1), (320, 16))}


def loss_of(module, batch, own):
    return module.loss(FreeLogits(), weights(), {k: jnp.asarray(v) for k, v in batch.items()}, own)


# -- the label's weight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["judge", "label"])
def test_the_label_can_weigh_more(part):
    """Its letter, in the answer block and nowhere else; the loss is the weighted mean."""
    given = renderer()
    for row in ROWS[:4]:
        plain = objective.encode(row, given, config(part))
        heavy = objective.encode(row, given, config(part, label_weight=5.0))
        np.testing.assert_array_equal(plain.tokens[0], heavy.tokens[0])
        (place,) = np.flatnonzero(plain.loss_mask[0] != heavy.loss_mask[0])
        assert heavy.loss_mask[0][place] == 5.0
        assert given.tokenizer.decode(heavy.tokens[0][place : place + 1]).strip() == row["label"]
        assert given.tokenizer.decode(heavy.tokens[0][:place]).endswith("<answer>")
    section, own = given.section, config(part, label_weight=5.0)
    examples = pipeline.encode_rows(ROWS[:4], lambda row: objective.encode(row, given, own), section)
    batch = pipeline.Pipeline(examples, section, 4, 0).batch(0)
    (total, weight), _ = loss_of(objective, batch, own)
    drawn = weights()
    table = np.asarray(jax.nn.log_softmax(drawn["hidden"] @ drawn["embed"].T), np.float64)
    nll = -np.take_along_axis(table[:, : batch["labels"].shape[1]], batch["labels"][..., None], -1)[..., 0]
    assert float(total) == pytest.approx(float((nll * batch["loss_mask"]).sum()), rel=1e-5)
    assert float(weight) == pytest.approx((batch["loss_mask"] == 1).sum() + 5 * 4)


def test_a_prover_has_no_label_to_weigh():
    given = renderer()
    one, other = (objective.encode(ROWS[0], given, config("prover", label_weight=w)) for w in (1.0, 5.0))
    np.testing.assert_array_equal(one.loss_mask[0], other.loss_mask[0])


# -- swapped pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_the_swapped_pair_is_a_second_rendering(part):
    """Responses, feedbacks, letters and label change places; turned twice it is the row itself."""
    given = renderer()
    first, second = objective.encode(ROWS[0], given, config(part, swap=True))
    turned = {**judge_prompts.swapped_row(ROWS[0]), "id": ROWS[0]["id"]}
    assert turned["label"] != ROWS[0]["label"]
    np.testing.assert_array_equal(second.tokens[0], objective.encode(turned, given, config(part)).tokens[0])
    again = objective.encode(turned, given, config(part, swap=True))[1]
    np.testing.assert_array_equal(again.tokens[0], first.tokens[0])
    assert scored(second, given)[0].startswith(replies(turned)[part])
    assert objective.NOT_SWAPPED not in given.counts


def explained(feedback):
    text = render_rationale(Rationale(feedback, "It is wrong.", "They differ.", "A"))
    return {"id": "x", "prompt": "q", "responses": ["one", "two"], "label": "A", "rationale": text}


@pytest.mark.parametrize("feedback", ["Here B is a letter.", "Unlike the second response it is right."])
def test_pairs_that_cannot_be_swapped_are_counted(feedback):
    """A letter that may be anything, and a text whose length would change (renderings of a row have one length)."""
    given = renderer("bytes", max_length=4096)
    example = objective.encode(explained(feedback), given, config(swap=True))
    assert not isinstance(example, tuple) and given.counts[objective.NOT_SWAPPED] == 1
    assert len(objective.encode(explained(feedback), given, config("label", swap=True))) == 2, "labels alone can"


# -- rows --------------------------------------------------------------------------------------------------------------


def test_labels_are_learned_from_preference_rows_too():
    """Which response is A is drawn by the id; the label is the better one's letter."""
    given, seen = renderer(), set()
    for number in range(12):
        row = {"id": f"p{number}", "prompt": "Map: a b", "chosen": "Out: c d", "rejected": "Out: e f"}
        said, asked = scored(objective.encode(row, given, config("label")), given)
        label = rationales.parse(said).verdict
        assert f"{judge_prompts.START.format(label)}\nOut: c d\n" in asked
        seen.add(label)
        first, second = objective.encode(row, given, config("label", swap=True))
        assert {rationales.parse(scored(one, given)[0]).verdict for one in (first, second)} == {"A", "B"}
    assert seen == {"A", "B"}


def test_row_types_and_settings():
    assert [objective.row_types(config(part)) for part in PARTS] == [
        ("rationale",), ("rationale", "preference"), ("rationale",)
    ]  # fmt: skip
    given = renderer()
    assert objective.resolve(config("label"), given) == config("label")
    with pytest.raises(UserError, match="config.objective.part='both' is not one of judge, label, prover"):
        objective.resolve(Config("both"), given)
    with pytest.raises(UserError, match="label_weight=-1.0"):
        objective.resolve(Config(label_weight=-1.0), given)


def test_the_package_has_instructions_of_its_own():
    given = renderer("bytes", max_length=4096)
    for part, words in (("judge", judge_prompts.JUDGE_PROMPT), ("prover", judge_prompts.PROVER_PROMPT)):
        assert words in scored(objective.encode(ROWS[0], given, Config(part)), given)[1]
