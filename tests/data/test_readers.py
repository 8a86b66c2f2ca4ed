"""Files to rows: kinds of file, strict JSON, counted losses, and real data."""

import gzip
import importlib
import json
from pathlib import Path

import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import readers

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
SKIP = DataSection(on_bad_row="skip")


def write(folder: Path, data, name="my.jsonl") -> str:
    path = folder / name
    if isinstance(data, list):
        data = "".join(json.dumps(row) + "\n" for row in data)
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return str(path)


def pair(index: int) -> dict:
    return PAIR | {"prompt": f"p{index}"}


def test_rows_get_stable_ids_from_the_file_and_the_row(tmp_path):
    found = readers.read(write(tmp_path, [pair(0), pair(1) | {"id": 7}, pair(2)]))
    assert [row["id"] for row in found.rows] == ["my-1", "7", "my-3"]
    assert found.type == "preference" and found.records == 3 and not found.dropped


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(PAIR) + "\n" + json.dumps(pair(1)),  # no newline at the end
        "\ufeff" + json.dumps(PAIR) + "\n" + json.dumps(pair(1)) + "\n",  # byte order mark
        json.dumps(PAIR) + "\r\n\r\n" + json.dumps(pair(1)) + "\r\n",  # CRLF and a blank line
        json.dumps([PAIR, pair(1)], indent=1),  # an array
        "\ufeff  " + json.dumps([PAIR, pair(1)]),
    ],
)
def test_harmless_differences_of_files_are_accepted(tmp_path, data):
    assert len(readers.read(write(tmp_path, data)).rows) == 2
    assert len(readers.read(write(tmp_path, gzip.compress(data.encode()), "my.jsonl.gz")).rows) == 2


def test_line_separators_inside_strings_do_not_split_lines(tmp_path):
    odd = "one\u2028two\u2029three\x85four\x0bfive"
    found = readers.read(write(tmp_path, json.dumps(PAIR | {"chosen": odd}, ensure_ascii=False) + "\n"))
    assert found.rows[0]["chosen"] == odd


@pytest.mark.parametrize("data", ["", "\n\n  \n", "[]"])
def test_an_empty_file_has_0_records(tmp_path, data):
    with pytest.raises(DataError, match="0 records"):
        readers.read(write(tmp_path, data))


