"""The notebooks, and two ways to execute one: by papermill, and in this process."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest

from lib.presets import REPO
from scripts.forked_kernels import forked_kernels

PATHS = {path.stem: path for path in sorted((REPO / "notebooks").glob("*.ipynb"))}
THEORY = [name for name in PATHS if name.startswith("09")]
TINY: dict = {  # with these settings the runs of two epochs, MAE and U-MAE, are shared by all
    "00_start": {},
    "01_masking": {},
    "02_pretrain": {"epochs": 2},
    "03_linear_probe": {"epochs": 2, "probe_epochs": [1, 3], "probe_lrs": [0.1]},
    "04_finetune": {
        "epochs": 2, "fractions": [0.1, 1.0], "finetune_epochs": 5, "finetune_lr": 0.016,
        "layer_decay": 1.0, "jobs": 1,
    },
    "05_tsne": {
        "epochs": 2, "images": 100, "perplexity": 10.0, "tsne_seeds": [0, 1], "neighbours": 5,
        "jobs": 1,
    },
    "06_lambda_ablation": {
        "epochs": 2, "lams": [0.001, 0.1], "form_lams": [0.1], "seeds": [0, 1],
        "protocols": ["online", "sgd", "knn"], "jobs": 1,
    },
    "07_training_curve": {"epochs": 2, "at": [0, 2], "protocols": ["sgd", "knn"], "jobs": 1},
    "08_mask_ratio": {
        "epochs": 2, "model_ratios": [0.0, 0.75], "seeds": [0], "references": 50, "queries": 100,
        "draws": 100, "protocols": ["sgd", "knn"], "jobs": 1,
    },
    "09_theory": {},
    "09a_graph": {"patch_rows": 4, "patch_cols": 4, "splits": 2},
    "09b_trained_model": {"epochs": 2, "inverse_steps": 20, "train_images": 256},
    "09c_uniformity": {"epochs": 2, "steps": 300},
    "10_table1": {},
    "11_audit": {"epochs": 2, "probe_seeds": [0, 1], "budgets": [1, 10]},
}  # fmt: skip


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(PATHS[name], 4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_of(name: str) -> list[str]:
    """The sources of a notebook's code cells."""
    return [cell.source for cell in code_cells(read(name))]


def execute(name: str, folder: Path, **parameters) -> nbformat.NotebookNode:
    """Runs a notebook by papermill, with small settings, from a foreign folder.

    Its kernel has imported the libraries before; `execute_anew` has a new Python.
    """
    with forked_kernels():
        return execute_anew(name, folder, **parameters)


def execute_anew(name: str, folder: Path, **parameters) -> nbformat.NotebookNode:
    """The same with the kernel that a person has."""
    target = folder / f"{name}-{len(list(folder.glob('*.ipynb')))}.ipynb"
    papermill.execute_notebook(
        PATHS[name],
        target,
        {**TINY[name], **parameters},
        cwd=folder,
        progress_bar=False,
        start_timeout=120,
    )
    return nbformat.read(target, 4)


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the cells of an executed notebook printed."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def run_here(name: str, **parameters) -> dict:
    """Executes the code cells in one namespace, with `parameters` as papermill would inject them.

    Takes no kernel and no second import of torch. Returns the namespace.
    """
    parameter_cell, *others = code_of(name)
    injected = "# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in parameters.items())
    space: dict = {"In": [""], "__name__": name}
    with matplotlib.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: plt.close("all"))
        for k, source in enumerate([parameter_cell, injected, *others]):
            space["In"].append(source)
            exec(compile(source, f"{name}, code cell {k}", "exec"), space)
    plt.close("all")
    return space
