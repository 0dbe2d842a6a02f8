"""`python -m lib.train --preset NAME --lam 0.001 ...`: one option for every field of Config."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from lib.errors import InputError, Interrupted, did_you_mean
from lib.presets import CHOICES, Config, resolve

FIELDS = {f.name: f for f in dataclasses.fields(Config)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(message)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_arguments(argv: Sequence[str]) -> Config:
    """The checked Config that a command line names; InputError, one line, if it cannot be one."""
    parser = _Parser(prog="python -m lib.train", description=__doc__, allow_abbrev=False)
    for f in FIELDS.values():
        kind = f.type.__name__ if isinstance(f.type, type) else "names, with commas"
        spellings = dict.fromkeys((_option(f.name), f"--{f.name}"))
        parser.add_argument(
            *spellings, dest=f.name, metavar="X", help="|".join(CHOICES.get(f.name, ())) or kind
        )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name = _option(unknown[0].split("=")[0].strip("-"))
        raise InputError(
            f"unknown option {unknown[0]!r}: {did_you_mean(name, [*map(_option, FIELDS)], 'see --help')}"
        )
    given = {name: text for name, text in vars(known).items() if text is not None}
    preset = given.pop("preset", "digits-vit-nano")
    return resolve(preset, **{name: _convert(name, text) for name, text in given.items()})


def _convert(name: str, text: str) -> Any:
    kind: Any = FIELDS[name].type
    if kind is bool:
        kind = {"true": True, "false": False}.__getitem__
        text = text.lower()
    elif kind not in (int, float, str):
        return tuple(part for part in text.split(",") if part)
    try:
        return kind(text)
    except (ValueError, KeyError):
        expected = "true or false" if FIELDS[name].type is bool else FIELDS[name].type.__name__  # type: ignore[union-attr]
        raise InputError(f"{name} must be {expected}, got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and exits with 0, 2 for an InputError, 130 or 143 after SIGINT or SIGTERM."""
    from lib.distributed.collectives import place
    from lib.distributed.launch import end_now, process_group
    from lib.train.loop import train

    code, processes = 0, 1
    try:
        config = read_arguments(sys.argv[1:] if argv is None else argv)
        with process_group():
            processes = place()[1]
            train(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 128 + error.number if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print(
            "error: interrupted; the same command goes on from the last checkpoint", file=sys.stderr
        )
        code = 130
    if processes > 1:
        end_now(code)
    if code:
        sys.exit(code)
