"""`python -m lib.train --preset NAME --lam 0.001 ...`: one option for every field of Config."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from lib.command_line import Parser, report, sentence
from lib.errors import InputError, UMAEError, did_you_mean
from lib.presets import CHOICES, DEFAULT_PRESET, PRESETS, Config, field_types, help_of, resolve

FIELDS = {f.name: f for f in dataclasses.fields(Config)}
USAGE = "python -m lib.train [--preset NAME] [--OPTION VALUE ...]"
DESCRIPTION = """Trains one run, or goes on with it. Its settings and images name the run.

  python -m lib.train                                    U-MAE on digits, 15 seconds
  python -m lib.train --lam 0                            MAE, the same otherwise
  python -m lib.train --preset cifar10-vit-tiny --help   this page, with that preset's defaults
"""
SHOWN = {int: "N", float: "X", bool: "true|false"}  # what stands for the value in the help


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parser(preset: str = DEFAULT_PRESET) -> Parser:
    """The parser of all options; its help shows the defaults of a preset."""
    made = Parser("python -m lib.train", DESCRIPTION, USAGE)
    for f in FIELDS.values():
        shown = SHOWN.get(field_types()[f.name], "TEXT")
        more = {"dest": f.name, "metavar": shown, "help": _help(f.name, preset)}
        made.option(f.metadata["group"], _option(f.name), values=_values(f.name), **more)
    return made


def _values(name: str) -> tuple[str, ...] | None:
    """What the Tab key offers for an option: None for a file or a number."""
    if name == "preset":
        return tuple(PRESETS)
    if field_types()[name] is bool:
        return ("true", "false")
    return CHOICES.get(name)


def _help(name: str, preset: str) -> str:
    """A sentence about a field, and its default with a preset."""
    text, default = help_of(name), getattr(PRESETS[preset], name)
    if default in ("", ()):
        default = "empty"
    elif isinstance(default, bool):
        default = str(default).lower()
    return f"{sentence(text)} Default: {default}."


def _with_hyphens(word: str) -> str:
    """--mask_ratio=0.5 as --mask-ratio=0.5: both spellings of an option are taken."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


def _preset_in(argv: Sequence[str]) -> str:
    """The preset that a command line names, or the default one."""
    for word, after in zip(argv, [*argv, ""][1:], strict=True):
        name = after if word == "--preset" else word.removeprefix("--preset=")
        if name in PRESETS:
            return name
    return DEFAULT_PRESET


def read_arguments(argv: Sequence[str]) -> Config:
    """The checked Config that a command line names; InputError, one line, if it cannot be one."""
    options = parser(_preset_in(argv))
    options.complete()
    known, unknown = options.parse_known_args([_with_hyphens(word) for word in argv])
    if unknown:
        name = _option(unknown[0].split("=")[0].strip("-"))
        hint = did_you_mean(name, [*map(_option, FIELDS)], "see --help")
        raise InputError(f"unknown option {unknown[0]!r}: {hint}")
    given = {name: text for name, text in vars(known).items() if text is not None}
    preset = given.pop("preset", DEFAULT_PRESET)
    return resolve(preset, **{name: _convert(name, text) for name, text in given.items()})


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
    return tuple(text.split(",")) if text else ()


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and exits with 0, 2 for a UMAEError, 130 or 143 after SIGINT or SIGTERM."""
    from lib.distributed.collectives import rank_and_world_size
    from lib.distributed.launch import end_now, process_group

    code, processes = 0, 1
    try:
        config = read_arguments(sys.argv[1:] if argv is None else argv)
        from lib.train.loop import train  # brings timm, which help and a typing error do not need

        with process_group():
            processes = rank_and_world_size()[1]
            train(config)
    except UMAEError as error:
        code = report(error)
    except KeyboardInterrupt:
        print(
            "error: interrupted; the same command goes on from the last checkpoint", file=sys.stderr
        )
        code = 130
    if processes > 1:
        end_now(code)
    if code:
        sys.exit(code)
