"""Writes the comment of every notebook parameter that is a setting of a run, from lib.presets.

`papermill --help-notebook FILE` shows these comments, so that it says the same as
`python -m lib.train --help`. `python -m scripts.document_parameters` changes the notebooks; with
--check it only says whether it would.
"""

import re
from dataclasses import fields
from typing import Any

from lib.presets import Config, help_of
from scripts.notebook_sources import NOTEBOOKS, replace, rewrite

# Parameters that carry the name of a setting and mean something of their own.
OWN_NOTEBOOKS = {"09_theory", "09a_graph", "10_table1", "11_audit"}
OWN_NAMES = {"preset", "seed"}
OF_U_MAE = {"09b_trained_model", "09c_uniformity"}  # their lam is above 0: MAE is trained beside it
SETTINGS = {f.name for f in fields(Config)} - OWN_NAMES
OPTIONAL = re.compile(r"(\w+)( = None  # type: \w+  )(.*)")  # the preset's value if None
GIVEN = re.compile(r"(\w+)(: [^=#]+ = [^#]+  # )(.*)")


def documented(line: str, name: str) -> str:
    """A line of the parameters cell of the notebook `name`, with the comment it should have."""
    for pattern, ending in ((OPTIONAL, "; preset's if None"), (GIVEN, "")):
        found = pattern.fullmatch(line)
        if found and found[1] in SETTINGS - ({"lam"} if name in OF_U_MAE else set()):
            return f"{found[1]}{found[2]}{help_of(found[1])}{ending}"
    return line


def document(name: str, notebook: dict[str, Any]) -> bool:
    """Whether a comment of the notebook's parameters was changed."""
    cells = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = ["".join(cell["source"]).split("\n") for cell in cells]
    new = ["\n".join(documented(line, name) for line in own) for own in lines]
    return any([replace(cell, text) for cell, text in zip(cells, new, strict=True)])


def main() -> None:
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    names = [name for name in names if name not in OWN_NOTEBOOKS]
    rewrite(names, document, "every parameter has its comment")


if __name__ == "__main__":
    main()
