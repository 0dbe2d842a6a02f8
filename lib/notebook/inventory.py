"""What has been run on this machine: runs, measurements and figures found in the outputs folder."""

from pathlib import Path
from typing import Any

from lib.runs.files import read_json
from lib.runs.folder import imported_from, outputs

MEASURED = {"probes": "probes/*.json", "finetunings": "finetune/*.json"}


def _row(folder: Path) -> dict[str, Any]:
    """One run as its files tell it; a run without result.json is not finished."""
    record = read_json(folder / "config.json")
    config = record.get("config", {})
    counts = {name: len(list(folder.glob(pattern))) for name, pattern in MEASURED.items()}
    return {
        "run": folder.name,
        "objective": "U-MAE" if config.get("lam") else "MAE",
        "epochs": config.get("epochs"),
        "origin": imported_from(folder) or "trained",
        "finished": (folder / "result.json").is_file(),
        **counts,
        "when": str(record.get("time", ""))[:16],
        "commit": str(record.get("commit", ""))[:10],
    }


def runs_found() -> list[dict[str, Any]]:
    """One dict a run under outputs()/runs, by name: what it is, and what was measured on it."""
    return [_row(path.parent) for path in sorted(outputs().glob("runs/*/config.json"))]


def figures_found() -> dict[str, list[Path]]:
    """The figures of each notebook under outputs(), newest first: {notebook: [path]}."""
    found: dict[str, list[Path]] = {}
    for path in sorted(outputs().glob("[0-9][0-9]*/*/*.png")):
        found.setdefault(path.parents[1].name, []).append(path)
    return {
        name: sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
        for name, paths in found.items()
    }
