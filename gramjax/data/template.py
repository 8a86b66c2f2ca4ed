"""Chat templates: Jinja in a sandbox with bounded work, set up like transformers does.

A template comes with a downloaded model, so it is treated as foreign code: no attribute tricks (immutable sandbox),
at most so many loop rounds, calls and characters, and a time limit. `strftime_now` gives a fixed day, so that
training, evaluation and a resumed run see the same text.
"""

import dataclasses
import datetime
import functools
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gramjax.core.errors import DataError, UserError

MAX_SOURCE = 256 * 1024
MAX_OUTPUT = 16 * 1024 * 1024
MAX_ROUNDS = 1_000_000
MAX_SECONDS = 5.0
WIDTH = re.compile(r"\d{4}")
TODAY = datetime.datetime(2024, 7, 26)
"""What `strftime_now` formats: the day that Llama 3's templates assume when they are given none."""

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}{{- '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""The template called `chatml`."""

ALPACA = (
    "{{- bos_token or '' }}"
    "{%- if messages and messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}"
    "{%- else %}{{- 'Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}"
    "{{- '\n\n### Instruction:\n' + message['content'] + '\n\n### Response:' }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + (eos_token or '') }}{% endgeneration %}"
    "{%- endif %}"
    "{%- endfor %}"
)
"""The template called `alpaca`: Stanford Alpaca's frame for an instruction without input (MetaMath, QAlign)."""

HUMAN_ASSISTANT = (
    "{{- bos_token or '' }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- 'Human: ' + message['content'] + '\nAssistant: ' }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + (eos_token or '') }}{% endgeneration %}{{- '\n' }}"
    "{%- else %}{{- message['content'] + '\n' }}{%- endif %}"
    "{%- endfor %}"
)
"""The template called `human_assistant`: LLaMA-Factory's `default`, which SLAM's scripts train with."""

NAMED = {"chatml": CHATML, "alpaca": ALPACA, "human_assistant": HUMAN_ASSISTANT}


@dataclasses.dataclass
class _Budget:
    """What one rendering may still do, and the assistant spans that it found."""

    rounds: int
    deadline: float
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    written: list[str] = dataclasses.field(default_factory=list)

    def spend(self, count: int = 1) -> None:
        self.rounds -= count
        if self.rounds < 0 or time.monotonic() > self.deadline:
            raise _TooMuch("the chat template works too long (endless loop?)")


class _TooMuch(Exception):
    """A template passed its limits."""


@functools.cache
def _environment() -> Any:
    """The sandbox. Built once; holds no state of a rendering (that is in the context, as `_budget`)."""
    import jinja2
    import jinja2.ext
    import jinja2.filters
    import jinja2.runtime
    import jinja2.sandbox
    from jinja2 import nodes

    def grows(text: Any, pieces: Any) -> None:
        """Refuse a replacement or a join whose result may be too long: a bound from above is enough."""
        sizes = [len(text) if isinstance(text, str | list | tuple) else 0]
        for piece in pieces:
            several = piece if isinstance(piece, list | tuple) else (piece,)
            sizes.append(sum(len(x) if isinstance(x, str) else 16 for x in several) + len(several))
        if sizes[0] * max(sizes[1:], default=0) > MAX_OUTPUT:
            raise _TooMuch(f"the chat template makes a text of more than {MAX_OUTPUT:,} characters")

    class Generation(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}`: the text of the assistant."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, context: Any, caller: Any) -> str:
            text = caller()
            budget = context.resolve("_budget")
            start = sum(map(len, budget.written))
            budget.spans.append((start, start + len(text)))
            return text

    class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """The sandbox with a budget for calls, loops and repetition."""

        intercepted_binops = frozenset(["*", "**", "%", "+"])

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            __context.resolve("_budget").spend()
            if any(isinstance(value, int) and abs(value) > MAX_ROUNDS for value in (*args, *kwargs.values())):
                raise _TooMuch("the chat template calls a function with a number that is too large")
            method = getattr(__obj, "__wrapped__", __obj)
            owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(owner, str) and name in ("replace", "join", "translate", "expandtabs"):
                grows(owner, args)
            elif isinstance(owner, str) and name in ("format", "format_map") and WIDTH.search(owner):
                raise _TooMuch("the chat template formats a text to a width that is too large")
            return super().call(__context, __obj, *args, **kwargs)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            context.resolve("_budget").spend()
            sizes = [len(x) if isinstance(x, str | list | tuple) else abs(x) for x in (left, right)
                     if isinstance(x, str | list | tuple | int)]  # fmt: skip
            product = sizes[0] * sizes[1] if operator == "*" and len(sizes) == 2 else sum(sizes)
            if product > MAX_OUTPUT or operator == "**" or (operator == "%" and isinstance(left, str)):
                raise _TooMuch(f"the chat template uses {operator!r} in a way that is not allowed")
            return super().call_binop(context, operator, left, right)

    @jinja2.pass_context
    def counted(context: Any, value: Any) -> Any:
        if isinstance(value, jinja2.runtime.Undefined):
            return value
        items = list(value)
        context.resolve("_budget").spend(len(items) + 1)
        return items

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    @jinja2.pass_eval_context
    def replaced(context: Any, s: str, old: str, new: str, count: int | None = None) -> str:
        grows(str(s), (str(new),))
        return jinja2.filters.do_replace(context, s, old, new, count)

    @jinja2.pass_eval_context
    def joined(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
        items = list(value)
        grows(items, (str(d),))
        return jinja2.filters.sync_do_join(context, items, d, attribute)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        if isinstance(indent, int) and indent > 32:
            raise _TooMuch("the chat template indents JSON too far")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.filters["_counted"] = counted
    environment.filters["replace"], environment.filters["join"] = replaced, joined
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    for name in ("center", "indent", "wordwrap", "format", "xmlattr", "pprint", "urlize"):
        environment.filters.pop(name)
    return environment


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    import jinja2
    from jinja2 import nodes

    if len(source) > MAX_SOURCE:
        raise UserError(f"the chat template has {len(source):,} characters; {MAX_SOURCE:,} at most")
    environment = _environment()
    try:
        tree = environment.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
            loop.iter.set_environment(environment)
        return environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is no valid Jinja: {error.message} (line {error.lineno})") from None
    except (RecursionError, jinja2.TemplateError) as error:
        raise UserError(f"the chat template cannot be compiled: {error}") from None


def check(source: str) -> None:
    """Raises UserError if a template is too large or no valid Jinja."""
    _compiled(source)


def has_generation(source: str) -> bool:
    """True if the template marks assistant text with `{% generation %}`."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None


def render(source: str, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the character spans that the template marks as written by the assistant.

    Raises DataError with the template's own words when it refuses the messages, and when it passes a limit.
    """
    import jinja2

    budget = _Budget(MAX_ROUNDS, time.monotonic() + MAX_SECONDS)
    size = 0
    try:
        for piece in _compiled(source).generate(**variables, _budget=budget):
            budget.written.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT:
                raise _TooMuch(f"the chat template writes more than {MAX_OUTPUT:,} characters")
    except _TooMuch as error:
        raise DataError(str(error)) from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError,
            IndexError, MemoryError) as error:  # fmt: skip
        raise DataError(f"the chat template refuses these messages: {error}") from None
    return "".join(budget.written), budget.spans


def find(name: str) -> str:
    """The source for a setting: one of `NAMED`, or the path of a `.jinja` file. Raises UserError."""
    if name in NAMED:
        return NAMED[name]
    path = Path(name)
    if not path.is_file():
        known = ", ".join(repr(word) for word in NAMED)
        raise UserError(f"chat template {name!r}: neither {known}, 'none' nor a file that exists")
    try:
        source = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"chat template {name!r} is no UTF-8 text") from None
    check(source)
    return source
