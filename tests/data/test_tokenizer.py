"""Tokenizers: exact text, special tokens, padding, folders that transformers reads, and real files."""

import gzip
import json
import shutil

import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import template, tokenizer, vocabularies

HARD = [
    "",
    " leading and trailing ",
    "emoji 😀👩‍👩‍👧 combining e\u0301 zero\u200bwidth",
    "שלום עולם مرحبا",
    "ภาษาไทยไม่มีช่องว่าง",
    "tabs\tand\r\nnewlines\n\n\u2028",
    "<|im_end|> </s> <|eos|> <s>",
]


@pytest.mark.parametrize("text", HARD)
def test_content_round_trips_and_never_becomes_special(plain, text):
    for made in (tokenizer.byte_level(), plain):
        for continuing in (False, True):
            ids = made.encode_text(text, continuing)
            assert made.decode(ids) == text and made.special_ids.isdisjoint(ids)


def test_markup_recognises_special_tokens(plain):
    eos = plain.text_of(plain.eos_id)
    assert plain.encode_markup(f"a{eos}")[-1] == plain.eos_id
    assert plain.encode_text(f"a{eos}")[-1] != plain.eos_id


def test_the_byte_tokenizer_is_the_bytes():
    made = tokenizer.byte_level()
    assert made.encode_text("héé") == list("héé".encode()) and made.vocab_size == 256 + len(tokenizer.SPECIALS)
    assert made.adds_bos and not made.notes and made.pad_id not in (made.eos_id, made.bos_id)
    assert len(made.encode_text("x" * 1_000_000)) == 1_000_000


def test_lone_surrogates_are_an_error(plain):
    with pytest.raises(DataError, match="surrogate"):
        plain.encode_text("a\ud800")


def test_a_trained_tokenizer_is_the_same_every_time():
    texts = ["the cat sat on the mat", "the dog sat"] * 5
    made = {tokenizer.train_bpe(texts, 290).fingerprint for _ in range(3)}
    assert len(made) == 1 and tokenizer.train_bpe([*texts, "other"], 291).fingerprint not in made
    assert tokenizer.train_bpe(texts, 290).vocab_size <= 290
    with pytest.raises(UserError, match="at least"):
        tokenizer.train_bpe(texts, 200)


def test_a_tokenizer_whose_words_are_special_tokens_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<eos>"])
    made = tokenizer.build(library, eos="<eos>")
    assert made.encode_text("a b") == [1, 2]
    with pytest.raises(DataError, match="'<eos>' out of plain text"):
        made.encode_text("a <eos>")


# -- padding


def _library(specials):
    return vocabularies.byte_level(["<bos>", "<eos>", *specials])


def test_pad_is_never_the_end_token():
    made = tokenizer.build(_library(["<|reserved_special_token_0|>"]), "<bos>", "<eos>", declared_pad="<eos>")
    assert made.text_of(made.pad_id) == "<|reserved_special_token_0|>"
    assert made.notes == (
        "pad and eos share id 257; scores would be read from the wrong token. "
        "Using reserved id 258 as pad (set config.tokenizer.pad to choose)",
    )
    with pytest.raises(UserError, match="the end token"):
        tokenizer.build(_library([]), "<bos>", "<eos>", pad="<eos>")


def test_pad_from_the_setting_the_tokenizer_or_a_new_id():
    made = tokenizer.build(_library(["<x>", "<pad>"]), "<bos>", "<eos>", declared_pad="<pad>")
    assert made.text_of(made.pad_id) == "<pad>" and not made.notes
    assert tokenizer.build(_library(["<x>", "<pad>"]), "<bos>", "<eos>", "<pad>", pad="<x>").pad_id == 258
    with pytest.raises(UserError, match="no token '<y>'"):
        tokenizer.build(_library([]), "<bos>", "<eos>", pad="<y>")
    made = tokenizer.build(_library([]), "<bos>", "<eos>")
    assert made.pad_id == 258 and made.vocab_size == 259 and "no pad token. Using new id 258" in made.notes[0]
    made.check_fits(259)
    with pytest.raises(UserError, match="259 ids .* 258 embedding rows"):
        made.check_fits(258)


# -- folders


def test_save_and_load_give_the_same_tokenizer(chat, tmp_path):
    chat.save(tmp_path)
    again = tokenizer.load(str(tmp_path))
    assert again.fingerprint == chat.fingerprint
    assert (again.bos_id, again.eos_id, again.pad_id, again.adds_bos) == (chat.bos_id, chat.eos_id, chat.pad_id, True)
    assert again.chat_template == template.CHATML and not again.notes
    again.save(tmp_path / "twice")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_saved_folder_suits_transformers_4_and_5(chat, tmp_path):
    chat.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert {"bos_token", "eos_token", "pad_token"} <= set(config) and "auto_map" not in config
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (chat.bos_id, chat.eos_id, chat.pad_id)
    text = "Hello there, how are you?"
    assert theirs.encode(text, add_special_tokens=False) == chat.encode_text(text)
    assert theirs.decode(chat.encode_text(text)) == text


