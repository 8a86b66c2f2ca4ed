"""Reward functions of the user: loaded from a file, and brought to TRL's signature where they were written for others.

Known by the names of their parameters: TRL's `f(prompts, completions, **columns)`, verl's `compute_score(data_source,
solution_str, ground_truth, extra_info)` and OpenRLHF's `reward_func(queries, prompts, labels)`; each may be `async`.
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gramjax.core.errors import GramjaxError, UserError


def user_function(text: str) -> tuple[str, Callable[..., Any]]:
    """The function `FILE.py:NAME` with TRL's signature, and its name.

    A function for verl or OpenRLHF is known by the names of its parameters. Raises UserError for a file or a function
    that is not there, and for a file that cannot be run.
    """
    file, _, name = text.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name or path.suffix != ".py":
        raise UserError(f"config.reward.functions: {text!r} is not of the form FILE.py:NAME")
    if not path.is_file():
        raise UserError(f"config.reward.functions: {path} does not exist (looked from {Path.cwd()})")
    module = _loaded(path.resolve(), path.stat().st_mtime_ns)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise UserError(f"config.reward.functions: {path} has no function {name!r} (there are: {', '.join(known)})")
    return name, adapted(function)


@functools.cache
def _loaded(path: Path, changed: int) -> ModuleType:
    """The module of a file, run once however many functions of it are named."""
    name = f"gramjax_reward_{path.stem}_{abs(hash((path, changed))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except GramjaxError:
        raise
    except Exception as error:
        raise UserError(f"config.reward.functions: {path}: {type(error).__name__}: {error}") from error
    return module


def adapted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function behind TRL's signature; arguments that it has no place for are left out."""
    parameters = inspect.signature(function).parameters
    if {"solution_str", "ground_truth"} <= parameters.keys():
        return _from_verl(function)
    if {"queries", "labels"} <= parameters.keys():
        return _from_openrlhf(function)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function

    def call(**arguments: Any) -> Any:
        return function(**{name: value for name, value in arguments.items() if name in parameters})

    return call


def text_of(value: Any) -> str:
    """A prompt or completion as one text."""
    return value if isinstance(value, str) else "".join(str(turn["content"]) for turn in value)


def _gold(columns: Mapping[str, Any], size: int) -> list[Any]:
    """The right answers, as data for these libraries name them."""
    if "reward_model" in columns:  # verl's rows
        return [value.get("ground_truth") if isinstance(value, Mapping) else None for value in columns["reward_model"]]
    return next((columns[name] for name in ("ground_truth", "answer", "solution", "label") if name in columns),
                [None] * size)  # fmt: skip


def _from_verl(function: Callable[..., Any]) -> Callable[..., Any]:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`, called once per completion."""
    parameters = inspect.signature(function).parameters
    named = not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    async def call(completions: Sequence[Any], log_metric: Callable[[str, float], None], **columns: Any) -> list[Any]:
        size, out = len(completions), []
        golds, sources = _gold(columns, size), columns.get("data_source", [""] * size)
        extras = columns.get("extra_info", [{}] * size)
        for completion, gold, source, extra in zip(completions, golds, sources, extras, strict=True):
            given = {"data_source": source, "solution_str": text_of(completion), "ground_truth": gold,
                     "extra_info": extra}  # fmt: skip
            found = function(**{name: value for name, value in given.items() if not named or name in parameters})
            found = await found if inspect.isawaitable(found) else found
            if isinstance(found, Mapping):
                for name, value in found.items():
                    if name != "score" and isinstance(value, int | float):
                        log_metric(name, value)
                found = found["score"]
            out.append(found)
        return out

    return call


def _from_openrlhf(function: Callable[..., Any]) -> Callable[..., Any]:
    """OpenRLHF's `reward_func(queries, prompts, labels)`: queries are prompts with their completions."""

    async def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        texts = [text_of(prompt) for prompt in prompts]
        queries = [text + text_of(completion) for text, completion in zip(texts, completions, strict=True)]
        found = function(queries=queries, prompts=texts, labels=_gold(columns, len(texts)))
        found = await found if inspect.isawaitable(found) else found
        if isinstance(found, Mapping):
            for name, values in (found.get("extra_logs") or {}).items():
                for value in _plain(values):
                    columns["log_metric"](name, value)
            found = found["rewards"]
        return _plain(found)

    return call


def _plain(values: Any) -> Any:
    """A tensor as a list."""
    return values.tolist() if hasattr(values, "tolist") else values
