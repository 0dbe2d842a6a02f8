"""notebooks/00_start.ipynb: what it shows before anything was run, and after."""

import nbformat
import papermill
import pytest
from support import few, small

from lib.presets import REPO
from lib.train import train

PATH = REPO / "notebooks" / "00_start.ipynb"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs 00_start and returns what its cells printed and showed as text."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend shows figures

    def run() -> str:
        target = tmp_path / "start.ipynb"
        papermill.execute_notebook(PATH, target, cwd=tmp_path, progress_bar=False)
        cells = [cell for cell in nbformat.read(target, 4).cells if cell.cell_type == "code"]
        found = [output for cell in cells for output in cell.outputs]
        shown = [output.get("data", {}).get("text/plain", "") for output in found]
        assert sum("image/png" in output.get("data", {}) for output in found) >= 2
        return "".join([output.get("text", "") for output in found] + shown)

    return run


def test_it_lists_the_runs_that_are_there_and_says_where_none_is(execute, outputs):
    assert "No run yet" in (text := execute()) and "No figure yet" in text
    config = small(epochs=1)
    run = train(config, few(config))
    assert run.folder.name[:20] in execute()


def test_it_has_the_parameters_tag_and_no_outputs():
    code = [cell for cell in nbformat.read(PATH, 4).cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
