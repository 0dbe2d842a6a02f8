"""`python -m lib.train --preset NAME --lam 0.001 ...`: one option for every field of Config."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from lib.errors import InputError, Interrupted, UMAEError, did_you_mean
from lib.presets import CHOICES, Config, field_types, resolve

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
        spellings = dict.fromkeys((_option(f.name), f"--{f.name}"))
        parser.add_argument(*spellings, dest=f.name, metavar="X", help=_help(f))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name = _option(unknown[0].split("=")[0].strip("-"))
        hint = did_you_mean(name, [*map(_option, FIELDS)], "see --help")
        raise InputError(f"unknown option {unknown[0]!r}: {hint}")
    given = {name: text for name, text in vars(known).items() if text is not None}
    preset = given.pop("preset", "digits-vit-nano")
    return resolve(preset, **{name: _convert(name, text) for name, text in given.items()})


def _help(f: dataclasses.Field[Any]) -> str:
    """What the field is, its choices, and its default where the presets share one."""
    text = f.metadata["help"]
    if f.name in CHOICES:
        text += f" ({', '.join(CHOICES[f.name])})"
    required = f.default is dataclasses.MISSING
    text += "; of the preset" if required else f"; {f.default!r}, or the preset's"
    return text.replace("%", "%%")


def _convert(name: str, text: str) -> Any:
    """The text of an option as the type of its field."""
    kind = field_types()[name]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError):
        expected = "true or false" if kind is bool else kind.__name__
        raise InputError(f"{name} must be {expected}, got {text!r}") from None
    return tuple(part for part in text.split(",") if part)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and exits with 0, 2 for a UMAEError, 130 or 143 after SIGINT or SIGTERM."""
    from lib.distributed.collectives import rank_and_world_size
    from lib.distributed.launch import end_now, process_group
    from lib.train.loop import train

    code, processes = 0, 1
    try:
        config = read_arguments(sys.argv[1:] if argv is None else argv)
        with process_group():
            processes = rank_and_world_size()[1]
            train(config)
    except UMAEError as error:
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
