"""A world in which margins can be read off (check S2 of GRAM): what label smoothing does to a judge trained to the end.

python tests/objectives/margin_world.py --seeds 3

A response has 8 Gaussian attributes, the one with the larger first attribute is preferred. 1,500 pairs, each in both
orders, train a small network that sees both responses and gives the margin of the first; the loss is GRAM's own.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gramjax.objectives import generative_preference as gram

ATTRIBUTES, WIDTH = 8, 64


def pairs(rng, count):
    """Two responses [count, 8] each, the preferred one first."""
    a, b = rng.normal(size=(2, count, ATTRIBUTES)).astype(np.float32)
    better = a[:, :1] > b[:, :1]
    return np.where(better, a, b), np.where(better, b, a)


def both_orders(first, second):
    """What the judge sees [2 count, 16], and the sign of the margin that is right."""
    seen = np.concatenate([np.concatenate([first, second], 1), np.concatenate([second, first], 1)])
    return seen, np.repeat([1.0, -1.0], len(first)).astype(np.float32)


def init(key):
    sizes = (2 * ATTRIBUTES, WIDTH, WIDTH, 1)
    keys = jax.random.split(key, 3)
    return [(jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n)) for k, m, n in zip(keys, sizes, sizes[1:])]


def margin(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return (x @ weight + bias)[:, 0]


@functools.partial(jax.jit, static_argnames=("epochs", "batch"))
def fit(params, x, sign, key, eps, epochs, batch=128):
    """Adam on the objective's loss, a new order of the rows in every epoch."""
    tx = optax.adam(2e-3)
    per_epoch = len(x) // batch

    def step(state, rows):
        params, moments = state
        grads = jax.grad(lambda p: jnp.mean(gram.verdict_loss(sign[rows] * margin(p, x[rows]), eps)))(params)
        updates, moments = tx.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), None

    def epoch(state, key):
        rows = jax.random.permutation(key, len(x))[: per_epoch * batch].reshape(per_epoch, batch)
        return jax.lax.scan(step, state, rows)[0], None

    return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))[0][0]


def run(seed, eps, noise=0.0, count=1500, epochs=150, tests=4000):
    """Train one judge; accuracy and margins on fresh pairs in both orders, and the median margin in training."""
    rng = np.random.default_rng(seed)
    first, second = pairs(rng, count)
    wrong = (rng.random(count) < noise)[:, None]
    x, sign = both_orders(np.where(wrong, second, first), np.where(wrong, first, second))
    keys = jax.random.split(jax.random.key(seed))
    params = fit(init(keys[0]), x, sign, keys[1], eps, epochs)
    seen, _ = both_orders(*pairs(rng, tests))
    one, two = np.split(np.asarray(margin(params, seen), np.float64), 2)
    fresh = (one - two) / 2
    return {
        "accuracy": float(np.mean(fresh > 0)),
        "margin_test": float(np.mean(np.abs(fresh))),
        "margin_train": float(np.median(np.abs(np.asarray(margin(params, x))))),
        "nll": float(np.mean(np.logaddexp(0, -fresh))),
    }


def main() -> None:
    """The table: label noise by eps, means over seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    for noise in (0.0, 0.2):
        for eps in (0.0, 0.05, 0.1):
            found = [run(seed, eps, noise) for seed in range(given.seeds)]
            values = {
                name: [round(float(f([r[name] for r in found])), 4) for f in (np.mean, np.std)] for name in found[0]
            }
            print(json.dumps({"noise": noise, "eps": eps, "seeds": given.seeds, **values}), flush=True)


if __name__ == "__main__":
    main()
