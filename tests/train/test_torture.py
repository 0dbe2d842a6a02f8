"""`make torture`: the long form of test_interruption.py, minutes to half an hour."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from support import (
    cli_args,
    content,
    environment,
    folder_config,
    image_folder,
    run_in,
    run_of,
    small,
)
from support.killer import (
    STAGES,
    check_visible_files,
    kill_at_random,
    kill_everywhere,
    leak,
    writes_of,
)

from lib.errors import InputError
from lib.train import train

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
LONG = {"epochs": 30, "batch_size": 64, "snapshots": 4}  # some 650 steps on the whole of digits


def say(what: str) -> None:
    print(f"\ntorture: {what}", flush=True)


def descendants(pid: int) -> list[int]:
    """Processes below pid, children first."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def marked(mark: str) -> list[int]:
    """Processes with the environment variable UMAE_MARK=mark, whoever their parent is by now."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if f"UMAE_MARK={mark}".encode() in file.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until_gone(mark: str, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize(
    "fields",
    [{"snapshots": 1}, {"epochs": 5, "checkpoint_every": 2, "accum_steps": 2, "eval_every": 1}],
)
def test_every_file_at_every_stage(killer, tmp_path, fields):
    number = writes_of(killer, tmp_path, fields)
    points = [(n, stage) for n in range(1, number + 1) for stage in STAGES]
    kill_everywhere(killer, tmp_path, fields, points)
    say(f"{len(points)} kills inside, after and between the writing of {number} files survived")


def test_random_moments(killer, tmp_path):
    kills = 0
    for seed in range(12):
        fields = {
            "epochs": 20,
            "accum_steps": 1 + seed % 2,
            "checkpoint_every": 1 + seed % 3,
            "seed": seed,
        }
        kills += kill_at_random(killer, tmp_path / str(seed), fields, seed, most=25)
    say(f"{kills} kills at random moments of 12 runs survived")
    assert kills >= 30


def test_a_streamed_folder_with_workers(killer, tmp_path):
    root = image_folder(tmp_path / "images", per_class=20)
    fields = {
        "root": str(root),
        "stream": "always",
        "workers": 2,
        "augment": "resized_crop",
        "epochs": 2,
        "snapshots": 0,
    }
    number = writes_of(killer, tmp_path, fields)
    kill_everywhere(killer, tmp_path, fields, [(n, STAGES[n % 3]) for n in range(1, number + 1)])
    say(f"{number} kills of runs with decoding workers survived")


def start(command: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**env),
        cwd="/",
    )


def killed_until_done(tmp_path, command, kills, pick, seed=0, at_most=240) -> None:
    """Starts `command` and SIGKILLs what `pick` picks, `kills` times; then lets it end.

    A kill waits until the run has moved on, so that every start makes progress under any load.
    """
    rng = random.Random(seed)
    run = run_in(tmp_path / "killed", small(**LONG))
    for n in range(kills):
        mark = f"{os.getpid()}-{n}-{rng.random()}"
        before, wanted = len(run.metrics()), rng.choice([1, 1, 2, 3])
        process = start(command, UMAE_OUTPUTS=str(tmp_path / "killed"), UMAE_MARK=mark)
        end = time.monotonic() + at_most
        while (
            process.poll() is None
            and len(run.metrics()) < before + wanted
            and time.monotonic() < end
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, process.communicate()[0]
        kill(pick(process.pid, rng))
        process.communicate(timeout=at_most)
        assert process.returncode != 0
        assert wait_until_gone(mark, 90) == []
        check_visible_files(run)
    mark = f"{os.getpid()}-last"
    done = start(command, UMAE_OUTPUTS=str(tmp_path / "killed"), UMAE_MARK=mark)
    out = done.communicate(timeout=at_most)[0]
    assert done.returncode == 0, out
    assert wait_until_gone(mark, 10) == []


def test_real_processes(tmp_path):
    command = [sys.executable, "-m", "lib.train", *cli_args(**LONG)]
    killed_until_done(tmp_path, command, 8, lambda pid, _: [pid, *descendants(pid)])
    assert content(run_in(tmp_path / "killed", small(**LONG))) == content(train(small(**LONG)))
    say("8 kills of `python -m lib.train` survived")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_although_workers_get_it_too(tmp_path, outputs, number):
    """Ctrl-C in a terminal and a scheduler's SIGTERM reach the decoding workers as well."""
    root = image_folder(tmp_path / "images", per_class=100)
    fields = {
        "data": f"folder:{root}",
        "stream": "always",
        "workers": 2,
        "epochs": 50,
        "batch_size": 4,
        "snapshots": 0,
    }
    config = folder_config(root, **{k: v for k, v in fields.items() if k != "data"})
    command = [sys.executable, "-m", "lib.train", *cli_args(**fields)]
    env = environment(UMAE_MARK=str(tmp_path))
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=env, cwd="/", start_new_session=True
    )
    run = run_of(config)
    while not run.metrics():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error.count("\n")) == (128 + number, 1)
    assert error.startswith("error: stopped at step ") and (run.folder / "state.pt").exists()
    assert wait_until_gone(str(tmp_path), 20) == []


