"""Is a config usable? Names, types and ranges of every setting, looked at together before anything is built.

The types are those of the section dataclasses and of the plug-ins that the config names; the ranges are the tables
below. All problems are reported at once. What needs the model, the data or the devices is checked where they are known.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from gramjax.core import plugins
from gramjax.core.config import GENERAL, SECTIONS, fields
from gramjax.core.errors import UserError

INF = math.inf
ABOVE_0 = math.ulp(0.0)
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "model.step": (0, INF),
    "reference.step": (0, INF),
    "data.limit": (0, INF),
    "data.max_length": (1, 2**31 - 1),
    "data.max_overlong_share": (0, 1),
    "data.max_bad_share": (0, 1),
    "optim.lr": (0, INF),
    "ensemble.penalty": (0, INF),
    "sampling.max_tokens": (0, 2**31 - 1),
    "sampling.temperature": (0, 1e6),
    "sampling.top_k": (0, 2**24),
    "sampling.top_p": (ABOVE_0, 1),
    "sampling.min_p": (0, 1),
    "sampling.repetition_penalty": (ABOVE_0, INF),
    "sampling.n": (1, 2**31 - 1),
    "sampling.num_beams": (1, 1024),
    "sampling.length_penalty": (-10, 10),
    "grpo.prompts_per_step": (1, INF),
    "grpo.group_size": (1, INF),
    "grpo.steps_per_rollout": (1, INF),
    "grpo.iterations": (1, INF),
    "grpo.lag": (0, 1),
    "grpo.advantage_epsilon": (0, INF),
    "grpo.std_floor": (0, INF),
    "grpo.max_resamples": (0, INF),
    "grpo.filter_keep_prob": (0, 1),
    "grpo.offline_fraction": (0, 1),
    "grpo.offline_per_prompt": (0, INF),
    "grpo.offline_gamma": (ABOVE_0, INF),
    "grpo.epsilon": (0, INF),
    "grpo.epsilon_high": (0, INF),
    "grpo.delta": (0, INF),
    "grpo.dual_clip": (0, INF),
    "grpo.ratio_cap": (ABOVE_0, INF),
    "grpo.entropy_target": (0, INF),
    "grpo.entropy_coef_delta": (0, INF),
    "grpo.top_entropy_quantile": (ABOVE_0, 1),
    "grpo.beta": (0, INF),
    "grpo.correction_cap": (ABOVE_0, INF),
    "grpo.correction_floor": (0, INF),
    "grpo.off_policy_mask_threshold": (0, INF),
    "grpo.value_coef": (0, INF),
    "grpo.value_clip": (0, INF),
    "grpo.gae_lambda": (0, 1),
    "grpo.gamma": (ABOVE_0, 1),
    "grpo.completions_every": (0, INF),
    "grpo.completions_shown": (0, INF),
    "reward.timeout": (ABOVE_0, INF),
    "reward.max_failures": (0, 1),
    "reward.threads": (1, INF),
    "reward.processes": (1, INF),
    "reward.relative_length_threshold": (0, 1),
    "reward.relative_length_budget": (ABOVE_0, INF),
    "reward.relative_length_min_spread": (0, INF),
    "generation.slots": (1, INF),
    "generation.steps_per_call": (1, INF),
    "generation.refill_share": (0, 1),
    "generation.prefill_rows": (0, INF),
    "generation.prefill_length": (16, INF),
    "generation.max_length": (0, INF),
    "optim.warmup_ratio": (0, 1),
    "optim.end_lr_ratio": (0, 1),
    "optim.eps": (ABOVE_0, INF),
    "optim.weight_decay": (0, INF),
    "optim.clip_norm": (0, INF),
    "train.epochs": (0, INF),
    "train.steps": (0, 2**31 - 1),
    "train.batch_size": (1, INF),
    "train.grad_accum": (1, INF),
    "train.logit_chunk": (1, INF),
    "train.log_every": (1, INF),
    "train.eval_every": (0, INF),
    "train.save_every": (0, INF),
    "train.keep": (1, INF),
    "train.keep_best": (0, INF),
    "safety.max_bad_steps": (1, INF),
    "safety.watchdog_seconds": (0, INF),
    "safety.watchdog_factor": (1, INF),
    "safety.check_replicas_every": (0, INF),
    "safety.max_crashes": (0, INF),
    "select.count": (0, INF),
    "select.seed": (0, 2**31 - 1),
    "probe.max_tokens": (1, 2**31 - 1),
    "probe.batch_size": (1, INF),
    "lora.rank": (0, 2**20),
    "lora.alpha": (0, INF),
    "lora.dropout": (0, 0.99),
    "mesh.data": (-1, INF),
    "mesh.fsdp": (-1, INF),
    "mesh.tensor": (-1, INF),
    "mesh.context": (-1, INF),
    "mesh.slices": (1, INF),
    "score.batch_size": (1, INF),
    "score.beta": (ABOVE_0, INF),
    "score.chunk": (1, INF),
    "serve.port": (0, 65535),
    "serve.beta": (ABOVE_0, INF),
    "serve.batch_size": (1, INF),
    "serve.max_wait_ms": (0, 60_000),
    "serve.queue": (1, INF),
    "serve.max_items": (1, INF),
    "serve.max_bytes": (1024, INF),
    "serve.stop_seconds": (0, INF),
}
"""Smallest and largest value, both allowed."""

CHOICES: dict[str, tuple[str, ...]] = {
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "xla", "blocked", "cudnn", "splash"),
    "data.overlong": ("drop", "truncate_prompt_left", "shorten_responses", "error"),
    "data.on_bad_row": ("raise", "skip"),
    "data.renderings": ("draw", "all", "first"),
    "optim.schedule": ("cosine", "linear", "constant"),
    "sampling.early_stopping": ("False", "True", "never"),
    "train.remat": ("none", "full", "projections"),
    "train.best_mode": ("max", "min"),
    "safety.on_bad_step": ("skip", "stop"),
    "select.rule": ("", "measured", "lower", "upper", "random"),
    "probe.positions": ("prompt", "last", "completion", "all"),
    "ensemble.combination": ("mean", "worst", "uncertainty", "deviation"),
    **{f"{job}.{name}": words for job in ("score", "serve") for name, words in (
        ("method", ("auto", "judge", "score", "implicit")), ("agg", ("prob", "logit")),
        ("label_space", ("candidates", "full")),
        ("overlong", ("", "drop", "truncate_prompt_left", "shorten_responses", "error")))},
    "serve.method": ("auto", "judge", "score", "implicit", "rationale"),
    "serve.votes": ("votes", "probability"),
}

PLUGINS = {"objective": "objectives", "annotator": "annotators", "selection": "selection/rows", "recipe": "recipes"}
"""Sections whose `name` is a plug-in, and the folder that it stands in (`folder_of`)."""

NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of one setting: its type (an annotation) and its default."""

    kind: Any
    default: Any


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim.lr": 1e-5, ...}` of a nested config or dict, in the order of the config."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        out.update(flatten(value, f"{path}.") if hasattr(value, "items") else {path: value})
    return out


