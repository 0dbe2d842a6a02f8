"""What stops a run: one family of errors, each a single line for the person at the keyboard."""

import difflib
import math
import signal
from collections.abc import Sequence
from typing import Any


class UMAEError(Exception):
    """Something that a person can act on. The message is one line: what was wrong, what was
    expected, what to do.

    In a notebook IPython prints that line alone, without a traceback; on the command line the
    program prints it and exits with a status other than 0.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class InputError(UMAEError, ValueError):
    """A parameter, a path, an image or a checkpoint that was given cannot be used."""


class NonFiniteLoss(UMAEError):
    """The training loss became infinite or NaN; the last good checkpoint is kept."""


class RunBusy(UMAEError):
    """Another process is training this very run."""


class Interrupted(UMAEError):
    """Training was stopped by a signal after its state had been saved."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def did_you_mean(name: str, known: Sequence[str], otherwise: str = "") -> str:
    """ "did you mean 'lam'?" if a known name is near, else `otherwise` or the list of all."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or f"known: {', '.join(known)}"


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises InputError unless `value` is one of `choices`; the parameter is called `name`."""
    if value not in tuple(choices):
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, whole=False, above=False
) -> None:
    """Raises InputError unless `value` is a finite number from `low` to `high`.

    whole: it must be an int; above: `low` itself is refused.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and low <= value <= high
    if not inside or (above and value == low):
        bounds = f"above {low:g}" if above else f"at least {low:g}"
        bounds += "" if high == math.inf else f" and at most {high:g}"
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name} must be {kind}, {bounds}, got {value!r}")