def write_notebook(path) -> None:
    cells = [
        ("# parameters\nlam: float = 0.001", ["parameters"]),
        ("from support import small\nfrom lib.train import train", []),
        (f"run = train(small(lam=lam, **{LONG!r}))\nprint(run.result['steps'])", []),
    ]
    code = [
        {
            "cell_type": "code",
            "id": str(i),
            "metadata": {"tags": tags},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for i, (source, tags) in enumerate(cells)
    ]
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    path.write_text(
        json.dumps({"cells": code, "metadata": spec, "nbformat": 4, "nbformat_minor": 5})
    )


def test_the_kernel_of_a_notebook(tmp_path):
    write_notebook(tmp_path / "in.ipynb")
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
    ]
    killed_until_done(tmp_path, command, 4, lambda pid, _: descendants(pid))
    assert content(run_in(tmp_path / "killed", small(**LONG))) == content(train(small(**LONG)))
    say("4 kills of a papermill kernel survived, no process left behind")


def test_two_processes(tmp_path):
    """Any one worker, or all: what is left ends by itself, and the run goes on bit for bit."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "lib.train",
        *cli_args(**LONG),
    ]
    whole = start(command, UMAE_OUTPUTS=str(tmp_path / "whole"))
    out = whole.communicate(timeout=240)[0]
    assert whole.returncode == 0, out

    def pick(pid, rng):
        below = descendants(pid)
        return rng.choice([[pid, *below], below[:1], below[1:2]])

    killed_until_done(tmp_path, command, 6, pick)
    runs = [run_in(tmp_path / folder, small(**LONG)) for folder in ("killed", "whole")]
    assert content(runs[0]) == content(runs[1])
    say("6 kills of one or all of two processes survived")


def test_two_hundred_short_runs():
    files, memory = leak(number=200, warm=20)
    say(f"200 runs in one process: {files} more open files, {memory:+.1f} MiB")
    assert files == 0 and memory < 30


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 300 KiB that is really full, and can be made read-only; needs root."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mount is not allowed here")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_and_then_a_read_only_file_system(tmpfs, tmp_path, monkeypatch):
    config = small(epochs=4, snapshots=4)
    whole = train(config)
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmpfs))
    with pytest.raises(
        InputError, match=r"cannot write .* \(No space left on device\); earlier files are intact"
    ):
        train(config)
    run = run_of(config)
    check_visible_files(run)
    kept = {
        p.name: p.read_bytes() for p in run.folder.rglob("*") if p.is_file() and p.name != "lock"
    }
    assert "state.pt" in kept and not list(run.folder.rglob(".*"))
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    with pytest.raises(
        InputError,
        match=r"cannot write .* \(Read-only file system\); set UMAE_OUTPUTS to another folder",
    ):
        train(config)
    assert {
        p.name: p.read_bytes() for p in run.folder.rglob("*") if p.is_file() and p.name != "lock"
    } == kept
    subprocess.run(["mount", "-o", "remount,rw,size=20m", str(tmpfs)], check=True)
    assert content(train(config)) == content(whole)
    say("a full and a read-only file system survived")


def test_a_file_system_that_turns_read_only_while_training(tmpfs, monkeypatch):
    from support import at_step, few

    subprocess.run(["mount", "-o", "remount,size=20m", str(tmpfs)], check=True)
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmpfs))
    config = small(epochs=3)

    def freeze():
        os.sync()
        for fd in (tmpfs / "runs").glob("*/lock"):
            assert fd.exists()
        # A writer keeps the lock file open: a read-only view is bound over it instead.
        subprocess.run(["mount", "--bind", str(tmpfs), str(tmpfs)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmpfs)], check=True)

    at_step(monkeypatch, 4, freeze)
    try:
        with pytest.raises(
            InputError, match=r"cannot write .* \(Read-only file system\); earlier files are intact"
        ):
            train(config, few(config))
        check_visible_files(run_of(config))
    finally:
        subprocess.run(["umount", "-l", str(tmpfs)], check=True)
    assert train(config, few(config)).result["steps"] == 9
    shutil.rmtree(tmpfs / "runs")
