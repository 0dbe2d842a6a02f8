"""What the commands share: errors of one line, help in groups, and completion by the Tab key."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import argcomplete

from lib.errors import InputError, Interrupted, UMAEError


def sentence(text: str) -> str:
    """A line of help with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def run_command(main: Callable[[], object]) -> None:
    """Calls `main`; what a person can act on ends the command with one line.

    The status is that of `report`, after Ctrl-C 130.
    """
    try:
        main()
    except UMAEError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        print("error: interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(130)


def report(error: UMAEError) -> int:
    """Prints the error as one line. Returns the status of the command.

    It is 128 plus the signal's number where training was stopped and saved, as in a shell, else 2.
    """
    print(f"error: {error}", file=sys.stderr)
    return 128 + error.number if isinstance(error, Interrupted) else 2


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and room for the names of the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError, and whose options stand in named groups."""

    def __init__(self, prog: str, description: str | None, usage: str | None = None) -> None:
        super().__init__(
            prog, usage, description, formatter_class=_Formatter, allow_abbrev=False, add_help=False
        )
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self.option("help", "-h", "--help", action="help", help="Show this page and end.")

    def option(
        self, group: str, *names: str, values: Iterable[str] | None = None, **more: Any
    ) -> None:
        """Adds an option to a group of the help; `values` are what the Tab key offers for it."""
        if group not in self._groups:
            self._groups[group] = self.add_argument_group(group)
        more["help"] = more["help"].replace("%", "%%")
        action = self._groups[group].add_argument(*names, **more)
        if values is not None:
            offered = tuple(values)
            action.completer = lambda **_: offered  # type: ignore[attr-defined]

    def complete(self) -> None:
        """Answers the shell and ends, if the Tab key was pressed; else does nothing."""
        argcomplete.autocomplete(self)

    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see --help")
