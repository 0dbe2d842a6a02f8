"""How often a bar moves: often where a person looks on, seldom in a log."""

import pytest

from lib.runs.progress import is_live, progress


@pytest.mark.parametrize("live,seconds", [(True, 0.5), (False, 20)])
def test_a_bar_moves_often_in_a_live_notebook_and_seldom_under_papermill(
    live, seconds, monkeypatch
):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if live:
        monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert is_live() == live
    with progress(10) as bar:
        assert bar.mininterval == seconds
