"""Functions of a launch's processes that train nothing: they import no model library."""

import atexit
import os
import time
from typing import Any

import torch.distributed as dist

from lib.distributed import collectives
from lib.errors import InputError


def fails(kind: str) -> Any:
    """Rank 1 raises, or returns what cannot be sent; rank 0 waits for it in a collective."""
    if collectives.rank_and_world_size()[0] == 0:
        dist.barrier()
    if kind == "input":
        raise InputError("made up: nothing, do nothing")
    return lambda: None


def leaves_marks(folder: str) -> str:
    """One file from its work, and one from the interpreter's ending."""
    rank = collectives.rank_and_world_size()[0]
    open(f"{folder}/worked-{rank}", "w").close()
    atexit.register(lambda: open(f"{folder}/ended-{rank}", "w").close())
    return "done"


def waits(folder: str) -> None:
    """Says who it is and works on."""
    with open(f"{folder}/{os.getpid()}", "w"):
        pass
    time.sleep(600)
