"""A world in which every preference follows one of four hidden criteria (check S4 of LRHP): run it whole with

python tests/objectives/criteria_world.py --seeds 5

A response has 8 Gaussian attributes; the annotator of a pair prefers the larger attribute k, one of the first four, and
the prompt hints at k, rightly with probability 0.9 + 0.1/4. An encoder MLP [hint, a1, a2] -> 64 -> 64 learns loss (6)
on pairs in both orders and is never told k. Then 600 of 6,000 pairs are selected for 64 pairs of one criterion, a
linear Bradley-Terry model is fitted to them, and a ridge head on the frozen representations predicts margins.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gramjax.core import margins, representations
from gramjax.objectives import preference_representation as lrhp
from gramjax.selection.rows import preference_similarity as similarity

CRITERIA, ATTRIBUTES, WIDTH = 4, 8, 64
POOL, TARGET, SELECTED, TEST = 6000, 64, 600, 2000


def pairs(rng, count, criterion=None):
    """Hints (one-hot), chosen and rejected attributes, criteria and margins."""
    k = rng.integers(0, CRITERIA, count) if criterion is None else np.full(count, criterion)
    hinted = np.where(rng.random(count) < 0.9, k, rng.integers(0, CRITERIA, count))
    one, two = rng.normal(size=(2, count, ATTRIBUTES))
    difference = (one - two)[np.arange(count), k]
    better = (difference > 0)[:, None]
    return np.eye(CRITERIA)[hinted], np.where(better, one, two), np.where(better, two, one), k, np.abs(difference)


def inputs(hint, first, second):
    return np.concatenate([hint, first, second], axis=1).astype(np.float32)


def encoder(params, x):
    """Representations h [B, 64]."""
    for layer in ("one", "two"):
        x = jax.nn.relu(x @ params[layer] + params[f"{layer}_bias"])
    return x


def fresh(seed):
    sizes = {"one": (CRITERIA + 2 * ATTRIBUTES, WIDTH), "two": (WIDTH, WIDTH)}
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    params = {name: jax.random.normal(next(keys), size) * (2 / size[0]) ** 0.5 for name, size in sizes.items()}
    params |= {f"{name}_bias": jnp.zeros(size[1]) for name, size in sizes.items()}
    return params | {"order": jax.random.normal(next(keys), (WIDTH,)) / WIDTH**0.5}


@functools.partial(jax.jit, static_argnames=("epochs", "batch"))
def fit(params, x, sign, key, eps, epochs=20, batch=128):
    """Adam at 2e-3 on the order loss of the objective; `sign` is 2t - 1."""
    tx = optax.adam(2e-3)

    def loss(params, rows):
        u = encoder(params, x[rows]) @ params["order"]
        return jnp.mean(lrhp.order_loss(sign[rows] * u, eps))

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    steps = len(x) // batch
    order = jax.vmap(lambda k: jax.random.permutation(k, len(x))[: steps * batch])(jax.random.split(key, epochs))
    return jax.lax.scan(step, (params, tx.init(params)), order.reshape(epochs * steps, batch))[0][0]


def reward_accuracy(chosen, rejected, test):
    """Accuracy on test pairs of a linear Bradley-Terry model of the attributes (Newton's method, a little ridge)."""
    x, w = chosen - rejected, np.zeros(ATTRIBUTES)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-2 * np.eye(ATTRIBUTES)
        w = w + np.linalg.solve(hessian, x.T @ (1 - p) - 1e-2 * w)
    return float(np.mean((test[1] - test[2]) @ w > 0))


def run(seed, epochs=20, criteria=range(CRITERIA)):
    """Every quantity of the table for one seed, averaged over the criteria."""
    rng = np.random.default_rng(seed)
    hint, chosen, rejected, k, margin = pairs(rng, POOL)
    x = np.concatenate([inputs(hint, chosen, rejected), inputs(hint, rejected, chosen)])
    sign = np.repeat([1.0, -1.0], POOL).astype(np.float32)
    untrained = fresh(seed)
    params = fit(untrained, x, sign, jax.random.key(seed), 0.1, epochs)
    embed = jax.jit(encoder)

    test_hint, better, worse, test_k, test_margin = pairs(rng, TEST)
    h_first = np.asarray(embed(params, inputs(test_hint, better, worse)))
    h_second = np.asarray(embed(params, inputs(test_hint, worse, better)))
    w = np.asarray(params["order"])
    first, second = h_first @ w, h_second @ w
    out = {
        "order_accuracy": float(np.mean(first - second > 0)),
        "order_correlation": margins.order_correlation(first, second),
    }
    h = np.asarray(embed(params, x[:POOL]))
    out["effective_rank"] = representations.effective_rank(h)
    out["criterion_probe"] = representations.probe_accuracy(h[:2000], [str(i) for i in k[:2000]])
    line = representations.ridge(h, margin, 1.0)
    out["margin_ridge"] = margins.spearman(line(h_first), test_margin)
    out["margin_logit"] = margins.spearman(np.abs(first - second) / 2, test_margin)

    found: dict[str, list[float]] = {}
    for criterion in criteria:
        target = pairs(rng, TARGET, criterion)
        asked = pairs(rng, TEST, criterion)
        t = np.asarray(embed(params, inputs(*target[:3])))
        raw_t = np.asarray(embed(untrained, inputs(*target[:3])))
        settings = {name: similarity.Config(most=SELECTED, **more) for name, more in {
            "centroid": {"scoring": "centroid"}, "neighbours": {}, "deflated": {"deflate": True},
            "diverse": {"mode": "diverse", "diversity": 0.3}, "mahalanobis": {"distance": "mahalanobis"},
        }.items()}  # fmt: skip
        kept = {name: similarity.choose(h, t, c, w if c.deflate else None)[1] for name, c in settings.items()}
        plain = settings["neighbours"]
        kept["difference"] = similarity.choose(chosen - rejected, target[1] - target[2], plain)[1]
        kept["untrained"] = similarity.choose(np.asarray(embed(untrained, x[:POOL])), raw_t, plain)[1]
        kept["random"] = rng.permutation(POOL)[:SELECTED]
        adaptive = similarity.choose(h, t, similarity.Config(mode="adaptive"))[1]
        for name, rows in kept.items():
            found.setdefault(f"precision_{name}", []).append(float(np.mean(k[rows] == criterion)))
        found.setdefault("adaptive_kept", []).append(len(adaptive))
        found.setdefault("precision_adaptive", []).append(float(np.mean(k[adaptive] == criterion)))
        found.setdefault("recall_adaptive", []).append(float(np.sum(k[adaptive] == criterion) / np.sum(k == criterion)))
        for name in ("centroid", "neighbours", "difference", "random"):
            rows = kept[name]
            found.setdefault(f"reward_{name}", []).append(reward_accuracy(chosen[rows], rejected[rows], asked))
        found.setdefault("reward_all", []).append(reward_accuracy(chosen, rejected, asked))
        found.setdefault("reward_target", []).append(reward_accuracy(target[1], target[2], asked))
    return out | {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """The whole check: mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    results = [run(seed) for seed in range(parser.parse_args().seeds)]
    for name in results[0]:
        values = np.array([result[name] for result in results])
        print(json.dumps({name: round(float(values.mean()), 3), "sd": round(float(values.std()), 3)}), flush=True)


if __name__ == "__main__":
    main()
