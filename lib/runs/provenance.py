"""The machine around a run: device, memory, signals, provenance, and the lines that it prints."""

import os
import platform
import subprocess
import sys
import time
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


def provenance() -> dict[str, Any]:
    """Commit, versions and machine, for every saved number."""
    import timm

    def git(*args: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(REPO), *args], capture_output=True, text=True, timeout=10
            ).stdout
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
