"""Broken data files and rows (B11-B23, B28): named by file and row, or counted; exit code 3, nothing is compiled."""

import gzip
import json
import re

import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError
from gramjax.data import languages, readers, rows, text, tokenizer
from gramjax.data.languages import LanguageText, Texts

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
ROWS = [PAIR | {"prompt": f"q{i}"} for i in range(60)]
LINES = [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize(
    "name, content",
    [
        pytest.param("my.jsonl", "", id="B11-empty"),
        pytest.param("my.jsonl", "\n  \n\r\n", id="B11-blank"),
        pytest.param("my.jsonl", "\ufeff", id="B11-mark"),
        pytest.param("my.json", "[]", id="B11-array"),
        pytest.param("my.jsonl.gz", gzip.compress(b""), id="B11-gzip"),
        pytest.param("my.tsv", "", id="B11-tsv"),
    ],
)
def test_nothing_in_it(dry_train, file, name, content):
    path = file(name, content)
    assert dry_train(path) == (3, f"gramjax: {path}: 0 records")


def test_B12_a_broken_line_is_named_or_left_out_and_counted(dry_train, file):
    path = file("my.jsonl", "\n".join([*LINES[:41], LINES[41][:20], *LINES[42:]]) + "\n")
    code, line = dry_train(path)
    assert code == 3 and "my.jsonl row 42: " in line and "at character 19" in line
    code, said = dry_train(path, "data.on_bad_row=skip")
    assert code == 0 and "rows 60, examples 59" in said and "dropped 1: invalid JSON (first: my.jsonl row 42" in said


def test_B12_blank_lines_are_no_rows_and_the_line_is_said(dry_train, file):
    code, line = dry_train(file("my.jsonl", f"{LINES[0]}\n\n\n{{broken\n{LINES[1]}\n"))
    assert code == 3 and "my.jsonl row 2: " in line and "(line 4 of the file)" in line


def test_B13_the_last_line(dry_train, file):
    code, said = dry_train(file("whole.jsonl", "\n".join(LINES)))
    assert code == 0 and "rows 60, examples 60" in said
    code, line = dry_train(file("cut.jsonl", "\n".join(LINES)[:-8]))
    assert code == 3 and "row 60: the last line breaks off" in line and "the file is truncated" in line


def test_B14_marks_ends_of_lines_and_separators(dry_train, file):
    odd = json.dumps(PAIR | {"prompt": "one\u2028two\u2029\x85"}, ensure_ascii=False)
    code, said = dry_train(file("my.jsonl", "\ufeff" + "\r\n".join([*LINES, odd])))
    assert code == 0 and "rows 61, examples 61" in said


@pytest.mark.parametrize(
    "content, expected",
    [
        pytest.param('{"prompt": "caf\xe9"}'.encode("latin-1"), "byte 0xe9 at byte 15 of the file", id="B15-latin"),
        pytest.param(b'{"prompt": "a\0b"}', "NUL byte at byte 13 of the file", id="B15-NUL"),
        pytest.param(b'{"prompt": "\xed\xa0\x80"}', "byte 0xed at byte 12 of the file", id="B16-in-bytes"),
        pytest.param('{"prompt": "a\\ud83d"}', "field 'prompt' holds half of a surrogate pair", id="B16-escaped"),
        pytest.param('{"a\\ud83d": 1, "prompt": "p"}', "half of a surrogate pair, \\ud83d", id="B16-in-a-name"),
        pytest.param('{"chosen": "a", "rejected": "b", "margin": NaN}', "literal NaN", id="B17-NaN"),
        pytest.param('{"prompt": "p", "responses": ["a"], "scores": [-Infinity]}', "literal -Infinity", id="B17-inf"),
        pytest.param('{"chosen": "a", "rejected": "b", "margin": 1e999}', "1e999 is too large", id="B17-1e999"),
        pytest.param('{"x": ' + "9" * 5000 + "}", "a whole number of more than 4300 digits", id="B9-digits"),
        pytest.param('{"x": ' + "[" * 100_000, "nested too deeply", id="B9-nested"),
        pytest.param('{"prompt": "p", "prompt": "q"}', "the key 'prompt' stands twice", id="B2-doubled"),
    ],
)
@pytest.mark.parametrize("name", ["my.jsonl", "my.json"])
def test_what_is_no_text_or_no_number(told, file, name, content, expected):
    raw = content.encode() if isinstance(content, str) else content
    raw = raw + b"\n" if name == "my.jsonl" else b"[" + raw + b"]"  # an array is one JSON value: refused as a whole
    code, said = told("data", "check", file(name, raw))
    if name == "my.json":
        expected = re.sub(r"at byte (\d+)", lambda found: f"at byte {int(found[1]) + 1}", expected)
    assert code == 3 and expected in said


def test_B15_another_encoding(told, file):
    code, said = told("data", "check", file("my.jsonl", LINES[0].encode("utf-16")))
    assert code == 3 and "NUL byte at byte 3 of the file" in said


@pytest.mark.parametrize(
    "row, expected",
    [
        pytest.param({"prompt": "p", "chosen": None, "rejected": "b"}, "'chosen' is null", id="B18-null"),
        pytest.param({"prompt": "p", "chosen": "a"}, "needs 'chosen' and 'rejected'", id="B18-gone"),
        pytest.param(PAIR | {"chosen": 5}, "'chosen' is a int", id="B18-number"),
        pytest.param(PAIR | {"chosen": ["a"]}, "'chosen' turn 1 is a str", id="B18-list"),
        pytest.param(PAIR | {"chosen": {"a": 1}}, "'chosen' is a dict", id="B18-object"),
        pytest.param(PAIR | {"margin": "3"}, "'margin' is '3'; a finite number", id="B18-margin"),
        pytest.param(PAIR | {"margin": True}, "'margin' is True; a finite number", id="B18-truth"),
        pytest.param(PAIR | {"id": {"a": 1}}, "'id' is {'a': 1}; text or a number", id="B18-id"),
        pytest.param(PAIR | {"id": ""}, "'id' is ''; text or a number", id="B18-empty-id"),
        pytest.param(PAIR | {"tools": 5}, "'tools' is no list of objects", id="B18-tools"),
        pytest.param(PAIR | {"chat_template_kwargs": 5}, "'chat_template_kwargs' is a int", id="B18-variables"),
        pytest.param(PAIR | {"chat_template_kwargs": {"messages": []}}, "may not set 'messages'", id="B18-messages"),
        pytest.param(PAIR | {"chat_template_kwargs": {"_budget": 1}}, "may not set '_budget'", id="B18-hidden"),
        pytest.param(
            PAIR | {"chosen": [{"role": "king", "content": "x"}], "rejected": [{"role": "assistant", "content": "y"}]},
            "'chosen' turn 1 has role 'king'; known roles: system, developer, user", id="B23-role",
        ),
        pytest.param(
            PAIR | {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]},
            "'prompt' turn 1 has content parts that are no text; images are not read here", id="B34-image",
        ),
    ],
)  # fmt: skip
def test_fields_of_a_row(dry_train, file, row, expected):
    code, line = dry_train(file("my.jsonl", [ROWS[0], row]))
    assert code == 3 and "my.jsonl row 2: " in line and expected in line


