"""Vectors beside rows: other readers read them, a kill loses none, and what does not belong together is named."""

import json

import numpy as np
import pytest

from gramjax.core.errors import DataError, UserError
from gramjax.data import vectors

MATRIX = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
IDS = [f"r{i}" for i in range(10)]


def write(folder, start=0, stop=10, finish=True, extra=None):
    with vectors.VectorLog(folder, start) as log:
        for row in MATRIX[start:stop]:
            log.add(row)
        if finish:
            log.finish(IDS[:stop], extra or {})


def test_other_readers_of_safetensors_see_the_same_numbers(tmp_path):
    from safetensors.numpy import load_file

    write(tmp_path, extra={"order_direction": np.arange(4)})
    theirs = load_file(tmp_path / vectors.FILE)
    assert np.array_equal(theirs["vectors"], MATRIX) and theirs["vectors"].dtype == np.float32
    mine = vectors.read(tmp_path)
    assert np.array_equal(mine.matrix, MATRIX) and mine.ids == tuple(IDS)
    assert np.array_equal(mine.order_direction, theirs["order_direction"])
    assert not (tmp_path / vectors.PART).exists()
    np.testing.assert_array_equal(vectors.read(tmp_path / "rows.jsonl").of(["r7", "r2"]), MATRIX[[7, 2]])


@pytest.mark.parametrize("there,rows", [(6, 4), (6, 6), (6, 0)])
def test_after_a_kill_the_vectors_of_the_rows_that_were_written_are_kept(tmp_path, there, rows):
    write(tmp_path, stop=there, finish=False)
    with (tmp_path / vectors.PART).open("ab") as file:
        file.write(b"half")
    write(tmp_path, start=rows)
    assert np.array_equal(vectors.read(tmp_path).matrix, MATRIX)


def test_a_finished_file_can_be_gone_on_with(tmp_path):
    write(tmp_path, stop=7)
    write(tmp_path, start=7)
    assert np.array_equal(vectors.read(tmp_path).matrix, MATRIX)


def test_what_does_not_belong_together_is_named(tmp_path):
    with pytest.raises(UserError, match="gramjax annotate --config=embed_preferences"):
        vectors.read(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=r"1 of 2 rows have no vector in pool \(first: 'x'\)"):
        vectors.read(tmp_path).of(["r1", "x"], "pool")
    (tmp_path / vectors.IDS).write_text(json.dumps(IDS[:9]))
    with pytest.raises(DataError, match="differ in number"):
        vectors.read(tmp_path)
    (tmp_path / vectors.FILE).write_bytes(b"no such file")
    with pytest.raises(DataError, match="no readable safetensors file"):
        vectors.read(tmp_path)
    short = tmp_path / "short"
    short.mkdir()
    write(short, stop=3, finish=False)
    with pytest.raises(DataError, match="fewer vectors than there are rows"):
        write(short, start=5)
    with vectors.VectorLog(tmp_path / "other", 3) as log:  # rows of an annotator without vectors
        with pytest.raises(DataError, match="rows without vectors"):
            log.add(MATRIX[0])
