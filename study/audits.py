"""The committed audit pages (`python -m lib.evaluate`) as a generated block of a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.evaluate.audit import Interval
from lib.evaluate.probes import FROZEN
from lib.presets import REPO
from study.tables import FEATURES, Record, table

PAGES = REPO / "outputs" / "reference" / "11_audit"


def audits_block(_: Sequence[Record], folder: Path = PAGES) -> str:
    """Every page: data set, command and commit, a table, and what it says of two encoders."""
    parts = []
    for path in sorted(folder.glob("*.json"), key=lambda path: ("_" in path.stem, path.stem)):
        found = json.loads(path.read_text())
        few = found["images"]
        images = f"at most {few:,} training and test images each" if few else "all images"
        name = path.stem.split("_")[0]
        parts.append(f"**{name}**, {images} (commit {found['commit']}, {found['device']}):\n")
        parts.append(table(HEADER, [_row(page) for page in found["pages"]]) + "\n")
        parts += [f"- {sentence}" for sentence in found["comparisons"]]
        parts.append("")
    return "\n".join(parts)


HEADER = ["encoder", "feature", "D", "effective rank", "condition number"]
HEADER += [f"`{protocol}`" for protocol in FROZEN] + ["gap", "`sgd`, one size: more by"]


def _row(page: dict[str, Any]) -> list[str]:
    own = page["accuracy"]
    thorough = max(page["gaps"], key=lambda protocol: np.mean(own[protocol]["validation"]))
    where = [page["encoder"], FEATURES.get(page["feature"], page["feature"])]
    shape = [str(page["dim"]), f"{page['effective_rank']:.1f}", f"{page['condition_number']:.1e}"]
    accuracies = [f"{np.mean(own[protocol]['test']):.1f}" for protocol in FROZEN]
    intervals = [str(Interval(**found)) for found in (page["gaps"][thorough], page["size"])]
    return [*where, *shape, *accuracies, *intervals]
