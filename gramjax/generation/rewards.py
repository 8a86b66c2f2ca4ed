"""Rewards while samples are drawn: plug-ins and functions of the user, called group by group, never in the way.

A reward has TRL's signature, `score(prompts, completions, completion_ids, **columns)` with every column of the row as
a list beside the completions, and returns a number or None (not judged) for each; functions of the user are read by
`generation.reward_functions`. A call that raises, hangs or returns nonsense makes its samples "not judged" and is
counted; too many of them end the run with the first error.
"""

import asyncio
import dataclasses
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
from gramjax.core.errors import Preempted, UserError
from gramjax.core.reinforcement import RewardSection
from gramjax.generation.reward_functions import user_function

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
    max_tokens: int = 0
    """Most tokens of a completion."""
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
    in_turn: bool = False
    """Its calls run one after the other where they are waited for (without a deadline): it uses several devices, whose
    programs all have to start in one order."""
    judges: bool = True
    """It says what is right and what is wrong; False: it only shapes (lengths, form)."""


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
    extra: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    """Columns for the table of completions, from `log_extra`."""
    done: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self) -> None:
        """Call the function and keep what it says, or why it says nothing."""
        self.started = time.perf_counter()
        try:
            found = self.function.call(**self.arguments)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
            self.scores = checked(found, self.size)
        except Preempted:  # of a model that judges, in the main thread
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({Path(last.filename).name} line {last.lineno})"
            self.error = f"{type(error).__name__}: {error}{where}"
        self.seconds = time.perf_counter() - self.started
        self.done.set()

    def log_extra(self, name: str, values: Sequence[Any]) -> None:
        """A column of the table of completions (TRL's `log_extra`)."""
        if len(values) != self.size:
            raise ValueError(f"log_extra({name!r}) has {len(values)} values for {self.size} completions")
        self.extra[name] = [v if isinstance(v, str | int | float | bool | None) else str(v) for v in values]


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
        self.correct = next((function.name for function in functions if function.judges), self.names[0])
        """The reward that says what is right where `config.reward.correct` names none."""
        self.workers = Workers(section.threads)
        self._logged: dict[str, list[float]] = {}
        self._seconds: dict[str, list[float]] = {name: [] for name in self.names}
        self._failed: dict[str, list[str]] = {name: [] for name in self.names}
        self._submitted = 0

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
        lists = {
            **columns, "prompts": [row["prompt"]] * size, "completions": made,
            "completion_ids": [list(ids) for ids in completion_ids],
        }  # fmt: skip
        beside = {"trainer_state": TrainerState(step), "log_metric": self._log}
        calls = []
        for function in self.functions:
            # Lists of its own: a function that changes one changes nothing for the others.
            call = Call(function, {name: list(values) for name, values in lists.items()} | beside, size)
            call.arguments["log_extra"] = call.log_extra
            calls.append(call)
        self._submitted += 1
        for call in calls:
            if not call.function.in_turn:
                self.workers.calls.put(call)
        return calls

    def result(self, calls: Sequence[Call], poll: Callable[[], None] = lambda: None) -> np.ndarray:
        """The rewards [answers, functions] of a group, NaN where an answer was not judged.

        `poll` is called while it waits (it may raise). Raises UserError once too many calls have failed.
        """
        out = np.full((calls[0].size, len(calls)), np.nan)
        for k, call in enumerate(calls):
            if call.function.in_turn:
                poll()
                call.run()
            while not call.done.wait(POLL):
                poll()
                if call.started and time.perf_counter() - call.started > self.section.timeout:
                    call.error = f"no answer within config.reward.timeout={self.section.timeout:g} s"
                    call.seconds = self.section.timeout
                    self.workers.add()  # in the place of the one that hangs
                    break
            self._seconds[call.function.name].append(call.seconds)
            if call.error or call.scores is None:
                self._failed[call.function.name].append(call.error)
                self.check(self._submitted)  # not only after every other call has hung, too
            else:
                out[:, k] = call.scores
        return out

    def settled(self, calls: Sequence[Call], seconds: float) -> bool:
        """Whether `result` of these calls has little to wait for: all are done, or one is late. Waits that long."""
        until = time.perf_counter() + seconds
        for call in calls:
            while not call.function.in_turn and not call.done.wait(POLL):
                now = time.perf_counter()
                if call.started and now - call.started > self.section.timeout:
                    return True
                if now > until:
                    return False
        return True

    @staticmethod
    def extra(calls: Sequence[Call]) -> list[dict[str, Any]]:
        """What the functions of a group logged beside each answer, by column."""
        columns = {name: values for call in calls for name, values in call.extra.items()}
        return [{name: values[i] for name, values in columns.items()} for i in range(calls[0].size)]

    def check(self, of: int = 0) -> None:
        """Raise UserError when a reward failed in more of its calls since `metrics` than `config.reward.max_failures`
        allows: of those that were waited for, or of `of`."""
        for name, errors in self._failed.items():
            calls = max(of, len(self._seconds[name]))
            if errors and len(errors) / calls > self.section.max_failures:
                raise UserError(
                    f"the reward {name} failed in {len(errors)} of {calls} calls, more than config.reward.max_failures="
                    f"{self.section.max_failures:g}; the first: {errors[0]}"
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
        self._logged, self._submitted = {}, 0
        return out

    def _log(self, name: str, value: float) -> None:
        self._logged.setdefault(name, []).append(float(value))


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
    """A plug-in with its settings, opened.

    Beside `Config` and `score` it may have `open(config, resources)`, whose result it is given as `opened`;
    `needs_greedy(config, opened)`, `in_turn(resources)` and `JUDGES = True` (see Function).
    """
    config = configs.section(values, module.Config, f"rewards.{name}")
    opened = module.open(config, resources) if hasattr(module, "open") else None

    def call(**arguments: Any) -> Any:
        return module.score(**arguments, config=config, opened=opened)

    greedy = hasattr(module, "needs_greedy") and module.needs_greedy(config, opened)
    in_turn = hasattr(module, "in_turn") and module.in_turn(resources)
    return Function(name, config.weight, call, greedy, in_turn, getattr(module, "JUDGES", False))
