"""Every command ends with one line and a status that a script can tell apart."""

import signal

import pytest

from lib.command_line import run_command
from lib.errors import InputError, Interrupted


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("no such file"), 2, "error: no such file\n"),
        (Interrupted("stopped, saved"), 130, "error: stopped, saved\n"),
        (Interrupted("stopped, saved", signal.SIGTERM), 143, "error: stopped, saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was measured is kept\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(error, status, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == said
