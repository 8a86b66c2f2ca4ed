"""The one training loop. Its order is a contract: check the state, evaluate it, save it, take a batch, step, log."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from gramjax.core import progress, runtime
from gramjax.core.errors import GramjaxError, Preempted
from gramjax.training.bad_steps import BadSteps
from gramjax.training.step import BAD_STEPS, State, extreme


class Source(Protocol):
    """Where batches come from: rows (`data.pipeline`) or rollouts, which look at the parameters."""

    def next(self, params: Any = None) -> dict[str, np.ndarray]:
        """The next batch of this process."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue with the very next batch."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""

    def metrics(self) -> dict[str, tuple[float, float]]:
        """What the source has to say of the batch that it gave last, as (total, weight) pairs."""

    def names(self, index: int) -> list[str]:
        """The rows of a batch, counted from 0, in all processes together; empty when it is not known any more."""


class Writer(Protocol):
    """Where numbers go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at an optimiser step."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in optimiser steps; 0 means never (a save at the end is always made)."""

    total_steps: int
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    check_every: int = 0
    """Steps between looks at the copies of the state (`training.replicas`)."""
    stop_when_bad: bool = False
    """End at the first bad step."""
    max_bad_steps: int = 3
    """End after so many bad steps in a row."""
    shares: int = 0
    """Parts of a batch that processes give (`sharding.share_of_rows`); 0: as many as processes."""


def run(
    state: State,
    step_function: Callable[[State, Any], tuple[State, Any]],
    source: Source,
    put: Callable[[dict[str, np.ndarray]], Any],
    writer: Writer,
    plan: Plan,
    start_step: int = 0,
    num_tokens: int = 0,
    evaluate: Callable[[int, State], bool] | None = None,
    save: Callable[[int, State, dict[str, Any]], None] | None = None,
    epoch_of: Callable[[int], float] = lambda step: 0.0,
    stop: Callable[[], bool] = lambda: False,
    evaluated: bool = True,
    check: Callable[[int, State], None] | None = None,
) -> State:
    """Train from `start_step` to `plan.total_steps` and return the last state.

    `put` places a host batch on the devices. Metrics of a step are fetched after the next step has been dispatched,
    so that the host never stalls the devices. Raises NotFinite when steps are bad (`training.bad_steps`), and
    Preempted when `stop` (after the step at hand), an evaluation or the source says so, with the state saved.
    `evaluate` says whether the state is one to keep: then it is saved, whatever `save_every` is. `evaluated` says
    whether the state of `start_step` was (an evaluation that was broken off is made again); `save` is given it for its
    step, with the state of the source. `check` raises when the state cannot be trusted.
    """
    waiting: list[tuple[int, Any]] = []
    meter = Meter(num_tokens, plan.shares or jax.process_count())
    bad = BadSteps(plan.stop_when_bad, plan.max_bad_steps, source.names)
    evaluated_at, saved_at = (start_step if evaluated else -1), start_step

    def keep(step: int) -> None:
        """Save the state of a step, unless it is saved."""
        nonlocal saved_at
        if save is not None and step != saved_at:
            progress.begins("a checkpoint", slow=True)
            data = {"source": source.state(), "num_tokens": meter.num_tokens, "evaluated": step == evaluated_at}
            save(step, state, data)
            saved_at = step

    def flush(last: int) -> None:
        """Log the mean over the good steps up to `last` that wait to be logged, and how many were bad."""
        due = [item for item in waiting if item[0] <= last]
        if due:
            waiting[:] = [item for item in waiting if item[0] > last]
            fetched = jax.device_get([metrics for _, metrics in due])
            good = bad.good([(step, metrics) for (step, _), metrics in zip(due, fetched)], state["params"])
            values = {**mean_metrics(good), BAD_STEPS: float(len(due) - len(good))}
            writer.write(last, {**values, **meter.read(last, len(due)), "epoch": epoch_of(last)})

    for step in range(start_step, plan.total_steps):
        if check is not None and plan.check_every and step % plan.check_every == 0 and step > start_step:
            check(step, state)
        due = evaluate is not None and plan.eval_every and step % plan.eval_every == 0 and step > 0
        if evaluate is not None and due and step != evaluated_at:
            flush(step)
            try:
                worth_keeping = evaluate(step, state)
            except GramjaxError as error:
                if not error.agreed:  # of this process alone: to save is something that all do together
                    raise
                keep(step)
                if not isinstance(error, Preempted):
                    raise
                raise Preempted(
                    f"stopped on request in the evaluation of step {step}; it is saved: run the same command to go on"
                ) from None
            evaluated_at = step
            if worth_keeping:
                keep(step)
            meter.pause()
        if plan.save_every and step % plan.save_every == 0 and step > start_step:
            flush(step)
            keep(step)
        progress.begins("the next batch")
        try:
            batch = source.next(state["params"])
        except Preempted:  # a rollout takes long: what it has made so far is drawn again
            flush(step)
            keep(step)
            raise
        about = source.metrics()
        meter.add(batch)
        progress.begins("a training step")
        state, metrics = step_function(state, put(batch))
        metrics = {**metrics, **about}
        if waiting and waiting[-1][0] % plan.log_every == 0:
            flush(waiting[-1][0])
        waiting.append((step + 1, metrics))
        if save is not None and step + 1 < plan.total_steps and stop():
            flush(step + 1)
            keep(step + 1)
            raise Preempted(f"stopped on request; step {step + 1} is saved: run the same command to go on")
    flush(plan.total_steps)
    keep(plan.total_steps)
    return state


def mean_metrics(steps: Iterable[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Total over weight of each metric across the steps that have it; extremes for names with `min` or `max`."""
    steps = list(steps)
    out = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        pairs = [(float(total), float(weight)) for total, weight in (s[name] for s in steps if name in s)]
        totals = [total for total, _ in pairs]
        if kind := extreme(name):
            out[name] = min(totals) if kind == "min" else max(totals)
        else:
            out[name] = sum(totals) / max(sum(weight for _, weight in pairs), 1e-9)
    return out


class Meter:
    """Tokens and wall time between log events; time in evaluation does not count."""

    def __init__(self, num_tokens: int, shares: int = 1) -> None:
        self.num_tokens, self._shares = num_tokens, shares
        self._tokens_at_last, self._time_at_last = num_tokens, time.perf_counter()

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Count the real tokens of a global batch (those of one process, times the shares that processes give)."""
        self.num_tokens += int(np.count_nonzero(batch["segment_ids"])) * self._shares

    def pause(self) -> None:
        """Forget the time since the last log event."""
        self._tokens_at_last, self._time_at_last = self.num_tokens, time.perf_counter()

    def read(self, step: int, steps: int) -> dict[str, float]:
        """Token count, speed since the last read, and the most memory taken so far."""
        now = time.perf_counter()
        seconds = max(now - self._time_at_last, 1e-9)
        tokens = self.num_tokens - self._tokens_at_last
        self._tokens_at_last, self._time_at_last = self.num_tokens, now
        return {
            "num_tokens": float(self.num_tokens),
            "perf/step_time": seconds / max(steps, 1),
            "perf/tokens_per_sec_per_device": tokens / seconds / jax.device_count(),
            "mem/peak_gib": runtime.peak_gib(),
        }
