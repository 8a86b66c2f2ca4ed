"""Two languages, one skill (check S-8 of SLAM): run it whole with

python tests/objectives/two_languages.py --seeds 5 [--json benchmarks/results/two_languages.json]

English numbers are the tokens 0 to 12, foreign ones a permuted copy with ids of its own. A model of four layers learns
in English only: `BOS a b SUM` is answered by the question again and its sum modulo 13, `a b c`, as solutions in words
begin, and `BOS a b SAY` by `a b END`. Then it is tuned on translation pairs alone, foreign numbers that `SAY` answers
in English, and asked for foreign sums, which it never saw. An answer is right when all of it is. The lowest layer
attends to its own token only (a window of 1), so that words are read before they are combined; without that a frozen
layer combines them by their raw embeddings, and no change of an MLP comes early enough.
Compared at the same pairs and steps: up and down of the lowest layers, everything, LoRA, the uppermost layer, attention
of the lowest two; all at each of three learning rates (the paper's scripts tune a part at the rate of full tuning), and
each at its own, the smallest of those that translate held-out pairs best with a seed that is not reported.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import layer_selection, spec, tree
from gramjax.core.config import LoraSection, OptimSection, SelectSection
from gramjax.models import decoder, heads, lora, model
from gramjax.objectives import cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

NUMBERS = 13
SUM, SAY, BOS, END = range(2 * NUMBERS, 2 * NUMBERS + 4)
LENGTH, AT = 7, 3  # BOS a b TASK a b c; the first answer is read at the task
ARCH = decoder.Config(
    vocab_size=32, hidden_size=64, intermediate_size=256, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16,
    tie_word_embeddings=False, init_scale=0.08, sliding_window=1, full_layers=(1, 2, 3),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Method:
    """What trains on the pairs."""

    select: SelectSection = SelectSection()
    rank: int = 0


METHODS = {
    "selective": Method(SelectSection(layers=(0,))),
    "selective_two": Method(SelectSection(layers=(0, 1))),
    "full": Method(),
    "lora": Method(rank=8),
    "upper": Method(SelectSection(layers=(3,))),
    "attention": Method(SelectSection(layers=(0, 1), targets=("attn",))),
}
RATES = (1e-4, 3e-4, 1e-3)


def rows(a, b, task, foreign=None):
    """Batches of whole sequences; `foreign` says how numbers are called before the task."""
    called = np.arange(NUMBERS) if foreign is None else foreign
    tokens = np.zeros((len(a), LENGTH), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2], tokens[:, AT] = BOS, called[a], called[b], task
    tokens[:, 4], tokens[:, 5], tokens[:, 6] = a, b, np.where(task == SAY, END, (a + b) % NUMBERS)
    mask = np.tile((np.arange(LENGTH) >= AT) & (np.arange(LENGTH) < LENGTH - 1), (len(a), 1)).astype(np.float32)
    shown = np.tile(np.arange(LENGTH, dtype=np.int32), (len(a), 1))
    return {"tokens": tokens, "labels": np.roll(tokens, -1, 1), "loss_mask": mask,
            "segment_ids": np.ones_like(tokens), "positions": shown}  # fmt: skip


def handle_of(rank=0):
    arch = dataclasses.replace(ARCH, lora=LoraSection(rank=rank))
    return model.build("decoder", arch, compute_dtype="float32", attention="xla")


@functools.lru_cache
def trainer(method, steps):
    """`(params, batches [steps, rows, ...], learning rate) -> params`, compiled once a method."""
    handle = handle_of(method.rank)
    paths = list(tree.flatten(handle.specs(), is_leaf=spec.is_spec))
    labels = setup.trained(paths, (r".*",), None, layer_selection.patterns(method.select, handle.config))
    if method.rank:
        labels = {path: tree.TRAIN if lora.is_rank_leaf(path) else tree.FREEZE for path in paths}
    loss = lambda m, w, b: cross_entropy.loss(m, w, b, cross_entropy.Config())  # noqa: E731

    @jax.jit
    def run(params, batches, rate):
        optim = OptimSection(lr=rate, warmup_ratio=0.05)
        tx = optimizer.build(optim, labels, steps)
        step = make_step(handle, loss, tx, labels, optimizer.schedule(optim, steps))
        state = {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)}
        return jax.lax.scan(lambda s, b: (step(s, b)[0], None), state, batches)[0]["params"]

    return run


@functools.partial(jax.jit, static_argnames="rank")
def right(params, batch, rank=0):
    """Whether each scored place of each row is predicted, and which are scored."""
    handle = handle_of(rank)
    weights = handle.pack(params)
    found = jnp.argmax(heads.logits(weights, handle.forward(weights, batch).hidden), axis=-1)
    return (found == batch["labels"]) | (batch["loss_mask"] == 0)


def accuracy(params, batch, rank=0):
    return float(np.mean(np.all(np.asarray(right(params, batch, rank)), axis=1)))


def drawn(rng, pairs, task, steps, size, foreign=None):
    """Batches [steps, size, ...] of pairs drawn with replacement."""
    a, b = pairs[rng.integers(0, len(pairs), steps * size)].T
    tasks = rng.choice(task, steps * size)
    return {k: x.reshape(steps, size, *x.shape[1:]) for k, x in rows(a, b, tasks, foreign).items()}


@dataclasses.dataclass(frozen=True)
class World:
    """A seed's permutation, its split of pairs, and the model that knows English."""

    foreign: Any
    learned: Any
    held_out: Any
    params: Any


