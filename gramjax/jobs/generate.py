"""Answer a prompt, or every row of a file, with a model."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gramjax.core import config as configs
from gramjax.core import flags, folder, runtime, spec, writer
from gramjax.core.errors import DataError, UserError
from gramjax.data import readers
from gramjax.data.rows import Tally
from gramjax.generation import sampler as samplers
from gramjax.generation import stops
from gramjax.generation.request import Completion, Request, Sampling, Statistics
from gramjax.generation.sample import Answer
from gramjax.generation.sampler import Sampler
from gramjax.training import sampling as opened
from gramjax.training import setup

OWN = {"prompt": "answer this text", "input": "answer the rows of this file", "output": "write them here (JSON lines)"}
OWN_SWITCHES = {"json": "print one JSON object per prompt", "stream": "print the answer while it is made",
                "chat": "send --prompt through the chat template, as a user's message"}  # fmt: skip
WINDOW = 1024
"""Rows that may be ahead of the oldest unfinished one: answers come in any order and are written in that of the input."""
SETTLED = ("model.path", "model.step", "model.compute_dtype", "tokenizer", "data", "sampling", "seed")
"""Settings that decide what is written: a file is only continued under the same ones."""
EVERY_SECONDS = 10.0


def main(argv: list[str]) -> int:
    """`gramjax generate --config=generate --config.model.path=DIR (--prompt=TEXT | --input=FILE --output=FILE)`."""
    own, rest = take_own(argv)
    if "-h" in rest or any(word.startswith("--help") for word in rest):
        print("\n".join(f"  --{name:<14}{text}" for name, text in {**OWN, **OWN_SWITCHES}.items()) + "\n")
    arguments = flags.parse(rest, "generate", workdir_needed=False)
    config = arguments.config
    check(own, config)
    runtime.start(distributed=arguments.distributed)
    sampling = configs.section(config.sampling, Sampling, "sampling")
    if arguments.dry_run:
        network = setup.open_network(config, heads=("tokens",))
        print(f"{spec.count(network.model.specs()):,} parameters, prompts and answers of up to "
              f"{config.generation.max_length or network.model.config.max_position_embeddings:,} tokens")  # fmt: skip
        return 0
    if "input" in own:
        return answer_rows(own, config, sampling)
    return answer_prompt(own, config, sampling)


def take_own(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this verb (`--prompt=TEXT`, or with the value in the next word) and the words that remain."""
    own, rest, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in {**OWN, **OWN_SWITCHES}:
            rest.append(word)
            continue
        if name in own:
            raise UserError(f"--{name} is given twice; give it once")
        if name in OWN_SWITCHES:
            own[name] = "1" if flags.switch(name, text if equals else None) else ""
        elif equals:
            own[name] = text
        elif words and not words[0].startswith("--"):
            own[name] = words.pop(0)
        else:
            raise UserError(f"--{name} needs a value: --{name}=…")
    return {name: text for name, text in own.items() if text or name in OWN}, rest


def check(own: Mapping[str, str], config: Any) -> None:
    """Raise UserError for flags that do not go together."""
    if ("prompt" in own) == ("input" in own):
        raise UserError("give either --prompt=TEXT or --input=FILE")
    if "input" in own and not own.get("output"):
        raise UserError("give --output=FILE, where the answers to --input go")
    if "output" in own and "input" not in own:
        raise UserError("--output belongs to --input=FILE; the answer to --prompt is printed")
    for name in ("stream", "json", "chat"):
        if name in own and "input" in own:
            raise UserError(f"--{name} is for --prompt; the answers to --input go to --output as JSON lines")
    if "stream" in own and ("json" in own or config.sampling.n > 1):
        raise UserError("--stream shows one answer as text: leave out --json and config.sampling.n")
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model that answers")


