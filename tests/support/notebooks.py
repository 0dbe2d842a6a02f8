"""A notebook executed in this process, which takes no kernel and no second import of torch."""

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

from lib.presets import REPO


def code_of(name: str) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def run_here(name: str, **parameters) -> dict:
    """Executes the code cells in one namespace, with `parameters` as papermill would inject them.

    Returns the namespace.
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
