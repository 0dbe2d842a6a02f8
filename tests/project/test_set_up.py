"""scripts/set_up.py: what it says before it starts, and one line for each common failure."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from scripts import set_up

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that would run, in a repository of its own; nothing is installed."""
    shutil.copy(REPO / "constraints.txt", tmp_path)
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(set_up, "REPO", tmp_path)
    monkeypatch.setattr(set_up, "check_room", lambda folder, size: None)
    kept = []
    monkeypatch.setattr(
        set_up, "run", lambda command, advice="": kept.append(" ".join(command)) or ""
    )
    return kept


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "no room left"),
        ("Failed to establish: Temporary failure in name resolution", "network"),
        ("Could not find a version of hatchling (from versions: none)\nnote: x", "network"),
        ("ERROR: ResolutionImpossible\n\n", "ResolutionImpossible"),
    ],
)
def test_a_failed_installation_is_told_in_one_line(printed, words):
    cause = set_up.pip_cause(printed)
    assert words in cause and "\n" not in cause


def test_a_cause_that_only_pips_log_tells_is_found():
    assert "network" in set_up.pip_cause("note: see above", "ERROR: x (from versions: none)")


def test_a_python_that_is_too_old_stops_with_one_line(monkeypatch):
    monkeypatch.setattr(set_up.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"3\.11 or newer is needed, this is 3\.9\.2"):
        set_up.check_python()


def test_a_full_disk_stops_before_anything_is_installed(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(10**10, 9 * 10**9, 10**9)
    monkeypatch.setattr(set_up.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit, match=r"5\.5 GB more are needed"):
        set_up.check_room(tmp_path, 6.5)
    set_up.check_room(tmp_path, 0.5)


def test_a_command_that_fails_stops_and_says_how_to_go_on():
    command = [set_up.sys.executable, "-c", "raise SystemExit('No space left on device')"]
    with pytest.raises(SystemExit, match=r"no room left on the disk\. The same command goes on"):
        set_up.run(command)


def test_the_size_is_said_before_and_the_environment_marked_ready_after(commands, capsys):
    set_up.main([])
    said = capsys.readouterr().out
    assert "6.5 GB" in said and "CPU=1" in said
    assert len(commands) == 2 and ".[dev]" in commands[1]
    assert (set_up.REPO / ".venv" / ".ready").is_file()


def test_cpu_builds_come_first_so_that_cuda_is_never_fetched(commands, capsys):
    set_up.main(["--cpu", "1"])
    assert "2.4 GB" in capsys.readouterr().out
    _venv, torch, rest = commands
    assert set_up.CPU_INDEX in torch and " torch torchvision" in torch
    assert set_up.CPU_INDEX not in rest and "constraints.txt" in rest
