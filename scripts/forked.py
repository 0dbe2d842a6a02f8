"""Processes that are forked from one that has imported what they need: they start in a moment.

A new Python spends four seconds of a core on importing torch and timm. A forked process is as
separate: it has its own environment, signals, locks and end. The process that it is forked from
only imports, so it has no thread that a fork would lose.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

from lib.presets import REPO

# papermill is what the scripts that start processes import: each process imports its script anew,
# for the functions in it (before Python 3.14 "__main__" in this list does nothing).
PRELOADED = [
    "papermill", "lib.train.loop", "lib.train.checkpoint", "torch._dynamo", "pandas",
    "matplotlib.pyplot", "seaborn", "sklearn.linear_model", "sklearn.manifold",
    "sklearn.neighbors", "ipykernel.kernelapp", "ipykernel.zmqshell",
]  # fmt: skip
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


class Forked:
    """function(*args) in a process of its own; it has what tests and Jupyter use of a Popen.

    The function and its arguments must be picklable. env is the process's whole environment, this
    one's by default; stderr_to a file that is made.
    """

    stdin = stdout = stderr = None

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike = "/",
        stderr_to: str | os.PathLike | None = None,
    ):
        place = dict(os.environ if env is None else env), str(cwd), stderr_to
        self._process = context.Process(target=_begin, args=(*place, function, args))
        path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
        # For the first one: its imports, and no warning of what killed kernels left in /dev/shm.
        first = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}
        with patch.dict(os.environ, first):
            self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]

    def poll(self) -> int | None:
        """None while it runs, then its status; a signal's number is negative."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise TimeoutError(f"process {self.pid} is still running after {timeout} s")
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


def _begin(
    env: dict[str, str],
    cwd: str,
    stderr_to: str | os.PathLike | None,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if stderr_to:
        os.dup2(os.open(stderr_to, os.O_WRONLY | os.O_CREAT), 2)
    function(*args)
