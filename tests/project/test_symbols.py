"""docs/symbols.md: every function exists, and every notebook that it names uses it."""

import importlib
import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TABLE = (REPO / "docs" / "symbols.md").read_text()
ROWS = re.findall(r"\| `(lib\.[\w.]+)` \| `(\w+)` \|$", TABLE, re.MULTILINE)


def resolve(path: str):
    """The object that a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_row_of_the_table_is_read():
    assert len(ROWS) == sum(line.startswith("| ") for line in TABLE.splitlines()) - 1 > 15


@pytest.mark.parametrize(("path", "notebook"), ROWS, ids=[path for path, _ in ROWS])
def test_a_symbol_leads_to_a_function_and_a_notebook(path, notebook):
    assert callable(resolve(path))
    assert (REPO / "notebooks" / f"{notebook}.ipynb").is_file()


@pytest.mark.parametrize(("path", "notebook"), ROWS, ids=[path for path, _ in ROWS])
def test_the_notebook_imports_the_module_or_a_package_above_it(path, notebook):
    cells = json.loads((REPO / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    imported = re.findall(r"^(?:from|import) (lib[\w.]*)(?: import (.+))?$", source, re.MULTILINE)
    names = [f"{module}.{n}" for module, ns in imported for n in re.split(r",\s*", ns)]
    names += [module for module, _ in imported]
    top = path.split(".")[1]
    assert any(name.split(".")[1:2] == [top] for name in names), f"{notebook}: {top} of {path}"
