"""Seeded random damage to data files, config files and words of the command line: an answer, or one of our errors."""

import json
import random

import pytest

from gramjax.core import checks, flags
from gramjax.core import config as configs
from gramjax.core.config import DataSection
from gramjax.core.errors import GramjaxError
from gramjax.data import readers, text, tokenizer

TURN = [{"role": "user", "content": "q\u00e9"}]
ROWS = [
    {"prompt": "caf\u00e9 \U0001f600", "chosen": "a", "rejected": "b", "margin": 0.5, "id": "x-1"},
    {"prompt": TURN, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b", "tools": [{"name": "f"}]},
    {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3], "chat_template_kwargs": {"x": 1}},
    {"instruction": "i", "input": "", "output": "o", "history": [["a", "b"]]},
    {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
    {"instruction": "i", "output_1": "a", "output_2": "b", "label": 1},
    {"source": "s", "lp": "en-de", "outputs": [{"hyp": "x", "mqm": 1.0}, {"hyp": "y", "mqm": 3.0}]},
    {"context": TURN, "response1": "a", "response2": "b", "overall_preference": -2},
]
SPICES = [b"\x00", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"[", b"]", b",", b"\\", b"\n", b"\\ud800", b"NaN", b"1e999",
          b"null", b"true", b"[]", b"{}", b"-1", b"9" * 30]  # fmt: skip


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """A few bytes replaced, taken out, doubled or put in."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        size = rng.choice([1, 1, 1, 2, 8])
        kind = rng.randrange(4)
        if kind == 0:
            out[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = out[at : at + size * 4]
        else:
            out[at:at] = rng.choice(SPICES)
    return bytes(out)


def swapped(rng: random.Random, row: dict) -> dict:
    """A row with a value of a wrong kind somewhere: valid JSON, wrong meaning."""
    strange = [None, 5, -1.5, True, "", "x", [], ["x"], [[]], {}, {"role": "user"}, [{"role": "user", "content": None}]]
    out = json.loads(json.dumps(row))
    place, key = out, rng.choice(list(out))
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.6:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    place[key] = rng.choice(strange)
    return out


def outcome(call) -> str:
    """What became of a call: `fine`, or the kind of our error. Any other exception fails the test."""
    try:
        call()
    except GramjaxError as error:
        assert str(error).strip() and len(str(error)) < 5000
        return type(error).__name__
    return "fine"


def both_met(counts: dict[str, int], total: int) -> None:
    assert sum(counts.values()) == total and counts.get("fine", 0) > 5 and counts.get("DataError", 0) > 5, counts


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_files_with_damaged_bytes(tmp_path, policy):
    rng = random.Random(policy)
    counts: dict[str, int] = {}
    path = tmp_path / "my.jsonl"
    for _ in range(300):
        chosen = [ROWS[0], rng.choice(ROWS)]
        raw = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in chosen).encode()
        path.write_bytes(damaged(rng, raw))
        found = outcome(lambda: readers.read(str(path), DataSection(on_bad_row=policy)))
        counts[found] = counts.get(found, 0) + 1
    both_met(counts, 300)


def test_rows_with_values_of_the_wrong_kind(tmp_path):
    """As far as the tokens that a model would be given."""
    rng = random.Random(7)
    renderer = text.Renderer(tokenizer.byte_level(chat_template="chatml"), DataSection(max_length=4096))
    from gramjax.jobs import data

    counts: dict[str, int] = {}
    path = tmp_path / "my.jsonl"
    for _ in range(400):
        path.write_text(json.dumps(swapped(rng, rng.choice(ROWS))) + "\n")

        def as_tokens():
            found = readers.read(str(path))
            render = data.renderings(renderer, found.type)
            for row in found.rows:
                try:
                    render(row)
                except data.rows.Drop:
                    pass

        kind = outcome(as_tokens)
        counts[kind] = counts.get(kind, 0) + 1
    both_met(counts, 400)


def test_words_of_the_command_line():
    rng = random.Random(11)
    config = configs.defaults("bradley_terry", evals=("preference",))
    flat = checks.flatten(config)
    values = ["1", "-1", "0", "1e-4", "nan", "inf", "None", "True", "", "x", "()", "(1,)", "('a',)", "[1]", "(", "{}",
              "\u00e9", "0x10", "1_000", "9" * 25, "(1,(2,))", "lambda: 0", "__import__('os')", "a,b", "'", '"',
              "\\"]  # fmt: skip
    counts: dict[str, int] = {}
    for _ in range(150):
        word = f"--config.{rng.choice(list(flat))}={rng.choice(values)}"
        if rng.random() < 0.3:
            word = damaged(rng, word.encode()).decode("latin-1").replace("--help", "")
        words = ["--config=bradley_terry", "--dry_run", word]
        kind = outcome(lambda words=words: flags.parse(words))
        counts[kind] = counts.get(kind, 0) + 1
    assert sum(counts.values()) == 150 and counts["fine"] > 10 and counts["UserError"] > 50, counts


def test_config_files_with_damaged_bytes(tmp_path):
    rng = random.Random(13)
    raw = json.dumps({"objective": {"name": "bradley_terry"}, "optim": {"lr": 1e-4, "betas": [0.9, 0.95]}, "seed": 3,
                      "evals": {"preference": {}}, "phases": {"a": {"train": {"steps": 3}}}}).encode()  # fmt: skip
    path = tmp_path / "mine.json"
    counts: dict[str, int] = {}
    for _ in range(150):
        path.write_bytes(damaged(rng, raw))
        kind = outcome(lambda: flags.parse([f"--config={path}", "--dry_run"]))
        counts[kind] = counts.get(kind, 0) + 1
    assert sum(counts.values()) == 150 and counts["UserError"] > 50, counts
