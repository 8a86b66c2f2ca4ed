"""The shape of the code: who may import whom, how long a file is, what a plug-in has, that every config resolves."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gramjax.core import checks, config, flags, plugins

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gramjax"
FLOORS = {
    "core": 0,
    "models": 1,
    "data": 2, "checkpoint": 2,
    "generation": 3, "scoring": 3,
    "training": 4, "objectives": 4, "rewards": 4, "annotators": 4, "selection": 4, "evals": 4, "recipes": 4, "plots": 4,
    "serving": 4,
    "jobs": 5,
    "cli": 6,
    "__main__": 7,
}
APART = ("objectives", "rewards", "annotators", "selection", "evals", "recipes", "jobs")
"""Folders whose files do not import each other: what two of them need sits on a lower floor."""

MOST_LINES = 500
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
HEAVY = ("datasets", "matplotlib", "pandas", "tensorflow", "torch", "transformers")
"""Not on the path of `train`, not even through another package."""

NOT_AT_THE_TOP = {*HEAVY, "wandb", "tensorboardX", "rich", "sacrebleu", "ot", "PIL", "sklearn"}
"""Slow or optional: imported inside the function that needs them."""

SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("gramjax", "configs", "tests", "benchmarks")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@dataclasses.dataclass(frozen=True)
class Import:
    """`module` is imported in line `line`; `name` is the part of it that is taken, if any."""

    module: str
    name: str
    line: int


def imports(tree: ast.AST) -> Iterator[Import]:
    """Every import below a node, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)


def at_the_top(tree: ast.Module) -> Iterator[Import]:
    """Imports that run when the module is imported."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            waiting += [] if typing_only else ast.iter_child_nodes(node)


def target(found: Import) -> tuple[str, ...]:
    """The file or folder an import of this package means, as parts below `gramjax`: ("core", "tree")."""
    parts = tuple(found.module.split("."))[1:]
    deeper = PACKAGE.joinpath(*parts, found.name) if found.name else PACKAGE
    is_file = bool(found.name) and (deeper.is_dir() or deeper.with_suffix(".py").is_file())
    return (*parts, found.name) if is_file else parts


def broken_floors(own: tuple[str, ...], tree: ast.Module) -> list[str]:
    """The imports of a file (parts below `gramjax`) that its floor does not allow."""
    out = []
    for found in imports(tree):
        if found.module.startswith("."):
            out.append(f"line {found.line}: relative import")
        if found.module.split(".")[0] != "gramjax":
            continue
        other = target(found)
        if not other or own == ("__init__",):
            continue
        if other[0] not in FLOORS:
            out.append(f"line {found.line}: {'.'.join(other)} is on no floor")
        elif other[0] == "jobs":
            out.append(f"line {found.line}: imports a job")
        elif other[0] == own[0]:
            if own[0] in APART and other[1:] != own[1:]:
                out.append(f"line {found.line}: {'/'.join(own)} imports its neighbour {'/'.join(other)}")
        elif FLOORS[other[0]] >= FLOORS[own[0]]:
            floors = f"floor {FLOORS[own[0]]} imports floor {FLOORS[other[0]]}"
            out.append(f"line {found.line}: {own[0]} imports {other[0]}: {floors}")
    return out


def parts_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


@pytest.mark.smoke
def test_test_files_have_names_of_their_own():
    """There are no packages below `tests`: pytest cannot tell two modules of one name apart."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


@pytest.mark.smoke
def test_files_import_lower_floors_only():
    found = {path.name: broken_floors(parts_of(path), ast.parse(path.read_text("utf-8"))) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "own,source,broken",
    [
        (("core", "x"), "from gramjax.models import block", True),
        (("models", "x"), "from gramjax.core import tree", False),
        (("models", "x"), "def f():\n    import gramjax.data.rows", True),
        (("data", "x"), "from gramjax.checkpoint.state import Checkpoints", True),
        (("data", "x"), "from gramjax.data.rows import Drop", False),
        (("evals", "x"), "from gramjax.evals import preference", True),
        (("evals", "x"), "from gramjax.core.errors import UserError", False),
        (("training", "x"), "import gramjax.objectives.bradley_terry", True),
        (("cli",), "from gramjax.jobs.train import main", True),
        (("jobs", "x"), "from gramjax.jobs import train", True),
        (("jobs", "x"), "from gramjax import cli", True),
        (("core", "x"), "from . import tree", True),
        (("core", "x"), "import gramjax\nfrom gramjax import __version__", False),
        (("core", "x"), "from gramjax.elsewhere import f", True),
    ],
)
def test_the_floors_test_sees_what_it_should(own, source, broken):
    assert bool(broken_floors(own, ast.parse(source))) == broken


