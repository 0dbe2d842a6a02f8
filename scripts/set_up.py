"""`make` runs this once: .venv from pyproject.toml, with the exact versions of constraints.txt.

It says what it will install before it starts, and every common failure in one line. The same
command goes on after a failed or interrupted installation. The file itself must run on old
versions of Python, so that it can say which one is needed.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NEEDED_PYTHON = (3, 11)
SIZE_GB = {"default": 6.5, "cpu": 2.4}  # of .venv; "cpu" is the rest without CUDA and triton
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LOG = ".venv/pip.log"
CAUSES = [  # a pattern in what pip prints, and the cause that a person reads
    (r"No space left|Errno 28", "there is no room left on the disk"),
    (
        r"name resolution|NewConnection|Max retries|timed out|Network is unreachable|Connection"
        r"|from versions: none",  # of a package that pip needs before it can say more
        "the package index cannot be reached (is there a network?)",
    ),
    (r"ensurepip", "Python's venv module is incomplete (Debian: apt-get install python3-venv)"),
]


def pip_cause(text: str, log: str = "") -> str:
    """The cause of a failed installation, in words; the last line of `text` if none is known.

    `log` is what pip wrote to its log; a cause can stand there alone.
    """
    for pattern, cause in CAUSES:
        if re.search(pattern, text + log):
            return cause
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "pip said nothing"


def stop(message: str) -> None:
    sys.exit("Set-up stopped: " + message)


def check_python() -> None:
    """Stops if this Python is too old."""
    if sys.version_info < NEEDED_PYTHON:
        version = ".".join(map(str, sys.version_info[:3]))
        stop(f"Python 3.11 or newer is needed, this is {version}: make PYTHON=python3.12")


def check_room(folder: Path, size_gb: float) -> None:
    """Stops if the disk of `folder` has less free space than what will be installed."""
    used = sum(f.stat().st_size for f in (folder / ".venv").rglob("*") if f.is_file())
    missing = size_gb - used / 1e9 - shutil.disk_usage(str(folder)).free / 1e9
    if missing > 0:
        stop(f"{missing:.1f} GB more are needed on the disk of {folder}")


def run(command: list, advice: str = "The same command goes on where this one stopped") -> str:
    """Runs a command and returns what it printed.

    If it fails, this stops with one line: the cause and the advice. pip also writes to a log.
    """
    log = REPO / LOG
    if log.is_file():
        log.unlink()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(REPO)
    )
    if done.returncode != 0:
        cause = pip_cause(done.stdout, log.read_text() if log.is_file() else "")
        stop(cause + ". " + advice + ". Details: " + LOG)
    return done.stdout


def main(argv: "list[str] | None" = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", default="0", help="1 takes PyTorch's builds without CUDA")
    parser.add_argument("--extras", default="dev", help="of pyproject.toml, comma-separated")
    args = parser.parse_args(argv)
    check_python()
    cpu = args.cpu not in ("", "0")
    size = SIZE_GB["cpu" if cpu else "default"]
    check_room(REPO, size)
    pins = (REPO / "constraints.txt").read_text().count("==")
    print(f"Installing up to {pins} packages into .venv, about {size:.1f} GB.")
    if not cpu:
        print("Most of it are CUDA libraries. Without a GPU, add CPU=1 to the command (2.4 GB).")
    sys.stdout.flush()
    python = str(REPO / ".venv" / "bin" / "python")
    run([sys.executable, "-m", "venv", ".venv"])
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--retries", "2", "--log", LOG, "-c", "constraints.txt"]
    if cpu:
        advice = "These builds come from PyTorch's own index; without CPU=1 the others are taken"
        run([*pip, "--index-url", CPU_INDEX, "torch", "torchvision"], advice)
    run([*pip, "-e", f".[{args.extras}]"])
    (REPO / ".venv" / ".ready").touch()


if __name__ == "__main__":
    main()
