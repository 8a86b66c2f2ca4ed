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

from gramjax.core import signals
from gramjax.core.writer import Writer
from gramjax.generation.experience import Sample
from gramjax.generation.rollouts import Rollouts
from gramjax.training import setup
from gramjax.training.reference import Reference

CLIPPED_SHARE = 0.5
DEAD_SHARE = 0.8
MOST_WARNINGS = 3
"""Times that one kind of warning is given."""

SHOWN_CHARACTERS = 300


def attach(
    run: setup.Run, workdir: Path, writer: Writer, watch: signals.Watch, compared: Reference | None
) -> None:
    """Let the source of a run write its tables and warnings, stop on request, and compare with the reference."""
    source: Rollouts = run.source
    if jax.process_count() == 1:
        source.stop = lambda: watch.asked
    source.reference = None if compared is None else compared.params
    log = Log(source, workdir, writer)
    source.record = log.rollout


class Log:
    """Called with every rollout."""

    def __init__(self, source: Rollouts, workdir: Path, writer: Writer) -> None:
        self.source, self.workdir, self.writer = source, workdir, writer
        self.warned: dict[str, int] = {}

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
            self.once("clipped", f"{clipped:.0%} of the completions were cut at config.sampling.max_tokens="
                      f"{self.source.plan.sampling.max_tokens}: their rewards are those of unfinished answers")  # fmt: skip
        if dead > DEAD_SHARE:
            self.once("dead", f"{dead:.0%} of the groups have equal rewards and teach nothing ({value('groups/easy'):.0%} "
                      f"all right, {value('groups/hard'):.0%} all wrong)")  # fmt: skip
        if value("sampling/duplicates") > 0.9 and self.source.plan.grpo.group_size > 1:
            self.once("same", f"{value('sampling/duplicates'):.0%} of the completions repeat another of their group: the "
                      "policy has almost no entropy left")  # fmt: skip

    def once(self, kind: str, text: str) -> None:
        """A warning, a few times at most."""
        self.warned[kind] = self.warned.get(kind, 0) + 1
        if self.warned[kind] <= MOST_WARNINGS:
            self.writer.say(f"warning: {text}")


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
