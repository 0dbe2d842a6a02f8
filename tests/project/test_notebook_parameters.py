"""One source for what a setting means: `python -m lib.train --help` and `--help-notebook` agree."""

from pathlib import Path

import nbformat
import papermill
import pytest

from lib.presets import help_of
from scripts import document_parameters as script

REPO = Path(__file__).resolve().parents[2]


PATHS = sorted((REPO / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_comments_are_those_of_the_presets(path):
    if path.stem in script.OWN_NOTEBOOKS:
        pytest.skip("its parameters mean something of their own")
    cells = nbformat.read(path, 4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    for line in cell.source.split("\n"):
        assert line == script.documented(line, path.stem), "python -m scripts.document_parameters"


def test_papermill_shows_the_same_sentence():
    shown = papermill.inspect_notebook(REPO / "notebooks" / "02_pretrain.ipynb")
    assert shown["epochs"]["help"] == f"{help_of('epochs')}; preset's if None"
    assert shown["seed"]["default"] == "0"


def test_a_parameter_that_is_no_setting_keeps_its_comment():
    line = "images: int = 1000  # test images in a map, at most"
    assert script.documented(line, "05_tsne") == line
    assert script.documented("# parameters", "05_tsne") == "# parameters"
    older = "lam: float = 0.5  # something older"
    assert script.documented(older, "02_pretrain") == f"lam: float = 0.5  # {help_of('lam')}"
    assert script.documented(older, "09c_uniformity") == older
