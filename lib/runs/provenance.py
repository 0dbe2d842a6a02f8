"""Where a number comes from: commit, versions, machine."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.presets import REPO


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _git(*args: str) -> str:
    """What git prints about this repository; "" where there is no git or no repository."""
    command = ["git", "-C", str(REPO), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """The commit of this code, with "+changes" if lib or a notebook was changed since."""
    name = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--untracked-files=no", "lib", "notebooks"):
        return f"{name}+changes"
    return name


def command() -> str:
    """The command of this process: `python -m MODULE ...`, or the script's name and arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else None
    return shlex.join([*(module or [Path(sys.argv[0]).name]), *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """Commit, versions and machine, for every saved number."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
