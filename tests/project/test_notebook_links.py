"""Every notebook says what comes before and after it, and what to know first."""

import itertools
import json
from pathlib import Path

import pytest

from scripts import link_notebooks

REPO = Path(__file__).resolve().parents[2]
POINTERS = {"09_theory"}  # it only says which notebooks took its place
PATHS = sorted((REPO / "notebooks").glob("*.ipynb"))
PATHS = [path for path in PATHS if path.stem not in POINTERS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_first_cell_has_the_links_of_the_reading_order(path):
    text = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert text == link_notebooks.linked(path.stem, text), "python -m scripts.link_notebooks"


def test_an_older_paragraph_is_replaced_and_the_chain_is_whole():
    old = "# Title\n\nText.\n\n**Before:** [x](x.ipynb). **Know first:** all."
    new = link_notebooks.linked("02_pretrain", old)
    assert new.count("**Know first:**") == 1 and "x.ipynb" not in new
    order = link_notebooks.names()
    for first, second in itertools.pairwise(order):
        assert f"({second}.ipynb)" in link_notebooks.links(first)
        before = f"**Before:** [{link_notebooks.ORDER[first][0]}]"
        assert before in link_notebooks.links(second)
