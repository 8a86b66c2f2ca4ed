"""Perplexity: the sum of the log-probabilities of the scored tokens, whatever the batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import plugins, spec
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Drop
from gramjax.evals import perplexity
from gramjax.models import heads
from gramjax.models import model as models


@dataclasses.dataclass
class Example:
    tokens: tuple
    loss_mask: tuple


class Renderer:
    """One token per character; the completion is scored."""

    def example(self, row):
        ids = [1, *(10 + ord(c) % 50 for c in row["prompt"] + row["completion"])]
        if len(ids) > 60:
            raise Drop("longer than max_length 60", len(ids))
        mask = np.zeros(len(ids), np.float32)
        mask[1 + len(row["prompt"]) :] = 1.0
        return Example((np.array(ids, np.int32),), (mask,))


ROWS = [
    {"id": "a", "prompt": "two and two", "completion": " is four"},
    {"id": "b", "prompt": "", "completion": "hello there, reader"},
    {"id": "c", "prompt": "p" * 30, "completion": "!"},
]


@pytest.fixture(scope="module")
def network():
    config = plugins.load("models", "decoder").Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8
    )
    model = models.build("decoder", dataclasses.replace(config, init_scale=0.3), logit_chunk=48)
    return model, model.pack(spec.init_params(model.specs(), jax.random.key(0)))


def test_perplexity_equals_the_plain_log_softmax(network):
    model, weights = network
    written = []
    metrics = dict(
        perplexity.evaluate(model, weights, Renderer(), ROWS, perplexity.Config(buckets=(48,)), written.append)
    )
    logits = jax.jit(lambda w, t: heads.logits(w, model.forward(w, {"tokens": t}).hidden))
    total, count, right = 0.0, 0.0, 0.0
    for row, record in zip(ROWS, written):
        example = Renderer().example(row)
        tokens, mask = example.tokens[0], example.loss_mask[0]
        wide = np.zeros((1, 48), np.int32)
        wide[0, : len(tokens)] = tokens
        logprobs = np.asarray(jax.nn.log_softmax(logits(weights, jnp.asarray(wide))[0]), np.float64)
        nll = -sum(logprobs[t - 1, tokens[t]] for t in range(1, len(tokens)) if mask[t])
        assert record["nll"] == pytest.approx(nll, rel=1e-5) and record["num_scored"] == mask[1:].sum()
        hits = sum(logprobs[t - 1].argmax() == tokens[t] for t in range(1, len(tokens)) if mask[t])
        assert record["num_right"] == hits
        total, count, right = total + nll, count + mask[1:].sum(), right + hits
    assert metrics["nll"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(right / count)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert metrics["nll_low"] <= metrics["nll"] <= metrics["nll_high"]
    alone = dict(perplexity.evaluate(model, weights, Renderer(), ROWS, perplexity.Config(batch_size=1)))
    assert alone["nll"] == pytest.approx(metrics["nll"], abs=1e-5)


def test_rows_that_cannot_be_scored_are_counted(network):
    model, weights = network
    long = {"id": "z", "prompt": "p" * 80, "completion": "x"}
    metrics = dict(perplexity.evaluate(model, weights, Renderer(), [*ROWS, long], perplexity.Config(buckets=(48,))))
    assert metrics["num_rows"] == 3 and metrics["skipped"] == {"longer than max_length 60": {"count": 1, "first": "z"}}
    with pytest.raises(DataError, match="0 of 1 rows"):
        dict(perplexity.evaluate(model, weights, Renderer(), [long], perplexity.Config()))
    scalar = dataclasses.replace(model, config=dataclasses.replace(model.config, heads=("score",)))
    with pytest.raises(UserError, match="needs the head 'tokens'"):
        dict(perplexity.evaluate(scalar, weights, Renderer(), ROWS, perplexity.Config()))
