"""The documentation of settings is made from the code and in step with it."""

import dataclasses
from pathlib import Path

from gramjax.core import config, settings

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 2
    """How deep:
    a | b."""


@dataclasses.dataclass(frozen=True)
class Outer:
    first: float = 1.0
    second: tuple[str, ...] = ("a",)
    """Which ones."""
    inner: Inner = Inner()


def test_table_of_a_section():
    assert settings.table(Outer, "x.") == [
        "| `x.first` | a number | `1.0` |  |",
        "| `x.second` | a tuple of texts | `('a',)` | Which ones. |",
        "| `x.inner.depth` | a whole number | `2` | How deep: a \\| b. |",
    ]


def test_the_page_of_settings_is_in_step_with_the_code():
    assert settings.pages() in (ROOT / "docs" / "configs.md").read_text("utf-8"), "run `make docs`"


def test_every_section_is_documented():
    for name, record in config.SECTIONS.items():
        made_by_dataclass = (record.__doc__ or "").startswith(f"{record.__name__}(")
        assert record.__doc__ and not made_by_dataclass, f"config.{name} has no docstring"
