"""`python -m benchmarks PART ...`: what a training step costs on this machine, and why.

The two sides of a ratio run in processes of their own, a few steps of one after a few of the
other, so that a machine with other work on it slows both. Each part prints a table and writes
outputs/benchmarks/PART.json.
"""
# PYTHON_ARGCOMPLETE_OK

import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas
import psutil

from benchmarks.gpu import gpu
from benchmarks.loss import accumulation, uniformity
from benchmarks.notebooks import notebooks
from benchmarks.profile import profile
from benchmarks.streaming import decoding, streaming
from benchmarks.sweep import sweep
from benchmarks.training import ladder, scaling, steps
from lib.command_line import Parser, run_command
from lib.errors import InputError, did_you_mean
from lib.runs.files import write_json
from lib.runs.folder import outputs
from lib.runs.provenance import provenance

# A part takes a number of rounds and returns the rows of its table; its docstring is its help.
_TRAINING = (steps, ladder, scaling, uniformity, accumulation)
_OTHERS = (profile, sweep, streaming, decoding, gpu, notebooks)
PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    part.__name__: part for part in (*_TRAINING, *_OTHERS)
}
DEFAULT = [part.__name__ for part in _TRAINING]


def help_of(name: str) -> str:
    """One sentence about a part."""
    return (PARTS[name].__doc__ or "").strip().split("\n")[0]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys, in columns."""
    return pandas.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format)


def machine() -> dict[str, Any]:
    """Where and under which conditions the numbers were taken."""
    spinning = os.environ.get("GOMP_SPINCOUNT", "not set (libgomp's own)")
    return {**provenance(), "load": psutil.getloadavg()[0], "GOMP_SPINCOUNT": spinning}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the parts that are named, one after another. InputError for an unknown one."""
    names = "\n".join(f"  {name:<14}{help_of(name)}" for name in PARTS)
    parser = Parser("python -m benchmarks", f"{__doc__}\nparts:\n{names}\n")
    shown = f"What to measure, of the list above. Default: {', '.join(DEFAULT)}."
    parser.option("what to run", "parts", nargs="*", metavar="PART", values=PARTS, help=shown)
    rounds = "Rounds of every comparison, at least 1. Default: 3."
    parser.option("what to run", "--rounds", type=int, default=3, metavar="N", help=rounds)
    parser.complete()
    options = parser.parse_args(argv)
    parts = options.parts or DEFAULT
    for name in parts:
        if name not in PARTS:
            raise InputError(f"unknown part {name!r}: {did_you_mean(name, list(PARTS))}")
    if options.rounds < 1:
        raise InputError(f"rounds must be at least 1, got {options.rounds}")
    where = machine()
    print("; ".join(f"{name} {value}" for name, value in where.items()))
    for name in parts:
        rows = PARTS[name](options.rounds)
        if not rows:  # skipped, and said so
            continue
        print(f"\n{name}: {help_of(name)}\n{table(rows)}", flush=True)
        write_json(outputs() / "benchmarks" / f"{name}.json", {"machine": where, name: rows})


if __name__ == "__main__":
    run_command(main)