def test_every_folder_has_a_floor():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))} - {"configs"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | files <= set(FLOORS)


def test_imports_of_a_folder_form_no_circle():
    """The fixed order inside a folder: what is imported at the top can be put in a line."""
    edges = {}
    for path in SOURCES:
        found = [i for i in at_the_top(ast.parse(path.read_text("utf-8"))) if i.module.split(".")[0] == "gramjax"]
        edges[parts_of(path)] = {target(i) for i in found}
    while free := {name for name, needs in edges.items() if not (needs & set(edges)) - {name}}:
        for name in free:
            del edges[name]
    assert not edges, f"circle among {sorted(edges)}"


def test_slow_and_optional_packages_are_imported_where_they_are_used():
    found = [
        f"{path.relative_to(ROOT)}:{i.line} {i.module}"
        for path in SOURCES for i in at_the_top(ast.parse(path.read_text("utf-8")))
        if i.module.split(".")[0] in NOT_AT_THE_TOP
    ]
    assert found == []


@pytest.mark.smoke
def test_train_starts_without_heavy_packages_and_without_touching_a_device():
    code = (
        "import sys; import gramjax.jobs.train; from jax._src import xla_bridge as bridge; "
        f"print('loaded', [m for m in {HEAVY} if m in sys.modules], bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "loaded [] False", done.stderr


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


def test_no_drawers_of_everything():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    named = [path for path in files if set(path.stem.lower().split("_")) & NO_NAMES and "__pycache__" not in path.parts]
    assert named == []


def defined(tree: ast.Module) -> set[str]:
    """Names that a module has at the top."""
    out = {i.name or i.module for i in at_the_top(tree)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.add(node.name)
        elif isinstance(node, ast.Assign):
            out |= {name.id for name in node.targets if isinstance(name, ast.Name)}
    return out


PLUGINS = [(kind, name) for kind in plugins.FUNCTIONS for name in plugins.names(kind)]


@pytest.mark.parametrize("kind,name", PLUGINS)
def test_plugins_have_their_functions(kind, name):
    tree = ast.parse((PACKAGE / kind / f"{name}.py").read_text("utf-8"))
    missing = set(plugins.FUNCTIONS[kind]) - defined(tree)
    assert not missing, f"{kind}/{name}.py lacks {sorted(missing)}"
    assert ast.get_docstring(tree), f"{kind}/{name}.py does not say what it is"


@pytest.mark.parametrize("kind,name", [pair for pair in PLUGINS if "Config" in plugins.FUNCTIONS[pair[0]]])
def test_plugin_configs_can_be_overridden(kind, name):
    """Every field has a default of its own type, and no list or None, which the command line cannot replace."""
    for path, setting in checks.settings_of(plugins.load(kind, name).Config, "").items():
        assert checks.fits(setting.default, setting.kind), f"{path} = {setting.default!r} is not {setting.kind}"
        assert not isinstance(setting.default, list | dict | None), path


JOBS = sorted((PACKAGE / "jobs").glob("[!_]*.py"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_have_main(path):
    tree = ast.parse(path.read_text("utf-8"))
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert [argument.arg for argument in main.args.args] == ["argv"]


@pytest.mark.parametrize("name", flags.config_names())
def test_configs_resolve(name):
    loaded = flags.load(name)
    assert [path for path, v in checks.flatten(loaded).items() if v is None or isinstance(v, list)] == []
    assert ast.get_docstring(ast.parse(flags.config_path(name).read_text("utf-8")))
    if "job" not in loaded:  # a preset that other configs build on
        return
    checks.check(loaded, loaded.job)
    for section, record in config.SECTIONS.items():
        if section in loaded:
            config.section(loaded[section], record, section)
    assert (PACKAGE / "jobs" / f"{loaded.job}.py").is_file()


def test_configs_say_how_to_run_them():
    for name in flags.config_names():
        text = flags.config_path(name).read_text("utf-8")
        if "/" not in name:
            assert f"--config={name}" in (ast.get_docstring(ast.parse(text)) or ""), f"{name} shows no command"