def answer_prompt(own: Mapping[str, str], config: Any, sampling: Sampling) -> int:
    """Print the answers to `--prompt`."""
    sampler = opened.open_sampler(config)
    text = own["prompt"]
    row = {"id": "prompt", "prompt": [{"role": "user", "content": text}] if "chat" in own else text}
    (request,) = samplers.requests([row], sampler, sampling, config.seed)
    statistics = Statistics()
    if "stream" in own:
        stream(sampler, request, statistics, sys.stdout)
    else:
        done = sorted(sampler.generate([request], statistics), key=lambda completion: completion.sample)
        print(json.dumps(record(done), ensure_ascii=False) if "json" in own else "\n\n".join(c.text for c in done))
    if "json" not in own:
        print(f"gramjax: {statistics.tokens} tokens, {statistics.tokens_per_second:.1f} tokens/s (compilation included)",
              file=sys.stderr)  # fmt: skip
    return 0


def stream(sampler: Sampler, request: Request, statistics: Statistics, out: TextIO) -> None:
    """Print an answer as it grows: only what no later token can take back."""
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        if text.startswith(shown):
            out.write(text[len(shown) :])
            out.flush()
            shown = text

    def watch(answer: Answer) -> None:
        show(stops.visible(sampler.decode(answer.token_ids), request.sampling.stop))

    steps = min(sampler.settings.steps_per_call, 8)
    small = dataclasses.replace(sampler.settings, slots=1, steps_per_call=steps)
    for completion in dataclasses.replace(sampler, settings=small).generate([request], statistics, watch):
        show(completion.text)
    out.write("\n")


