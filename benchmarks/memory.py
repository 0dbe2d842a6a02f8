"""The memory of this process and of its children, on Linux."""

from pathlib import Path

import psutil


def peak_memory(reset: bool = False) -> int:
    """Bytes of this process's largest resident set, since its start or the last reset.

    psutil knows only the present size, so the kernel's own mark is read; only Linux can reset it.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def children_memory() -> int:
    """Bytes that the child processes (such as a DataLoader's workers) share with nobody."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_full_info().uss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total
