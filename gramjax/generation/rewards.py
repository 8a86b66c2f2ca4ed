"""Rewards while samples are drawn: plug-ins and functions of the user, called group by group, never in the way.

A reward has TRL's signature, `score(prompts, completions, completion_ids, **columns)` with every column of the row as
a list beside the completions, and returns a number or None (not judged) for each. Functions written for TRL, verl
(`compute_score`) and OpenRLHF (`reward_func`) work as they are. A call that raises, hangs or returns nonsense makes its
samples "not judged" and is counted; too many of them end the run with the first error.
"""

import asyncio
import dataclasses
import importlib.util
import inspect
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gramjax.core import config as configs
from gramjax.core.errors import GramjaxError, UserError
from gramjax.core.reinforcement import RewardSection

POLL = 0.05
"""Seconds between two looks at a call that is not done."""

NOT_COLUMNS = ("prompt", "completion", "completions", "messages", "text")

Pairs = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a plug-in may use when it is opened."""

    renderer: Any
    end_ids: tuple[int, ...]
    mesh: Any
    seed: int
    processes: int = 2
    open_reward_model: Callable[..., Any] | None = None
    """(path, tokenizer, max_length, Settings, batch_size) to a `scoring.reward_model.RewardModel`."""
    open_sampler: Callable[..., Any] | None = None
    """(path, tokenizer, max_length) to a `generation.sampler.Sampler`."""


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """What reward functions are told of the training (TRL's `trainer_state`)."""

    global_step: int


@dataclasses.dataclass(frozen=True)
class Function:
    """A reward: `call(prompts, completions, completion_ids, **columns)`."""

    name: str
    weight: float
    call: Callable[..., Any]
    greedy: bool = False
    """It compares with the policy's greedy answer, which it is given as the column `greedy`."""


@dataclasses.dataclass(eq=False)
class Call:
    """One function on one group."""

    function: Function
    arguments: dict[str, Any]
    size: int
    started: float = 0.0
    seconds: float = 0.0
    scores: list[float] | None = None
    error: str = ""
    done: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self) -> None:
        """Call the function and keep what it says, or why it says nothing."""
        self.started = time.perf_counter()
        try:
            found = self.function.call(**self.arguments)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
            self.scores = checked(found, self.size)
        except Exception as error:  # whatever a user's function raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({Path(last.filename).name} line {last.lineno})"
            self.error = f"{type(error).__name__}: {error}{where}"
        self.seconds = time.perf_counter() - self.started
        self.done.set()


async def _awaited(found: Any) -> Any:
    return await found


class Workers:
    """Threads that run calls. They are daemons: a call that never returns does not keep the process."""

    def __init__(self, count: int) -> None:
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """One thread more."""
        threading.Thread(target=self._work, daemon=True, name="reward").start()

    def _work(self) -> None:
        while True:
            self.calls.get().run()


class Rewards:
    """The rewards of a training."""

    def __init__(self, functions: Sequence[Function], section: RewardSection) -> None:
        """Raises UserError for none at all and for two of one name."""
        if not functions:
            raise UserError("no reward: name plug-ins in config.rewards or functions in config.reward.functions")
        self.functions, self.section = tuple(functions), section
        self.names = [function.name for function in functions]
        self.weights = [function.weight for function in functions]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"two rewards have one name: {', '.join(sorted(self.names))}")
        self.greedy = any(function.greedy for function in functions)
        self.workers = Workers(section.threads)
        self._logged: dict[str, list[float]] = {}
        self._seconds: dict[str, list[float]] = {name: [] for name in self.names}
        self._failed: dict[str, list[str]] = {name: [] for name in self.names}
        self._calls = 0

    @classmethod
    def open(
        cls, plug_ins: Mapping[str, tuple[ModuleType, Mapping[str, Any]]], section: RewardSection, resources: Resources
    ) -> "Rewards":
        """The rewards of `config.rewards` (name to module and settings) and of `config.reward.functions`."""
        made = [_plug_in(name, module, values, resources) for name, (module, values) in plug_ins.items()]
        weights = section.function_weights or (1.0,) * len(section.functions)
        if len(weights) != len(section.functions):
            raise UserError(
                f"config.reward.function_weights has {len(weights)} numbers for {len(section.functions)} functions"
            )
        for text, weight in zip(section.functions, weights, strict=True):
            name, function = user_function(text)
            made.append(Function(name, weight, function))
        return cls(made, section)

    def submit(
        self,
        row: Mapping[str, Any],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        step: int,
        greedy: str | None = None,
    ) -> list[Call]:
        """Let every function begin with the completions of one prompt; `result` waits for them."""
        size, chat = len(completions), not isinstance(row["prompt"], str)
        form: Callable[[str], Any] = lambda text: [{"role": "assistant", "content": text}] if chat else text  # noqa: E731
        made = [form(text) for text in completions]
        columns = {k: [v] * size for k, v in row.items() if k not in NOT_COLUMNS}
        columns |= {} if greedy is None else {"greedy": [form(greedy)] * size}
        arguments = {
            **columns, "prompts": [row["prompt"]] * size, "completions": made,
            "completion_ids": [list(ids) for ids in completion_ids], "trainer_state": TrainerState(step),
            "log_metric": self._log, "log_extra": _ignore,
        }  # fmt: skip
        calls = [Call(function, arguments, size) for function in self.functions]
        for call in calls:
            self.workers.calls.put(call)
        return calls

    def result(self, calls: Sequence[Call], poll: Callable[[], None] = lambda: None) -> np.ndarray:
        """The rewards [answers, functions] of a group, NaN where an answer was not judged.

        `poll` is called while it waits (it may raise).
        """
        out = np.full((calls[0].size, len(calls)), np.nan)
        for k, call in enumerate(calls):
            while not call.done.wait(POLL):
                poll()
                if call.started and time.perf_counter() - call.started > self.section.timeout:
                    call.error = f"no answer within config.reward.timeout={self.section.timeout:g} s"
                    self.workers.add()  # in the place of the one that hangs
                    break
            self._calls += 1
            self._seconds[call.function.name].append(call.seconds)
            if call.error or call.scores is None:
                self._failed[call.function.name].append(call.error)
            else:
                out[:, k] = call.scores
        return out

    def check(self) -> None:
        """Raise UserError when more calls failed since `metrics` than `config.reward.max_failures` allows."""
        failed = [(name, error) for name, errors in self._failed.items() for error in errors]
        if failed and len(failed) / max(self._calls, 1) > self.section.max_failures:
            name, error = failed[0]
            raise UserError(
                f"{len(failed)} of {self._calls} calls of rewards failed, more than config.reward.max_failures="
                f"{self.section.max_failures:g}; the first, reward {name}: {error}"
            )

    def metrics(self) -> Pairs:
        """Seconds and failures of each function since the last time, and what the functions logged."""
        out: Pairs = {}
        for name in self.names:
            seconds, failed = self._seconds[name], self._failed[name]
            out[f"time/reward/{name}"] = (sum(seconds), float(max(len(seconds), 1)))
            out[f"rewards/{name}/failed"] = (float(len(failed)), float(max(len(seconds), 1)))
            self._seconds[name], self._failed[name] = [], []
        for name, values in list(self._logged.items()):
            out[name] = (math.fsum(values), float(len(values)))
        self._logged, self._calls = {}, 0
        return out

    def _log(self, name: str, value: float) -> None:
        self._logged.setdefault(name, []).append(float(value))


