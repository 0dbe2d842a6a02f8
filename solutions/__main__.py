"""`python -m solutions 01_masking 3`: an exercise, its answer in words, and its numbers.

Without a number all exercises of the notebook are solved, and without a notebook it lists them.
"""
# PYTHON_ARGCOMPLETE_OK

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lib.command_line import Parser, run_command

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[0-9]*.py"))


def load(name: str) -> ModuleType:
    """The file of one notebook."""
    return importlib.import_module(f"solutions.{name}")


def solve(name: str, number: int) -> dict[str, Any]:
    """Prints the answer to one exercise and the numbers behind it, and returns the numbers."""
    function = getattr(load(name), f"exercise_{number}")
    print(f"{name}, exercise {number}\n\n{inspect.getdoc(function)}\n", flush=True)
    found = function()
    for key, value in found.items():
        print(f"  {key}: {value}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m solutions", __doc__)
    names = f"Notebook, one of {', '.join(NAMES)}. Default: none."
    parser.option("what to solve", "notebook", nargs="?", choices=NAMES, metavar="NAME", help=names)
    number = "Number of the exercise, 1 to 3. Default: all three."
    parser.option("what to solve", "number", nargs="?", type=int, choices=(1, 2, 3), help=number)
    parser.complete()
    options = parser.parse_args(argv)
    if options.notebook is None:
        print("\n".join(f"{name}: {(load(name).__doc__ or '').splitlines()[0]}" for name in NAMES))
        return
    for k in (options.number,) if options.number else (1, 2, 3):
        solve(options.notebook, k)


if __name__ == "__main__":
    run_command(main)
