"""Nine made-up sequences in three groups with all their log-probabilities, and every loss on them by scalar loops.

The loops share nothing with `core.policy_losses`: no masks, no packing, one token at a time in float64.
"""

import math

import numpy as np

REWARDS = np.array([1, 0, 0, 1, 1, 0, 1, 1, 1], np.float64)
GROUPS = np.arange(9) // 3
LENGTHS = np.array([2, 3, 1, 4, 2, 3, 3, 1, 4])
LIMIT = 4.0
ROWS, SLOTS, LENGTH = 9, 3, 17
"""The shape of every batch: rows, sequences in a row, tokens."""


def numbers(i, t):
    """lp, lp_old, lp_ref, lp_sampler of token t of sequence i."""
    lp = -1 - 0.1 * i - 0.05 * t
    old = lp - 0.25 * ((3 * i + 2 * t + 1) % 5 - 2)
    reference = lp - 0.1 * ((2 * i + t) % 3 - 1)
    return lp, old, reference, old - 0.5 * ((i + t) % 4 - 1.5)


def scaled(rewards=REWARDS, groups=GROUPS, epsilon=1e-6):
    """(R - mean) / (std + epsilon) by group, 0 where the group is equal."""
    out = np.zeros(len(rewards))
    for g in np.unique(groups):
        mine = rewards[groups == g]
        if np.ptp(mine) > 0:
            out[groups == g] = (mine - mine.mean()) / (mine.std(ddof=1) + epsilon)
    return out


def centred():
    """R - mean by group."""
    return np.concatenate([r - r.mean() for r in REWARDS.reshape(3, 3)])


def packed(advantages, dtype=np.float32, filler=np.nan, order=range(9), per_row=3, prompt=2):
    """The batch of these sequences, `per_row` in a row, each behind a prompt; `filler` (one or several numbers)
    wherever nothing was drawn."""
    order = list(order)
    names = ("logprobs", "old_logprobs", "reference_logprobs", "sampler_logprobs", "advantages", "entropies")
    out = {name: np.resize(np.asarray(filler, dtype), (ROWS, LENGTH)) for name in names}
    out |= {"loss_mask": np.zeros((ROWS, LENGTH), np.float32), "segment_ids": np.zeros((ROWS, LENGTH), np.int32)}
    out["index"] = np.full((ROWS, LENGTH), -1)
    for name in ("example_mask", "trained", "counted"):
        out[name] = np.zeros((ROWS, SLOTS), np.float32)
    out["limit"] = np.zeros((ROWS, SLOTS), dtype)
    for row in range(ROWS):
        start = 0
        for n, i in enumerate(order[row * per_row : (row + 1) * per_row]):
            stop = start + prompt + LENGTHS[i]
            out["segment_ids"][row, start:stop] = n + 1
            for name in ("example_mask", "trained", "counted"):
                out[name][row, n] = 1
            out["limit"][row, n] = LIMIT
            for t in range(LENGTHS[i]):
                at = start + prompt + t
                out["loss_mask"][row, at] = 1
                out["index"][row, at] = 10 * i + t
                values = (*numbers(i, t), advantages[i], entropy(i, t))
                for name, value in zip(names, values, strict=True):
                    out[name][row, at] = value
            start = stop
    return out


def slots(values):
    """Numbers of the nine sequences, three in a row and in order, as an array [ROWS, SLOTS]."""
    out = np.zeros((ROWS, SLOTS), np.float32)
    out[:3] = np.reshape(values, (3, 3))
    return out


def entropy(i, t):
    """Made up, no two alike."""
    return 0.5 + 0.37 * ((7 * i + 3 * t) % 11) + 0.01 * i + 0.001 * t


def clip(x, low, high):
    return max(low, min(high, x))


def token_losses(name, i, a, epsilon=0.2, epsilon_high=None, delta=0.0, dual=0.0, cap=5.0):
    """The loss of each token of sequence i, whose advantage is a."""
    high = epsilon if epsilon_high is None else epsilon_high
    lp = [numbers(i, t)[0] for t in range(LENGTHS[i])]
    d = [lp[t] - numbers(i, t)[1] for t in range(LENGTHS[i])]
    mean = sum(d) / len(d)

    def bounded(r):
        free = min(r, delta) if delta else r
        loss = -min(free * a, clip(r, 1 - epsilon, 1 + high) * a)
        return min(loss, -dual * a) if dual and a < 0 else loss

    if name in ("grpo", "bnpo", "dapo", "dr_grpo"):
        return [bounded(math.exp(x)) for x in d]
    if name in ("gspo", "gspo_token", "luspo"):
        return [bounded(math.exp(mean))] * len(d)
    if name == "gmpo":
        s = int(a > 0) - int(a < 0)
        inner = [s * min(s * x, s * clip(x, -epsilon, high)) for x in d]
        return [-a * math.exp(sum(inner) / len(inner))] * len(d)
    if name == "cispo":
        return [-min(math.exp(x), cap) * a * y for x, y in zip(d, lp, strict=True)]
    if name == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return [-4 / tau / (1 + math.exp(-tau * (math.exp(x) - 1))) * a for x in d]
    if name == "vespo":
        w = math.exp(sum(d))
        k, rate = (2, 3) if a >= 0 else (3, 2)
        return [-(math.exp(rate) * w**k * math.exp(-rate * w)) * a * y for y in lp]
    if name == "reinforce":
        return [-a * y for y in lp]
    raise KeyError(name)


def divided(losses, name, trained=None, counted=None):
    """A mean over sequences or tokens of losses per token, as `core.policy_losses.aggregate` names them."""
    trained = [1] * len(losses) if trained is None else trained
    counted = [1] * len(losses) if counted is None else counted
    kept = [x for x, use in zip(losses, trained, strict=True) if use]
    if name == "sequence":
        return sum(sum(x) / len(x) for x in kept) / sum(counted)
    total = sum(sum(x) for x in kept)
    if name == "token":
        return total / sum(len(x) for x, use in zip(losses, counted, strict=True) if use)
    return total / sum(counted) / (LIMIT if name == "constant" else 1)


def distances(kind, i):
    """KL of each token of sequence i from the reference."""
    d = [numbers(i, t)[0] - numbers(i, t)[2] for t in range(LENGTHS[i])]
    return [{"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[kind] for x in d]


def corrections(kind, i, cap=2.0, floor=0.5):
    """The weight of each token of sequence i for the difference between sampler and trainer."""
    w = [math.exp(numbers(i, t)[1] - numbers(i, t)[3]) for t in range(LENGTHS[i])]
    if kind.startswith("sequence"):
        w = [math.prod(w)] * len(w)
    if kind.endswith("truncate"):
        return [min(x, cap) for x in w]
    return [x if x <= cap and (kind != "token_mask" or x >= floor) else 0.0 for x in w]
