"""Notebooks that are executed once and looked at by several tests."""

import json
import os

import pytest
from support.notebooks import execute, printed

from lib.presets import REPO


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the notebooks of one test file are executed."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def shared_outputs(shared, monkeypatch):
    """One $UMAE_OUTPUTS for all notebooks of a file, so that they find each other's runs."""
    monkeypatch.setenv("UMAE_OUTPUTS", str(shared / "outputs"))
    paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return shared / "outputs"


@pytest.fixture(scope="module")
def done(shared):
    """Executes a notebook once a module: (its JSON, its folder, what it printed)."""
    kept = {}

    def result(name):
        if name not in kept:
            text = printed(execute(name, shared))
            file = max((shared / "outputs" / name).glob("*/*.json"), key=os.path.getmtime)
            kept[name] = json.loads(file.read_text()), file.parent, text
        return kept[name]

    return result
