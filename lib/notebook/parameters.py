"""A notebook's parameters: read, checked and merged before anything starts."""

import ast
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import InputError, did_you_mean
from lib.presets import check_type

NAMES: dict[str, Any] = {t.__name__: t for t in (int, float, str, bool, list, dict, tuple)}


def _type_of(node: ast.expr) -> Any:
    """The type that an annotation such as `float`, `list[int]` or `int | None` names."""
    match node:
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.Constant(value=None):
            return types.NoneType
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type_of(left) | _type_of(right)
        case ast.Subscript(value=value, slice=ast.Tuple(elts=elements)):
            return types.GenericAlias(_type_of(value), tuple(map(_type_of, elements)))
        case ast.Subscript(value=value, slice=element):
            return types.GenericAlias(_type_of(value), (_type_of(element),))
    raise InputError(f"the parameters cell has the unknown type {ast.unparse(node)!r}")


def _declared(source: str) -> dict[str, Any]:
    """The names that a parameters cell declares, with their types.

    `lam: float = 0.001`, or `epochs = None  # type: int` where None stands for the preset's value
    (papermill's help cannot read `int | None`).
    """
    declared = {}
    for node in ast.parse(source, type_comments=True).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = _type_of(node.annotation)
        if isinstance(node, ast.Assign) and node.type_comment:
            kind = ast.parse(node.type_comment.split()[0], mode="eval").body
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            declared |= dict.fromkeys(names, _type_of(kind) | None)
    return declared


def _injected(source: str) -> list[str]:
    """The names that papermill's injected cell sets."""
    targets = [n.targets[0] for n in ast.parse(source).body if isinstance(n, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def read_parameters(history: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """A notebook's parameters, checked: `read_parameters(In, globals())` in its second code cell.

    Reads from IPython's history the names that the parameters cell declares and the names that
    papermill injected after it. papermill only warns about a name that the notebook does not have;
    this raises InputError with the nearest known name, and for a value, or an element of a list or
    dict, of another type than annotated. What is converted (YAML reads 1e-2 as text) is put back
    into `values`, so that the cells below see it. Returns {name: value}.
    """
    declared: dict[str, Any] = {}
    injected: list[str] = []
    for source in history:
        first = source.lstrip().split("\n", 1)[0]
        if first.startswith("# parameters"):
            declared, injected = _declared(source), []
        elif first.startswith("# Parameters"):
            injected = _injected(source)
    for name in injected:
        if name not in declared:
            raise InputError(f"unknown parameter {name!r}: {did_you_mean(name, list(declared))}")
    checked = {name: _checked(name, values[name], kind) for name, kind in declared.items()}
    values.update(checked)
    return checked


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind`. A number where text is due is its text: -p jobs 2 gives 2."""
    if kind is str and type(value) is int:
        return str(value)
    return check_type(name, value, kind)


def check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Raises InputError unless the list `values` is not empty and holds only `choices`."""
    if not values:
        raise InputError(f"{name} must not be empty; choose from {', '.join(choices)}")
    for value in values:
        if value not in choices:
            raise InputError(f"{name}: unknown {value!r}, {did_you_mean(str(value), choices)}")


def config_fields(overrides: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """The fields of Config that a notebook's own parameters and its `overrides` set, together.

    A parameter of the notebook that is None leaves the field to the preset. Raises InputError for
    a field that both set: neither is dropped without a word.
    """
    fields = {name: value for name, value in named.items() if value is not None}
    for name in overrides:
        if name in fields:
            raise InputError(
                f"overrides sets {name!r}, which this notebook sets by a parameter of its own; "
                "give it once"
            )
    return {**fields, **overrides}
