"""How long a thread of torch's OpenMP waits awake for its next piece of work: decided before torch is loaded.

A thread that sleeps must be woken at every parallel piece of a step; one that waits awake keeps its core from others.
"""

import time
from pathlib import Path

PATIENT, YIELDING = "10000", "1000"  # values of GOMP_SPINCOUNT, measured in README.md, Speed; libgomp's own is 300,000


def busy_cores(before: str, after: str) -> float:
    """How many cores worked between two readings of /proc/stat, over the whole machine."""
    ticks = [[int(n) for n in text.split("\n", 1)[0].split()[1:9]] for text in (before, after)]
    spent = [b - a for a, b in zip(*ticks, strict=True)]
    cores = sum(line.startswith("cpu") for line in after.splitlines()) - 1
    return cores * (1 - (spent[3] + spent[4]) / max(1, sum(spent)))  # idle, and idle while waiting for a disk


def spin_count(stat: Path = Path("/proc/stat"), seconds: float = 0.05) -> str:
    """PATIENT if less than half a core is busy in a look of `seconds`; else, or where it cannot be told, YIELDING."""
    try:
        before = stat.read_text()
        time.sleep(seconds)
        return PATIENT if busy_cores(before, stat.read_text()) < 0.5 else YIELDING
    except (OSError, ValueError, IndexError):
        return YIELDING
