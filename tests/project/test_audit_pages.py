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
        shape = f"{page['dim']} {page['effective_rank']:.1f} {page['condition_number']:.1e}"
        start = f" {page['encoder']} {page['feature']} {shape} "
        shown = [float(word) for word in text.split(start)[1].split()[: len(FROZEN)]]
        means = [np.mean(page["accuracy"][p]["test"]) for p in FROZEN]
        assert shown == pytest.approx(means, abs=0.0501)  # rounded to a tenth


def test_there_are_pages():
    assert len(PAGES) == 4
