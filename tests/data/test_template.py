"""Chat templates are foreign code: what they may do, and that they cannot do more."""

import time

import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import template

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def render(source, **variables):
    return template.render(source, {"messages": MESSAGES, **variables})


def test_chatml_and_its_assistant_spans():
    text, spans = render(template.CHATML, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>assistant\n"
    assert [text[a:b] for a, b in spans] == ["yo<|im_end|>"]


def test_what_templates_in_the_wild_use():
    source = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if loop.first -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}{{ m.content | trim }}{{ loop.last }}{{ m | tojson }}{{ loop.length }}"
        "{%- if 'o' in m['content'] -%}{%- break -%}{%- endif -%}{%- endfor -%}"
        "{{ ns.n }} {{ strftime_now('%d %b %Y') }}"
    )
    assert render(source)[0] == 'yoTrue{"role": "assistant", "content": "yo"}21 26 Jul 2024'


def test_a_template_can_refuse_messages_in_its_own_words():
    with pytest.raises(DataError, match="refuses these messages: no system turn here"):
        render("{{ raise_exception('no system turn here') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_the_sandbox_keeps_templates_away_from_python(source):
    with pytest.raises(DataError):
        render(source)


def test_unsafe_attributes_print_nothing():
    assert render("{{ self.__init__ }}{{ messages.__class__ }}{{ raise_exception.__globals__ }}")[0] == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(30) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 2 ** 9999999 }}",
        "{{ '%999999999d' % 3 }}",
        "{{ '{:999999999d}'.format(3) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% for i in range(99999) %}{{ messages }}{% for j in range(99) %}{{ messages }}{% endfor %}{% endfor %}",
    ],
)
def test_work_and_size_are_bounded(source):
    start = time.monotonic()
    with pytest.raises(DataError):
        render(source)
    assert time.monotonic() - start < 4 * template.MAX_SECONDS


def test_bad_sources_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no valid Jinja.*line 1"):
        template.check("{% for %}")
    with pytest.raises(UserError, match="at most"):
        template.check("x" * (template.MAX_SOURCE + 1))
    with pytest.raises(UserError, match="neither 'chatml'"):
        template.find(str(tmp_path / "nope.jinja"))
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        template.find(str(tmp_path / "bad.jinja"))
