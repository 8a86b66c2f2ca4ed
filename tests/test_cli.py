"""`gramjax VERB`: finds verbs, answers quickly, and ends with the right code and one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.core.errors import DataError, Preempted, UserError

ROOT = Path(__file__).parent.parent


def gramjax(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", "gramjax", *words], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A folder of verbs made for a test, importable as `gramjax.jobs`."""
    import gramjax.jobs

    monkeypatch.setattr(cli, "JOBS", tmp_path)
    monkeypatch.setattr(gramjax.jobs, "__path__", [str(tmp_path)])

    def add(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"gramjax.jobs.{name}", raising=False)

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"gramjax.jobs.{path.stem}", None)


def code_of(*words) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(list(words))
    return caught.value.code


@pytest.mark.smoke
def test_help_imports_nothing_heavy():
    """Neither the overview nor the help of a config verb that reads no config may load JAX."""
    heavy = ("jax", "flax", "numpy", "transformers", "torch", "tensorflow", "datasets", "optax", "orbax")
    code = (
        "import sys; from gramjax import cli; assert cli.main(['--help']) == 0; "
        f"print('loaded', [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr
    assert "gramjax VERB" in done.stdout


def test_help_lists_every_verb_with_its_first_line(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in cli.verbs():
        described = [line for line in text.splitlines() if line.startswith(f"  {verb} ")]
        assert len(described) == 1 and described[0].split(verb, 1)[1].strip(), f"{verb} says nothing about itself"


def test_help_does_not_run_the_verbs(jobs, capsys):
    jobs("broken", '"""Never imported.\n\nMore."""\nraise RuntimeError\n')
    assert cli.main(["--help"]) == 0
    assert "  broken        Never imported.\n" in capsys.readouterr().out


def test_no_words_is_the_help_and_an_error(capsys):
    assert code_of() == 2
    assert "usage: gramjax VERB" in capsys.readouterr().out


def test_version(capsys):
    from gramjax import __version__

    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"gramjax {__version__}\n"


def test_unknown_verb_names_the_nearest(capsys):
    assert code_of("docter") == 2
    text = capsys.readouterr().err
    assert text.startswith("gramjax: no verb 'docter' — did you mean doctor? (there are: ") and text.count("\n") == 1


@pytest.mark.parametrize("verb", ["os", "../cli", "__init__", "gramjax.cli"])
def test_only_files_of_the_folder_are_verbs(verb, capsys):
    assert code_of(verb) == 2
    assert "no verb" in capsys.readouterr().err


@pytest.mark.parametrize("error,code", [(UserError, 2), (DataError, 3), (Preempted, 75)])
def test_errors_are_one_line_with_their_code(jobs, capsys, monkeypatch, error, code):
    monkeypatch.delenv("GRAMJAX_TRACEBACK", raising=False)
    name = error.__name__
    jobs("fails", f"from gramjax.core.errors import {name}\ndef main(argv):\n    raise {name}('what\\n  now')")
    assert code_of("fails") == code
    assert capsys.readouterr().err == "gramjax: what now\n"
    monkeypatch.setenv("GRAMJAX_TRACEBACK", "1")
    assert code_of("fails") == code
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith("gramjax: what now\n")


def test_a_launcher_that_asks_is_told_the_codes_in_their_order(jobs, tmp_path, monkeypatch, capsys):
    jobs("stops", "from gramjax.core.errors import DataError\ndef main(argv):\n    raise DataError('x')")
    jobs("bug", "def main(argv):\n    return {}['key']")
    monkeypatch.setenv("GRAMJAX_CODES", str(tmp_path / "codes"))
    assert code_of("stops") == 3 and code_of("--version") == 0
    with pytest.raises(KeyError):
        cli.run(["bug"])
    assert (tmp_path / "codes").read_text() == "3\n1\n"
    monkeypatch.setenv("GRAMJAX_CODES", str(tmp_path / "absent" / "codes"))
    assert code_of("stops") == 3


def test_what_the_verb_returns_is_the_code(jobs):
    jobs("gives", "def main(argv):\n    return int(argv[0])")
    assert code_of("gives", "0") == 0 and code_of("gives", "75") == 75


def test_a_bug_keeps_its_traceback(jobs):
    jobs("bug", "def main(argv):\n    return {}['key']")
    with pytest.raises(KeyError):
        cli.run(["bug"])


def test_interrupt(jobs, capsys):
    jobs("slow", "def main(argv):\n    raise KeyboardInterrupt")
    assert code_of("slow") == 130
    assert capsys.readouterr().err == "gramjax: interrupted\n"


def test_a_reader_that_goes_away_is_no_error():
    code = "from gramjax import cli; cli.usage = lambda: 'word ' * 100_000; cli.run(['--help'])"
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    _, errors = process.communicate()
    assert process.returncode == 141 and errors == ""


@pytest.mark.smoke
def test_as_a_program_from_another_folder(tmp_path):
    listing = gramjax("configs", cwd=tmp_path)
    assert listing.returncode == 0 and listing.stderr == ""
    names = [line.split()[0] for line in listing.stdout.splitlines()]
    assert names
    one = gramjax("configs", names[0], cwd=tmp_path)
    assert one.returncode == 0 and "def get_config(" in one.stdout
    wrong = gramjax("configs", names[0] + "s", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith(f"gramjax: config '{names[0]}s' not found")
    assert "Traceback" not in wrong.stderr and wrong.stderr.count("\n") == 1


def test_every_packaged_config_says_what_it_is(capsys):
    from gramjax.jobs import configs

    assert configs.main([]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line.split()) > 1, f"config {line} has no docstring"


def test_complaints_of_argparse_are_one_line(capsys):
    assert code_of("configs", "--wrong") == 2
    text = capsys.readouterr()
    assert text.err == "gramjax: configs: unrecognized arguments: --wrong (gramjax configs --help)\n" and text.out == ""
