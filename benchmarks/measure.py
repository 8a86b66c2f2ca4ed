"""Interleaved measurement of two or more sides, each in its own process, on one machine.

A side is a Python program that calls `serve(prepare, step)`. It starts, says that it is ready, and then runs rounds
of steps when told to. The parent tells one side at a time, in turn, so that both meet the same machine.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl", "datasets")


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(prepare: Callable[[], Callable[[], Any]], facts: Callable[[], dict[str, Any]] = dict) -> None:
    """Be a side: `prepare()` imports and builds and returns the step; a step returns a number once it is done.

    Speaks JSON lines on stdout: first `{"ready", "first_step", "first_value"}`, then one per round asked for on stdin.
    """
    started = time.perf_counter()
    step = prepare()
    ready = time.perf_counter()
    value = float(step())
    first = time.perf_counter()
    say({"ready": ready - started, "first_step": first - ready, "first_value": value})
    for line in sys.stdin:
        seconds, cpu = [], []
        for _ in range(int(line)):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            value = float(step())
            seconds.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
        say({"seconds": seconds, "cpu": cpu, "value": value, "peak_mib": peak_mib(), **facts()})


def say(message: dict[str, Any]) -> None:
    """One JSON line to the parent."""
    print("@" + json.dumps(message), flush=True)


class Side:
    """A side as the parent sees it."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.facts: dict[str, Any] = {}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.start = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        code = self.process.wait()
        self.errors.seek(0)
        raise SystemExit(f"benchmark: side {self.name!r} stopped with code {code}\n{self.errors.read()[-3000:]}")

    def round(self, steps: int) -> None:
        """Run a round of steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.seconds += answer.pop("seconds")
        self.cpu += answer.pop("cpu")
        self.facts = answer

    def result(self) -> dict[str, Any]:
        """Median and all times, start-up and memory; ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        return {
            "median_s": round(statistics.median(self.seconds), 4),
            "min_s": round(min(self.seconds), 4),
            "median_cpu_s": round(statistics.median(self.cpu), 4),
            "seconds": [round(s, 4) for s in self.seconds],
            **{key: round(value, 3) for key, value in self.start.items()},
            **self.facts,
        }


def interleave(sides: Sequence[Side], rounds: int, steps: int) -> dict[str, Any]:
    """Rounds of every side in turn: A B A B ..."""
    for _ in range(rounds):
        for side in sides:
            side.round(steps)
    return {side.name: side.result() for side in sides}


def processor() -> str:
    """The processor's name and its widest vectors, as far as Linux says; what multiplies fastest depends on both."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor()
    said = dict(line.partition(":")[::2] for line in file.read_text().splitlines() if ":" in line)
    said = {key.strip(): value.strip() for key, value in said.items()}
    flags = said.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    return f"{said.get('model name', platform.processor())} {vectors}".strip()


def machine() -> dict[str, Any]:
    """Where and with what this was measured; `load` is the load average before the run."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "processor": processor(),
        "python": platform.python_version(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "versions": found,
    }


def write(path: str, results: dict[str, Any]) -> None:
    """Print the results, and keep them when a path is given."""
    text = json.dumps(results, indent=1)
    print(text)
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n")
