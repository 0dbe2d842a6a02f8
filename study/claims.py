"""The paper's claims, one by one, as notebooks of this repository judged them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.notebook.statistics import correct, interval, judge
from lib.presets import REPO
from study.tables import FEATURES, Record, table

REFERENCE = REPO / "outputs" / "reference"
THEORY = ("09a_graph", "09b_trained_model", "09c_uniformity")

# Claims that a notebook judged on CIFAR-10 after 5 epochs: file, section of the paper, command.
EARLIER = {
    "03_linear_probe": "Table 1, linear",
    "04_finetune": "Table 1, finetuning",
    "05_tsne": "Figure 4",
    "06_lambda_ablation": "Figure 5 (a)",
    "07_training_curve": "Figure 5 (b)",
    "08_mask_ratio": "Section 3.2, ratio 0",
}


def read_earlier(folder: Path = REFERENCE) -> list[dict[str, Any]]:
    """The claims of the notebooks' JSON files, each with its differences by seed."""
    rows = []
    for name, place in EARLIER.items():
        found = json.loads((folder / f"{name}_cifar10.json").read_text())
        for claim in _claims_of(found):
            rows.append({"place": place, "notebook": name, "commit": found["commit"], **claim})
    return correct([judge(r["claim"], r["differences"], r["above"]) | r for r in rows])


def _claims_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    if "table" in found:
        return [
            {
                "claim": f"U-MAE minus MAE, `{r['protocol']}`, {FEATURES[r['pool']]}: above 0",
                "differences": r["gain"],
                "above": 0.0,
            }
            for r in found["table"]
        ]
    claims = []
    for claim in found["claims"]:
        if "differences" in claim:
            text = claim.get("claim") or (
                f"U-MAE minus MAE, `{claim['protocol']}`, after epoch {claim['epoch']}: above 0"
            )
            values = {"differences": claim["differences"], "above": claim.get("above", 0.0)}
            claims.append({"claim": " ".join(text.split()), **values})
    return claims


def earlier_block(_: Sequence[Record]) -> str:
    """The claims after 5 epochs on CIFAR-10, with intervals, verdicts, and Holm's correction."""
    rows = []
    for row in read_earlier():
        low, high = interval(row["differences"])
        number = f"{np.mean(row['differences']):+.1f} [{low:+.1f}, {high:+.1f}]"
        n = str(len(row["differences"]))
        notebook = f"`{row['notebook']}`"
        rows.append([row["place"], row["claim"], number, n, row["verdict"], row["holm"], notebook])
    header = ["in the paper", "claim", "points [95 %]", "n", "verdict", "after Holm", "notebook"]
    return table(header, rows)


def theory_block(_: Sequence[Record], folder: Path = REFERENCE / "executed") -> str:
    """The claims of Sections 3 and 4, from the tables in the executed notebooks."""
    rows = []
    for name in THEORY:
        (found,) = [t for t in _markdown(folder / f"{name}.ipynb") if t.startswith("| where |")]
        for line in found.splitlines()[2:]:
            rows.append(f"{line} `{name}` |")
    header = "| where | claim | computed | verdict | notebook |\n|---|---|---|---|---|"
    return "\n".join([header, *rows])


def _markdown(path: Path) -> list[str]:
    """The Markdown that the cells of a notebook displayed."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return ["".join(text) for text in texts]
