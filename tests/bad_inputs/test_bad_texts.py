"""Texts and templates that are hostile or odd (B24-B26): bounded, kept apart, and exact."""

import json
import time

import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import readers, template, text, tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "source, expected",
    [
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="B24-attribute"),
        pytest.param("{{ self.__init__.__globals__ }}", "unsafe", id="B24-globals"),
        pytest.param("{% import 'os' as os %}", "refuses", id="B24-import"),
        pytest.param("{% include '/etc/passwd' %}", "refuses", id="B24-include"),
        pytest.param("{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}", "too long",
                     id="B24-loop"),
        pytest.param("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion", id="B24-recursion"),
        pytest.param("{{ 9 ** 9 ** 9 }}", "'**'", id="B24-power"),
        pytest.param("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "more than", id="B24-replace"),
        pytest.param("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "more than", id="B24-replaced"),
        pytest.param("{{ (['a'] * 1000) | join('b' * 100000) }}", "more than", id="B24-join"),
        pytest.param("{{ ('b' * 100000).join(['a'] * 1000) }}", "more than", id="B24-joined"),
        pytest.param("{{ '{:>999999999}'.format(1) }}", "width", id="B24-width"),
        pytest.param("{{ '%999999999d' % 1 }}", "'%'", id="B24-percent"),
        pytest.param("{{ 'a'.center(999999999) }}", "too large", id="B24-center"),
        pytest.param("{{ messages | tojson(indent=100000000) }}", "indents", id="B24-indent"),
        pytest.param("{{ 1 / 0 }}", "division", id="B24-division"),
    ],
)  # fmt: skip
def test_templates_are_foreign_code(source, expected):
    began = time.monotonic()
    with pytest.raises(DataError, match="template") as caught:
        template.render(source, {"messages": MESSAGES})
    assert expected in str(caught.value) and time.monotonic() - began < 2 * template.MAX_SECONDS


def test_B24_ordinary_texts_are_joined_and_replaced():
    source = "{{ messages | map(attribute='content') | join(', ') }} {{ 'a-b'.replace('-', '+') | replace('b', 'c') }}"
    assert template.render(source, {"messages": MESSAGES * 2})[0] == "hello, hello a+c"
    with pytest.raises(UserError, match="300,000 characters"):
        template.check("x" * 300_000)


@pytest.mark.parametrize("word", ["<|im_end|>", "<|eos|>", "<|bos|>", "<|pad|>", "</s>"])
def test_B25_words_that_look_like_control_tokens_are_text(word):
    """In a prompt, in an answer and between messages: the ids of control tokens come from the template alone."""
    loaded = tokenizer.byte_level(chat_template="chatml")
    renderer = text.Renderer(loaded, DataSection(max_length=512))
    plain, _ = renderer.completion(MESSAGES, [{"role": "assistant", "content": "good"}])
    spelled, _ = renderer.completion(
        [{"role": "user", "content": f"hello{word}"}], [{"role": "assistant", "content": f"good{word}"}]
    )

    def control(ids):
        return [i for i in ids if i in loaded.special_ids]

    assert control(spelled) == control(plain) and len(spelled) == len(plain) + 2 * len(word)


ODD = {
    "emoji": "\U0001f469\u200d\U0001f4bb \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea",
    "combining": "e\u0301\u0323\u0302 \u1ea5 Z\u0351\u036b\u0343",
    "right-to-left": "\u202e\u05e9\u05dc\u05d5\u05dd\u202c \u0645\u0631\u062d\u0628\u0627",
    "zero-width": "a\u200b\u200d\u2060\ufeffb",
    "separators": "a\u2028b\u2029c\x85d\x1ce\x0bf",
    "Thai": "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e44\u0e21\u0e48\u0e21\u0e35\u0e27\u0e23\u0e23\u0e04" * 40,
    "a megabyte on one line": "x" * 1_000_000,
}


@pytest.mark.parametrize("name", ODD)
def test_B26_every_text_survives_file_and_tokenizer(file, name):
    row = {"prompt": ODD[name], "chosen": f"{ODD[name]}!", "rejected": "b"}
    for ascii_only in (True, False):
        path = file("my.jsonl", json.dumps(row, ensure_ascii=ascii_only) + "\n")
        (found,) = readers.read(str(path)).rows
        assert (found["prompt"], found["chosen"]) == (row["prompt"], row["chosen"])
    loaded = tokenizer.byte_level()
    assert loaded.decode(loaded.encode_text(ODD[name])) == ODD[name]
