"""Where a job runs: versions, devices and settings in force (`env.json`, `gramjax doctor`), and the start of JAX.

JAX is imported inside the functions, so that facts can be gathered and flags read without it. `JAX_PLATFORMS` and
`XLA_FLAGS` are the user's: they are reported and never set here.
"""

import ctypes
import dataclasses
import functools
import gc
import importlib
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gramjax
from gramjax.core import xla_flags
from gramjax.core.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "ml-collections", "numpy", "tokenizers",
            "safetensors", "transformers", "datasets")
"""Distributions whose versions are recorded; the first eight are needed by every job."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",), "plot": ("matplotlib",), "wandb": ("wandb",), "serve": ("fastapi", "uvicorn"),
    "math": ("math_verify", "pebble"), "mt": ("sentencepiece",), "lmeval": ("lm_eval",), "plan": ("libtpu",),
}
"""Modules that each extra brings."""

VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE",
             "GRAMJAX_CACHE", "JAX_COMPILATION_CACHE_DIR", "SLURM_JOB_ID")


STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""How many tasks one srun has started; SLURM_NTASKS is what was asked of sbatch, also in the script itself."""


@dataclasses.dataclass(frozen=True)
class BadPair:
    """Two installed versions that do not work together."""

    first: str
    first_below: tuple[int, ...]
    second: str
    second_from: tuple[int, ...]
    fix: str


BAD_PAIRS = (
    BadPair("flax", (0, 12, 9), "jax", (0, 11, 1), 'pip install -U "flax>=0.12.9"'),
    BadPair("flax", (0, 12, 8), "jax", (0, 10, 0), 'pip install -U "flax>=0.12.8"'),
    BadPair("safetensors", (0, 8), "jax", (0, 10, 0), 'pip install -U "safetensors>=0.8"'),
    BadPair("transformers", (5,), "tokenizers", (0, 22), 'pip install -U "transformers>=5"'),
)


def need(module: str, extra: str, what: str) -> Any:
    """Import an optional module, or raise the UserError that names its extra."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".")[0]
        raise UserError(f'{what} needs {name}: pip install "gramjax[{extra}]"') from None


@functools.cache
def processor() -> str:
    """The maker of this machine's processor as it names itself (`GenuineIntel`, `AuthenticAMD`), "" where unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def version(name: str) -> str:
    """Installed version of a distribution, or ""."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `0.12.8rc1` is (0, 12, 8)."""
    out = []
    for part in text.split(".")[:4]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        out.append(int(digits))
    return tuple(out)


def bad_pairs(versions: Mapping[str, str]) -> list[str]:
    """Known conflicts among installed versions, each with the command that repairs it."""
    out = []
    for pair in BAD_PAIRS:
        first, second = versions.get(pair.first, ""), versions.get(pair.second, "")
        if first and second and numbers(first) < pair.first_below and numbers(second) >= pair.second_from:
            out.append(f"{pair.first} {first} does not work with {pair.second} {second}: {pair.fix}")
    return out


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled programs are kept: JAX's own variable, `GRAMJAX_CACHE`, or `~/.cache/gramjax/xla`."""
    given = environment.get("JAX_COMPILATION_CACHE_DIR") or environment.get("GRAMJAX_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "gramjax" / "xla"


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder (made if absent), or "" when it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror or error})"