def settings_of(record: type, prefix: str) -> dict[str, Setting]:
    """The settings that a section dataclass declares, nested dataclasses included."""
    hints = typing.get_type_hints(record)
    instance = record()
    out: dict[str, Setting] = {}
    for field in fields(record):
        default = getattr(instance, field.name)
        if dataclasses.is_dataclass(default):
            out.update(settings_of(type(default), f"{prefix}{field.name}."))
        else:
            out[f"{prefix}{field.name}"] = Setting(hints[field.name], default)
    return out


def folder_of(section: str, job: str) -> str:
    """The folder of the plug-in that a section names: the selections of `select_layers` choose layers, not rows."""
    return "selection/layers" if (section, job) == ("selection", "select_layers") else PLUGINS[section]


def settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Every setting that a config with these plug-ins may hold. Raises UserError for a plug-in that does not exist."""
    out = {name: Setting(type(default), default) for name, default in GENERAL.items()}
    for name, record in SECTIONS.items():
        if name in config:
            out.update(settings_of(record, f"{name}."))
    if "arch" in config.get("model", {}):
        out.update(settings_of(plugins.load("models", config["model"]["kind"]).Config, "model.arch."))
    for section in PLUGINS:
        if section in config:
            name = config[section].get("name", "")
            plugin = plugins.load(folder_of(section, config.get("job", "")), name)
            out.update(settings_of(plugin.Config, f"{getattr(plugin, 'SECTION', section)}."))
            out[f"{section}.name"] = Setting(str, name)
    for kind in ("evals", "rewards"):
        for name in config.get(kind, {}):
            out.update(settings_of(plugins.load(kind, name).Config, f"{kind}.{name}."))
    return out


def nearest(path: str, known: Iterable[str]) -> str:
    """The known setting that `path` most likely means, or ""."""
    known = list(known)
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    last = path.rsplit(".", 1)[-1]
    same_name = [other for other in known if other.rsplit(".", 1)[-1] == last]
    return same_name[0] if len(same_name) == 1 else ""


def unknown(path: str, known: Iterable[str], verb: str = "train") -> str:
    """The message for a setting that does not exist."""
    near = nearest(path, known)
    hint = f" — did you mean config.{near}?" if near else ""
    return f"unknown setting config.{path}{hint} (gramjax {verb} --config=… --help lists all)"


def describe(kind: Any) -> str:
    """An annotation in words: `a tuple of 2 numbers`."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if typing.get_origin(kind) is tuple:
        plural = {int: "whole numbers", float: "numbers", str: "texts"}.get(arguments[0], "values")
        return f"a tuple of {plural}" if arguments[-1] is Ellipsis else f"a tuple of {len(arguments)} {plural}"
    return NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def fits(value: Any, kind: Any) -> bool:
    """True if `value` may stand in a setting annotated `kind`; whole numbers may stand for numbers."""
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(fits(value, a) for a in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if not isinstance(value, tuple | list):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(fits(v, a) for v, a in zip(value, arguments))
    return isinstance(value, kind)


def finite(value: Any) -> bool:
    """False for NaN and infinities, alone or in a tuple."""
    values = value if isinstance(value, tuple) else (value,)
    return all(math.isfinite(v) for v in values if isinstance(v, float))


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a plain dict, with the settings that a phase changes."""
    out = dict(config.items())
    for name, value in changes.items():
        both = hasattr(value, "items") and hasattr(out.get(name), "items")
        out[name] = merged(out[name], value) if both else value
    return out


def problems(config: Mapping[str, Any], verb: str = "train") -> list[str]:
    """Everything that is wrong with the names, types and ranges of a config; empty when it is usable.

    Each of `config.phases` is looked at as the config that it makes; a phase with another method leaves the settings
    that the method of the whole adds to a section (the values of ppo in `config.grpo`) alone.
    """
    plain = {name: value for name, value in config.items() if name != "phases"}
    out = problems_of_one(plain, verb)
    whole = {path: found for path, found in settings(plain).items() if path.split(".")[0] in SECTIONS}
    for phase, changes in config.get("phases", {}).items():
        own = flatten(changes)
        found = problems_of_one(merged(plain, changes), verb, {p: s for p, s in whole.items() if p not in own})
        out += [f"phase {phase}: {problem}" for problem in found if problem not in out]
    return out


def problems_of_one(config: Mapping[str, Any], verb: str, beside: Mapping[str, Setting] | None = None) -> list[str]:
    """`problems` of a config without phases, which may hold the settings `beside` its own."""
    known = {**(beside or {}), **settings(config)}
    flat = flatten(config)
    out = [unknown(path, known, verb) for path in flat if path not in known]
    good: dict[str, Any] = {}
    for path, value in flat.items():
        if path not in known:
            continue
        if not fits(value, known[path].kind):
            out.append(f"config.{path} takes {describe(known[path].kind)}, not {value!r:.200}")
        elif not finite(value):
            out.append(f"config.{path} is {value}; give a finite number")
        else:
            good[path] = value
    for path, (low, high) in RANGES.items():
        if path in good and not low <= good[path] <= high:
            smallest = "above 0" if low == ABOVE_0 else f"at least {low}"
            allowed_range = smallest if high == INF else f"from {low} to {high}"
            out.append(f"config.{path} is {good[path]}; it must be {allowed_range}")
    for path, allowed in CHOICES.items():
        if path in good and good[path] not in allowed:
            out.append(f"config.{path} is {good[path]!r}; choose one of {', '.join(allowed)}")
    return out + contradictions(good)


def contradictions(good: Mapping[str, Any]) -> list[str]:
    """Problems of settings that are fine alone. `good` holds the settings that have the right type, by path."""
    out = []
    batch, accumulate = good.get("train.batch_size", 1), good.get("train.grad_accum", 1)
    if accumulate >= 1 and batch >= 1 and batch % accumulate:
        out.append(f"config.train.batch_size {batch} is not a multiple of config.train.grad_accum {accumulate}")
    if good.get("train.steps", 1) == 0 and good.get("train.epochs", 1) == 0:
        out.append("config.train.steps and config.train.epochs are both 0: nothing would be trained")
    if "optim.betas" in good and not all(0 <= b < 1 for b in good["optim.betas"]):
        out.append(f"config.optim.betas is {good['optim.betas']}; both must be at least 0 and below 1")
    axes = ("data", "fsdp", "tensor", "context")
    sizes = {axis: good[f"mesh.{axis}"] for axis in axes if f"mesh.{axis}" in good}
    if 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
        out.append(f"config.mesh is {sizes}; each size must be positive, and one at most -1")
    slices = good.get("mesh.slices", 1)
    if slices > 1 and sizes.get("data", 1) != -1 and sizes.get("data", 1) % slices:
        out.append(f"config.mesh.data is {sizes.get('data', 1)} but spans config.mesh.slices={slices}; give a multiple")
    if "data.verdicts" in good and len(set(good["data.verdicts"])) < 2:
        out.append(f"config.data.verdicts are {good['data.verdicts']}; the two must differ")
    if good.get("lora.rank", 1) == 0:
        plain = {f"lora.{f.name}": f.default for f in dataclasses.fields(SECTIONS["lora"])}
        out += [f"config.{path} is {good[path]!r}, but config.lora.rank is 0: there are no adapters"
                for path, default in plain.items() if path in good and as_tuple(good[path]) != default]  # fmt: skip
    if good.get("model.adapter") and (not good.get("model.path") or good.get("model.random_weights")):
        out.append(f"config.model.adapter is {good['model.adapter']!r}, but it has no weights to belong to: give "
                   "config.model.path, without random_weights")  # fmt: skip
    return out + contradictions_of_best(good) + contradictions_of_beams(good)


def as_tuple(value: Any) -> Any:
    """A list, as JSON has it, as the tuple that it stands for."""
    return tuple(value) if isinstance(value, list) else value


def contradictions_of_best(good: Mapping[str, Any]) -> list[str]:
    """Settings of the best checkpoints that would do nothing: a rule without a number, or a number nobody gives."""
    count, metric = good.get("train.keep_best", 0), good.get("train.best_metric", "")
    if not count:
        unused = [path for path, default in (("train.best_metric", ""), ("train.best_mode", "max"))
                  if good.get(path, default) != default]  # fmt: skip
        return [f"config.{path} is {good[path]!r}, but config.train.keep_best is 0: no best checkpoint is kept"
                for path in unused]  # fmt: skip
    evals = sorted({path.split(".")[1] for path in good if path.startswith("evals.")})
    which = f"config.train.keep_best is {count}, but"
    if not evals or not good.get("train.evaluate", True):
        return [f"{which} nothing is evaluated: give the config evals, and config.train.evaluate=True"]
    if not good.get("train.eval_every", 0):
        return [f"{which} config.train.eval_every is 0: the last step is the only one that is evaluated"]
    prefix, _, rest = metric.partition("/")
    if prefix != "eval" or rest.partition("/")[0] not in evals or not rest.partition("/")[2]:
        found = f"config.train.best_metric is {metric!r}" if metric else "config.train.best_metric is empty"
        return [f"{which} {found}; give a number of an evaluation as metrics.jsonl has it: "
                f"{' or '.join(f'eval/{name}/KEY' for name in evals)}"]  # fmt: skip
    return []


def contradictions_of_beams(good: Mapping[str, Any]) -> list[str]:
    """Settings of drawing beside a beam search, or the other way round: they would be ignored."""
    defaults = {f"{name}.{f.name}": f.default for name in ("sampling", "generation")
                for f in dataclasses.fields(SECTIONS[name])}  # fmt: skip
    plain = {path: as_tuple(value) for path, value in good.items()}
    changed = {path for path in plain if path in defaults and plain[path] != defaults[path]}
    beams = good.get("sampling.num_beams", 1)
    if beams <= 1:
        return [f"config.{path} is {good[path]!r}, which is for a beam search: raise config.sampling.num_beams above 1"
                for path in ("sampling.length_penalty", "sampling.early_stopping") if path in changed]  # fmt: skip
    out, search = [], f"a beam search (config.sampling.num_beams={beams})"
    if good.get("sampling.temperature", 0) > 0:
        out.append(f"{search} draws nothing: give --config.sampling.temperature=0, not {good['sampling.temperature']}")
    if good.get("sampling.n", 1) > beams:
        out.append(f"{search} has no {good['sampling.n']} best hypotheses (config.sampling.n)")
    for path in ("sampling.top_k", "sampling.top_p", "sampling.min_p", "sampling.repetition_penalty", "sampling.stop",
                 "generation.refill_share", "generation.prefill_rows"):  # fmt: skip
        if path in changed:
            hint = "; config.sampling.stop_ids end a hypothesis" if path == "sampling.stop" else ""
            out.append(f"{search} knows no config.{path}{hint}")
    return out


def check(config: Mapping[str, Any], verb: str = "train") -> None:
    """Raise one UserError with every problem of a config; needs no devices."""
    found = problems(config, verb)
    if found:
        count = f"{len(found)} problems: " if len(found) > 1 else ""
        raise UserError(count + "; ".join(found))


def one_of(record: Any, section: str, **known: tuple[str, ...]) -> None:
    """Raise UserError for a field of a plug-in's config that is none of its words: `one_of(config, "x", a=…)`."""
    for name, words in known.items():
        if getattr(record, name) not in words:
            raise UserError(f"config.{section}.{name}={getattr(record, name)!r} is not one of {', '.join(words)}")


def at_least_zero(record: Any, section: str, *names: str) -> None:
    """Raise UserError for a field of a plug-in's config that is negative."""
    for name in names:
        if getattr(record, name) < 0:
            raise UserError(f"config.{section}.{name}={getattr(record, name)} must not be negative")
