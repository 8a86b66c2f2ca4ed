"""Texts by language, and the translation pairs that are made of them."""

import gzip
import json

import pytest

from gramjax import cli
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import language_names, languages, readers, tokenizer, translation_pairs
from gramjax.data.text import Renderer
from gramjax.data.translation_pairs import Settings

QUESTIONS = {
    "en": ["Ann has 3 apples.", "Bob pays 1,200 francs.", "A dog.", "A dog again."],
    "german": ["Anna hat 3 Äpfel.", "Bob zahlt 1.200 Franken.", "Ein Hund.", "Ein Hund."],
    "thai": ["แอนมีแอปเปิล ๓ ลูก", "บ๊อบจ่าย 900 ฟรังก์", "สุนัข", "สุนัข"],
}


@pytest.fixture
def folder(tmp_path):
    """A file per language, named by code or name, and a page of text beside them."""
    for name, texts in QUESTIONS.items():
        rows = [json.dumps({"question": text, "answer": "1"}, ensure_ascii=False) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), "utf-8")
    (tmp_path / "README.md").write_text("Questions.")
    return tmp_path


@pytest.mark.parametrize(
    "name,found",
    [
        ("de.jsonl.gz", ("de",)), ("german.jsonl", ("de",)), ("mgsm_bn.tsv", ("bn",)), ("deu.dev.txt.gz", ("de",)),
        ("cmn-eng.tsv.gz", ("zh", "en")), ("doc_ids.dev.txt.gz", ()), ("train.jsonl", ()),
        ("test_English.json", ("en",)),
    ],
)  # fmt: skip
def test_languages_of_file_names(name, found):
    assert language_names.of_file(name) == found


def test_texts_of_a_folder(folder):
    found = languages.read([str(folder)], DataSection())
    assert found.languages == ("en", "de", "th") and languages.counts(found) == {"en": 4, "de": 4, "th": 4}
    assert sorted(file["name"] for file in found.files) == ["en.jsonl", "german.jsonl", "thai.jsonl"]
    same, left_out = languages.parallel(found, ("en", "th"))
    assert left_out == 0 and [text.key for text in same.by_key("en").values()] == ["#1", "#2", "#3", "#4"]
    given = languages.read([f"sw:{folder}/thai.jsonl", str(folder / "en.jsonl")], DataSection())
    assert given.languages == ("en", "sw")
    (row, *_) = readers.read(str(folder), DataSection()).rows
    assert row["language"] == "en" and row["id"] == "{}-1".format(folder.name.split(".")[0])


def test_a_column_may_name_the_language(tmp_path):
    rows = [{"text": "Hello", "language": "English", "src_row": 7}, {"text": "Hallo", "lang": "de", "src_row": 7}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = languages.read([str(tmp_path / "mixed.jsonl")], DataSection())
    assert [(text.language, text.prompt) for text in found.texts] == [("en", "Hello"), ("de", "Hallo")]
    assert {text.key for text in found.texts} == {"7"}


def test_a_row_that_is_left_out_moves_no_other(tmp_path):
    (tmp_path / "en.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two", "three")))
    (tmp_path / "de.jsonl").write_text('{"text": "eins"}\n{"text"\n{"text": "drei"}\n')
    made = translation_pairs.read([str(tmp_path)], Settings(), DataSection(on_bad_row="skip"))
    assert [(row["source_text"], row["target_text"]) for row in made.rows] == [("eins", "one"), ("drei", "three")]
    rows = [{"text": text, "id": name} for text, name in (("Zwei", "b"), ("Eins", "a"))]
    (tmp_path / "de.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "en.jsonl").write_text('{"text": "One", "id": "a"}\n')
    (row,) = translation_pairs.read([str(tmp_path)], Settings()).rows
    assert (row["source_text"], row["target_text"]) == ("Eins", "One")


def test_lines_of_two_languages(tmp_path):
    """A line separator of Unicode does not end a line; a line without a translation is counted."""
    lines = "Guten Tag\tGood day\nEins\u2028zwei\tOne two\nAllein\n\n"
    (tmp_path / "deu-eng.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "fra-eng.tsv").write_text("Bonjour\tGood day\n", "utf-8")
    made = translation_pairs.read([str(tmp_path)], Settings(direction="from_pivot"))
    assert made.counts() == {"en -> de": 2, "en -> fr": 1}
    assert made.rows[1]["target_text"] == "Eins\u2028zwei"
    first = "deu-eng.tsv.gz line {}"
    assert dict(made.dropped) == {"not 2 columns": (1, first.format(3)), "empty line": (1, first.format(4))}
    with pytest.raises(UserError, match="share no rows.*--config.probe.parallel=False"):
        languages.parallel(languages.read([str(tmp_path)], DataSection()), ("en", "de", "fr"))


@pytest.mark.smoke
def test_pairs(folder):
    made = translation_pairs.read([str(folder)], Settings())
    assert made.counts() == {"de -> en": 3, "th -> en": 3}
    assert dict(made.dropped) == {"source that occurs before": (2, "de-en-de-#4")}
    row = made.rows[1]
    assert row["prompt"] == [
        {"role": "user", "content": "Translate from German into English.\n\nBob zahlt 1.200 Franken."}
    ]
    assert row["completion"] == [{"role": "assistant", "content": "Bob pays 1,200 francs."}]
    assert (row["id"], row["subset"], row["source_lang"]) == ("question-de-en-#2", "de-en", "de")
    same = translation_pairs.read([str(folder)], Settings(same_numerals=True))
    assert same.counts() == {"de -> en": 3, "th -> en": 2} and same.dropped["numerals differ"] == (1, "th-en-th-#2")
    both = translation_pairs.read([str(folder)], Settings(direction="both", languages=("Thai",)))
    assert both.counts() == {"th -> en": 3, "en -> th": 4}
    other = Settings(template="{text} = {target}?", pivot="de", languages=("en",))
    worded = translation_pairs.read([str(folder)], other)
    assert worded.rows[0]["prompt"][0]["content"] == "Ann has 3 apples. = German?"


def test_numerals_of_any_script():
    assert translation_pairs.numerals("১,২০০ and 3.5") == translation_pairs.numerals("3,5 und 1.200") == ["1200", "35"]


def test_answers_are_translated_too(tmp_path):
    for name, word in (("en", "So"), ("de", "Also")):
        rows = [{"question": f"{word} {i}?", "answer": f"{word} {i}.\n#### {i}"} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = translation_pairs.read([str(tmp_path)], Settings(task="question+answer"))
    assert [row["task"] for row in made.rows] == ["question"] * 3 + ["answer"] * 3
    assert made.rows[4]["source_text"] == "Also 1.\n#### 1" and made.rows[4]["target_text"] == "So 1.\n#### 1"


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"pivot": "sw"}, "no texts in the pivot 'sw'; the data has en, de, th"),
        ({"languages": ("ja",)}, "no texts in 'ja'"),
        ({"template": "{source}"}, "no {text}"),
        ({"direction": "up"}, "direction 'up' is not one of"),
    ],
)
def test_settings_that_make_no_pairs(folder, settings, message):
    with pytest.raises(UserError, match=message):
        translation_pairs.read([str(folder)], Settings(**settings))


