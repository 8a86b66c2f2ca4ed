"""The update: schedule, clipping, AdamW, all inside the trained partition."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from gramjax.core import tree
from gramjax.core.config import OptimSection
from gramjax.core.errors import UserError


def schedule(section: OptimSection, total_steps: int) -> optax.Schedule:
    """Learning rate by optimiser step: linear warm-up, then `cosine`, `linear` or `constant`."""
    warmup = min(int(round(section.warmup_ratio * total_steps)), max(total_steps - 1, 0))
    rest, end = max(total_steps - warmup, 1), section.lr * section.end_lr_ratio
    if section.schedule == "cosine":
        decay = optax.cosine_decay_schedule(section.lr, rest, section.end_lr_ratio)
    elif section.schedule == "linear":
        decay = optax.linear_schedule(section.lr, end, rest)
    elif section.schedule == "constant":
        decay = optax.constant_schedule(section.lr)
    else:
        raise UserError(f"config.optim.schedule={section.schedule!r} is not one of cosine, linear, constant")
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, section.lr, warmup), decay], [warmup])


def build(section: OptimSection, labels: Mapping[str, str], total_steps: int) -> optax.GradientTransformation:
    """AdamW on the parameters labelled `train`; the others have no state, no clipping share and no decay."""
    if section.name != "adamw":
        raise UserError(f"config.optim.name={section.name!r} is not known (there is: adamw)")

    def decayed(params: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: not any(re.fullmatch(p, _path(path)) for p in section.no_decay), params
        )

    parts = [
        optax.scale_by_adam(b1=section.betas[0], b2=section.betas[1], eps=section.eps),
        optax.add_decayed_weights(section.weight_decay, mask=decayed) if section.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule(section, total_steps)),
    ]
    if section.lr_factors:
        parts.insert(2, scale_by_path(lr_factors(section.lr_factors, labels)))
    if section.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(section.clip_norm))
    label_tree = tree.unflatten(dict(labels))
    return optax.partition({tree.TRAIN: optax.chain(*parts), tree.FREEZE: optax.set_to_zero()}, label_tree)


def lr_factors(given: Sequence[str], labels: Mapping[str, str]) -> dict[str, float]:
    """The factor of every trained parameter that has one.

    Raises UserError for an entry that is not `pattern:factor`, and for a pattern that no trained parameter needs.
    """
    where, out = "config.optim.lr_factors", dict[str, float]()
    for entry in given:
        pattern, colon, text = entry.rpartition(":")
        try:
            factor, compiled = float(text), re.compile(pattern)
        except (ValueError, re.error):
            raise UserError(f"{where}: {entry!r} is not of the form 'pattern:factor'") from None
        if not colon or not 0 <= factor < float("inf"):
            raise UserError(f"{where}: {entry!r} is not of the form 'pattern:factor', with a factor of 0 or more")
        hits = [path for path, label in labels.items() if label == tree.TRAIN and compiled.fullmatch(path)]
        if not (new := [path for path in hits if path not in out]):
            why = "an earlier pattern has all that it matches" if hits else "it matches no parameter that trains"
            raise UserError(f"{where}: {entry!r}: {why}")
        out.update(dict.fromkeys(new, factor))
    return out


def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the factors of their paths."""

    def scaled(updates: Any, params: Any = None) -> Any:
        return jax.tree.map_with_path(lambda path, leaf: leaf * factors.get(_path(path), 1.0), updates)

    return optax.stateless(scaled)


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
