"""Runs that are killed at a chosen or a random moment, and what must hold afterwards."""

import gc
import json
import random
import shutil
import signal
import time

import psutil

from lib.runs import Run
from lib.runs.files import load_state, load_weights
from lib.train import train
from scripts.forked import Forked, context
from support import content, few, folder_config, lines, run_in, small
from support.killing import serve

STAGES = ("half", "written", "renamed")


class Killer:
    """Talks to support/killing.py."""

    def __init__(self):
        self.connection, theirs = context.Pipe()
        self.process = Forked(serve, theirs)
        theirs.close()  # the process's own copy is the only one: it sees when this one ends
        self.kills = 0

    def __call__(self, outputs, fields, **how) -> dict:
        self.begin(outputs, fields, **how)
        return self.answer()

    def begin(self, outputs, fields, **how) -> None:
        self.connection.send({"outputs": str(outputs), "fields": fields, **how})

    def answer(self) -> dict:
        answer = self.connection.recv()
        assert answer["status"] in (0, 2, -signal.SIGKILL), answer
        self.kills += answer["status"] == -signal.SIGKILL
        return answer

    def end(self) -> None:
        self.connection.close()
        self.process.wait(30)


def check_visible_files(run: Run) -> None:
    """Whatever moment the process died at: every file with its name is whole.

    Metrics have no gap and no duplicate.
    """
    for path in run.folder.rglob("*"):
        if path.name.startswith(".") or path.name == "lock" or path.is_dir():
            continue
        if path.name == "state.pt":
            load_state(path)
        elif path.suffix == ".safetensors" and path.parent.name != "encoder":
            load_weights(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            epochs = [line["epoch"] for line in lines(path)]
            assert epochs == list(range(1, len(epochs) + 1)) and path.read_bytes().endswith(b"\n")
        elif path.suffix == ".md":
            assert path.read_text().endswith("\n")
        else:
            import safetensors.torch

            safetensors.torch.load_file(path)


def kill_everywhere(killer, tmp_path, fields, points) -> None:
    """For every (call, stage): a run killed there and resumed equals the one never stopped."""
    root = fields.get("root")
    rest = {k: v for k, v in fields.items() if k != "root"}
    config = folder_config(root, **rest) if root else small(**rest)
    whole_folder = tmp_path / "whole"
    assert killer(whole_folder, fields)["status"] == 0
    whole = run_in(whole_folder, config)
    for call, stage in points:
        outputs = tmp_path / f"{call}-{stage}"
        assert killer(outputs, fields, call=call, stage=stage)["status"] == -signal.SIGKILL
        run = run_in(outputs, config)
        check_visible_files(run)
        assert killer(outputs, fields)["status"] == 0
        assert content(run) == content(whole), (call, stage)
        assert not list(run.folder.rglob(".*"))
        shutil.rmtree(outputs)


def writes_of(killer, tmp_path, fields) -> int:
    return killer(tmp_path / "count", fields)["writes"]


def kill_at_random(killer, tmp_path, fields, seed, most) -> int:
    """Kills one run at random moments, `most` times or until it has ended; returns how often."""
    rng = random.Random(seed)
    config = small(**fields)
    assert killer(tmp_path / "whole", fields)["status"] == 0
    before = time.monotonic()  # not of the first run: the process had its imports to do
    assert killer(tmp_path / "again", fields)["status"] == 0
    seconds = time.monotonic() - before
    run, kills = run_in(tmp_path / "killed", config), 0
    while (
        kills < most
        and killer(tmp_path / "killed", fields, after=rng.uniform(0, 0.3 * seconds))["status"]
    ):
        kills += 1
        if run.folder.exists():
            check_visible_files(run)
    assert killer(tmp_path / "killed", fields)["status"] == 0
    assert content(run) == content(run_in(tmp_path / "whole", config))
    return kills


def leak(number: int, warm: int) -> tuple[int, float]:
    """Growth of open files and of memory (MiB) over `number` short runs, after `warm` runs."""
    data, process = few(small()), psutil.Process()
    for seed in range(warm + number):
        if seed == warm:
            gc.collect()
            files, memory = process.num_fds(), process.memory_info().rss
        train(small(seed=seed, epochs=1, snapshots=0), data)
    gc.collect()
    return process.num_fds() - files, (process.memory_info().rss - memory) / 2**20
