"""What a loss may not depend on: packing, the order of the rows, the padded length, and what stands after an example.

Every objective on real renderings of the recipe's pairs, through the model, value and gradient.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import spec, tree
from gramjax.core.config import DataSection
from gramjax.data import pipeline, tokenizer
from gramjax.data.recipes import word_translation as recipe
from gramjax.data.text import Renderer
from gramjax.models import decoder, model
from gramjax.objectives import bradley_terry, cross_entropy, dpo, grm, plackett_luce
from gramjax.objectives import generative_preference as gram
from gramjax.objectives import preference_representation as lrhp

CASES = {
    "stage1": (gram, gram.Config(stage="pretrain")),
    "judge": (gram, gram.Config(label_smoothing=0.1, label_space="full")),
    "bradley_terry": (bradley_terry, bradley_terry.Config(center_rewards_coefficient=0.1)),
    "grm": (grm, grm.Config(alpha=0.5, train_lm_head=True)),
    "ipo": (dpo, dpo.Config(loss="ipo", reference_free=True)),
    "lists": (plackett_luce, plackett_luce.Config(max_responses=3, l2=0.1)),
    "cross_entropy": (cross_entropy, cross_entropy.Config()),
    "preference_representation": (lrhp, lrhp.Config(contrastive=0.3)),
}
LENGTH, PACKED, COUNT = 40, 128, 12
"""Few shapes, so few compilations: [12, 40] and [12, 128]."""


@cache
def setting(name):
    """Examples, parameters, and the jitted loss and gradient of the batch's total."""
    objective, config = CASES[name]
    renderer = Renderer(
        tokenizer.load("recipe:word_translation"), DataSection(max_length=40, judge_prompt=recipe.JUDGE_PROMPT)
    )
    if objective is gram:
        config = gram.resolve(config, renderer)
    rows = [{**row, "id": str(i)} for i, row in enumerate(recipe.rows("train", COUNT))]
    if name == "cross_entropy":  # examples of different lengths
        longer = [row["chosen"] + " mirel" * (i % 5) for i, row in enumerate(rows)]
        rows = [{"prompt": row["prompt"], "completion": text} for row, text in zip(rows, longer)]
    if name == "lists":  # of two and of three answers
        answers = [
            [row["chosen"], row["rejected"], row["rejected"] + " mirel"][: 2 + i % 2] for i, row in enumerate(rows)
        ]
        rows = [{**row, "responses": a, "ranking": list(range(len(a)))} for row, a in zip(rows, answers)]
    made = [objective.encode(row, renderer, config) for row in rows]
    examples = [item[i % 2] if isinstance(item, tuple) else item for i, item in enumerate(made)]
    arch = decoder.Config(
        vocab_size=384, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        heads=objective.HEADS, init_scale=0.3,
    )  # fmt: skip
    network = model.build("decoder", arch)
    params = spec.init_params(decoder.specs(arch), jax.random.key(1))

    def total(params, batch):
        (total, weight), metrics = objective.loss(network, network.pack(params), batch, config)
        return total, (weight, metrics)

    return examples, params, jax.jit(jax.value_and_grad(total, has_aux=True))


def measure(name, batch):
    _, params, compiled = setting(name)
    (total, (weight, metrics)), grads = compiled(params, {key: jnp.asarray(value) for key, value in batch.items()})
    assert float(weight) > 0
    return {"total": total, "weight": weight, **tree.flatten(grads)} | {k: v[0] for k, v in metrics.items()}


def same(one, two):
    for name, value in one.items():
        size = float(jnp.abs(value).max())
        np.testing.assert_allclose(value, two[name], atol=2e-5 * max(size, 1.0), err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_packing_padding_and_order_change_no_loss_and_no_gradient(name):
    """V11. A packed row attends within its examples only, so the loss per example is that of the example alone."""
    examples = setting(name)[0]
    alone = measure(name, pipeline.collate([[example] for example in examples], LENGTH))
    lengths = [[len(tokens) for tokens in example.tokens] for example in examples]
    order = np.random.default_rng(0).permutation(COUNT)
    groups = pipeline.pack_plan(lengths, PACKED, [int(i) for i in order])
    assert len(groups) < COUNT / 2  # several examples share a row
    packed = [[examples[i] for i in group] for group in groups] + [[]] * (COUNT - len(groups))  # rows that only fill
    slots = max(map(len, groups))
    same(alone, measure(name, pipeline.collate(packed, PACKED, slots, pad_id=7)))
    same(alone, measure(name, pipeline.collate([[examples[i]] for i in order], PACKED, slots, pad_id=3)))


@pytest.mark.parametrize("name", ["judge", "bradley_terry"])
def test_tokens_after_the_last_of_an_example_do_not_count_and_the_last_does(name):
    """V10: the verdict (or the reward) is read at the last token of the prompt, and nothing later is seen there."""
    examples = setting(name)[0]
    batch = pipeline.collate([[example] for example in examples], LENGTH)
    place = np.arange(LENGTH) > np.expand_dims(batch["ends"][..., 0], -1)
    rng = np.random.default_rng(0)
    noise = {**batch, "tokens": np.where(place, rng.integers(0, 300, place.shape), batch["tokens"]).astype(np.int32)}
    before = measure(name, batch)
    same(before, measure(name, noise))
    last = np.arange(LENGTH) == np.expand_dims(batch["ends"][..., 0], -1)
    other = {**batch, "tokens": np.where(last, (batch["tokens"] + 1) % 300, batch["tokens"]).astype(np.int32)}
    assert abs(float(measure(name, other)["margin"] - before["margin"])) > 1e-3


def test_the_loss_of_a_batch_is_the_sum_over_its_examples():
    """Nothing is divided by the size of the batch: the step divides once, after all microbatches and hosts."""
    examples = setting("judge")[0]
    parts = [
        measure("judge", pipeline.collate([[e] for e in part] + [[]] * (COUNT - len(part)), LENGTH))
        for part in (examples, examples[:5], examples[5:])
    ]
    assert [float(part["weight"]) for part in parts] == [COUNT, 5, COUNT - 5]
    np.testing.assert_allclose(parts[0]["total"], parts[1]["total"] + parts[2]["total"], rtol=1e-5)