def test_the_command(folder, tmp_path, capsys):
    target = tmp_path / "pairs.jsonl"
    assert cli.main(["data", "pairs", str(folder), str(target), "--languages=de", "--same_numerals"]) == 0
    assert len(target.read_text("utf-8").splitlines()) == 3
    said = capsys.readouterr()
    assert "3 translation pairs" in said.out and "de -> en 3" in said.out and "occurs before" in said.err
    with pytest.raises(UserError, match="exists; use --overwrite"):
        cli.main(["data", "pairs", str(folder), str(target)])
    with pytest.raises(DataError, match="no pair of texts with one row number"):
        cli.main(["data", "pairs", str(folder / "en.jsonl"), str(tmp_path / "x.jsonl")])
    found = readers.read(str(target), DataSection(), "prompt_completion")
    assert found.type == "prompt_completion" and found.rows[0]["target_lang"] == "en"


@pytest.mark.parametrize("frame,before,after", [
    ("alpaca", "completes the request.\n\n### Instruction:\nSay it.\n\n### Response:", "Done.<eos>"),
    ("human_assistant", "Human: Say it.\nAssistant: ", "Done.<eos>"),
])  # fmt: skip
def test_frames(frame, before, after):
    """The prompt that is trained on is the one that is asked; only the answer and its end are scored."""
    loaded = tokenizer.load("bytes", chat_template=frame)
    renderer = Renderer(loaded, DataSection(max_length=400))
    prompt = [{"role": "user", "content": "Say it."}]
    ids, mask = renderer.completion(prompt, [{"role": "assistant", "content": "Done."}])
    asked = renderer.prompt(prompt)
    assert ids[: len(asked)] == asked and not any(mask[: len(asked)])
    end = len(asked) + len(b"Done.") + 1
    assert mask[len(asked) : end] == [1.0] * 6 and ids[end - 1] == loaded.eos_id and not any(mask[end:])
    assert loaded.decode(asked).endswith(before) and asked[0] == loaded.bos_id


REAL = {"mgsm": (2000, 8), "msvamp": (6000, 9), "ntrex": (20000, 16), "tatoeba": (20000, 24)}
"""At least so many pairs, of so many languages with English."""


@pytest.mark.parametrize("name", REAL)
def test_real_files(name, data_dir):
    if not (data_dir / name).is_dir():
        pytest.skip(f"needs {name} in GRAMJAX_DATA")
    made = translation_pairs.read([str(data_dir / name)], Settings())
    pairs, others = REAL[name]
    assert len(made.rows) >= pairs and len(made.counts()) == others
    assert len({row["id"] for row in made.rows}) == len(made.rows)
