"""docs/results.md shows the audit pages that are in outputs/reference."""

import json

import numpy as np
import pytest

from lib.evaluate.probes import FROZEN
from lib.presets import REPO

PAGES = sorted((REPO / "outputs/reference/11_audit").glob("*.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_row_is_that_of_the_page(path):
    text = " ".join((REPO / "docs/results.md").read_text().split())
    found = json.loads(path.read_text())
    assert found["commit"][:7] in text
    for page in found["pages"]:
        means = [f"{np.mean(page['accuracy'][p]['test']):.1f}" for p in FROZEN]
        shape = f"{page['dim']} {page['effective_rank']:.1f} {page['condition_number']:.1e}"
        assert " ".join([page["encoder"], page["feature"], shape, *means]) in text


def test_there_are_pages():
    assert len(PAGES) == 4