def record(completions: Sequence[Completion], row: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object of one prompt: flat for one answer, with a list `completions` for several."""

    def one(completion: Completion) -> dict[str, Any]:
        return {
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "model_logprobs": completion.model_logprobs,
            "finish_reason": completion.finish_reason,
        }

    start = {} if row is None else asked(row)
    if completions[0].request.sampling.n == 1:
        return {**start, **one(completions[0])}
    return {**start, "completions": [one(completion) for completion in completions]}


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row, with what was answered under the name `prompt`."""
    return {**{k: v for k, v in row.items() if k not in ("text", "messages")}, "prompt": samplers.prompt_of(row)}


# -- rows ---------------------------------------------------------------------------------------------------------------


def answer_rows(own: Mapping[str, str], config: Any, sampling: Sampling) -> int:
    """Answer the rows of `--input` that `--output` does not have yet."""
    found = readers.read(own["input"], setup.data_section(config), samplers.ROW_TYPES)
    output = Path(own["output"])
    done = resume(output, config, own["input"], [row["id"] for row in found.rows])
    sampler = opened.open_sampler(config)
    statistics, dropped = Statistics(), Tally(found.dropped)
    progress = Progress(len(found.rows), done, statistics, sys.stderr)
    with output.open("a", encoding="utf-8") as file:
        order = InOrder(file, found.rows[done:], sampling.n, progress, dropped)
        requests = samplers.requests(order.rows(), sampler, sampling, config.seed, order.refuse)
        for completion in sampler.generate(paced(requests, order), statistics):
            order.take(completion)
        order.write()
    progress.close()
    for reason, (count, first) in dropped.items():
        print(f"gramjax: {count:,} rows not answered: {reason} (first: {first})", file=sys.stderr)
    print(f"{len(found.rows):,} rows in {output}: {statistics.completions:,} answers now, {statistics.tokens:,} tokens, "
          f"{statistics.tokens_per_second:,.1f} tokens/s, slots {statistics.occupancy:.0%} in use")  # fmt: skip
    return 0


def resume(output: Path, config: Any, source: str, ids: Sequence[str]) -> int:
    """How many of the first rows the output has already; makes the file ready to be appended to.

    The last line of a killed job may be half: it is cut. Raises UserError when the file was written with other settings
    or for other rows.
    """
    beside = output.with_name(output.name + ".settings.json")
    plain = json.loads(json.dumps(folder.as_dict(config)))
    flat = {"input": str(Path(source).resolve())} | {
        path: value for path, value in configs_flat(plain).items()
        if any(path == name or path.startswith(f"{name}.") for name in SETTLED)
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        output.unlink(missing_ok=True)
    if not output.exists() or not output.stat().st_size:
        folder.write_json(beside, flat)
        return 0
    if not config.resume:
        raise UserError(f"{output} exists; give --config.overwrite=True to replace it, or another --output")
    before = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
    changed = [f"{path}={before.get(path)!r}, now {flat.get(path)!r}" for path in {**before, **flat}
               if before.get(path) != flat.get(path)]  # fmt: skip
    if changed:
        raise UserError(
            f"{output} was written with other settings ({'; '.join(changed[:3])}); give --config.overwrite=True to "
            "replace it, or another --output"
        )
    return whole_lines(output, ids)


def configs_flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by path."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        out.update(configs_flat(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return out


def whole_lines(output: Path, ids: Sequence[str]) -> int:
    """Number of lines that hold the first `ids`, in order; a broken last line is cut off."""
    count = size = 0
    with output.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)["id"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{output} line {count + 1}: no row of this job; move the file away") from None
            if found is None:
                break
            if count >= len(ids) or found != ids[count]:
                raise UserError(f"{output} line {count + 1} is row {found!r}, which is not row {count + 1} of the input")
            count, size = count + 1, size + len(line)
    os.truncate(output, size)
    return count


def paced(requests: Iterator[Request], order: "InOrder") -> Iterator[Request | None]:
    """Requests, held back while the oldest unfinished row is too far behind."""
    while True:
        if order.ahead >= WINDOW:
            yield None
            continue
        request = next(requests, None)
        if request is None:
            return
        yield request


class InOrder:
    """Writes rows in the order in which they were asked for, each once its answers are there."""

    def __init__(
        self, file: TextIO, rows: Sequence[Mapping[str, Any]], n: int, progress: "Progress", dropped: Tally
    ) -> None:
        self.file, self.all, self.n, self.progress, self.dropped = file, rows, n, progress, dropped
        self.asked = self.written = 0
        self.waiting: dict[str, list[Completion]] = {}
        self.refused: dict[str, str] = {}

    @property
    def ahead(self) -> int:
        """Rows asked for and not yet written."""
        return self.asked - self.written

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """The rows, counted as they are asked for."""
        for row in self.all:
            self.asked += 1
            yield row

    def refuse(self, row: Mapping[str, Any], reason: str) -> None:
        """Note that a row cannot be answered: it is written without an answer, and counted."""
        self.refused[row["id"]] = reason
        self.dropped.add(reason, row["id"])

    def take(self, completion: Completion) -> None:
        """Keep a completion, and write the rows that are ready because of it."""
        self.waiting.setdefault(str(completion.request.id), []).append(completion)
        self.write()

    def write(self) -> None:
        """Write the rows that are ready."""
        before = self.written
        while self.written < self.asked:
            row = self.all[self.written]
            reason, found = self.refused.pop(row["id"], ""), self.waiting.get(row["id"], [])
            if reason:
                line = {**asked(row), "text": None, "finish_reason": f"not answered: {reason}"}
            elif len(found) == self.n:
                line = record(sorted(self.waiting.pop(row["id"]), key=lambda c: c.sample), row)
            else:
                break
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.written += 1
        if self.written > before:
            self.file.flush()
        self.progress.show(self.written - before)


class Progress:
    """How far a file is: one line that is overwritten on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, done: int, statistics: Statistics, stream: TextIO) -> None:
        self.total, self.done, self.statistics, self.stream = total, done, statistics, stream
        self.start, self.began, self.last = done, time.monotonic(), 0.0
        self.open = False

    def show(self, more: int) -> None:
        """Count rows and say where the job is, when it is time to."""
        self.done += more
        now, live = time.monotonic(), self.stream.isatty()
        if now - self.last < (0.2 if live else EVERY_SECONDS):
            return
        self.last = now
        made = max(self.done - self.start, 1)
        left = writer.duration((now - self.began) / made * (self.total - self.done))
        line = f"row {self.done:,}/{self.total:,}   {writer.number(self.statistics.tokens_per_second)} tokens/s   " \
               f"slots {self.statistics.occupancy:.0%}   {left} left"  # fmt: skip
        self.stream.write(f"\r\x1b[2K{line}" if live else f"{line}\n")
        self.stream.flush()
        self.open = live

    def close(self) -> None:
        """End the line."""
        if self.open:
            self.stream.write("\n")
