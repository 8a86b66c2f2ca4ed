"""`gramjax generate`: one prompt as text, JSON and stream; rows of a file in order, through kills and refusals."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gramjax import cli
from gramjax.checkpoint import huggingface
from gramjax.core import spec
from gramjax.core.config import GenerationSection
from gramjax.core.errors import UserError
from gramjax.data import tokenizer
from gramjax.generation.request import Completion, Request, Sampling, Statistics
from gramjax.generation.sample import Answer
from gramjax.jobs import generate as job
from gramjax.models import decoder

ROOT = Path(__file__).parent.parent.parent
CHAT = "--config.tokenizer.chat_template=none"
BYTES = ("--config.tokenizer.path=bytes", "--config.generation.slots=4")


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(["generate", *argv])
    return stopped.value.code


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Hugging Face folder with a tiny random model over bytes, whose answers are no loops."""
    config = decoder.Config(
        vocab_size=tokenizer.byte_level().vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, max_position_embeddings=96, tie_word_embeddings=False, init_scale=1.0,
    )  # fmt: skip
    params = spec.init_params(decoder.specs(config), jax.random.key(0))
    folder = tmp_path_factory.mktemp("model") / "hf"
    huggingface.save(folder, params, config)
    return folder


@pytest.fixture
def generate(model):
    """The verb with the tiny model; more settings follow."""
    return lambda *words: run("--config=generate", f"--config.model.path={model}", *BYTES, *words)


# -- one prompt --------------------------------------------------------------------------------------------------------

SHORT = ("--prompt=Once", "--config.sampling.max_tokens=24", "--config.sampling.temperature=0")


@pytest.mark.smoke
def test_json_has_what_others_rely_on(generate, capsys):
    assert generate(*SHORT, "--json") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert out.count("\n") == 1 and "tokens/s" in err
    assert answer["finish_reason"] == "length" and len(answer["token_ids"]) == len(answer["logprobs"]) == 24
    assert answer["text"] == tokenizer.byte_level().decode(answer["token_ids"], skip_special=True)
    assert all(value <= 0 for value in answer["logprobs"])
    assert generate(*SHORT) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"


def test_the_seed_decides_and_several_answers_are_several(generate, capsys):
    words = ("--prompt=Once", "--json", "--config.sampling.max_tokens=24", "--config.sampling.n=2")
    found = []
    for seed in (0, 0, 1):
        assert generate(*words, f"--config.seed={seed}") == 0
        found.append(json.loads(capsys.readouterr().out))
    first, same, other = found
    assert first == same and first["token_ids"] != other["token_ids"]
    one, two = first["completions"]
    assert one["token_ids"] == first["token_ids"] != two["token_ids"]


