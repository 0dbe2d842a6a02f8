"""Writes into the first cell of every notebook what comes before and after, and what to know first.

`python -m scripts.link_notebooks` changes the notebooks; with --check it only says whether it
would. The order is the reading order of notebooks/00_start.ipynb.
"""

import re
import textwrap
from typing import Any

from scripts.notebook_sources import NOTEBOOKS, replace, rewrite

PRETRAIN, PROBE = (
    "[02, pretraining](02_pretrain.ipynb)",
    "[03, linear probes](03_linear_probe.ipynb)",
)
PROOFS = "Proofs are in [docs/theory.md](../docs/theory.md)"
# Name: (how the others call it, what a reader should know first), in reading order.
ORDER = {
    "00_start": ("00, start", "nothing; the words are explained at the end"),
    "01_masking": ("01, masking", "what an array is; nothing about transformers"),
    "02_pretrain": ("02, pretraining", "what a loss and an optimiser are; what a transformer does"),
    "03_linear_probe": ("03, linear probes", f"{PRETRAIN}; logistic regression"),
    "04_finetune": ("04, finetuning", f"{PRETRAIN}; {PROBE}"),
    "05_tsne": ("05, t-SNE", f"{PRETRAIN}; principal components"),
    "06_lambda_ablation": ("06, the coefficient", f"{PRETRAIN}; {PROBE}"),
    "07_training_curve": ("07, along training", f"{PRETRAIN}; {PROBE}"),
    "08_mask_ratio": ("08, the mask ratio", "[01, masking](01_masking.ipynb); " + PROBE),
    "09a_graph": (
        "09a, the graph",
        f"eigenvalues and singular values, conditional probability. {PROOFS}, Sections 3 to 5",
    ),
    "09b_trained_model": ("09b, a trained model", f"{PRETRAIN}. {PROOFS}, Section 2"),
    "09c_uniformity": (
        "09c, uniformity",
        f"eigenvalues of a covariance matrix. {PROOFS}, Section 6",
    ),
    "10_table1": ("10, Table 1", f"{PROBE}; [04, finetuning](04_finetune.ipynb)"),
    "11_audit": ("11, your own encoder", f"{PROBE}"),
}
PARAGRAPH = re.compile(r"\n\n\*\*(?:Before|Next):\*\*.*?(?=\n\n|\Z)", re.DOTALL)


def names() -> list[str]:
    """The notebooks that exist, in reading order."""
    return [name for name in ORDER if (NOTEBOOKS / f"{name}.ipynb").is_file()]


def links(name: str) -> str:
    """The paragraph of one notebook."""
    order = names()
    i = order.index(name)
    near = {"Before": order[i - 1 : i] if i else [], "Next": order[i + 1 : i + 2]}
    parts = [
        f"**{word}:** [{ORDER[other][0]}]({other}.ipynb)."
        for word, others in near.items()
        for other in others
    ]
    lines = [*parts, f"**Know first:** {ORDER[name][1]}."]
    return "\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in lines)


def linked(name: str, text: str) -> str:
    """The first cell's text with this paragraph at its end, in the place of an older one."""
    return f"{PARAGRAPH.sub('', text.rstrip())}\n\n{links(name)}"


def link(name: str, notebook: dict[str, Any]) -> bool:
    """Whether the paragraph of a notebook's first cell was changed."""
    cell = notebook["cells"][0]
    return replace(cell, linked(name, "".join(cell["source"])))


def main() -> None:
    rewrite(names(), link, "every notebook has its links")


if __name__ == "__main__":
    main()
