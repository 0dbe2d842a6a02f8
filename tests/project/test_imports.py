"""What a notebook imports first must not bring timm along, which takes longer than all the rest."""

import subprocess
import sys

from support import environment

LIGHT = (
    "lib.data", "lib.evaluate", "lib.evaluate.many", "lib.losses", "lib.masking",
    "lib.notebook.pairs", "lib.notebook.parameters", "lib.notebook.plots", "lib.notebook.report",
    "lib.notebook.samples", "lib.notebook.statistics", "lib.notebook.table1", "lib.presets",
    "lib.runs", "lib.theory.graph", "lib.theory.masked_views", "lib.train.sweep",
)  # fmt: skip
HEAVY = ("timm", "torchvision", "torch._dynamo", "sympy", "torch.distributed.checkpoint")


def test_the_first_cell_of_a_notebook_imports_no_model_library():
    code = f"import sys, {', '.join(LIGHT)}; print(sorted(set(sys.modules) & {set(HEAVY)}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"
