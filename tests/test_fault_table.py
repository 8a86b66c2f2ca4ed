"""`docs/faults.md` is complete, and every test that it names exists."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text("utf-8")
ROWS = {cells[0]: cells for line in PAGE.split("\n") if (cells := re.split(r"(?<!\\) \| ", line.strip("| ")))
        and re.fullmatch(r"[FB]\d+", cells[0])}  # fmt: skip
WANTED = [f"F{i}" for i in range(1, 37)] + [f"B{i}" for i in range(1, 46)]
WITHOUT = ("B31", "B32", "B33")
"""Rows for which the page says why no test stands there."""


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """Names of the functions of a file."""
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text("utf-8")))
                     if isinstance(node, ast.FunctionDef))  # fmt: skip


def test_every_row_stands_there_once():
    assert re.findall(r"^\| ([FB]\d+) \|", PAGE, re.M) == WANTED
    assert all(len(cells) == 4 and all(cells) for cells in ROWS.values())


@pytest.mark.parametrize("row", [row for row in WANTED if row not in WITHOUT])
def test_the_tests_that_a_row_names_exist(row):
    path, named = TESTS, 0
    for words in re.findall(r"`([^`]*)`", ROWS[row][3]):
        if words == "make chaos":
            assert re.search(r"^chaos:", (TESTS.parent / "Makefile").read_text(), re.M)
            continue
        file, _, name = words.partition("::")
        path = TESTS / file if file else path
        assert path.is_file(), f"{row}: no file {path}"
        assert not name or (name.startswith("test_") and name in functions(path)), f"{row}: no {name} in {path.name}"
        named += 1
    assert named, f"{row} names no test"


def test_rows_without_a_test_are_explained():
    """Below the tables: every one of them, as itself or within a range."""
    reasons = PAGE.partition("## What is not tested here, and why")[2]
    assert all("`" not in ROWS[row][3] for row in WITHOUT)
    assert "**B31 to B33**" in reasons


@pytest.mark.parametrize("row", [f"B{i}" for i in range(1, 46) if i not in (31, 32, 33)])
def test_the_folder_of_bad_inputs_finds_a_row_by_its_number(row):
    """`pytest -k B12` runs something, or the row's tests stand elsewhere alone."""
    found = any(re.search(rf"\b{row}\b|_{row}_|\"{row}-", file.read_text("utf-8"))
                for file in (TESTS / "bad_inputs").glob("test_*.py"))  # fmt: skip
    assert found or "bad_inputs" not in ROWS[row][3]
