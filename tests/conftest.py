"""What every test relies on: a CPU, a compilation cache that survives the run, programs that find this checkout, and
the folder of real data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gramjax.core import xla_flags

ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
UNOPTIMISED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ.setdefault(UNOPTIMISED, "1")
QUICK = [flag for flag in xla_flags.TABLE if flag.group == "quick_compile" and flag.taken()]
QUICK_TEXT = xla_flags.as_text({flag.name: flag.value for flag in QUICK})
if os.environ[UNOPTIMISED] != "0":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TEXT}".strip()
"""Most programs here are compiled once and run for milliseconds: LLVM's expensive passes and XLA's newer code generator
are left out, each about halves the time to compile them; XLA's own passes, which decide what is computed where,
are not. Modules that compute for long, or look at what the compiler makes, are marked `optimised`; with
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` nothing is left out (the smoke runs so)."""


SLOW_FILES = (
    "faults/test_two_processes.py",
    "objectives/test_pretraining_pays.py",
    "objectives/test_two_languages.py",
    "jobs/test_grpo.py",
    "jobs/test_train.py",
    "training/test_training_meshes.py",
    "models/test_stack.py",
    "checkpoint/test_state.py",
    "scale/test_compiled_for_slices.py",
)
"""Minutes each: they begin first, so that no worker is left alone with one at the end (files go to workers in this
order: `--dist loadfile --no-loadscope-reorder`). Those that start processes of their own are not next to each other:
both would have the few cores at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the slow files first; otherwise the order stays."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def compiler_effort(request) -> Iterator[None]:
    """Full optimisation in this process and those that it starts, for modules marked `optimised`."""
    if request.node.get_closest_marker("optimised") is None or os.environ[UNOPTIMISED] == "0":
        yield
        return
    import jax
    from jax._src import compiler

    options = compiler.get_compile_options  # XLA reads XLA_FLAGS once in a process: afterwards only its options count

    def as_by_default(*args, env_options_overrides=None, **named):
        default = {flag.name: flag.value != "true" for flag in QUICK}
        return options(*args, env_options_overrides={**default, **(env_options_overrides or {})}, **named)

    jax.config.update(UNOPTIMISED.lower(), False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(UNOPTIMISED, "0")
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(QUICK_TEXT, "").strip())
        if QUICK:
            patch.setattr(compiler, "get_compile_options", as_by_default)
        yield
    jax.config.update(UNOPTIMISED.lower(), True)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; the test is skipped without one."""
    folder = os.environ.get("GRAMJAX_DATA", "")
    if not folder:
        pytest.skip("needs real data: set GRAMJAX_DATA to the folder that holds it")
    if not Path(folder).is_dir():
        pytest.fail(f"GRAMJAX_DATA is {folder!r}, which is no folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def prover_run(tmp_path_factory) -> Path:
    """The run folder of a prover of the permutation world (`jobs/tiny_prover.py`)."""
    from gramjax import cli

    folder = tmp_path_factory.mktemp("prover")
    config = ROOT / "tests" / "jobs" / "tiny_prover.py"
    assert cli.main(["train", f"--config={config}", f"--workdir={folder}"]) == 0
    return folder


def tiny_run(folder: Path, objective: str) -> Path:
    """The run folder of a training with `jobs/tiny.py`."""
    from gramjax import cli

    config = f"{ROOT / 'tests' / 'jobs' / 'tiny.py'}:{objective}"
    assert cli.main(["train", f"--config={config}", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_scalar(tmp_path_factory) -> Path:
    """The run folder of a Bradley-Terry reward model."""
    return tiny_run(tmp_path_factory.mktemp("scalar_model") / "run", "bradley_terry")


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory) -> Path:
    """The run folder of a generative judge."""
    return tiny_run(tmp_path_factory.mktemp("judge_model") / "run", "generative_preference")


@pytest.fixture(scope="session")
def prover(prover_run):
    """The same model, ready to write proofs."""
    from gramjax.core import config as configs
    from gramjax.training import sampling

    config = configs.for_rows("annotate", ("model", "tokenizer", "data", "mesh", "generation"))
    config.model.path, config.data.max_length = str(prover_run), 48
    config.generation.slots, config.generation.steps_per_call, config.generation.prefill_length = 16, 8, 32
    return sampling.open_sampler(config)
