"""Jobs that test_jobs.py gives to other processes."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from lib.distributed.signals import signals
from lib.errors import InputError, Interrupted


def process_and_threads(_: int) -> tuple[int, int]:
    """The process and its threads, after long enough for the others to take their share."""
    time.sleep(0.3)
    return os.getpid(), torch.get_num_threads()


def halved(n: int) -> float:
    """n / 2 of even numbers; an odd one is refused, and a negative one is a mistake."""
    if n < 0:
        raise ZeroDivisionError("a mistake")
    if n % 2:
        raise InputError(f"{n} is odd; give an even number")
    return n / 2


def variable(name: str) -> str:
    return os.environ[name]


def says(text: str) -> None:
    """Prints a line, and a bar of its own."""
    print(text)
    with tqdm(total=2, file=sys.stdout, mininterval=0) as bar:
        bar.update(2)


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def works_until_told(folder: str, name: str, saves: bool) -> None:
    """Marks its begin; a job that saves marks what it was told, the other kind is dropped."""
    Path(folder, f"{name}-begun").touch()
    if not saves:
        while True:
            time.sleep(0.01)
    with signals() as should_stop:
        while not should_stop:
            time.sleep(0.01)
        time.sleep(0.5)  # saving takes its time
        Path(folder, f"{name}-saved").touch()
        raise Interrupted("saved")