def test_the_stream_is_the_plain_answer(generate, capsys):
    """Also where a stop text ends it."""
    for words in (SHORT, ("--prompt=Once", "--config.sampling.max_tokens=30", "--config.seed=3")):
        assert generate(*words) == 0
        text = capsys.readouterr().out
        assert generate(*words, "--stream") == 0
        assert capsys.readouterr().out == text
        stop = next(text[i : i + 2] for i in range(4, 24) if "\n" not in text[i : i + 2])
        settings = f"--config.sampling.stop={(stop,)!r}"
        assert generate(*words, settings, "--stream") == 0
        assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A sampler that writes a given text, byte by byte."""

    text: str
    ends: str = ""
    settings: GenerationSection = GenerationSection()

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def generate(self, requests, statistics, watch):
        answer = Answer(requests[0], 0, 99)
        for byte in self.text.encode():
            answer.token_ids.append(byte)
            watch(answer)
        text = self.text.removesuffix(self.ends)
        yield Completion(requests[0], 0, answer.token_ids, [], [], [], "stop", self.ends or None, text)


def test_a_stream_takes_nothing_back():
    """No half characters, and no beginning of a stop text before it is clear that it is none."""
    written = []
    out = io.StringIO()
    out.write = written.append
    request = Request([1], sampling=Sampling(stop=("##", "€uro")))
    job.stream(Scripted("né € €ur 😀#a##", "##"), request, Statistics(), out)
    assert "".join(written) == "né € €ur 😀#a\n"
    assert [piece for piece in written if piece] == ["n", "é", " ", "€ ", "€ur ", "😀", "#a", "\n"]


SEARCH = ("--config.sampling.temperature=0", "--config.sampling.num_beams=2", "--config.sampling.n=2")


def test_beams_give_the_best_first(generate, capsys):
    words = ("--prompt=Once", "--json", "--config.sampling.max_tokens=12")
    assert generate(*words, *SEARCH) == 0
    best, second = json.loads(capsys.readouterr().out)["completions"]
    assert best["score"] > second["score"] and best["token_ids"] != second["token_ids"]
    assert best["score"] == pytest.approx(sum(best["logprobs"]) / 12, abs=1e-5)


def test_a_chat_goes_through_the_template(generate, capsys):
    words = (*SHORT, "--json", "--chat")
    assert generate(*words, "--config.tokenizer.chat_template=chatml") == 0
    chat = json.loads(capsys.readouterr().out)
    assert generate(*SHORT, "--json") == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] != chat["token_ids"]
    assert generate(*words) == 2
    assert "no chat template" in capsys.readouterr().err


# -- rows --------------------------------------------------------------------------------------------------------------

DRAWN = ("--config.sampling.max_tokens=30", "--config.seed=7")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(count):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [{"id": f"r{i}", "prompt": letters[: 1 + i * 7 % 23], "topic": i % 3} for i in range(count)]


def assert_same(found, want):
    """Equal rows, log-probabilities to 1e-5."""
    assert [row["id"] for row in found] == [row["id"] for row in want]
    for a, b in zip(found, want):
        for name in ("logprobs", "model_logprobs"):
            np.testing.assert_allclose(a.pop(name), b.pop(name), atol=1e-5)
        assert a == b


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """An input, and the output of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    source = write(folder / "in.jsonl", rows_of(60))
    words = (f"--input={source}", f"--output={folder / 'out.jsonl'}", *DRAWN)
    assert run("--config=generate", f"--config.model.path={model}", *BYTES, *words) == 0
    return source, folder / "out.jsonl"


def test_rows_come_out_in_order_with_their_columns(straight, generate, capsys):
    source, output = straight
    found, want = read(output), read(source)
    assert [{name: row[name] for name in ("id", "prompt", "topic")} for row in found] == want
    assert {row["finish_reason"] for row in found} <= {"length", "stop"}
    assert generate(f"--prompt={want[5]['prompt']}", *DRAWN, "--json") == 0
    alone = json.loads(capsys.readouterr().out)  # the id is part of the randomness
    assert alone["token_ids"] != found[5]["token_ids"] and set(alone) < set(found[5])


