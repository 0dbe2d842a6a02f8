"""Scripts that rewrite cells: what changes is written and named, and --check writes nothing."""

import json

import pytest

from scripts import notebook_sources


def shout(_: str, notebook: dict) -> bool:
    cell = notebook["cells"][0]
    return notebook_sources.replace(cell, "".join(cell["source"]).upper())


@pytest.mark.parametrize("check", [False, True])
def test_only_what_changes_is_written_and_a_check_writes_nothing(
    tmp_path, monkeypatch, capsys, check
):
    monkeypatch.setattr(notebook_sources, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr("sys.argv", ["scripts/shout.py", *["--check"] * check])
    for name, text in (("a", "low\nlow"), ("b", "HIGH")):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": [{"source": [text]}]}))
    if check:
        with pytest.raises(SystemExit, match=r"run python -m scripts\.shout"):
            notebook_sources.rewrite("ab", shout, "all loud")
    else:
        notebook_sources.rewrite("ab", shout, "all loud")
    assert capsys.readouterr().out == "changed: a\n"
    source = json.loads((tmp_path / "a.ipynb").read_text())["cells"][0]["source"]
    assert source == (["low\nlow"] if check else ["LOW\n", "LOW"])
    notebook_sources.rewrite("b", shout, "all loud")
    assert capsys.readouterr().out == "all loud\n"
