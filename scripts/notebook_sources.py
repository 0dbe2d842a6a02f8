"""What the scripts that rewrite cells of the notebooks share."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def rewrite(names: Iterable[str], change: Callable[[str, dict[str, Any]], bool], done: str) -> None:
    """Writes the notebooks that `change(name, notebook)` changed, and prints which.

    With --check on the command line nothing is written, and a notebook that would change ends the
    command with status 1. `done` is said when none would.
    """
    check, stale = "--check" in sys.argv, []
    for name in names:
        path = NOTEBOOKS / f"{name}.ipynb"
        notebook = json.loads(path.read_text())
        if not change(name, notebook):
            continue
        stale.append(name)
        if not check:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print("changed: " + ", ".join(stale) if stale else done)
    if stale and check:
        sys.exit(f"run python -m scripts.{Path(sys.argv[0]).stem}")


def replace(cell: dict[str, Any], text: str) -> bool:
    """Gives a cell this source; whether that is another one."""
    changed = text != "".join(cell["source"])
    cell["source"] = text.splitlines(keepends=True)
    return changed
