"""From a score of each layer to the layers that are chosen.

Layers at both ends of a language model are specific to languages: the lower ones understand, the upper ones choose the
words of the output. SLAM wants the lower ones only, so the rules that it uses (`prefix_*`, `window`) look at that side.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from gramjax.core.errors import UserError

RULES = ("prefix_topk", "prefix_threshold", "topk", "window", "explicit", "random")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How layers are chosen."""

    name: str = "prefix_topk"
    """One of `RULES`."""
    k: int = 6
    """Layers of `prefix_topk`, `topk`, `window` and `random`."""
    kappa: float = 4.0
    """`prefix_threshold`: deviations of the middle layers by which a layer must stand above their mean."""
    layers: tuple[int, ...] = ()
    """Those of `explicit`."""
    seed: int = 0
    """Of `random`."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen layers, rising."""

    layers: tuple[int, ...]
    rule: str
    """In words: `prefix_topk(k=6)`."""
    warnings: tuple[str, ...] = ()


def choose(scores: Sequence[float], rule: Rule, where: str = "config.selection") -> Choice:
    """Layers by a rule. Raises UserError, naming settings below `where`, for one that cannot be followed."""
    values, total = np.asarray(scores, float), len(scores)
    if rule.name not in RULES:
        raise UserError(f"{where}.rule={rule.name!r} is not one of {', '.join(RULES)}")
    if rule.name == "explicit":
        return Choice(explicit(rule.layers, total, where), "explicit")
    if rule.name == "prefix_threshold":
        return prefix_threshold(values, rule.kappa)
    most = total // 2 if rule.name == "window" else total
    if not 0 < rule.k <= most:
        side = " in the lower half" if rule.name == "window" else ""
        raise UserError(f"{where}.k={rule.k}: 1 to {most} of {total} layers can be chosen{side}")
    named = f"{rule.name}(k={rule.k})"
    if rule.name == "prefix_topk":
        return Choice(tuple(range(rule.k)), named, prefix_warnings(values, rule.k))
    if rule.name == "topk":
        return Choice(tuple(sorted(np.argsort(-values, kind="stable")[: rule.k].tolist())), named)
    if rule.name == "window":
        return Choice(window(values[:most], rule.k), named)
    return Choice(drawn(rule.k, total, rule.seed), f"random(k={rule.k}, seed={rule.seed})")


def middle(total: int) -> range:
    """The middle third of the layers."""
    return range(total // 3, max(total - total // 3, total // 3 + 1))


def prefix_warnings(scores: np.ndarray, k: int) -> tuple[str, ...]:
    """What speaks against the k lowest layers: they do not stand above the middle third (what of it is above them, or
    all layers above them where nothing is)."""
    total = len(scores)
    rest = [layer for layer in middle(total) if layer >= k] or list(range(k, total))
    if not rest:
        return (f"all {total} layers are chosen: nothing is left to compare them with",)
    low, mid = float(scores[:k].mean()), float(scores[rest].mean())
    if low > mid:
        return ()
    return (
        f"the {k} lowest layers do not stand out: their mean score {low:.4g} is not above that of layers "
        f"{rest[0]} to {rest[-1]}, {mid:.4g}",
    )


def prefix_threshold(scores: np.ndarray, kappa: float) -> Choice:
    """The longest prefix whose every score is above the mean of the middle third by `kappa` deviations of it."""
    mid = scores[list(middle(len(scores)))]
    bar = mid.mean() + kappa * mid.std()
    above = scores > bar
    length = len(scores) if above.all() else int(np.argmin(above))
    named = f"prefix_threshold(kappa={kappa:g})"
    if length:
        return Choice(tuple(range(length)), named)
    return Choice((), named, (f"no layer is chosen: the score of layer 0, {scores[0]:.4g}, is not above {bar:.4g}",))


def window(scores: np.ndarray, k: int) -> tuple[int, ...]:
    """The k neighbouring layers with the largest sum, the lower ones of equals."""
    sums = np.convolve(scores, np.ones(k), "valid")
    start = int(np.argmax(sums))
    return tuple(range(start, start + k))


def explicit(layers: Sequence[int], total: int, where: str) -> tuple[int, ...]:
    """The given layers. Raises UserError for none and for one that does not exist."""
    if not layers:
        raise UserError(f"{where}.layers is empty, but the rule is explicit")
    if outside := [layer for layer in layers if not 0 <= layer < total]:
        raise UserError(f"{where}.layers: layer {outside[0]} does not exist; the model has layers 0 to {total - 1}")
    return tuple(sorted(set(layers)))


def drawn(k: int, total: int, seed: int) -> tuple[int, ...]:
    """k layers, drawn without replacement."""
    return tuple(sorted(random.Random(f"layers/{seed}").sample(range(total), k)))