def test_B19_ids_and_rows_that_are_there_twice(dry_train, told, file):
    code, line = dry_train(file("ids.jsonl", [row | {"id": "x"} for row in ROWS[:2]]))
    assert code == 3 and "row 2: the id 'x' was used before, by ids.jsonl row 1" in line
    path = file("rows.jsonl", ROWS[:8] + ROWS[:8])
    code, said = dry_train(path)
    assert code == 0 and "duplicate row: 8 (first: rows.jsonl row 9)" in said
    held = file("held.jsonl", ROWS[6:10])
    code, said = dry_train(path, f"data.valid=('{held}',)")
    assert code == 0 and "held-out row whose prompt is in the training rows too: 2" in said
    code, said = told("data", "check", held, f"--against={path}")
    assert code == 0 and "leak      2 rows have a prompt that is also in" in said


def test_B20_pairs_without_a_preference(dry_train, file):
    useless = [PAIR | {"rejected": "a"}, PAIR | {"chosen": "", "rejected": ""}, PAIR | {"chosen": " ", "rejected": "b"}]
    code, said = dry_train(file("my.jsonl", [*ROWS[:8], *useless, PAIR | {"chosen": "ab", "rejected": "a"}]))
    assert code == 0 and "rows 12, examples 9" in said, "a beginning of the other answer is an answer like any other"
    assert "dropped 1: identical chosen/rejected (first: my.jsonl row 9)" in said
    assert "dropped 2: empty chosen (first: my.jsonl row 10)" in said