def prepare(seed, steps=1000, size=128):
    rng = np.random.default_rng(seed)
    foreign = NUMBERS + rng.permutation(NUMBERS)
    every = np.array([(a, b) for a in range(NUMBERS) for b in range(NUMBERS)])
    rng.shuffle(every)
    params = spec.init_params(handle_of().specs(), jax.random.key(seed))
    params = trainer(Method(), steps)(params, drawn(rng, every, (SUM, SAY), steps, size), 3e-3)
    return World(foreign, every[: len(every) * 4 // 5], every[len(every) * 4 // 5 :], params)


def measured(world, params, rank=0):
    """Shares of right answers: foreign and English sums, English repeating, held-out translations."""
    a, b = np.concatenate([world.learned, world.held_out]).T
    held = world.held_out.T
    task = lambda which, n: np.full(n, which)  # noqa: E731
    return {
        "foreign": accuracy(params, rows(a, b, task(SUM, len(a)), world.foreign), rank),
        "english": accuracy(params, rows(a, b, task(SUM, len(a))), rank),
        "repeat": accuracy(params, rows(a, b, task(SAY, len(a))), rank),
        "translation": accuracy(params, rows(*held, task(SAY, len(held[0])), world.foreign), rank),
    }


def tuned(world, name, rate, steps=300, size=64, seed=0):
    """What a method makes of the world's model."""
    method, params = METHODS[name], world.params
    if method.rank:
        fresh = spec.init_params(handle_of(method.rank).specs(), jax.random.key(seed + 1))
        params = tree.unflatten(tree.flatten(fresh) | tree.flatten(params))
    batches = drawn(np.random.default_rng(seed), world.learned, (SAY,), steps, size, world.foreign)
    return measured(world, trainer(method, steps)(params, batches, rate), method.rank)


def main() -> None:
    """The whole check: a line per seed, then mean and standard deviation by rate, and who loses how much English."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, by commas; `full` is needed")
    parser.add_argument(
        "--rates", default="", help="these for all, without the trial; default: three, and each its own"
    )
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    steps, names, own = args.steps, args.only.split(","), {}
    rates = [float(rate) for rate in args.rates.split(",") if rate] or RATES
    trial = None if args.rates else prepare(100)
    for name in names if trial else ():
        tried = {rate: tuned(trial, name, rate, steps, seed=100) for rate in RATES}
        own[name] = max(RATES, key=lambda rate: tried[rate]["translation"])
        print(json.dumps({"rate": own[name], "method": name, "tried": tried}), flush=True)
    before, found = [], {}
    for seed in range(args.seeds):
        world = prepare(seed)
        before.append(measured(world, world.params))
        print(json.dumps({"seed": seed, "before": before[-1]}), flush=True)
        for name in names:
            for rate in rates:
                found.setdefault((name, rate), []).append(tuned(world, name, rate, steps, seed=seed))
                print(json.dumps({"seed": seed, "method": name, "rate": rate} | found[name, rate][-1]), flush=True)
    pairings = {f"all at {rate:g}": dict.fromkeys(names, rate) for rate in rates}
    pairings |= {"each at its own": own} if own else {}
    results = {
        "command": f"python tests/objectives/two_languages.py --seeds {args.seeds} --only {args.only}"
        + (f" --rates {args.rates}" if args.rates else ""),
        "before": summary(before), "own_rates": own,
        "table": [{"method": name, "rate": rate} | summary(values) for (name, rate), values in found.items()],
        "full_tuning_loses_more_english": {
            called: {name: more_lost(before, found["full", by_name["full"]], found[name, by_name[name]])
                     for name in names if name != "full"}
            for called, by_name in pairings.items()},
        "seeds": [{"method": name, "rate": rate, "by_seed": values} for (name, rate), values in found.items()],
    }  # fmt: skip
    print(json.dumps({name: results[name] for name in ("before", "full_tuning_loses_more_english")}))
    for row in results["table"]:
        print(json.dumps(row))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def summary(values):
    """Mean and standard deviation in percent."""
    table = {key: np.array([value[key] for value in values]) for key in values[0]}
    return {key: [round(100 * float(f(x)), 1) for f in (np.mean, np.std)] for key, x in table.items()}


def more_lost(before, full, other):
    """In how many seeds full tuning loses more of the English sums than the other, and what each loses (points)."""
    lost = [[100 * (b["english"] - a["english"]) for b, a in zip(before, values)] for values in (full, other)]
    return {"seeds": sum(x > y for x, y in zip(*lost)), "full": [round(x, 1) for x in lost[0]],
            "other": [round(x, 1) for x in lost[1]]}  # fmt: skip


if __name__ == "__main__":
    main()
