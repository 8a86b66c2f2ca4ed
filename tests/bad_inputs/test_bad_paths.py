"""Paths that are something else (B10, B39, B42, B43), and what cannot be written: exit code 2, the path named."""

import errno
import gzip
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gramjax
from gramjax.checkpoint import state
from gramjax.data import records

GOOD = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4)]


@pytest.mark.parametrize(
    "name, expected",
    [
        pytest.param("/dev/zero", "is no ordinary file", id="B10-device"),
        pytest.param("../../nothing.jsonl", "no file or folder '../../nothing.jsonl'", id="B10-above"),
        pytest.param("file:///tmp/x.jsonl", "nothing is downloaded here", id="B10-file"),
        pytest.param("https://host/x.jsonl", "nothing is downloaded here", id="B10-http"),
        pytest.param("", "the name of a data file is empty", id="B10-empty"),
        pytest.param("x" * 5000 + ".jsonl", "cannot be opened (File name too long)", id="B10-long"),
        pytest.param("recipe:../../x", "no data/recipes called '../../x'", id="B10-recipe"),
        pytest.param("recipe:word_translation:train:0", "asks for 0 rows", id="B11-recipe"),
        pytest.param("recipe:word_translation:train:\u00b2", "write recipe:NAME", id="B5-recipe"),
        pytest.param("rows.pkl", "no file or folder 'rows.pkl'", id="B10-absent"),
    ],
)
def test_sources_of_rows(told, name, expected):
    code, line = told("data", "check", name)
    assert code == 2 and expected in line


def test_B10_links_pipes_and_folders(told, file, tmp_path):
    good = file("good/rows.jsonl", GOOD)
    (tmp_path / "link.jsonl").symlink_to(good)
    (tmp_path / "nothing.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert told("data", "check", tmp_path / "link.jsonl")[0] == 0, "a link to a file is that file"
    for name, expected in (
        ("nothing", "is a link to nothing"), ("loop", "is a link to nothing"), ("device", "no ordinary file"),
        ("pipe", "no ordinary file"), ("folder", "is no data folder"),
    ):  # fmt: skip
        code, line = told("data", "check", tmp_path / f"{name}.jsonl")
        assert code == 2 and expected in line and f"{name}.jsonl" in line
    (tmp_path / "good" / "more.jsonl").symlink_to(tmp_path / "gone.jsonl")
    code, line = told("data", "check", tmp_path / "good")
    assert code == 2 and "more.jsonl' is a link to nothing" in line, "a file of a folder is not left out unsaid"


def test_B10_a_model_folder_with_a_device_in_it(told, tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    code, line = told("convert", tmp_path, tmp_path / "out", "--to=hf")
    assert code == 3 and "config.json: no ordinary file" in line


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC])
def test_B10_what_the_system_says_is_one_line(told, monkeypatch, file, number):
    """Root may read and write everything, so the answer of the system is put in its place."""
    path = file("rows.jsonl", GOOD)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(records, "read", refuse)
    assert told("data", "check", path) == (2, f"gramjax: {path}: {os.strerror(number)}")


def test_B10_an_output_that_is_read(told, file):
    path = file("rows.jsonl", GOOD)
    before = path.read_bytes()
    code, line = told("data", "convert", path, path, "--overwrite")
    assert code == 2 and "is read, so it cannot be written too" in line and path.read_bytes() == before


@pytest.mark.parametrize("words", [["--limit=-3"], ["--tokenizer=bytes", "--max_length=0"], ["--limit=abc"]])
def test_B5_numbers_of_data_check(told, file, words):
    code, line = told("data", "check", file("rows.jsonl", GOOD), *words)
    assert code == 2 and words[-1].partition("=")[0] in line


def test_B39_and_B30_nothing_is_unpacked_or_evaluated():
    """Only gzip is read, as a stream; archives, pickles and foreign code are not touched anywhere in the package."""
    package = Path(gramjax.__file__).parent
    for file in package.rglob("*.py"):
        source = file.read_text("utf-8")
        words = set(re.findall(r"^\s*(?:import|from)\s+(\w+)", source, re.M))
        assert not words & {"tarfile", "zipfile", "pickle", "joblib", "dill", "yaml", "shelve", "marshal"}, file
        assert not re.search(r"unpack_archive|(?<!\w)(?:np|torch)\.load\(|(?<![\w.])(?:eval|exec)\(", source), file


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar", "rows.tar.gz", "rows.npy", "rows.pkl", "rows.csv"])
def test_B39_and_B35_kinds_of_data_files(told, file, name):
    code, line = told("data", "check", file(name, b"PK\x03\x04"))
    assert code == 2 and f"{name}: unknown kind of data file" in line


def test_B39_a_zip_by_another_name(told, file, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as made:
        made.writestr("../outside.txt", "x")
    code, said = told("data", "check", file("rows.jsonl", (tmp_path / "evil.zip").read_bytes()))
    assert code == 3 and "NUL byte" in said and not (tmp_path.parent / "outside.txt").exists()


def test_B39_a_small_file_that_grows_without_end(told, file, monkeypatch):
    """What is held of a gzip file is bounded: a line of zeros, and an array that has to be read whole."""
    monkeypatch.setattr(records, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(records, "LARGEST_WHOLE", 2**16)
    code, line = told("data", "check", file("zeros.jsonl.gz", gzip.compress(bytes(2**20))))
    assert code == 3 and "a line of more than 65,536 bytes" in line
    code, line = told("data", "check", file("array.json.gz", gzip.compress(b"[" + b" " * 2**20 + b"]")))
    assert code == 3 and "one JSON value of more than 65,536 bytes" in line


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    with state.Checkpoints(folder) as saved:
        saved.save(5, {"params": {"w": np.ones(2, np.float32)}}, {}, {})
    return folder


@pytest.mark.parametrize(
    "below, words, expected",
    [
        pytest.param("checkpoints", [], "is the checkpoint folder of a run: give", id="B42-folder"),
        pytest.param("checkpoints/5", [], "is one step of a run (steps there: 5): give", id="B42-step"),
        pytest.param("checkpoints/7", [], "has no checkpoint of step 7 (there are: 5)", id="B42-other-step"),
        pytest.param("", ["--step=7"], "has no checkpoint of step 7 (there are: 5)", id="B42-absent"),
    ],
)
def test_steps_and_folders(told, run_folder, below, words, expected):
    code, line = told("convert", run_folder / below, run_folder / "out", "--to=hf", *words)
    assert code == 2 and expected in line


@pytest.mark.parametrize("content", ["{", "[]", '{"seed":' + "[" * 100_000, b"\xff"])
def test_B43_a_folder_with_a_broken_config(told, run_folder, content):
    raw = content.encode() if isinstance(content, str) else content
    (run_folder / "config.json").write_bytes(raw)
    settings = ("--config.data.train=('recipe:word_translation',)", "--config.tokenizer.path=recipe:word_translation")
    code, line = told("train", "--config=bradley_terry", f"--workdir={run_folder}", *settings)
    assert code == 2 and "config.json: no readable JSON" in line
    assert (run_folder / "config.json").read_bytes() == raw, "nothing there was touched"