BAD_LINES = {
    "broken JSON": (b'{"prompt": "p", "chosen" "a"}', "my.jsonl row 2: .*at character", "invalid JSON"),
    "no object": (b'["a"]', "row 2: holds list", "no JSON object"),
    "NaN": (b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": NaN}', "row 2: .*NaN", "NaN or Infinity"),
    "Infinity": (b'{"prompt": "p", "x": [-Infinity]}', "row 2: .*Infinity", "NaN or Infinity"),
    "1e999": (b'{"prompt": "p", "x": 1e999}', "row 2: .*too large", "NaN or Infinity"),
    "doubled key": (b'{"prompt": "p", "prompt": "q"}', "row 2: the key 'prompt' stands twice", "doubled key"),
    "Latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "row 2: byte 0xe9 at byte ", "invalid UTF-8"),
    "NUL byte": (b'{"prompt": "a\0b"}', "row 2: NUL byte at byte ", "NUL byte"),
    "escaped NUL": (b'{"prompt": "a\\u0000b"}', "row 2: field 'prompt' holds a NUL", "NUL character"),
    "lone surrogate": (
        b'{"prompt": "a\\ud800b"}',
        r"row 2: field 'prompt' .*\\ud800, at character 2",
        "lone surrogate",
    ),
    "deep nesting": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "row 2: nested too deeply", "invalid JSON"),
    "huge number": (b'{"x": ' + b"9" * 5000 + b"}", "row 2: .*digit", "invalid JSON"),
    "other type": (b'{"text": "t"}', "row 2: has 'text'", "wrong columns"),
    "null field": (b'{"prompt": null, "chosen": "a", "rejected": 5}', "row 2: 'rejected' is a int", "unusable row"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_or_counted(tmp_path, case):
    line, message, reason = BAD_LINES[case]
    good = json.dumps(PAIR).encode() + b"\n"
    path = write(tmp_path, good + line + b"\n" + json.dumps(pair(1)).encode() + b"\n")
    with pytest.raises(DataError, match=message):
        readers.read(path, want="preference")
    found = readers.read(path, SKIP, "preference")
    assert len(found.rows) == 2 and found.refused == 1
    assert found.dropped[reason][0] == 1 and "row 2" in found.dropped[reason][1]


def test_the_byte_offset_of_invalid_utf8_is_that_in_the_file(tmp_path):
    good = json.dumps(PAIR).encode() + b"\n"
    data = good + b'{"prompt": "\xff"}\n'
    with pytest.raises(DataError, match=f"byte 0xff at byte {data.index(0xFF)} of the file"):
        readers.read(write(tmp_path, data))


def test_a_truncated_last_line_is_called_that(tmp_path):
    data = json.dumps(PAIR) + "\n" + json.dumps(pair(1))[:20]
    with pytest.raises(DataError, match="row 2: the last line breaks off"):
        readers.read(write(tmp_path, data))


def test_a_truncated_gzip_file_is_refused(tmp_path):
    whole = gzip.compress("".join(json.dumps(pair(i)) + "\n" for i in range(500)).encode())
    with pytest.raises(DataError, match="truncated gzip"):
        readers.read(write(tmp_path, whole[: len(whole) // 2], "my.jsonl.gz"))


def test_duplicate_ids_are_refused_and_duplicate_rows_counted(tmp_path):
    with pytest.raises(DataError, match="row 2: the id 'x' was used before, by my.jsonl row 1"):
        readers.read(write(tmp_path, [pair(0) | {"id": "x"}, pair(1) | {"id": "x"}]))
    found = readers.read(write(tmp_path, [pair(0), pair(0), pair(1)]))
    assert len(found.rows) == 3 and found.notes == {"duplicate row": (1, "my.jsonl row 2")}


def test_identical_and_empty_pairs_are_dropped_with_counts(tmp_path):
    made = [PAIR, PAIR | {"rejected": "a"}, PAIR | {"chosen": ""}, PAIR | {"chosen": "b"}]
    found = readers.read(write(tmp_path, made))
    assert len(found.rows) == 1 and found.total == 4
    assert {reason: count for reason, (count, _) in found.dropped.items()} == {
        "identical chosen/rejected": 2,
        "empty chosen": 1,
    }


def test_a_file_without_a_usable_row_says_why(tmp_path):
    with pytest.raises(DataError, match=r"0 of 2 rows usable: 2 identical chosen/rejected \(first: my.jsonl row 1\)"):
        readers.read(write(tmp_path, [PAIR | {"rejected": "a"}] * 2))


def test_wrong_columns_name_file_row_and_remedy_and_rename_is_the_remedy(tmp_path):
    path = write(tmp_path, [{"question": "q", "chosen": "a", "rejected": "b"}, {"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"my.jsonl row 2: has 'question','answer'; preference training needs 'chosen'"):
        readers.read(path, want="preference")
    path = write(tmp_path, [{"question": "q", "good": "a", "bad": "b"}])
    section = DataSection(rename=("question:prompt", "good:chosen", "bad:rejected"))
    assert readers.read(path, section, "preference").rows[0]["prompt"] == "q"
    with pytest.raises(UserError, match="'old:new'"):
        readers.read(path, DataSection(rename=("question",)))
    with pytest.raises(DataError, match="cannot rename 'good' to 'bad'"):
        readers.read(path, DataSection(rename=("good:bad",)))


def test_limit_and_wanted_types(tmp_path):
    path = write(tmp_path, [pair(i) for i in range(5)])
    assert len(readers.read(path, DataSection(limit=2)).rows) == 2
    assert readers.read(path, want="pair_unlabelled").type == "pair_unlabelled"
    assert readers.read(path, want=("language_modeling", "preference")).type == "preference"
    assert readers.read(path, want="prompt_completion").rows[0]["completion"] == "a"
    with pytest.raises(DataError, match="unpaired training needs"):
        readers.read(path, want="unpaired")


def test_several_sources_keep_their_ids_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [pair(0)], "dev.jsonl")
    found = readers.read_all([str(tmp_path / n / "dev.jsonl") for n in ("one", "two")])
    assert [row["id"] for row in found.rows] == ["one/dev-1", "two/dev-1"]
    assert [file["name"] for file in found.files] == ["dev.jsonl", "dev.jsonl"] and found.records == 2
    unlabelled = write(tmp_path, [{"prompt": "p", "responses": ["a", "b"]}], "pairs.jsonl")
    mixed = [str(tmp_path / "one" / "dev.jsonl"), unlabelled]
    assert readers.read_all(mixed, want=("preference", "pair_unlabelled")).type == "pair_unlabelled"
    with pytest.raises(DataError, match="holds pair_unlabelled rows"):
        readers.read_all(mixed)


def test_overlap_counts_shared_prompts():
    train = [{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "b"}]
    assert (
        readers.overlap(train, [{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "a"}, {"prompt": "b"}]) == 2
    )


def test_missing_and_unknown_files(tmp_path):
    write(tmp_path, [PAIR], "training.jsonl")
    with pytest.raises(UserError, match=r"no file or folder .*there is: training.jsonl"):
        readers.read(str(tmp_path / "training.json"))
    with pytest.raises(UserError, match="unknown kind of data file"):
        readers.read(write(tmp_path, b"x", "data.pkl"))
    with pytest.raises(UserError, match="no data folder"):
        readers.read(str(tmp_path))


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "q"}]
    table = pa.Table.from_pylist([{"prompt": messages, "reward_model": {"style": "rule", "ground_truth": "42"}}] * 2)
    pq.write_table(table, tmp_path / "verl.parquet")
    found = readers.read(str(tmp_path / "verl.parquet"))
    assert found.type == "prompt_only" and found.rows[1]["prompt"] == messages
    assert found.rows[0]["ground_truth"] == "42"
    pq.write_table(pa.table({"chosen": ["a"], "rejected": ["b"], "margin": [float("nan")]}), tmp_path / "nan.parquet")
    with pytest.raises(DataError, match="row 1: holds the number nan"):
        readers.read(str(tmp_path / "nan.parquet"))


def test_a_saved_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list([pair(i) for i in range(3)])
    whole.save_to_disk(str(tmp_path / "saved"))
    found = readers.read(str(tmp_path / "saved"))
    assert [row["prompt"] for row in found.rows] == ["p0", "p1", "p2"]
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match=r"several splits; give one: .*splits/train"):
        readers.read(str(tmp_path / "splits"))
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other.arrow"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside the folder"):
        readers.read(str(tmp_path / "saved"))


BUILDER = """
import tensorflow_datasets as tfds

class {name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = ("prompt", "chosen", "rejected")
        features = tfds.features.FeaturesDict({n: tfds.features.Text() for n in names})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(3):
            yield index, {"prompt": f"p{index}", "chosen": "caf\u00e9", "rejected": "b"}
"""


@pytest.mark.parametrize("kind", ["array_record", "parquet"])
def test_a_tfds_folder_is_read_without_tensorflow(tmp_path, monkeypatch, kind):
    pytest.importorskip("tensorflow_datasets")
    if kind == "array_record":
        pytest.importorskip("array_record")
    name = f"Pairs{kind.title().replace('_', '')}"  # a builder must live in an importable package
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(BUILDER.replace("{name}", name), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    builder = getattr(importlib.import_module(name), name)(data_dir=str(tmp_path), file_format=kind)
    builder.download_and_prepare()
    found = readers.read(str(builder.data_dir))
    assert sorted(row["prompt"] for row in found.rows) == ["p0", "p1", "p2"]
    assert {row["chosen"] for row in found.rows} == {"café"}, "bytes become text"


def test_pairs_per_record_draws_the_same_pairs_every_time(tmp_path):
    row = {"instruction": "i", "responses": {f"m{i}": f"answer {i}" for i in range(5)}}
    path = write(tmp_path, [row])
    assert len(readers.read(path).rows) == 10
    drawn = readers.read(path, DataSection(pairs_per_record=3)).rows
    assert len(drawn) == 3 and drawn == readers.read(path, DataSection(pairs_per_record=3)).rows


@pytest.mark.parametrize(
    ("file", "want", "form", "usable", "dropped"),
    [
        ("hh_harmless/dev.jsonl.gz", "preference", "hh", 1747, 4),
        ("persona/agreeableness.jsonl.gz", "preference", "persona", 1000, 0),
        ("llmbar/natural.jsonl.gz", "preference", "llmbar", 100, 0),
        ("pandalm/dev.jsonl.gz", "preference", "pandalm", None, None),
        ("pandalm/dev.jsonl.gz", "pair_unlabelled", "pandalm", None, None),
        ("self_instruct/user_oriented_dev.jsonl.gz", "pair_unlabelled", "self-instruct", None, 1),
        ("qa_feedback/dev.jsonl.gz", "preference", "qa-feedback", 1840, 260),
    ],
)
def test_real_files(data_dir, file, want, form, usable, dropped):
    found = readers.read(str(Path(data_dir) / file), want=want)
    assert found.format == form and found.type == want
    assert found.total >= found.records - 1
    if usable is not None:
        assert len(found.rows) == usable
    if dropped is not None:
        assert found.dropped.total == dropped
    for row in found.rows:
        answers = row["responses"] if want == "pair_unlabelled" else [row["chosen"], row["rejected"]]
        assert row["prompt"] and all(answers) and answers[0] != answers[1]
        assert row["prompt"][-1]["role"] == "user" and all(answer[0]["role"] == "assistant" for answer in answers)


def test_ties_are_dropped_where_a_label_is_needed_and_kept_elsewhere(data_dir):
    path = str(Path(data_dir) / "pandalm" / "dev.jsonl.gz")
    ties = readers.read(path, want="preference").dropped["tie"][0]
    assert ties > 0
    assert "tie" not in readers.read(path, want="pair_unlabelled").dropped


def test_questions_without_preferences_are_refused_by_name(data_dir):
    with pytest.raises(
        DataError, match=r"train.jsonl.gz row 1: has 'src_row','question','answer'; preference training"
    ):
        readers.read(str(Path(data_dir) / "gsm8k" / "train.jsonl.gz"), want="preference")
