"""Rows that a job writes one by one: what a kill leaves is read again, and half a line is not."""

import json

import pytest

from gramjax.core import row_log
from gramjax.core.errors import DataError
from gramjax.core.row_log import REFUSED, ROWS, RowLog


def write(folder, rows=(), refused=()):
    with RowLog(folder) as log:
        for row in rows:
            log.add(row)
        for name, reason in refused:
            log.refuse({"id": name}, reason)
        return log


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def test_a_log_goes_on_where_it_was(tmp_path):
    first = write(tmp_path / "log", [{"id": "a", "x": 1}], [("b", "too long")])
    assert first.done == {"a", "b"}
    second = write(tmp_path / "log", [{"id": "c", "x": "é\u2028\n"}], [("d", "too long"), ("e", "empty")])
    assert second.done == set("abcde") and second.written == ["a", "c"]
    assert second.reasons == {"too long": {"count": 2, "first": "b"}, "empty": {"count": 1, "first": "e"}}
    assert read(tmp_path / "log" / ROWS) == [{"id": "a", "x": 1}, {"id": "c", "x": "é\u2028\n"}]
    assert [row["id"] for row in read(tmp_path / "log" / REFUSED)] == ["b", "d", "e"]


@pytest.mark.parametrize("kept", [1, 10, 29])
def test_half_a_line_is_cut_off(tmp_path, kept):
    """Wherever the kill came: the row is not done, and the next one stands on a line of its own."""
    write(tmp_path, [{"id": "a"}, {"id": "b", "text": "word " * 3}])
    path = tmp_path / ROWS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:kept])
    log = write(tmp_path, [{"id": "b", "text": "again"}])
    assert log.written == ["a", "b"] and read(path) == [{"id": "a"}, {"id": "b", "text": "again"}]
    (tmp_path / REFUSED).write_bytes(b'{"id": "c", "rea')
    assert write(tmp_path).done == {"a", "b"} and (tmp_path / REFUSED).read_bytes() == b""


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '"id"', ""])
def test_a_line_that_is_no_row_is_an_error_that_names_it(tmp_path, line):
    (tmp_path / ROWS).write_text(f'{{"id": "a"}}\n{line}\n{{"id": "b"}}\n')
    with pytest.raises(DataError, match=f"{ROWS} line 2: no row of this job"):
        RowLog(tmp_path)
    assert len((tmp_path / ROWS).read_text().splitlines()) == 3, "and nothing is thrown away"


def test_only_one_process_writes(tmp_path):
    with RowLog(tmp_path / "log", write=False) as log:
        log.add({"id": "a"})
        log.refuse({"id": "b"}, "why")
    assert log.done == {"a", "b"} and log.reasons["why"]["count"] == 1 and not (tmp_path / "log").exists()
    assert list(row_log.whole_lines(tmp_path / "nothing")) == []
