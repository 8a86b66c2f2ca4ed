"""What rollouts leave in the run folder: tables of completions, pass rates per prompt, warnings with numbers.

`samples/step_NNNNNN.parquet` holds every sample of a rollout with each reward, its advantage and length;
`pass_rates.jsonl` one line per rollout with the share of right answers of each prompt. After a resumption a line may
stand twice: the last one of a step counts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gramjax.core.writer import Writer
from gramjax.generation.experience import Sample
from gramjax.generation.rollouts import Rollouts
from gramjax.training import setup
from gramjax.training.reference import Reference

CLIPPED_SHARE = 0.5
DEAD_SHARE = 0.8
UNJUDGED_SHARE = 0.5
LOST_ENTROPY, GROWN_ENTROPY = 0.05, 3.0
"""Shares of the first entropy that a warning is given below, and above."""

LARGE_KL = 1.0
"""Nats per token."""

MOST_WARNINGS = 3
"""Times that one kind of warning is given."""

SHOWN_CHARACTERS = 300


def attach(run: setup.Run, workdir: Path, writer: Writer, compared: Reference | None) -> "Log":
    """Let the source of a run write its tables and compare with the reference; the writer for its metrics, which adds
    warnings."""
    source: Rollouts = run.source
    source.reference = None if compared is None else compared.params
    log = Log(source, workdir, writer)
    source.record = log.rollout
    return log


class Log:
    """Called with every rollout."""

    def __init__(self, source: Rollouts, workdir: Path, writer: Writer) -> None:
        self.source, self.workdir, self.writer = source, workdir, writer
        self.warned: dict[str, int] = {}
        self.first_entropy = 0.0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at an optimiser step, and say when the policy loses its entropy or runs from the reference."""
        self.writer.write(step, values)
        entropy, kl = values.get("entropy"), values.get("kl", 0.0)
        if entropy is not None:
            self.first_entropy = self.first_entropy or entropy
            was = f"{self.first_entropy:.3g}"
            if entropy < LOST_ENTROPY * self.first_entropy:
                self.once("entropy", f"entropy is {entropy:.3g} nats per token at step {step}, it was {was}: raise "
                          "config.grpo.entropy_coef or lower config.optim.lr")  # fmt: skip
            if entropy > GROWN_ENTROPY * self.first_entropy:
                self.once("chaos", f"entropy is {entropy:.3g} nats per token at step {step}, it was {was}: the policy "
                          "falls apart; lower config.optim.lr or config.grpo.entropy_coef")  # fmt: skip
        if kl > LARGE_KL:
            self.once("kl", f"kl is {kl:.3g} nats per token at step {step}: the policy is far from the reference; "
                      "raise config.grpo.beta or lower config.optim.lr")  # fmt: skip

    def rollout(self, step: int, samples: Sequence[Sample], metrics: Mapping[str, tuple[float, float]]) -> None:
        """Write what is due after a rollout for the optimiser step `step`."""
        if jax.process_index() != 0:
            return
        grpo = self.source.plan.grpo
        self.pass_rates(step, samples)
        if grpo.completions_every and step // grpo.completions_every != (step - self.source.plan.updates) // (
            grpo.completions_every
        ):
            self.table(step, samples)
            self.show(samples[: grpo.completions_shown])
        self.warn(metrics)

    def pass_rates(self, step: int, samples: Sequence[Sample]) -> None:
        """The share of right answers of each prompt, a line for the rollout."""
        right: dict[int, list[bool]] = {}
        for sample in samples:
            if not sample.offline:
                right.setdefault(sample.prompt, []).append(sample.correct)
        rows = self.source.prompts.rows
        rates = {str(rows[prompt]["id"]): round(float(np.mean(values)), 6) for prompt, values in right.items()}
        with (self.workdir / "pass_rates.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "rates": rates}, ensure_ascii=False) + "\n")

    def table(self, step: int, samples: Sequence[Sample]) -> None:
        """All samples as a parquet file."""
        import pyarrow
        from pyarrow import parquet

        rows, names = self.source.prompts.rows, self.source.rewards.names
        columns: dict[str, list[Any]] = {
            **extra_columns(samples),
            "step": [step] * len(samples),
            "id": [str(rows[s.prompt]["id"]) for s in samples],
            "prompt": [text_of(rows[s.prompt]["prompt"]) for s in samples],
            "completion": [s.text for s in samples],
            **{f"rewards/{name}": [none_for_nan(s.rewards[k]) for s in samples] for k, name in enumerate(names)},
            "reward": [s.reward for s in samples],
            "advantage": [s.advantage for s in samples],
            "correct": [s.correct for s in samples],
            "trained": [s.trained for s in samples],
            "offline": [s.offline for s in samples],
            "length": [s.length for s in samples],
            "finish_reason": [s.finish_reason for s in samples],
            "weights_version": [s.version for s in samples],
        }
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        new = folder / f"step_{step:06d}.parquet.new"
        parquet.write_table(pyarrow.table(columns), new)
        new.replace(folder / f"step_{step:06d}.parquet")

    def show(self, samples: Sequence[Sample]) -> None:
        """Print a few samples."""
        for sample in samples:
            prompt = text_of(self.source.prompts.rows[sample.prompt]["prompt"])
            self.writer.say(f"  {short(prompt)} -> {short(sample.text)}   reward {sample.reward:.3g}   advantage "
                            f"{sample.advantage:+.3g}   {sample.length} tokens, {sample.finish_reason}")  # fmt: skip

    def warn(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        """Say with numbers what commonly spoils a run."""
        value = lambda name: metrics[name][0] / metrics[name][1] if name in metrics else 0.0  # noqa: E731
        clipped, dead = value("completions/clipped_ratio"), value("frac_reward_zero_std")
        if clipped > CLIPPED_SHARE:
            most = self.source.plan.sampling.max_tokens
            self.once("clipped", f"{clipped:.0%} of the completions were cut at config.sampling.max_tokens={most}: "
                      "their rewards are those of unfinished answers")  # fmt: skip
        if min(dead, value("zero_adv/samples")) > DEAD_SHARE:
            easy, hard = value("groups/easy"), value("groups/hard")
            self.once("dead", f"{dead:.0%} of the groups have equal rewards and teach nothing ({easy:.0%} all right, "
                      f"{hard:.0%} all wrong)")  # fmt: skip

        for name in self.source.rewards.names:
            share = value(f"rewards/{name}/not_judged")
            if share > UNJUDGED_SHARE:
                self.once(f"unjudged {name}", f"the reward {name} did not judge {share:.0%} of the completions")

    def once(self, kind: str, text: str) -> None:
        """A warning, a few times at most."""
        self.warned[kind] = self.warned.get(kind, 0) + 1
        if self.warned[kind] <= MOST_WARNINGS:
            self.writer.say(f"warning: {text}")


def extra_columns(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """The columns that reward functions logged; one with values of several kinds as texts."""
    out: dict[str, list[Any]] = {}
    for name in sorted({name for sample in samples for name in sample.extra}):
        values = [sample.extra.get(name) for sample in samples]
        kinds = {type(value) for value in values if value is not None}
        out[name] = values if len(kinds) < 2 else [None if value is None else str(value) for value in values]
    return out


def text_of(value: Any) -> str:
    """A prompt as one text."""
    if isinstance(value, str):
        return value
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def short(text: str) -> str:
    """A text on one line, cut in the middle when it is long."""
    line = text.replace("\n", "\\n")
    half = SHOWN_CHARACTERS // 2
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def none_for_nan(value: float) -> float | None:
    """None for a reward that was not judged."""
    return None if np.isnan(value) else value
