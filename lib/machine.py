"""The machine around a run: device, memory, signals, provenance, and the lines that it prints."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.errors import InputError
from lib.presets import REPO


def pick_device(name: str) -> torch.device:
    """ "auto": the GPU if there is one, else the CPU. InputError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(
            f"device {name!r} is not available here; use auto, cpu, or a cuda device that exists"
        ) from None


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Out of memory, on a GPU or not, as one line that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
            raise
        detail = text.split(". ")[0].split("\n")[0] if isinstance(error, torch.OutOfMemoryError) else "CPU"
        raise InputError(
            f"out of memory ({detail}); the last checkpoint is kept: raise accum_steps, lower batch_size, or use bf16"
        ) from None


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def provenance() -> dict[str, Any]:
    """Commit, versions and machine, for every saved number."""
    import timm

    def git(*args: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(REPO), *args], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = git("rev-parse", "--short=10", "HEAD").strip() or "unknown"
    if git("status", "--porcelain", "--untracked-files=no", "lib", "notebooks").strip():
        commit += "+changes"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {
        "commit": commit,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe(line: dict[str, Any], epochs: int, speed: float) -> str:
    """One printed line an epoch."""
    return (
        f"epoch {line['epoch']:>4}/{epochs}  loss {line['loss']:.4f} = reconstruction {line['reconstruction']:.4f} "
        f"+ lam * uniformity {line['uniformity']:.3f}  "
        f"validation: online {line['validation_online_token_full']:.1f}% rank {line['validation_rank_token']:.1f}  "
        f"{speed:,.0f} images/s"
    )


def progress(total: int, done: int, show: bool) -> tqdm:
    """A text bar with images/s and ETA; rare updates where a log or a notebook keeps every one."""
    live = sys.stdout.isatty()
    intervals = {"mininterval": 0.5, "maxinterval": 1} if live else {"mininterval": 20, "maxinterval": 60}
    look: dict[str, Any] = {"unit": " images", "unit_scale": True, "ascii": True, "smoothing": 0.1, "file": sys.stdout}
    return tqdm(total=total, initial=done, disable=not show, **look, **intervals)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that a step is never cut in two; a second one acts as usual."""
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are not ours to catch
        before = {}
    try:
        yield caught
    finally:
        for number, action in before.items():
            signal.signal(number, action)
