"""notebooks/00_start.ipynb: what it shows before anything was run, and after."""

import pytest
from support import few, small
from support.notebooks import code_cells, execute, execute_anew, printed

from lib.train import train


@pytest.fixture
def start(tmp_path, shared_outputs, monkeypatch):
    """Runs 00_start and returns what its cells printed and showed as text."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend shows figures

    def run(execute) -> str:
        notebook = execute("00_start", tmp_path)
        outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
        shown = [output.get("data", {}) for output in outputs]
        assert sum("image/png" in data for data in shown) >= 2
        return printed(notebook) + "".join(data.get("text/plain", "") for data in shown)

    return run


def test_it_lists_the_runs_that_are_there_and_says_where_none_is(start):
    assert "No run yet" in (text := start(execute_anew)) and "No figure yet" in text
    config = small(epochs=1)
    run = train(config, few(config))
    assert run.folder.name[:20] in start(execute)
