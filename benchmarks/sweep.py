"""A sweep of small runs: runs per minute and memory against how many are trained at once."""

import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks.paired import random_data
from lib.compute.device import cores
from lib.data import load
from lib.presets import PRESETS, resolve
from lib.train import train_all

EPOCHS = {"digits-vit-nano": 20, "cifar10-vit-micro": 2}  # of each run, by preset
IMAGES = 10_240  # random ones, unless $UMAE_CIFAR10 names a folder with train/ and test/


class PeakMemory(threading.Thread):
    """The largest memory of this process and its children, looked at twice a second.

    Pages that processes share are counted once (PSS), where the system can say so (Linux).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.peak = max(self.peak, _tree_memory())


def _tree_memory() -> int:
    me, total = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        try:
            found = process.memory_full_info()
        except psutil.Error:  # it has ended meanwhile
            continue
        total += getattr(found, "pss", found.rss)
    return total


@contextmanager
def empty_outputs() -> Iterator[str]:
    """$UMAE_OUTPUTS is an empty folder that goes away afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"UMAE_OUTPUTS": folder}),
    ):
        yield folder


def sweep(rounds: int) -> list[dict[str, Any]]:
    """Runs per minute and memory of sweeps of two presets with 1, 2 and more runs at once."""
    counts = sorted({1, 2, cores()})
    runs = max(2, rounds) * max(counts)
    return [row for preset in EPOCHS for row in measure_sweep(counts, runs, preset)]


def measure_sweep(
    counts: Sequence[int], runs: int, preset: str, epochs: int | None = None, images: int = IMAGES
) -> list[dict[str, Any]]:
    """`runs` runs that differ in their seed, through `train_all(jobs=...)`, for each of `counts`.

    The time holds the start of the worker processes. epochs: of the table above if None.
    """
    fields: dict[str, Any] = {"epochs": epochs or EPOCHS[preset], "snapshots": 0, "device": "cpu"}
    folder = os.environ.get("UMAE_CIFAR10")
    if folder and PRESETS[preset].data == "cifar10":
        fields["data"] = f"folder:{folder}"
    configs = [resolve(preset, seed=seed, **fields) for seed in range(runs)]
    known = configs[0].data == "digits" or folder
    data = load(**configs[0].data_fields) if known else random_data(configs[0], images)
    rows = []
    for jobs in counts:
        watch, start = PeakMemory(), time.perf_counter()
        watch.start()
        with empty_outputs(), redirect_stdout(io.StringIO()):
            train_all(configs, data, jobs=jobs)
        seconds = time.perf_counter() - start
        watch.ended.set()
        watch.join()
        line = {
            "preset": preset,
            "jobs": jobs,
            "runs": runs,
            "s": seconds,
            "runs / min": 60 * runs / seconds,
            "images/s": round(runs * configs[0].epochs * len(data.train) / seconds),
            "peak MiB": round(watch.peak / 2**20),
        }
        rows.append(line)
    return rows
