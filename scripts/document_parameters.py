"""Writes the comment of every notebook parameter that is a setting of a run, from lib.presets.

`papermill --help-notebook FILE` shows these comments, so that it says the same as
`python -m lib.train --help`. `python scripts/document_parameters.py` changes the notebooks; with
--check it only says whether it would.
"""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

from lib.presets import Config, help_of

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# Parameters that carry the name of a setting and mean something of their own.
OWN_NOTEBOOKS = {"09_theory", "09a_graph", "10_table1", "11_audit"}
OWN_NAMES = {"preset", "seed"}
SETTINGS = {f.name for f in fields(Config)} - OWN_NAMES
OPTIONAL = re.compile(r"(\w+)( = None  # type: \w+  )(.*)")  # the preset's value if None
GIVEN = re.compile(r"(\w+)(: [^=#]+ = [^#]+  # )(.*)")


def documented(line: str) -> str:
    """A line of a parameters cell with the comment that it should have."""
    for pattern, ending in ((OPTIONAL, "; preset's if None"), (GIVEN, "")):
        found = pattern.fullmatch(line)
        if found and found[1] in SETTINGS:
            return f"{found[1]}{found[2]}{help_of(found[1])}{ending}"
    return line


def main() -> None:
    stale = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if path.stem in OWN_NOTEBOOKS:
            continue
        notebook = json.loads(path.read_text())
        cells = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
        for cell in cells:
            text = "".join(cell["source"])
            new = "\n".join(map(documented, text.split("\n")))
            if new != text:
                stale.append(path.stem)
                cell["source"] = new.splitlines(keepends=True)
        if path.stem in stale and "--check" not in sys.argv:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print("changed: " + ", ".join(stale) if stale else "every parameter has its comment")
    if stale and "--check" in sys.argv:
        sys.exit("run python scripts/document_parameters.py")


if __name__ == "__main__":
    main()