@pytest.mark.parametrize(
    "row, policy, expected",
    [
        pytest.param(PAIR | {"prompt": "x" * 99}, "drop", (3, "8 longer than max_length 64 (median"), id="B21-drop"),
        pytest.param(PAIR | {"prompt": "x" * 99}, "truncate_prompt_left", (0, "prompts cut: 8"), id="B21-prompt"),
        pytest.param(PAIR | {"chosen": "x" * 99}, "truncate_prompt_left", (3, "even when shortened"), id="B21-answer"),
        pytest.param(PAIR | {"chosen": "x" * 99}, "shorten_responses", (0, "responses shortened: 8"), id="B21-shorten"),
        pytest.param(PAIR | {"chosen": "x" * 99}, "error", (3, "more than config.data.max_length=64"), id="B21-error"),
    ],
)
def test_rows_that_are_too_long(dry_train, file, row, policy, expected):
    code, said = dry_train(file("my.jsonl", [row] * 8), f"data.overlong={policy}")
    assert code == expected[0] and expected[1] in said


def test_B21_an_example_without_a_target_is_dropped():
    """Its loss would be 0/0."""
    renderer = text.Renderer(tokenizer.byte_level(chat_template="chatml"), DataSection(max_length=64))
    with pytest.raises(rows.Drop, match="no token to predict"):
        renderer.conversation([{"role": "user", "content": "nobody answers"}])


@pytest.mark.parametrize(
    "count, settings, expected",
    [
        pytest.param(1, [], (2, "1 examples do not fill one batch of 2"), id="B22-small"),
        pytest.param(1, ["train.batch_size=1"], (0, "rows 1, examples 1, steps 1"), id="B22-one"),
        pytest.param(8, ["train.epochs=0.1"], (2, "epochs=0.1 of 8 rows is less than one batch"), id="B22-0"),
    ],
)
def test_less_than_a_batch(dry_train, file, count, settings, expected):
    code, said = dry_train(file("my.jsonl", ROWS[:count]), *settings)
    assert code == expected[0] and expected[1] in said


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


@pytest.mark.parametrize(
    "roles, template, expected",
    [
        pytest.param("user user assistant", "chatml", (0, "usable    1 of 1"), id="B23-two-users"),
        pytest.param("user user assistant", "alternating", (3, "roles must alternate"), id="B23-refused"),
        pytest.param("user assistant tool assistant", "chatml", (0, "usable    1 of 1"), id="B23-tool"),
        pytest.param("user assistant tool assistant", "alternating", (3, "must alternate"), id="B23-tool-refused"),
        pytest.param("user", "chatml", (3, "1 no token to predict"), id="B23-no-answer"),
    ],
)
def test_conversations(told, file, roles, template, expected):
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    path, jinja = file("my.jsonl", [{"messages": messages}]), file("a.jinja", ALTERNATING)
    chosen = "chatml" if template == "chatml" else jinja
    code, said = told("data", "check", path, "--tokenizer=bytes", f"--chat_template={chosen}")
    assert code == expected[0] and expected[1] in said


def test_B23_an_empty_answer_is_dropped(told, file):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    code, said = told("data", "check", file("my.jsonl", [{"messages": messages}]))
    assert code == 3 and "1 empty messages" in said


