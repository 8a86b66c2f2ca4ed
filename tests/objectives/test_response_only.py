"""S-11: only the response of a translation pair is learned, whatever stands around it (cross-entropy, Alpaca frame)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import spec
from gramjax.core.config import DataSection
from gramjax.data import pipeline, tokenizer
from gramjax.data.text import Renderer
from gramjax.models import decoder, heads, model
from gramjax.objectives import cross_entropy

ARCH = decoder.Config(
    vocab_size=320, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    init_scale=0.3,
)  # fmt: skip
MODEL = model.build("decoder", ARCH)
LENGTH = 208
PAIRS = [("Ein Hund.", "A dog."), ("Zwei Katzen schlafen.", "Two cats sleep."), ("Ja", "Yes, it is so.")]


@pytest.fixture(scope="module")
def weights():
    return MODEL.pack(spec.init_params(MODEL.specs(), jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    renderer = Renderer(tokenizer.load("bytes", chat_template="alpaca"), DataSection(max_length=LENGTH))
    rows = [{"prompt": [{"role": "user", "content": f"Into English: {one}"}],
             "completion": [{"role": "assistant", "content": two}]} for one, two in PAIRS]  # fmt: skip
    examples = [cross_entropy.encode(row, renderer, cross_entropy.Config()) for row in rows]
    return pipeline.collate([[example] for example in examples], LENGTH)


def mean(weights, batch):
    (total, tokens), _ = cross_entropy.loss(MODEL, weights, batch, cross_entropy.Config())
    return total / tokens


def test_the_loss_is_the_mean_over_response_tokens_and_no_other_position_has_a_gradient(weights, batch):
    hidden = MODEL.forward(weights, batch).hidden
    logprobs = jax.nn.log_softmax(hidden @ weights["embed"].T)
    scored = [-float(logprobs[b, t, batch["labels"][b, t]]) for b, t in np.argwhere(batch["loss_mask"] > 0)]
    assert len(scored) == sum(len(two.encode()) + 1 for _, two in PAIRS)  # and the end of each
    assert float(mean(weights, batch)) == pytest.approx(float(np.mean(scored)), abs=1e-6)
    gradient = jax.grad(
        lambda h: heads.cross_entropy(weights, h, batch["labels"], batch["loss_mask"], MODEL.logit_chunk)
    )(hidden)
    size = np.abs(np.asarray(gradient)).max(axis=2)
    assert (size[batch["loss_mask"] == 0] == 0).all() and (size[batch["loss_mask"] > 0] > 0).all()


def test_padding_on_either_side_changes_nothing(weights, batch):
    def moved(array):
        """Rows of T tokens at the right end instead of the left; positions are counted over real tokens."""
        out = np.zeros_like(array)
        for row, size in enumerate(np.sum(batch["segment_ids"] > 0, axis=1)):
            out[row, LENGTH - size :] = array[row, :size]
        return out

    names = ("tokens", "labels", "segment_ids", "positions", "loss_mask")
    left = {name: moved(batch[name]) for name in names}
    assert not left["segment_ids"][0, 0] and left["segment_ids"][0, -1]
    function = jax.jit(jax.value_and_grad(mean))
    right = {name: batch[name] for name in names}
    (loss, gradient), (other, theirs) = function(weights, right), function(weights, left)
    assert float(loss) == pytest.approx(float(other), abs=1e-6)
    worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), gradient, theirs)))
    assert worst < 1e-6
