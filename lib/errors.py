"""The one exception that bad input raises, and how it is shown."""

import signal


class InputError(ValueError):
    """Something that the caller gave is wrong: a parameter, a path, an image, a checkpoint.

    The message is one line: what was wrong, what was expected, what to do. In a notebook IPython prints that
    line alone, without a traceback; on the command line the program prints it and exits with status 2.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class NonFiniteLoss(InputError):
    """The training loss became infinite or NaN; the last good checkpoint is kept."""


class RunBusy(InputError):
    """Another process is training this very run."""


class Interrupted(InputError):
    """Training was stopped by a signal after its state had been saved."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
