"""docs/theory.md cites tests and notebooks that exist."""

import re

from lib.presets import REPO

TEXT = (REPO / "docs" / "theory.md").read_text()


def test_every_cited_test_exists():
    defined = set()
    for path in (REPO / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    cited = set(re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)`", TEXT))
    assert len(cited) > 30
    assert cited <= defined, cited - defined


def test_every_cited_file_exists():
    files = re.findall(r"`(tests/[\w/]+\.py)", TEXT) + re.findall(r"\(\.\./([\w/.]+)\)", TEXT)
    assert len(files) > 5
    for file in files:
        assert (REPO / file).is_file(), file