def test_settings_of_the_source_folder_are_cleaned_when_saved(chat, tmp_path):
    chat.save(tmp_path / "a")
    path = tmp_path / "a" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "TokenizersBackend",
        "auto_map": {"AutoTokenizer": "evil.Class"},
        "extra_special_tokens": ["<|im_end|>"],
        "model_max_length": 77,
    }
    path.write_text(json.dumps(config))
    tokenizer.load(str(tmp_path / "a")).save(tmp_path / "b")
    made = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert made["tokenizer_class"] == "PreTrainedTokenizerFast" and made["model_max_length"] == 77
    assert "auto_map" not in made and "extra_special_tokens" not in made
    assert made["additional_special_tokens"] == ["<|im_end|>"]


def test_special_tokens_come_from_any_of_the_files(chat, tmp_path):
    chat.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eos|>"}}))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": chat.bos_id, "eos_token_id": [chat.eos_id, 7]}))
    made = tokenizer.load(str(tmp_path))
    assert (made.bos_id, made.eos_id) == (chat.bos_id, chat.eos_id)


def test_templates_by_setting(chat, tmp_path):
    chat.save(tmp_path)
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    assert tokenizer.load(str(tmp_path), chat_template=str(tmp_path / "mine.jinja")).chat_template.startswith("{{ mess")
    off = tokenizer.load(str(tmp_path), chat_template="none")
    assert off.template_off and not off.chat_template
    assert "written as text" in tokenizer.build(_library([]), chat_template="chatml").notes[-1]


def test_paths_that_hold_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="not found locally"):
        tokenizer.load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no tokenizer.json"):
        tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no readable tokenizer"):
        tokenizer.load(str(tmp_path))
    (tmp_path / "tok.bin").write_bytes(b"\x07\0\0\0" + b"\0" * 40)
    with pytest.raises(DataError, match=r"tok.bin: no llama2.c tokenizer"):
        tokenizer.load(str(tmp_path / "tok.bin"))


# -- real files


def test_llama2c_tokenizer_goldens(data_dir):
    made = tokenizer.load(str(data_dir / "stories260k" / "tok512.bin"))
    golden = json.loads((data_dir / "stories260k" / "golden.json").read_text("utf-8"))
    assert (made.vocab_size, made.bos_id, made.eos_id, made.adds_bos) == (512, 1, 2, True)
    assert made.pad_id == 0 and "reserved id 0" in made.notes[0], "the unknown token is free: bytes stand in for it"
    for text, ids in golden["encodings"].items():
        assert [made.bos_id, *made.encode_text(text)] == ids
        assert made.library.encode(text).ids == ids
    assert made.decode(golden["greedy_from_bos"]["ids"], skip_special=True) == golden["greedy_from_bos"]["text"]
    with gzip.open(data_dir / "stories260k" / "samples.jsonl.gz", "rb") as file:
        samples = [json.loads(line) for line in file]
    for sample in samples:
        assert made.decode(sample["ids"]) == sample["text"]
        assert made.decode(made.encode_text(sample["text"])) == sample["text"]
    assert made.encode_text("a</s>") != [*made.encode_text("a"), made.eos_id]


def test_sentencepiece_space_only_at_the_start_of_a_text(data_dir):
    made = tokenizer.load(str(data_dir / "stories260k" / "tok512.bin"))
    whole = made.encode_text("Tom had a red ball")
    assert made.encode_text("Tom had") + made.encode_text(" a red ball", continuing=True) == whole
    assert made.decode(made.encode_text("x", continuing=True)) == "x"


def test_llama2c_tokenizer_saved_for_transformers(data_dir, tmp_path):
    made = tokenizer.load(str(data_dir / "stories260k" / "tok512.bin"))
    made.save(tmp_path)
    again = tokenizer.load(str(tmp_path))
    assert again.encode_text("naïve café 你好") == made.encode_text("naïve café 你好") and again.pad_id == 0
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    golden = json.loads((data_dir / "stories260k" / "golden.json").read_text("utf-8"))
    for text, ids in golden["encodings"].items():
        assert theirs.encode(text) == ids


def test_gpt2_files(data_dir, tmp_path):
    made = tokenizer.load(str(data_dir / "tokenizers" / "gpt2"))
    for entry in json.loads((data_dir / "tokenizers" / "gpt2" / "golden.json").read_text("utf-8")):
        assert made.encode_text(entry["text"]) == entry["ids"]
    shutil.copy(data_dir / "tokenizers" / "gpt2" / "encoder.json.gz", tmp_path)
    with pytest.raises(UserError, match="has none of vocab.bpe"):
        tokenizer.load(str(tmp_path))
