"""What a person is told: the real command in this process, its exit code and its one line."""

import json
from pathlib import Path

import pytest

from gramjax import cli


@pytest.fixture
def told(capsys):
    """`told(*words)`: exit code and what was printed. An error is one line that begins with `gramjax:`."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run([str(word) for word in words])
        code, printed = stopped.value.code, capsys.readouterr()
        assert "Traceback" not in printed.err
        if code in (2, 3) and printed.err:
            last = printed.err.strip().splitlines()[-1]
            assert last.startswith("gramjax: ") and len(last) < 2000
            return code, last
        return code, printed.out + printed.err

    return run


@pytest.fixture
def file(tmp_path):
    """`file(name, content)`: a file with bytes, text, or rows as JSON lines; its path."""

    def write(name, content) -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def dry_train(told):
    """`dry_train(file, *settings)`: what a training of a reward model on a file would say; nothing is compiled."""

    def run(path, *settings, config="bradley_terry"):
        words = ["--config.tokenizer.path=bytes", "--config.train.batch_size=2", "--config.data.max_length=64"]
        given = [f"--config.{setting}" for setting in settings]
        names = [word.partition("=")[0] for word in given]
        kept = [word for word in words if word.partition("=")[0] not in names]
        return told("train", f"--config={config}", "--dry_run", f"--config.data.train=('{path}',)", *kept, *given)

    return run
