"""The project's own files: one place for dependencies, a package that is really there, thin files."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, str]:
    lines = [
        r
        for r in (REPO / "constraints.txt").read_text().splitlines()
        if "==" in r and not r.startswith("#")
    ]
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in (r.split("==") for r in lines)
    }


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    versions = pinned()
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in versions, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(versions[name]), (
            f"{name} {versions[name]} is not {requirement.specifier}"
        )


def test_environment_yml_names_no_version_of_its_own():
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}" and pip == "pip"
    assert extra == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_the_packages_that_the_project_is_built_for_are_dependencies():
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    wanted = {
        "torch",
        "torchvision",
        "timm",
        "jupyterlab",
        "papermill",
        "matplotlib",
        "seaborn",
        "scikit-learn",
    }
    assert wanted <= names


def test_git_does_not_ignore_the_package():
    ignored = subprocess.run(
        ["git", "-C", REPO, "check-ignore", "lib/models.py", "lib/new.py"], capture_output=True
    )
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.returncode == 1, ignored.stdout


@pytest.mark.parametrize("path", sorted((REPO / "lib").glob("*.py")), ids=lambda p: p.name)
def test_no_file_of_lib_is_long(path):
    assert len(path.read_text().splitlines()) <= 300


def test_only_plots_draws():
    for path in (REPO / "lib").glob("*.py"):
        draws = re.search(r"^\s*(import|from) (matplotlib|seaborn)", path.read_text(), re.MULTILINE)
        assert not draws or path.name == "plots.py", path.name


def test_readme_names_only_notebooks_and_targets_that_exist():
    text = (REPO / "README.md").read_text()
    for name in re.findall(r"notebooks/(\w+)\.ipynb", text):
        assert (REPO / "notebooks" / f"{name}.ipynb").is_file(), name
    targets = re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"`?make ([a-z]+)", text):
        assert name in targets, name
