"""The batch source of reinforcement learning: prompts -> samples -> rewards -> advantages -> minibatches.

Seen from the training step a rollout is a batch that cost more to make. A rollout answers `prompts_per_step` times
`steps_per_rollout` prompts with the weights of the moment, `group_size` times each, and gives `iterations` times
`steps_per_rollout` minibatches. What is drawn depends on the seed, the place of the prompt in the order of the run and
the weights, so that a killed run that starts again at the same weights draws the same samples.

Rewards of a finished group are computed while others are still being drawn. The arithmetic of a rollout's worth is
`generation.valuation`; the layout of batches is `generation.experience`.
"""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import processes, progress
from gramjax.core.config import GenerationSection, SamplingSection
from gramjax.core.errors import DataError, Preempted, UserError
from gramjax.core.reinforcement import GrpoSection
from gramjax.data import pipeline
from gramjax.data.rows import digest
from gramjax.data.text import Renderer
from gramjax.generation import experience, token_numbers, valuation
from gramjax.generation.entropy import Leader
from gramjax.generation.experience import Sample
from gramjax.generation.request import Completion, Request, Statistics
from gramjax.generation.rewards import Rewards
from gramjax.generation.sampler import Sampler
from gramjax.models.model import Model

VERSION = 1
"""Counts changes of this file that change what a seed draws."""

SHORTEST_ROW = 64
"""Tokens of a packed row, at least."""

LOOK = 1.0
"""Seconds between two looks of several processes at each other while rewards are computed."""

Pairs = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a training."""

    rows: Sequence[Mapping[str, Any]]
    tokens: Sequence[Sequence[int]]
    """Each as it stands before an answer."""
    solutions: Sequence[Sequence[Sequence[int]]] = ()
    """Per prompt its offline solutions as tokens of a completion; empty: none anywhere."""
    solution_texts: Sequence[Sequence[str]] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Files and fingerprint."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(tokens) for tokens in self.tokens)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a source of rollouts."""

    grpo: GrpoSection
    sampling: SamplingSection
    generation: GenerationSection
    seed: int
    steps: int
    """Optimiser steps of the whole run."""
    unit: int
    """Rows of a batch come in multiples of this."""
    packing: bool
    values: bool = False
    """The objective learns values, too (PPO)."""

    @property
    def groups(self) -> int:
        """Prompts of a rollout."""
        return self.grpo.prompts_per_step * self.grpo.steps_per_rollout

    @property
    def updates(self) -> int:
        """Optimiser steps of a rollout."""
        return self.grpo.steps_per_rollout * self.grpo.iterations

    @property
    def recomputes(self) -> bool:
        """Whether the trainer's own log-probabilities of the samples are needed before the first step on them."""
        grpo = self.grpo
        several = self.updates > 1 or grpo.lag > 0 or grpo.zero_variance == "resample"
        apart = several or grpo.correction != "none" or (grpo.beta > 0 and grpo.kl_in == "reward")
        return self.values or (apart and grpo.old_logprobs == "trainer")

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the numbers per token in a batch."""
        names = ["advantages", *(["sampler_logprobs"] if exact(self.sampling) else [])]
        if self.recomputes:
            names.append("old_logprobs")
        if self.grpo.beta > 0 and self.grpo.kl_in == "loss":
            names.append("reference_logprobs")
        if self.grpo.use_adaptive_entropy:
            names.append("entropy_coef")
        return tuple([*names, "returns", "old_values"] if self.values else names)


def exact(sampling: SamplingSection) -> bool:
    """Whether the sampler's log-probabilities are those of the tempered policy, which is what is optimised."""
    return whole(sampling) or sampling.temperature == 1


def whole(sampling: SamplingSection) -> bool:
    """Whether tokens are drawn from the whole tempered distribution, so that its log-probabilities are the policy's."""
    return sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0 and sampling.repetition_penalty == 1


