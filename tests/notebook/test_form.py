"""The form of every notebook, and its parameters; nothing is executed."""

import nbformat
import papermill
import pytest
from support.notebooks import PATHS, THEORY, TINY, code_cells, code_of, read

from lib.errors import InputError
from lib.notebook.parameters import read_parameters

SWEEPS = {
    "04_finetune",
    "05_tsne",
    "06_lambda_ablation",
    "07_training_curve",
    "08_mask_ratio",
    "10_table1",
}
# 00 and 09 point to others, and 09a is about digits whatever the preset.
WITHOUT_PRESET = {"00_start", "09_theory", "09a_graph"}
WORDS = {name: (800, 1500) if name in THEORY else (400, 1700) for name in PATHS}
WORDS |= {"00_start": (200, 1700), "09_theory": (0, 400)}


def declared(name: str) -> dict:
    """The names and defaults of the first code cell."""
    values: dict = {}
    exec(code_of(name)[0], values)
    return values


def test_every_notebook_has_small_settings():
    assert set(PATHS) == set(TINY)


@pytest.mark.parametrize("name", PATHS)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) <= 32
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    code = code_cells(notebook)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1] and code[0].source.startswith("# parameters\n")
    assert "read_parameters(In, globals())" in code[1].source.rstrip().splitlines()[-1]
    for cell in code:
        assert len(cell.source.splitlines()) <= 20, cell.source
        assert cell.outputs == [] and cell.execution_count is None
    lines = [line for cell in notebook.cells for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "$$"))] == []


@pytest.mark.parametrize("name", PATHS)
def test_length_of_the_text(name):
    text = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    fewest, most = WORDS[name]
    assert fewest <= sum(len(source.split()) for source in text) <= most


@pytest.mark.parametrize("name", PATHS)
def test_parameters_show_in_papermills_help_and_can_be_read(name):
    params = read_parameters(["", code_of(name)[0]], declared(name))
    inferred = papermill.inspect_notebook(PATHS[name])
    assert list(inferred) == list(params)
    assert set(TINY[name]) <= set(params)
    helped = {p["name"]: p["help"] for p in inferred.values()}
    assert all(helped.values()), helped
    if name not in WITHOUT_PRESET | {"11_audit"}:
        assert {"preset", "data", "data_dir", "overrides"} <= set(params)
    if name in SWEEPS:
        coefficient = "lams" if name == "06_lambda_ablation" else "lam"
        assert {coefficient, "epochs", "seeds"} <= set(params)
        assert ("jobs" in params) == (name != "10_table1")


@pytest.mark.parametrize("name", PATHS)
def test_an_unknown_parameter_is_refused_with_the_nearest_name(name):
    values = declared(name)
    known = next(key for key in values if not key.startswith("__"))
    given = f'# Parameters\n{known}x = "a"\n'
    with pytest.raises(InputError, match=f"unknown parameter '{known}x': did you mean '{known}'"):
        read_parameters(["", code_of(name)[0], given], values)
