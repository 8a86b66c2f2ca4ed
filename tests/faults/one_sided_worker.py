"""Reads a file together with another process; `one_sided_worker.py FILE`. Exit code 3 when either has none."""

import sys
from pathlib import Path

from gramjax.core import processes, runtime
from gramjax.core.errors import DataError


def read() -> str:
    file = Path(sys.argv[1])
    if not file.exists():
        raise DataError(f"{file} is not there")
    return file.read_text()


runtime.start()
assert processes.shared(f"{sys.argv[1]}").endswith("rows.jsonl"), "process 0 speaks for all"
assert processes.any_of("gone" in sys.argv[1]), "one of them asked"
try:
    processes.together(read)
except DataError as error:
    print(f"{error}")
    sys.exit(3)
