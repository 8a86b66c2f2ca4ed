"""Answer a prompt, or every row of a file, with a model."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from gramjax.core import checks, flags, folder, runtime, signals, writer
from gramjax.core import config as configs
from gramjax.core.errors import DataError, UserError

if TYPE_CHECKING:  # JAX is imported by the functions that need it: the help answers at once
    from gramjax.generation.request import Completion, Request, Sampling, Statistics
    from gramjax.generation.sample import Answer
    from gramjax.generation.sampler import Sampler

OWN = {"prompt": "answer this text", "input": "answer the rows of this file", "output": "write them here (JSON lines)"}
OWN_SWITCHES = {"json": "print one JSON object per prompt", "stream": "print the answer while it is made",
                "chat": "send --prompt through the chat template, as a user's message"}  # fmt: skip
HELP = """usage: gramjax generate --config=generate --config.model.path=DIR --prompt=TEXT [--json | --stream] [--chat]
       gramjax generate --config=generate --config.model.path=DIR --input=FILE --output=FILE

{flags}

Settings follow as --config.SECTION.NAME=VALUE (sampling.max_tokens, sampling.temperature, sampling.num_beams, ...);
gramjax generate --config=generate --help lists them all. --input goes on where it was interrupted."""
HOW = ("job", "resume", "overwrite", "mesh", "model.attention", "data.limit", "generation.slots",
       "generation.steps_per_call", "generation.refill_share", "generation.prefill_rows", "generation.prefill_length",
       "generation.gather_weights")  # fmt: skip
"""Settings that decide how and how far the rows are answered: a file may be continued under others."""
EVERY_SECONDS = 10.0


def main(argv: list[str]) -> int:
    """`gramjax generate --config=generate --config.model.path=DIR (--prompt=TEXT | --input=FILE --output=FILE)`."""
    own, rest = take_own(argv)
    if any(word == "-h" or word.startswith("--help") for word in rest):
        return show_help([word for word in rest if word != "-h" and not word.startswith("--help")])
    arguments = flags.parse(rest, "generate", workdir_needed=False)
    config = arguments.config
    check(own, arguments)
    runtime.start(expected=arguments.devices, alone="generate")
    from gramjax.core import spec
    from gramjax.training import setup

    if arguments.dry_run:
        network = setup.open_network(config, heads=("tokens",))
        longest = config.generation.max_length or network.model.config.max_position_embeddings
        print(f"{spec.count(network.model.specs()):,} parameters, prompts and answers of up to {longest:,} tokens")
        return 0
    sampling = configs.section(config.sampling, configs.SamplingSection, "sampling")
    return answer_rows(own, config, sampling) if "input" in own else answer_prompt(own, config, sampling)


def show_help(rest: list[str]) -> int:
    """Print the flags; with a config, its settings too."""
    lines = [f"  --{name:<10}{text}" for name, text in {**OWN, **OWN_SWITCHES}.items()]
    lines += [f"  --{name:<10}{text}" for name, text in {"config": flags.VALUES["config"], **flags.SWITCHES}.items()]
    print(HELP.format(flags="\n".join(lines)))
    if rest:
        arguments = flags.parse(rest, "generate", workdir_needed=False)
        print(f"\nSettings of {arguments.config_name}:\n{flags.show(arguments)}")
    return 0


def take_own(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this verb (`--prompt=TEXT`, or with the value in the next word) and the words that remain."""
    own: dict[str, str] = {}
    off, rest, words = set(), [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in {**OWN, **OWN_SWITCHES}:
            rest.append(word)
            continue
        if name in own or name in off:
            raise UserError(f"--{name} is given twice; give it once")
        if name in OWN_SWITCHES:
            if flags.switch(name, text if equals else None):
                own[name] = "True"
            else:
                off.add(name)
        elif equals:
            own[name] = text
        elif words and not words[0].startswith("--"):
            own[name] = words.pop(0)
        else:
            raise UserError(f"--{name} needs a value: --{name}=…")
    return own, rest


def check(own: Mapping[str, str], arguments: flags.Arguments) -> None:
    """Raise UserError for flags that do not go together."""
    config = arguments.config
    if config.job != "generate":
        raise UserError(f"config {arguments.config_name!r} is for gramjax {config.job}, not for generate")
    if ("prompt" in own) == ("input" in own):
        raise UserError("give either --prompt=TEXT or --input=FILE --output=FILE")
    if "input" in own and not (own["input"] and own.get("output")):
        raise UserError("give --input=FILE and --output=FILE, where the answers go")
    if "output" in own and "input" not in own:
        raise UserError("--output belongs to --input=FILE; the answer to --prompt is printed")
    for name in ("stream", "json", "chat"):
        if name in own and "input" in own:
            raise UserError(f"--{name} is for --prompt; the answers to --input go to --output as JSON lines")
    if "stream" in own and ("json" in own or config.sampling.n > 1):
        raise UserError("--stream shows one answer as text: leave out --json and config.sampling.n")
    if "stream" in own and config.sampling.num_beams > 1:
        raise UserError("--stream: a beam search has no text before it ends; leave out config.sampling.num_beams")
    if arguments.workdir:
        raise UserError("--workdir: generate has no work folder; the answers to --input go to --output=FILE")
    if arguments.distributed:
        raise UserError("--distributed: generate runs in one process (on all devices of its host)")
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model that answers")


def open_sampler(config: Any, sampling: "Sampling") -> "Sampler":
    """The model with its weights: one that draws, or one that searches with beams."""
    from gramjax.generation.beam import BeamSampler
    from gramjax.training import sampling as opened

    found = opened.open_sampler(config)
    if sampling.num_beams == 1:
        return found
    return BeamSampler(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


# -- one prompt -------------------------------------------------------------------------------------------------------


def answer_prompt(own: Mapping[str, str], config: Any, sampling: "Sampling") -> int:
    """Print the answers to `--prompt`."""
    from gramjax.generation import sampler as samplers
    from gramjax.generation.request import Statistics

    sampler, statistics = open_sampler(config, sampling), Statistics()
    text = own["prompt"]
    row = {"id": "prompt", "prompt": [{"role": "user", "content": text}] if "chat" in own else text}
    (request,) = samplers.requests([row], sampler, sampling, config.seed)
    if "stream" in own:
        stream(sampler, request, statistics, sys.stdout)
    else:
        done = sorted(sampler.generate([request], statistics), key=lambda completion: completion.sample)
        print(as_json(record(done)) if "json" in own else "\n\n".join(completion.text for completion in done))
    sys.stdout.flush()
    note_counts(sampler)
    print(f"gramjax: {statistics.tokens} tokens, {statistics.tokens_per_second:.1f} tokens/s (compilation included)",
          file=sys.stderr)  # fmt: skip
    return 0


def stream(sampler: "Sampler", request: "Request", statistics: "Statistics", out: TextIO) -> None:
    """Print an answer as it grows: only what no later token can take back."""
    from gramjax.generation import stops

    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        if text.startswith(shown):
            out.write(text[len(shown) :])
            out.flush()
            shown = text

    def watch(answer: "Answer") -> None:
        show(stops.visible(sampler.decode(answer.token_ids), request.sampling.stop))

    steps = min(sampler.settings.steps_per_call, 8)
    small = dataclasses.replace(sampler.settings, slots=1, steps_per_call=steps)
    for completion in dataclasses.replace(sampler, settings=small).generate([request], statistics, watch):
        show(completion.text)
    out.write("\n")


def note_counts(sampler: "Sampler") -> None:
    """Say what the length policy did."""
    for what, count in sampler.renderer.counts.items():
        print(f"gramjax: {count:,} {what} (config.data.overlong)", file=sys.stderr)


# -- what is written ---------------------------------------------------------------------------------------------------


def record(completions: Sequence["Completion"]) -> dict[str, Any]:
    """The answer to one prompt; of several the first, and all of them under `completions`."""
    from gramjax.generation import beam

    def one(completion: "Completion") -> dict[str, Any]:
        out = {
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "model_logprobs": completion.model_logprobs,
            "finish_reason": completion.finish_reason,
        }
        return out | ({"score": beam.score(completion)} if completion.request.sampling.num_beams > 1 else {})

    several = completions[0].request.sampling.n > 1
    return one(completions[0]) | ({"completions": [one(completion) for completion in completions]} if several else {})


def refusal(reason: str) -> dict[str, Any]:
    """The fields of a row that was not answered."""
    return {"text": None, "token_ids": [], "logprobs": [], "model_logprobs": [], "finish_reason": "refused",
            "refused": reason}  # fmt: skip


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row, with what was answered under the name `prompt`."""
    from gramjax.generation.sampler import prompt_of

    return {**{k: v for k, v in row.items() if k not in ("text", "messages")}, "prompt": prompt_of(row)}


def as_json(value: Any) -> str:
    """One line of strict JSON: what is no number becomes null, what JSON does not know becomes text."""

    def safe(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): safe(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [safe(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(safe(value), ensure_ascii=False, default=str)


# -- rows -------------------------------------------------------------------------------------------------------------


def answer_rows(own: Mapping[str, str], config: Any, sampling: "Sampling") -> int:
    """Answer the rows of `--input` that `--output` does not have yet."""
    from gramjax.data import readers
    from gramjax.data.rows import Drop, Tally
    from gramjax.generation import sampler as samplers
    from gramjax.generation.request import Statistics
    from gramjax.training import setup

    section = setup.data_section(config)
    found = readers.read(own["input"], section, samplers.ROW_TYPES)
    output = Path(own["output"])
    with open_output(output, own["input"]) as file, signals.served():
        done = resume(file, output, config, own["input"], found.rows)
        sampler = open_sampler(config, sampling)
        longest = sampler.settings.max_length or sampler.model.config.max_position_embeddings
        statistics, dropped, reasons = Statistics(), Tally(found.dropped), {}
        progress = Progress(len(found.rows), done, statistics, sys.stderr)

        def ask(row: Mapping[str, Any]) -> Sequence["Request"]:
            try:
                request = samplers.request(row, sampler, sampling, config.seed)
                if 0 < len(request.tokens) <= longest:
                    return (request,)
                reason = f"longer than the model's {longest} tokens" if len(request.tokens) else "empty prompt"
            except Drop as drop:
                reason = drop.args[0]
            except DataError as error:
                if section.on_bad_row != "skip":
                    raise DataError(f"{own['input']}, row {row['id']!r}: {error}") from None
                reason = str(error)
            reasons[row["id"]] = reason
            dropped.add(reason, row["id"])
            return ()

        watch = progress.watch if sampling.num_beams == 1 else None
        try:
            progress.show()
            for row, answers in sampler.answered(found.rows[done:], ask, statistics, watch=watch):
                answer = record(answers[0]) if answers else refusal(reasons.pop(row["id"]))
                append(file, output, as_json({**asked(row), **answer}))
                progress.show(1)
        finally:
            progress.close()
    note_counts(sampler)
    for reason, (count, first) in dropped.items():
        print(f"gramjax: {count:,} rows not answered: {reason} (first: {first})", file=sys.stderr)
    in_use = f", slots {statistics.occupancy:.0%} in use" if sampling.num_beams == 1 else ""
    speed = f"{statistics.tokens:,} tokens, {statistics.tokens_per_second:,.1f} tokens/s{in_use}"
    print(f"gramjax: {len(found.rows):,} rows in {output}, {len(found.rows) - done:,} of them now: {speed}",
          file=sys.stderr)  # fmt: skip
    return 0


def open_output(output: Path, source: str) -> BinaryIO:
    """The output, held by this process alone. Raises UserError for a place that is no file of its own."""
    if output.exists() and not output.is_file():
        raise UserError(f"--output={output} is not a file")
    if Path(source).exists() and output.exists() and output.samefile(source):
        raise UserError(f"--output={output} is the input itself; give another file")
    if problem := runtime.unwritable(output.parent):
        raise UserError(f"--output: {problem}")
    try:
        file = output.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"--output={output} is being written by another process") from None
        raise UserError(f"--output={output}: {error.strerror}") from None
    return file


def append(file: BinaryIO, output: Path, line: str) -> None:
    """Write one line through to the file system; a full disk is a UserError, and the next start cuts what is half."""
    try:
        file.write(line.encode() + b"\n")
        file.flush()
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}; the same command goes on when there is room") from None


def resume(file: BinaryIO, output: Path, config: Any, source: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the rows the output has already; makes the file ready to be appended to.

    Raises UserError when it was written with other settings, by another model or for other rows.
    """
    beside = output.with_name(output.name + ".settings.json")
    settings = settled(config, source)
    if config.overwrite:
        file.truncate(0)
    if not os.fstat(file.fileno()).st_size:
        folder.write_json(beside, settings)
        return 0
    if not config.resume:
        raise UserError(f"{output} exists; give --config.overwrite=True to replace it, or another --output")
    if not beside.is_file():
        raise UserError(f"{output} exists and {beside.name} does not: gramjax generate did not write it; give another "
                        "--output, or --config.overwrite=True to replace it")  # fmt: skip
    before = json.loads(beside.read_text("utf-8"))
    changed = [f"{path}={before[path]!r}, now {value!r}" for path, value in settings.items()
               if before.get(path, value) != value]  # fmt: skip
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"{output} was written with {'; '.join(changed[:3])}{more}: give --config.overwrite=True to "
                        "replace it, or another --output")  # fmt: skip
    return whole_lines(file, output, rows)


def settled(config: Any, source: str) -> dict[str, Any]:
    """What decides the answers: the input, the weights, and the settings."""
    from gramjax.checkpoint import best, state

    flat = checks.flatten(folder.as_dict(config))
    out = {f"config.{path}": value for path, value in flat.items()
           if not any(path == name or path.startswith(f"{name}.") for name in HOW)}  # fmt: skip
    model, wants_best = best.split(config.model.path)
    if model.exists():
        out["config.model.path"] = str(model.resolve())
    if not config.model.step and (model / state.FOLDER).is_dir():
        out["config.model.step"] = best.step_of(model) if wants_best else max(state.steps_of(model), default=0)
    return {"input": str(Path(source).resolve()) if Path(source).exists() else source, **out}


def whole_lines(file: BinaryIO, output: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Number of lines, each of which must answer its row; a last line that a kill left half is cut off."""
    count = size = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            found = json.loads(line)
            identity, prompt = found["id"], found["prompt"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{output} line {count + 1}: no row of this job; move the file away") from None
        if count >= len(rows) or identity != rows[count]["id"]:
            raise UserError(f"{output} line {count + 1} is row {identity!r}, which is not row {count + 1} of the input")
        if prompt != json.loads(as_json(asked(rows[count])))["prompt"]:
            raise UserError(f"{output} line {count + 1}: row {identity!r} had another prompt; the input has changed")
        count, size = count + 1, size + len(line)
    file.truncate(size)
    return count


class Progress:
    """How far a file is: one line that is overwritten on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, done: int, statistics: "Statistics", stream: TextIO) -> None:
        self.total, self.done, self.statistics, self.stream = total, done, statistics, stream
        self.start, self.began, self.last = done, time.monotonic(), -math.inf
        self.live, self.call, self.growing, self.tokens = stream.isatty(), 0, 0, 0

    def watch(self, answer: "Answer") -> None:
        """Count the tokens of unfinished answers, call by call of the device."""
        if self.call != self.statistics.calls:
            self.tokens = self.statistics.tokens + self.growing
            self.call, self.growing = self.statistics.calls, 0
            self.show()
        self.growing += len(answer.token_ids)

    def show(self, more: int = 0) -> None:
        """Count rows and say where the job is, when it is time to."""
        self.done += more
        now = time.monotonic()
        if now - self.last < (0.2 if self.live else EVERY_SECONDS):
            return
        self.last = now
        parts = [f"row {self.done:,}/{self.total:,}"]
        if tokens := max(self.tokens, self.statistics.tokens):
            parts.append(f"{writer.number(tokens / (now - self.began))} tokens/s")
        if self.done > self.start:
            seconds = (now - self.began) / (self.done - self.start) * (self.total - self.done)
            parts.append(f"{writer.duration(seconds)} left")
        line = "   ".join(parts)
        if self.live:
            line = "\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1]
        self.stream.write(line if self.live else f"{line}\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the last state on the terminal, and end its line."""
        if self.live:
            self.last = -math.inf
            self.show()
            self.stream.write("\n")
