"""Which folders the package is made of; everything else is in pyproject.toml.

`configs/` and `launch/` stand at the top of the checkout, where people read them, and are installed inside the package.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
CONFIGS = [folder for folder in sorted([ROOT / "configs", *ROOT.glob("configs/**/")]) if any(folder.glob("*.py"))]
CONFIG_PACKAGES = {
    ".".join(("gramjax", *folder.relative_to(ROOT).parts)): folder.relative_to(ROOT).as_posix()
    for folder in CONFIGS
    if folder.name != "__pycache__"
}
BESIDE = {**CONFIG_PACKAGES, "gramjax.launch": "launch"}

setup(
    packages=[*find_namespace_packages(include=["gramjax", "gramjax.*"], exclude=["*__pycache__*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={"": ["*"]},
    exclude_package_data={"": ["*.pyc"]},
)
