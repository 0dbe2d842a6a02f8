"""Lines for a person about the images, each printed once and by one of several processes."""

import os
from functools import cache


@cache
def say_once(line: str) -> None:
    """Prints the line the first time it is given, unless another process of the run prints it."""
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        print(line, flush=True)