def _ignore(name: str, values: Any) -> None:
    """`log_extra` of TRL: the table of completions has the rewards themselves."""


def checked(found: Any, size: int) -> list[float]:
    """What a reward returned as floats, NaN for None. Raises ValueError for another length or what is no number."""
    try:
        values = list(found)
    except TypeError:
        raise ValueError(f"returned a {type(found).__name__}; a list of {size} numbers was expected") from None
    if len(values) != size:
        raise ValueError(f"returned {len(values)} rewards for {size} completions")
    out = []
    for number, value in enumerate(values):
        if value is None:
            out.append(math.nan)
            continue
        try:
            out.append(float(value))
        except (TypeError, ValueError):
            raise ValueError(f"reward {number} is {value!r}; a number or None was expected") from None
        if not math.isfinite(out[-1]):
            raise ValueError(f"reward {number} is {value!r}; rewards must be finite (None: not judged)")
    return out


def _plug_in(name: str, module: ModuleType, values: Mapping[str, Any], resources: Resources) -> Function:
    """A plug-in with its settings, opened."""
    config = configs.section(values, module.Config, f"rewards.{name}")
    opened = module.open(config, resources) if hasattr(module, "open") else None

    def call(**arguments: Any) -> Any:
        return module.score(**arguments, config=config, opened=opened)

    greedy = hasattr(module, "needs_greedy") and module.needs_greedy(config)
    return Function(name, config.weight, call, greedy)


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
    spec = importlib.util.spec_from_file_location(f"gramjax_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except GramjaxError:
        raise
    except Exception as error:
        raise UserError(f"config.reward.functions: {path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise UserError(f"config.reward.functions: {path} has no function {name!r} (there are: {', '.join(known)})")
    return name, adapted(function)


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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(str(turn["content"]) for turn in value)


def _gold(columns: Mapping[str, Any], size: int) -> list[Any]:
    return next((columns[name] for name in ("ground_truth", "answer", "solution", "label") if name in columns),
                [None] * size)  # fmt: skip


def _from_verl(function: Callable[..., Any]) -> Callable[..., Any]:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`, called once per completion."""

    def call(completions: Sequence[Any], log_metric: Callable[[str, float], None], **columns: Any) -> list[Any]:
        size, out = len(completions), []
        golds, sources = _gold(columns, size), columns.get("data_source", [""] * size)
        extras = columns.get("extra_info", [{}] * size)
        for completion, gold, source, extra in zip(completions, golds, sources, extras, strict=True):
            found = function(data_source=source, solution_str=_text(completion), ground_truth=gold, extra_info=extra)
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

    def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        texts = [_text(prompt) for prompt in prompts]
        queries = [text + _text(completion) for text, completion in zip(texts, completions, strict=True)]
        found = function(queries=queries, prompts=texts, labels=_gold(columns, len(texts)))
        found = found["rewards"] if isinstance(found, Mapping) else found
        return found.tolist() if hasattr(found, "tolist") else found

    return call
