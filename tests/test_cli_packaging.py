"""What `pip install .` installs: every source file and every config, under the names that the package uses."""

import runpy
import tomllib
from pathlib import Path

import pytest

import gramjax

ROOT = Path(__file__).parent.parent


@pytest.fixture
def given(monkeypatch):
    """The arguments of `setup()`."""
    setuptools = pytest.importorskip("setuptools", reason="reads setup.py")
    calls = []
    monkeypatch.setattr(setuptools, "setup", lambda **given: calls.append(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return calls[0]


def test_every_file_is_in_a_package(given):
    folders = {given["package_dir"].get(name, name.replace(".", "/")) for name in given["packages"]}
    for top in ("gramjax", "configs"):
        for path in (ROOT / top).rglob("*.py"):
            assert str(path.parent.relative_to(ROOT)) in folders, f"{path} would not be installed"


def test_configs_are_installed_inside_the_package(given):
    assert given["package_dir"]["gramjax.configs"] == "configs" and "gramjax.configs" in given["packages"]
    assert not any("__pycache__" in name for name in given["packages"])


def test_launchers_are_installed_inside_the_package(given):
    assert given["package_dir"]["gramjax.launch"] == "launch" and "gramjax.launch" in given["packages"]
    assert given["package_data"] == {"": ["*"]}, "scripts and manifests are data"


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == gramjax.__version__


def test_constraints_hold_every_dependency():
    """Both Python lines pin what the package needs, and neither lets an index choose a torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {line.split(">")[0].split("[")[0].lower().replace("_", "-") for line in project["dependencies"]}
    for line in ("3.11", "3.12"):
        pins = (ROOT / "constraints" / f"constraints-{line}.txt").read_text().split()
        names = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
        assert needed <= names and all("==" in pin and "@" not in pin for pin in pins)
        assert [pin for pin in pins if pin.startswith("torch==")] == (["torch==2.13.0"] if line == "3.11" else [])
        assert not any(name.startswith("nvidia") for name in names)