def test_B27_parallel_files_of_unequal_length(told, file, tmp_path):
    file("lines/en.txt", "one\ntwo\nthree\n")
    file("lines/de.txt", "eins\nzwei\n")
    code, line = told("data", "pairs", tmp_path / "lines", tmp_path / "out.jsonl")
    assert code == 3 and "de.txt has 2 rows and en.txt has 3" in line or "en.txt has 3 rows and de.txt has 2" in line
    file("lines/de.txt", "eins\n\ndrei\n")  # a line that is missing keeps the place of the others
    code, said = told("data", "pairs", tmp_path / "lines", tmp_path / "out.jsonl")
    assert code == 0 and "2 translation pairs" in said and "left out 1 empty line; first: de.txt line 2" in said
    code, line = told("data", "pairs", tmp_path / "lines", tmp_path / "more.jsonl", "--languages=de,qq")
    assert code == 2 and "no texts in 'qq'; the data has en, de" in line


def test_B27_rows_with_ids_of_their_own_may_differ_in_number():
    of = {"en": ("id:a", "id:b"), "de": ("id:b",)}
    found = Texts([LanguageText(name, key, f"{name} {key}") for name in of for key in of[name]], [], rows.Tally())
    assert languages.parallel(found, ("en", "de"))[1] == 1
    placed = Texts(found.texts, [], rows.Tally(), {"en": ("en.txt", 2), "de": ("de.txt", 1)})
    with pytest.raises(DataError, match="en.txt has 2 rows and de.txt has 1"):
        languages.parallel(placed, ("en", "de"))


def test_B28_tabs_and_quotes(told, file):
    code, said = told("data", "check", file("my.tsv", 'He said "what?\t4\na\tb\t5\n"x"\t6\n'))
    assert code == 0 and "usable    2 of 3" in said, "a quotation mark is a character"
    assert "1 not two columns; first: my.tsv row 2: has 3 columns" in said
    assert readers.read(str(file("one.tsv", '"x"\t6\n'))).rows[0]["prompt"][0]["content"] == '"x"'


def test_B15_damaged_parquet(told, file, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({name: [f"{name} {i}" for i in range(500)] for name in PAIR}), tmp_path / "whole.parquet")
    assert told("data", "check", tmp_path / "whole.parquet")[0] == 0
    raw = (tmp_path / "whole.parquet").read_bytes()
    for damaged in (b"", raw[:-20], raw[:200] + b"\xff\x00" * 30 + raw[260:], b"text"):
        code, line = told("data", "check", file("my.parquet", damaged))
        assert code == 3 and "my.parquet: no readable parquet file" in line


@pytest.mark.parametrize(
    "name, content, expected",
    [
        pytest.param("my.jsonl.gz", gzip.compress(LINES[0].encode())[:-9], "truncated gzip", id="B13-gzip"),
        pytest.param("my.jsonl.gz", gzip.compress(LINES[0].encode()) + b"x", "damaged or truncated", id="B15-gzip"),
        pytest.param("set/state.json", "{", "state.json: ", id="B18-folder-broken"),
        pytest.param("set/state.json", "[]", "holds list, an object was expected", id="B18-folder-list"),
        pytest.param("set/state.json", "{}", "does not list its files", id="B18-folder-empty"),
        pytest.param("set/state.json", '{"_data_files": [{"filename": 5}]}', "does not list", id="B18-folder-number"),
        pytest.param("set/state.json", '{"_data_files": [{"filename": "../x"}]}', "outside", id="B10-listed"),
        pytest.param("set/dataset_info.json", "{", "dataset_info.json: ", id="B18-tfds-broken"),
    ],
)
def test_damaged_files(told, file, name, content, expected):
    path = file(name, content)
    if name == "set/dataset_info.json":
        file("set/features.json", "{}")
    code, line = told("data", "check", path if path.parent.name != "set" else path.parent)
    assert code == 3 and line.startswith("gramjax: ") and expected in line
