"""Lines for a person about the images, each printed once and by one of several processes."""

import os
from functools import cache

from tqdm import tqdm


@cache
def say_once(line: str) -> None:
    """Prints the line the first time it is given, unless another process of the run prints it."""
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        tqdm.write(line)  # above a progress bar, if there is one
