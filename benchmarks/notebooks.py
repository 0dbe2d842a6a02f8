"""The time of all notebooks, one after another, as a person runs them first."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sweep import empty_outputs
from lib.presets import REPO


def notebooks(rounds: int) -> list[dict[str, Any]]:
    """Every notebook on the default preset, one after another into an empty outputs folder."""
    return time_notebooks(sorted((REPO / "notebooks").glob("*.ipynb")))


def time_notebooks(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A line for each notebook, and their sum. One that fails says so and is not counted."""
    rows: list[dict[str, Any]] = []
    with empty_outputs() as outputs:
        for path in paths:
            print(f"  {path.stem} ...", file=sys.stderr, flush=True)
            executed, start = Path(outputs, path.name), time.perf_counter()
            code = _execute(path, executed)
            seconds = time.perf_counter() - start
            line = {
                "notebook": path.stem,
                "s": seconds,
                "first cell after s": _first_cell(executed) if code == 0 else float("nan"),
                "": "" if code == 0 else f"failed ({code})",
            }
            rows.append(line)
    done = sum(row["s"] for row in rows if not row[""])
    return [*rows, {"notebook": "all", "s": done, "first cell after s": "", "": ""}]


def _execute(path: Path, executed: Path) -> int:
    """The exit status of papermill."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(path), str(executed)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(command, env=env, capture_output=True).returncode


def _first_cell(executed: Path) -> float:
    """Seconds from the notebook's start, kernel and all, to the end of its first code cell."""
    notebook = json.loads(executed.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    start = datetime.datetime.fromisoformat(notebook["metadata"]["papermill"]["start_time"])
    end = datetime.datetime.fromisoformat(first["metadata"]["papermill"]["end_time"])
    return (end - start).total_seconds()