def git_commit(folder: Path | None = None) -> str:
    """The commit of the checkout gramjax runs from, with `+changes` if files differ; "" outside a checkout."""
    folder = Path(__file__).parent.parent.parent if folder is None else folder
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return ""
    try:
        def git(*words: str) -> str:
            command = ["git", "-C", str(folder), *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def memory_gib() -> dict[str, float]:
    """Memory of the machine, total and available, in GiB; empty where the system does not say (it is not Linux)."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        names = {"total": "MemTotal", "available": "MemAvailable"}
        return {name: round(int(rows[key].split()[0]) / 2**20, 1) for name, key in names.items()}
    except (OSError, KeyError, ValueError):
        return {}


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def devices() -> dict[str, Any]:
    """Backend, number, kind and memory of the devices JAX sees. Raises UserError if JAX cannot start."""
    import jax

    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        hint = f" (JAX_PLATFORMS is {asked!r}: unset it, or install that backend with gramjax[cuda] or gramjax[tpu])"
        raise UserError(f"JAX does not start: {first_line(error)}{hint if asked else ''}") from error
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return {
        "backend": jax.default_backend(), "count": len(found), "kind": found[0].device_kind,
        "processes": jax.process_count(), "memory_gib": round(max(limits) / 2**30, 1) if any(limits) else None,
    }


def peak_gib() -> float:
    """The most memory in use so far, GiB: of the fullest local device, or of this process where devices do not say."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(peaks):
        return max(peaks) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def facts(with_devices: bool = True) -> dict[str, Any]:
    """Everything that says where a run happened; JSON-able, written to `env.json`."""
    out: dict[str, Any] = {
        "gramjax": gramjax.__version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(),
        "versions": {name: version(name) for name in PACKAGES},
        "extras": {name: all(importlib.util.find_spec(m) is not None for m in modules)
                   for name, modules in EXTRAS.items()},
        "variables": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        "cache": str(cache_dir()),
        "command": sys.argv,
    }
    if with_devices:
        out["devices"] = devices()
    return out


def start(compilation_cache: bool = True, distributed: str = "", expected: int = 0, alone: str = "") -> None:
    """Make JAX ready for a job: join the other processes if asked, and keep compiled programs on disk.

    `distributed` is the text of `--distributed`, `expected` the number of `--devices` (0: any). A cache folder that
    cannot be written is one warning, not an error; a backend that does not start is a UserError, and so is another
    number of devices than expected: a job that was given eight and sees one would run, eight times too long. `alone`
    is the verb of a job that several processes cannot share.
    """
    if alone:
        one_process(alone, distributed)
    plan = None if alone else distributed_plan(distributed, os.environ)
    xla_flags.check_environment(os.environ)
    import jax

    if plan is not None:
        from gramjax.core import rendezvous

        limits: dict[str, Any] = rendezvous.limits(os.environ)
        if "coordinator_address" in plan and plan["num_processes"] > 1:
            number, count = plan["process_id"], plan["num_processes"]
            rendezvous.meet(plan["coordinator_address"], number, count, limits["initialization_timeout"])
        try:
            jax.distributed.initialize(**plan, **limits)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--distributed={distributed or 'auto'}: {first_line(error)}") from error
    if compilation_cache:
        problem = unwritable(cache_dir())
        if problem:
            print(f"gramjax: compiled programs are not kept: {problem}; set GRAMJAX_CACHE", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
    found = devices()
    if expected not in (0, found["count"]):
        several = f" in {found['processes']} processes" if found["processes"] > 1 else ""
        raise UserError(f"--devices={expected}, but JAX finds {found['count']} x {found['kind']}{several}: "
                        "gramjax doctor says what a host has")


def one_process(verb: str, asked: str = "", environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError where several processes were started for a verb that would do all of its work in each."""
    counts = [asked.rpartition(",")[2], environment.get("JAX_NUM_PROCESSES", ""), environment.get(STEP_TASKS, "")]
    several = max((int(text) for text in counts if text.isdigit()), default=1)
    if several > 1 or asked in ("auto", "slurm"):
        found = f"{several} were started" if several > 1 else f"--distributed={asked} asks for several"
        raise UserError(f"gramjax {verb} runs in one process, on all devices of its host; {found}: start it once, "
                        "without --distributed and JAX_NUM_PROCESSES (more hosts: a part of the rows for each)")


def distributed_plan(asked: str, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, or None for a single process.

    JAX raises on a plain single host, so it is only started when `--distributed` says so or the launcher's variables
    are complete: several SLURM tasks, or `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
    """
    if asked:
        if asked == "auto":
            return {}
        if asked == "slurm":
            if "SLURM_NTASKS" not in environment:
                raise UserError("--distributed=slurm: SLURM_NTASKS is not set; start the job with srun")
            return {"cluster_detection_method": "slurm"}
        parts = asked.split(",")
        if len(parts) != 3 or ":" not in parts[0] or not (parts[1].isdigit() and parts[2].isdigit()):
            raise UserError(f"--distributed={asked}: expected auto, slurm, or ADDRESS:PORT,NUMBER,COUNT")
        number, count = int(parts[1]), int(parts[2])
        if number >= count:
            raise UserError(f"--distributed={asked}: process {number} of {count}; numbers start at 0")
        return {"coordinator_address": parts[0], "process_id": number, "num_processes": count}
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    present = [name for name in names if environment.get(name)]
    if len(present) == len(names):
        address, processes, own = (environment[name] for name in names)
        return None if processes == "1" else distributed_plan(f"{address},{own},{processes}", environment)
    if present:
        missing = ", ".join(name for name in names if name not in present)
        raise UserError(f"{', '.join(present)} set but {missing} missing; set all three or none")
    if environment.get("SLURM_JOB_ID") and not environment.get("SLURM_NTASKS"):
        print("gramjax: SLURM_JOB_ID is set but SLURM_NTASKS is not (interactive shell?). Starting single-process; "
              "use --distributed=slurm to insist", file=sys.stderr)
        return None
    tasks = environment.get("SLURM_NTASKS", "1")
    several = tasks.isdigit() and int(tasks) > 1 and "SLURM_PROCID" in environment
    return {"cluster_detection_method": "slurm"} if several else None


def return_large_blocks() -> None:
    """Have glibc map every block of 1 MiB or more by itself, so that freeing it gives the memory back at once.

    By default the limit grows to the largest block freed so far, and freed arrays stay in the heap between others.
    For training: a pass of scoring asks for hundreds of MiB in small pieces, and mapping them anew takes a tenth of
    its time.
    """
    mallopt = _libc("mallopt")
    if mallopt is not None:
        mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


def release_memory() -> None:
    """Give memory that the compiler has freed back to the system (glibc keeps it); elsewhere nothing happens."""
    gc.collect()
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _libc(name: str) -> Any:
    """A function of the C library, or None where it is not glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