def test_kill_and_resume(straight, model, generate, tmp_path, capsys, monkeypatch):
    """SIGKILL in the middle, the last line half: the same command goes on, and the file is that of a straight run."""
    source, output = straight[0], tmp_path / "out.jsonl"
    words = (f"--input={source}", f"--output={output}", *DRAWN)
    command = [sys.executable, "-m", "gramjax", "generate", "--config=generate", f"--config.model.path={model}"]
    slow = "--config.generation.steps_per_call=1"
    process = subprocess.Popen([*command, *BYTES, *words, slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < 8):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert out == b"" and 8 <= len(output.read_bytes().splitlines()) < 60
    with output.open("a") as file:
        file.write('{"id": "r59", "prom')
    before = output.read_bytes()
    assert generate(*words, "--config.sampling.temperature=0.5") == 2
    assert "config.sampling.temperature=1.0, now 0.5" in capsys.readouterr().err and output.read_bytes() == before
    real, once = job.append, [signal.SIGTERM]

    def asked_to_stop(file, path, line):
        real(file, path, line)
        if once:  # a second one would end this very process
            os.kill(os.getpid(), once.pop())

    with monkeypatch.context() as patch:  # F5: after a kill a request to stop, which costs no answer that is done
        patch.setattr(job, "append", asked_to_stop)
        assert generate(*words) == 75
    assert "stopped on request in a round of the sampler: run the same" in capsys.readouterr().err
    assert before.count(b"\n") < output.read_bytes().count(b"\n") < 60
    assert generate(*words) == 0
    assert_same(read(output), read(straight[1]))
    printed = capsys.readouterr()
    assert printed.out == "" and "60 rows in" in printed.err and "60 of them now" not in printed.err
    assert generate(*words) == 0  # nothing is left to do
    assert "0 of them now" in capsys.readouterr().err
    assert output.read_text().count("\n") == 60


def test_a_file_is_continued_for_its_own_rows_only(generate, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", rows_of(3)), tmp_path / "new" / "out.jsonl"
    words = (f"--input={source}", f"--output={output}", "--config.sampling.max_tokens=2")
    assert generate(*words, "--config.data.limit=2") == 0
    first = output.read_text()
    assert generate(*words) == 0  # more rows of the same file
    assert output.read_text().startswith(first) and len(read(output)) == 3
    capsys.readouterr()

    def refused(text):
        assert generate(*words) in (2, 3)
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1, error

    write(source, [*rows_of(2), {"id": "r2", "prompt": "another"}])
    refused("row 'r2' had another prompt")
    write(source, rows_of(4)[1:])
    refused("line 1 is row 'r0', which is not row 1 of the input")
    write(source, rows_of(3))
    output.write_text("no JSON\n" + output.read_text())
    refused("line 1: no row of this job")
    output.with_name("out.jsonl.settings.json").unlink()
    refused("gramjax generate did not write it")
    assert output.read_text().startswith("no JSON")
    assert generate(*words, "--config.overwrite=True") == 0
    assert [row["id"] for row in read(output)] == ["r0", "r1", "r2"]


def test_rows_that_cannot_be_answered_are_told_and_counted(generate, tmp_path, capsys):
    rows = rows_of(4)
    rows[0]["prompt"] = "long " * 30
    rows[2]["prompt"] = [{"role": "user", "content": "hello"}]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    words = (f"--input={source}", f"--output={output}", "--config.sampling.max_tokens=2", CHAT)
    assert generate(*words) == 0
    found = read(output)
    assert [row["finish_reason"] for row in found] == ["refused", "length", "length", "length"]
    assert found[0]["text"] is None and "96 tokens" in found[0]["refused"] and "refused" not in found[1]
    assert found[2]["prompt"] == rows[2]["prompt"]
    assert "1 rows not answered: longer than the model's 96 tokens (first: r0)" in capsys.readouterr().err


def test_beams_answer_rows(model, tmp_path):
    rows = [row for row in rows_of(8) if len(row["prompt"]) < 16]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    words = ("--config.generation.slots=2", "--config.sampling.max_tokens=4", "--config.tokenizer.path=bytes")
    files = (f"--config.model.path={model}", f"--input={source}", f"--output={output}")
    assert run("--config=generate", *files, *words, *SEARCH) == 0
    assert len(read(output)) == len(rows) > 3
    for row, asked in zip(read(output), rows):
        assert row["id"] == asked["id"] and row["score"] == row["completions"][0]["score"]
        assert row["completions"][0]["score"] >= row["completions"][1]["score"]


def test_one_process_writes_a_file(tmp_path):
    with job.open_output(tmp_path / "out.jsonl", "nowhere"):
        with pytest.raises(UserError, match="another process"):
            job.open_output(tmp_path / "out.jsonl", "nowhere")
    job.open_output(tmp_path / "out.jsonl", "nowhere").close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_is_live_on_a_terminal_and_lines_elsewhere(stream, monkeypatch):
    """Tokens of unfinished answers count too."""
    clock = iter(range(1, 100))
    monkeypatch.setattr(job.time, "monotonic", lambda: float(next(clock)))
    statistics = Statistics()
    progress = job.Progress(20, 5, statistics, stream)
    progress.show()
    answer = Answer(Request([1]), 0, 99, token_ids=[1] * 30)
    for call in range(1, 12):
        statistics.calls = call
        progress.watch(answer)
    progress.show(3)
    progress.close()
    text = stream.getvalue()
    lines = text.split("\r\x1b[2K")[1:] if stream.isatty() else text.splitlines()
    assert lines[0] == "row 5/20" and "tokens/s" in lines[-1] and (text.count("\n") == (1 if stream.isatty() else 2))
    assert len(lines) == (14 if stream.isatty() else 2)
    if stream.isatty():
        assert lines[-1].startswith("row 8/20") and lines[-1].endswith("left\n")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "--prompt=TEXT or --input=FILE"),
        ("--prompt=a --input=b --output=c", "either --prompt"),
        ("--input=b", "--output=FILE"),
        ("--prompt=a --output=b", "belongs to --input"),
        ("--input=b --output=c --json", "--json is for --prompt"),
        ("--prompt=a --stream --json", "leave out --json"),
        ("--prompt=a --stream --config.sampling.n=2", "config.sampling.n"),
        ("--prompt=a --prompt=b", "twice"),
        ("--prompt", "needs a value"),
        ("--prompt=a extra", "'extra' is not a flag"),
        ("--prompt=a --workdir=x", "--output=FILE"),
        ("--prompt=a --distributed=auto", "one process"),
        ("--prompt=a --config.model.path=", "--config.model.path="),
        ("--prompt=a --config.sampling.max_token=3", "did you mean config.sampling.max_tokens"),
        ("--prompt=a --config.sampling.top_p=0", "top_p"),
        ("--prompt=a --config.sampling.num_beams=2", "draws nothing"),
        ("--prompt=a --config.sampling.length_penalty=2", "num_beams above 1"),
        ("--prompt=a --config.sampling.early_stopping=maybe", "never"),
        ("--prompt=a --config.sampling.num_beams=2 --config.sampling.temperature=0 --stream", "--stream"),
        ("--prompt=a --config.sampling.num_beams=2 --config.sampling.temperature=0 --config.sampling.n=3", "3 best"),
        ("--input=nowhere.jsonl --output=new.jsonl", "nowhere.jsonl"),
        (f"--input={__file__} --output={__file__}", "test_generate.py"),
    ],
)
def test_what_cannot_work_is_one_line(words, text, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [] if "model.path" in words else [f"--config.model.path={model}"]
    code = run("--config=generate", *BYTES, *given, *words.split())
    out, error = capsys.readouterr()
    assert code in (2, 3) and text in error and error.count("\n") == 1 and "Traceback" not in error, error
    assert out == "" and not list(tmp_path.iterdir())


def test_the_input_is_never_the_output(generate, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", rows_of(2))
    assert generate(f"--input={source}", f"--output={source}", "--config.overwrite=True") == 2
    assert "is the input itself" in capsys.readouterr().err and read(source) == rows_of(2)


def test_a_prompt_that_is_too_long_is_a_data_error(generate, capsys):
    assert generate("--prompt=" + "x" * 200) == 3
    assert "prompt and completion together may have 96" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(generate, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert generate(f"--input={write(tmp_path / 'in.jsonl', rows_of(2))}", f"--output={output}", "--dry_run") == 0
    assert "parameters" in capsys.readouterr().out and not output.exists()


def test_help_names_the_flags_without_jax(capsys):
    code = "import sys; from gramjax import cli; cli.main(['generate', '--help']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    for flag in ("--prompt", "--input", "--output", "--json", "--stream", "--chat"):
        assert f"  {flag} " in done.stdout
    assert run("--config=generate", "--help") == 0
    assert "config.sampling.num_beams" in capsys.readouterr().out