class Rollouts:
    """`next(params)`, `state`, `restore` and `metrics`, as `training.loop.Source` wants them."""

    def __init__(
        self,
        plan: Plan,
        prompts: Prompts,
        model: Model,
        renderer: Renderer,
        end_ids: tuple[int, ...],
        rewards: Rewards,
        value: "valuation.Valuer",
        put: Callable[[Any], Any],
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """`put` places a batch of this process on the devices."""
        self.plan, self.prompts, self.model, self.renderer = plan, prompts, model, renderer
        self.end_ids, self.rewards, self.value, self.put = end_ids, rewards, value, put
        self.process_index, self.process_count = process_index, process_count
        self.stop: Callable[[], bool] = lambda: False
        """Asked between two calls of the device; True ends the drawing with Preempted (a job asks at
        `progress.stop_point`)."""
        self.reference: Any = None
        """Parameters of the reference; None with a KL term: the policy without its adapters."""
        self.record: Callable[[int, list[Sample], Pairs], None] = lambda step, samples, metrics: None
        """Called with every rollout: the step it belongs to, its samples, its metrics."""
        longest = prompts.longest + plan.sampling.max_tokens
        longest = max(longest, SHORTEST_ROW) if plan.packing else longest  # a row should hold several short samples
        multiple = 8 if longest <= 256 else 128
        length = -(-longest // multiple) * multiple
        self.layout = experience.Layout(
            length, plan.unit, plan.packing, renderer.tokenizer.pad_id, plan.sampling.max_tokens,
            plan.grpo.offline_fraction > 0,
        )  # fmt: skip
        self.steps = plan.steps
        self.cursor = 0
        """Prompts drawn so far."""
        self.step = 0
        """Minibatches given so far: the optimiser step of the weights."""
        self.waiting: collections.deque[list[Sample]] = collections.deque()
        self.surplus: list[list[Sample]] = []
        """Groups that an earlier rollout drew beyond what it needed (dynamic sampling)."""
        self.pending: concurrent.futures.Future[tuple[list[Sample], Pairs, int]] | None = None
        """With a lag of 1: the next rollout in the making."""
        self.thread = concurrent.futures.ThreadPoolExecutor(1) if plan.grpo.lag else None
        self.about: Pairs = {}
        self.given: collections.deque[tuple[int, list[int]]] = collections.deque(maxlen=64)
        """Which prompts the last minibatches were of, each with its number."""
        self.entropy = Leader(plan.grpo, plan.grpo.entropy_coef) if plan.grpo.use_adaptive_entropy else None
        temperature = plan.sampling.temperature
        self._numbers = {
            own: jax.jit(token_numbers.reader(model, temperature, own, plan.values)) for own in (True, False)
        }

    # -- the contract of a source -------------------------------------------------------------------------------------

    def next(self, params: Any = None) -> pipeline.Batch:
        """The next minibatch of this process; draws a rollout with `params` when none is left."""
        self.about = {}
        if not self.waiting:
            samples, metrics = self._round(params)
            self.about = metrics
            self.record(self.step, samples, metrics)
            self.waiting.extend(self._minibatches(samples))
        began = time.perf_counter()
        chosen = [sample for sample in self.waiting.popleft() if sample.counted]
        batch, _ = self.layout.batch(chosen, self.plan.beside)
        self.about["time/pack"] = (time.perf_counter() - began, 1.0)
        self.given.append((self.step, sorted({sample.prompt for sample in chosen})))
        self.step += 1
        return self._own(batch)

    def metrics(self) -> Pairs:
        """Of the rollout that the last minibatch was the first of; empty for the others."""
        return self.about

    def names(self, index: int) -> list[str]:
        """The ids of the prompts of a minibatch, as long as it is remembered."""
        return [str(self.prompts.rows[prompt]["id"]) for prompt in dict(self.given).get(index, [])]

    def epoch(self, step: int) -> float:
        """Passes over the prompts after `step` optimiser steps (without those drawn again by dynamic sampling)."""
        return step / self.plan.grpo.iterations * self.plan.grpo.prompts_per_step / len(self.prompts.rows)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a saved position to mean the same rollouts."""
        return {
            "version": VERSION, **self.prompts.facts, "count": len(self.prompts.rows), "seed": self.plan.seed,
            "groups": self.plan.groups, "group_size": self.plan.grpo.group_size,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """JSON-able position. Within a rollout, or with one in the making, its samples are part of it."""
        pending = self.pending.result() if self.pending is not None else None
        return {
            "step": self.step,
            "cursor": self.cursor,
            "fingerprint": self.fingerprint(),
            "waiting": [[experience.as_json(sample) for sample in part] for part in self.waiting],
            "surplus": [[experience.as_json(sample) for sample in group] for group in self.surplus],
            "pending": None if pending is None else {
                "samples": [experience.as_json(sample) for sample in pending[0]], "metrics": pending[1],
                "cursor": pending[2],
            },
            **({} if self.entropy is None else {"entropy_coef": self.entropy.coef}),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position. Raises UserError naming what differs."""
        saved, now = state.get("fingerprint", {}), self.fingerprint()
        for name, value in now.items():
            if saved.get(name) != value:
                raise UserError(
                    f"the checkpoint was written with {name}={str(saved.get(name))[:60]}, now it is {str(value)[:60]}; "
                    "other rollouts would follow. Use the saved config.json, or --config.overwrite=True"
                )
        self.step, self.cursor = state["step"], state["cursor"]
        groups = lambda name: [[experience.from_json(s) for s in part] for part in state[name]]  # noqa: E731
        self.waiting, self.surplus, self.pending = collections.deque(groups("waiting")), groups("surplus"), None
        if self.entropy is not None:
            self.entropy.coef = state.get("entropy_coef", self.entropy.coef)
        if state["pending"] is not None:
            found = state["pending"]
            self.pending = concurrent.futures.Future()
            samples = [experience.from_json(sample) for sample in found["samples"]]
            metrics = {name: (float(total), float(weight)) for name, (total, weight) in found["metrics"].items()}
            self.pending.set_result((samples, metrics, found["cursor"]))

    # -- a rollout ----------------------------------------------------------------------------------------------------

    def _round(self, params: Any) -> tuple[list[Sample], Pairs]:
        """The samples of the next rollout, valued, and its metrics."""
        if self.thread is None:
            samples, metrics, self.cursor = self._draw(self._weights(params), self.cursor, self.step)
        else:
            if self.pending is None:  # the first rollout of a run: nothing older to learn from meanwhile
                first = self._draw(self._weights(params), self.cursor, self.step)
            else:
                first = self.pending.result()
            samples, metrics, self.cursor = first
            weights = jax.tree.map(jnp.copy, self._weights(params))  # the step gives the buffers of `params` away
            jax.block_until_ready(weights)
            self.pending = self.thread.submit(self._draw, weights, self.cursor, self.step)
        began = time.perf_counter()
        self._score(samples, params)
        metrics["time/logprobs"] = (time.perf_counter() - began, 1.0)
        metrics |= self.value.settle(samples, self.plan.seed, self.step)
        return samples, metrics if self.entropy is None else metrics | self.entropy.lead(samples)

    def _weights(self, params: Any) -> Any:
        return self.model.pack_for_decoding(params, self.plan.generation.gather_weights)

    def _draw(self, weights: Any, cursor: int, version: int) -> tuple[list[Sample], Pairs, int]:
        """Groups until there are enough of them, rewarded; the metrics of drawing; the new cursor."""
        began, statistics, prompts = time.perf_counter(), Statistics(), self.plan.groups
        sampler = Sampler(self.model, weights, self.renderer, self.end_ids, self.plan.generation)
        resample = self.plan.grpo.zero_variance == "resample"
        groups, seen, waited = (self.surplus if resample else []), [], 0.0  # surplus stays until nothing stops this
        for _ in range(1 + resample * self.plan.grpo.max_resamples):
            made, waited_now = self._groups(sampler, cursor, prompts, version, statistics)
            cursor += prompts
            seen += made
            waited += waited_now
            groups = groups + (self.value.alive(made) if resample else made)
            if len(groups) >= self.plan.groups or not resample:
                break
        if len(groups) < self.plan.groups:  # the draws are used up: dead groups fill the batch
            spare = [group for group in seen if not any(group is kept for kept in groups)]
            groups = groups + spare[: self.plan.groups - len(groups)]
        groups, self.surplus = groups[: self.plan.groups], groups[self.plan.groups :]
        samples = [
            dataclasses.replace(sample, group=number) for number, group in enumerate(groups) for sample in group
        ]
        metrics = valuation.describe([s for group in seen for s in group], self.rewards.names)
        metrics |= self.rewards.metrics()
        metrics |= {
            "rollout/tokens_per_sec": (float(statistics.tokens), max(statistics.seconds, 1e-9)),
            "rollout/slot_occupancy": (float(statistics.tokens), float(max(statistics.slot_steps, 1))),
            "time/rollout": (time.perf_counter() - began - waited, 1.0),
            "time/reward_wait": (waited, 1.0),
        }
        if resample:
            metrics["rollout/groups_per_kept"] = (float(len(seen)), float(max(len(groups), 1)))
        return samples, metrics, cursor

    def _groups(
        self, sampler: Sampler, cursor: int, count: int, version: int, statistics: Statistics
    ) -> tuple[list[list[Sample]], float]:
        """The next `count` groups with their rewards, and the seconds that were only spent waiting for rewards."""
        places = range(cursor, cursor + count)
        sampling = dataclasses.replace(self.plan.sampling, n=self.plan.grpo.group_size)
        greedy = dataclasses.replace(self.plan.sampling, temperature=0.0)
        beside: list[list[Sample]] = []

        def asked(place: int) -> list[Request]:
            # The id decides the random numbers: a place is taken once in a run, whatever the order of requests.
            tokens = self.prompts.tokens[self.prompt_at(place)]
            made = [Request(tokens, f"{place}", sampling, self.plan.seed, self.end_ids)]
            if self.plan.grpo.advantage == "remax" or self.rewards.greedy:
                made.append(Request(tokens, f"{place}", greedy, self.plan.seed, self.end_ids))
            return made

        def watch(answer: Any) -> None:
            self._check_stop()

        groups, futures, best = [], [], []
        for place, (completions, *others) in sampler.answered(places, asked, statistics, watch=watch):
            groups.append([self._sample(place, completion, version) for completion in completions])
            best.append(others[0][0].text if others else None)
            futures.append(self._reward(groups[-1], best[-1]))
            beside += [[self._sample(place, completion, version) for completion in other] for other in others]
        began = time.perf_counter()
        self._finish_rewards(groups, futures)
        if self.plan.grpo.advantage == "remax":
            self._finish_rewards(beside, [self._reward(own, text) for own, text in zip(beside, best, strict=True)])
            for group, (first,) in zip(groups, beside, strict=True):
                for sample in group:
                    sample.greedy = self.value.total(first)
        if self.plan.grpo.offline_fraction > 0:
            changed = [(group, text) for group, text in zip(groups, best, strict=True) if self._inject(group)]
            self._finish_rewards([group for group, _ in changed], [self._reward(*both) for both in changed])
        return groups, time.perf_counter() - began

    def _check_stop(self) -> None:
        if self.thread is None and self.stop():  # what is drawn ahead is part of the state: it is waited for
            raise Preempted(f"stopped on request while drawing samples for step {self.step + 1}: run the same command "
                            "to go on")  # fmt: skip

    def _check_wait(self) -> None:
        """Serve a request to stop while rewards are waited for; several processes look together (`_await_rewards`)."""
        self._check_stop()
        if self.process_count == 1:
            progress.stop_point("waiting for rewards")

    def _await_rewards(self, futures: Sequence[Any]) -> None:
        """Several processes: wait until each has its rewards, with looks at the job that all take together."""
        if self.process_count == 1:
            return
        own = [call for calls in futures if calls is not None for call in calls]
        while processes.any_of(not self.rewards.settled(own, LOOK)):
            progress.stop_point("waiting for rewards")

    def prompt_at(self, place: int) -> int:
        """The prompt at a place in the order of the run: every pass over the prompts is a permutation of its own."""
        epoch, rest = divmod(place, len(self.prompts.rows))
        return int(self._permutation(epoch)[rest])

    def _permutation(self, epoch: int) -> np.ndarray:
        if getattr(self, "_order", (None,))[0] != epoch:
            drawn = np.random.default_rng(digest(self.plan.seed, "prompts", epoch))
            self._order = (epoch, drawn.permutation(len(self.prompts.rows)))
        return self._order[1]

    def _sample(self, place: int, completion: Completion, version: int) -> Sample:
        prompt = completion.request.tokens
        logprobs = completion.logprobs if whole(self.plan.sampling) else completion.model_logprobs
        return Sample(
            self.prompt_at(place), place, completion.sample, len(prompt),
            np.asarray([*prompt, *completion.token_ids], np.int32), completion.text, completion.finish_reason, version,
            sampler_logprobs=np.asarray(logprobs, np.float32) if exact(self.plan.sampling) else None,
        )  # fmt: skip

    def _reward(self, group: Sequence[Sample], greedy: str | None = None) -> Any:
        """The rewards of a group in the making; the groups of a job are shared out among its processes."""
        if group[0].group % self.process_count != self.process_index:
            return None
        row = self.prompts.rows[group[0].prompt]
        ids = [sample.tokens[sample.start :].tolist() for sample in group]
        return self.rewards.submit(row, [sample.text for sample in group], ids, group[0].version, greedy)

    def _finish_rewards(self, groups: Sequence[Sequence[Sample]], futures: Sequence[Any]) -> None:
        if not groups:
            return
        table = np.zeros((len(groups), len(groups[0]), len(self.rewards.names)), np.float64)
        self._await_rewards(futures)
        for number, future in enumerate(futures):
            if future is not None:
                table[number] = self.rewards.result(future, self._check_wait)
                for sample, extra in zip(groups[number], self.rewards.extra(future), strict=True):
                    sample.extra = extra
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            known = np.asarray([future is not None for future in futures])
            gathered = multihost_utils.process_allgather((table, known))
            table = np.where(gathered[1][..., None, None], gathered[0], 0.0).sum(0)
        self.rewards.check()
        for group, values in zip(groups, table, strict=True):
            for sample, own in zip(group, values, strict=True):
                sample.rewards = tuple(float(value) for value in own)
                sample.correct = self.value.is_correct(sample.rewards)

    def _inject(self, group: list[Sample]) -> bool:
        """Put offline solutions in the place of wrong answers, where too few of a group are right."""
        given, texts = self.prompts.solutions[group[0].prompt], self.prompts.solution_texts[group[0].prompt]
        chosen = self.value.replaced(group, [len(ids) for ids in given])
        for injection in chosen:
            old, ids = group[injection.answer], given[injection.solution]
            zeros = np.zeros(len(ids), np.float32)
            group[injection.answer] = dataclasses.replace(
                old, tokens=np.concatenate([old.tokens[: old.start], np.asarray(ids, np.int32)]), offline=True,
                text=texts[injection.solution], finish_reason="stop",
                sampler_logprobs=None if old.sampler_logprobs is None else zeros,
            )  # fmt: skip
        return bool(chosen)

    # -- what the trainer's models say --------------------------------------------------------------------------------

    def _score(self, samples: Sequence[Sample], params: Any) -> None:
        """Give every sample the numbers that its batch needs."""
        passes = []
        if self.plan.recomputes:
            passes.append((True, params))
        if self.plan.grpo.beta > 0:
            passes.append((False, token_numbers.without_adapters(params) if self.reference is None else self.reference))
        if not passes:
            return
        rows = max(len(samples) // max(self.plan.grpo.steps_per_rollout, 1), 1)
        for begin in range(0, len(samples), rows):
            part = samples[begin : begin + rows]
            batch, plan = self.layout.batch(part, ())
            placed = self.put(self._own(batch))
            for own, weights in passes:
                for name, values in self._numbers[own](weights, placed).items():
                    found = experience.unpack(token_numbers.everywhere(values), part, plan)
                    for sample, beside in zip(part, found, strict=True):
                        setattr(sample, name, beside)

    # -- minibatches --------------------------------------------------------------------------------------------------

    def _minibatches(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        """The samples of each optimiser step: whole groups; denominators are those of the step."""
        per_step = self.plan.grpo.prompts_per_step * self.plan.grpo.group_size
        parts = [list(samples[begin : begin + per_step]) for begin in range(0, len(samples), per_step)]
        for part in parts:
            self.value.weigh(part)
        for _ in range(self.plan.grpo.iterations):
            yield from parts

    def _own(self, batch: pipeline.Batch) -> pipeline.Batch:
        """The rows of this process."""
        if self.process_count == 1:
            return batch
        rows = len(batch["tokens"])
        if rows % self.process_count:
            raise DataError(f"{rows} rows do not divide among {self.process_count} processes")
        own = rows // self.process_count
        begin = self.process_index * own
        return {name: array[begin : begin + own] for name, array in batch.items()}
