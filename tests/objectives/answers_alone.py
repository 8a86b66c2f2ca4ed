"""A tiny decoder, answers of different lengths, and what each says when it is computed alone in NumPy.

The direct way shares nothing with an objective but the model: no batch, no segments, no chunks, no masks.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import spec
from gramjax.data import pipeline
from gramjax.data.text import example
from gramjax.models import decoder, model

VOCAB = 31
ARCH = decoder.Config(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    heads=("tokens", "score"), init_scale=0.3,
)  # fmt: skip
NETWORK = model.build("decoder", ARCH, logit_chunk=16)


def params(seed=0):
    return spec.init_params(decoder.specs(ARCH), jax.random.key(seed))


def sequences(count, answers=2, seed=0):
    """For each example a list of (tokens, number of prompt tokens), one per answer."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 5))
        replies = [rng.integers(0, VOCAB, rng.integers(1, 8)) for _ in range(answers)]
        out.append([(np.concatenate([prompt, reply]).astype(np.int32), len(prompt)) for reply in replies])
    return out


def examples(made, **fields):
    """The examples of `sequences`; each field is a list with one value per example."""
    masked = [[(ids, (np.arange(len(ids)) >= start).astype(np.float32)) for ids, start in item] for item in made]
    return [example(*item, **{k: v[i] for k, v in fields.items()}) for i, item in enumerate(masked)]


def batch(made, length=16, fill=0, **fields):
    """A batch of `examples`, with `fill` rows that only fill."""
    rows = [[item] for item in examples(made, **fields)] + [[]] * fill
    return {name: jnp.asarray(x) for name, x in pipeline.collate(rows, length).items()}


@jax.jit
def hidden_states(params, tokens):
    """Of one sequence; what follows it is not seen."""
    return NETWORK.forward(params, {"tokens": tokens[None]}).hidden[0]


def alone(params, made):
    """(log-probability of the answer, reward at its last token), float64 [examples, answers], one after the other."""
    logps, rewards = (np.zeros((len(made), len(made[0]))) for _ in range(2))
    for i, item in enumerate(made):
        for j, (ids, start) in enumerate(item):
            hidden = np.asarray(hidden_states(params, np.pad(ids, (0, 20 - len(ids)))), np.float64)[: len(ids)]
            logits = hidden @ np.asarray(params["embed"], np.float64).T
            logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            logps[i, j] = sum(logp[t - 1, ids[t]] for t in range(start, len(ids)))
            rewards[i, j] = hidden[-1] @ np.asarray(params["score"], np.float64)[:, 0]
    return logps, rewards


def log_sigmoid(x):
    return -np.log1p(np.exp(-np.asarray(x, np.float64)))


def measure(objective, weights, data, config, reference=None):
    """The mean loss and the mean of each metric."""
    (total, weight), metrics = objective.loss(NETWORK, NETWORK.pack(weights), data, config, reference)
    return float(total / weight), {name: float(t / w) for name, (t, w) in metrics.items()}
