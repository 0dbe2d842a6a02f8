"""One place for dependencies (pyproject.toml), exact versions, and a package that git keeps."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORT_NAMES = {"ipython": "IPython", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
OWN = {"lib", "benchmarks", "study", "solutions", "support", "__future__"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def imported(folder: str) -> dict[str, Path]:
    """The top-level packages that the files under `folder` import, each with one such file."""
    found = {}
    for path in (REPO / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found[node.module.split(".")[0]] = path
    return found


def import_names(requirements: list[str]) -> set[str]:
    names = [normal(Requirement(text).name) for text in requirements]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    versions = pinned()
    for text in chain(PROJECT["dependencies"], *EXTRAS.values()):
        requirement = Requirement(text)
        name = normal(requirement.name)
        assert name in versions, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(versions[name]), f"{text}: {versions[name]}"


def test_environment_yml_names_no_version_of_its_own():
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}" and pip == "pip"
    assert extra == {"pip": ["-c constraints.txt", "-e .[dev]"]}


@pytest.mark.parametrize("folder", ["lib", "benchmarks", "study", "solutions"])
def test_every_package_that_is_imported_is_a_declared_dependency(folder):
    declared = import_names(PROJECT["dependencies"])
    for name, path in imported(folder).items():
        assert name in declared | OWN or name in sys.stdlib_module_names, f"{path} imports {name}"


def test_the_packages_that_the_project_is_built_for_are_dependencies():
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    models = {"torch", "torchvision", "timm", "scikit-learn"}
    assert models | {"jupyterlab", "papermill", "matplotlib", "seaborn"} <= names


def test_git_does_not_ignore_the_package():
    command = ["git", "-C", REPO, "check-ignore", "lib/models.py", "lib/data/folders.py"]
    ignored = subprocess.run(command, capture_output=True)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.returncode == 1, ignored.stdout
