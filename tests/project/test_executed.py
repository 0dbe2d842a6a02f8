"""The executed copies for readers: none is missing, large, or older than its source."""

import json
from pathlib import Path

import nbformat
import pytest

from scripts.execute_notebooks import EXECUTED, LIMIT, NOTEBOOKS, cleaned, is_stale, source_hash

POINTERS = {"09_theory"}  # it only says which notebooks took its place
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_executed_copy_is_of_the_present_source(path):
    assert not is_stale(path), "make executed"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_copy_is_small_without_errors_and_without_paths_of_the_machine(path):
    copy = EXECUTED / path.name
    assert copy.stat().st_size <= LIMIT
    cells = nbformat.read(copy, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code) or path.stem in POINTERS
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert str(Path.home()) + "/" not in json.dumps(outputs)


def test_the_hash_changes_with_a_cell_and_not_with_injected_parameters():
    first = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 1")])
    injected = nbformat.v4.new_code_cell("a = 2", metadata={"tags": ["injected-parameters"]})
    more = nbformat.v4.new_notebook(cells=[*first.cells, injected])
    other = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 2")])
    assert source_hash(first) == source_hash(more) != source_hash(other)


def test_a_copy_keeps_no_path_of_the_machine():
    output = nbformat.v4.new_output("stream", text="written to /somewhere/runs/a")
    cell = nbformat.v4.new_code_cell("x", outputs=[output])
    notebook = cleaned(nbformat.v4.new_notebook(cells=[cell]), {"/somewhere": "outputs"})
    assert notebook.cells[0].outputs[0].text == "written to outputs/runs/a"
