"""What a run is made of: the Config dataclass, the presets, and the checks that come before anything starts."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import InputError, did_you_mean
from lib.presets import check_type


def _declared(source: str) -> dict[str, str]:
    """The names that a parameters cell declares, with their types: `lam: float = 0.001` or, where None stands for
    the preset's value, `epochs = None  # type: int` (papermill's help cannot read `int | None`)."""
    declared = {}
    for node in ast.parse(source, type_comments=True).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = ast.unparse(node.annotation)
        elif (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.type_comment
        ):
            declared[node.targets[0].id] = f"{node.type_comment.split()[0]} | None"
    return declared


def read_parameters(history: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's parameters, checked: `read_parameters(In, globals())` in the cell after the parameters.

    Reads from IPython's history the names that the parameters cell declares and the names that papermill injected
    after it. papermill only warns about a name that the notebook does not have; this raises InputError with the
    nearest known name, and for a value of another type than annotated. Returns {name: value}.
    """
    declared: dict[str, str] = {}
    injected: list[str] = []
    for source in history:
        first = source.lstrip().split("\n", 1)[0]
        if first.startswith("# parameters"):
            declared, injected = _declared(source), []
        elif first.startswith("# Parameters"):
            names = [n.targets[0] for n in ast.parse(source).body if isinstance(n, ast.Assign)]
            injected = [n.id for n in names if isinstance(n, ast.Name)]
    for name in injected:
        if name not in declared:
            raise InputError(f"unknown parameter {name!r}: {did_you_mean(name, list(declared))}")
    return {name: check_type(name, values[name], kind) for name, kind in declared.items()}
