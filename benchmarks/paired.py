"""Two ways of training, each in processes of its own: a few steps of one, then a few of the other.

So a machine with other work on it slows both, and their ratio holds. The first step of a turn is
not counted: threads and loader have just been woken.
"""

import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.memory import children_memory, peak_memory
from benchmarks.plain import PlainImages, dense_forward, plain_loss
from lib.compute.cost import gemm_peak
from lib.compute.device import cores
from lib.data import Dataset, Split
from lib.distributed.collectives import all_reduce_mean_, rank_and_world_size
from lib.distributed.launch import process_group
from lib.models import MAE, SparseBlock
from lib.presets import REPO, Config, resolve

STAGES = ("data", "forward", "backward", "optimizer")
IMAGES = 10_240  # of the random data set
COMMON: dict[str, Any] = {
    "batch_size": 256,
    "accum_steps": 1,
    "augment": "crop",
    "epochs": 1000,
    "snapshots": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a preset with changed fields, and the parts that run in it."""

    preset: str
    fields: dict[str, Any]
    plain: bool = False  # the reference of benchmarks.plain instead of the product
    loader: bool = False  # with plain: a DataLoader of PIL transforms
    heap: bool = True  # freed memory is kept for the next step
    fused_attention: bool = False  # torch's fused kernel whatever the precision
    dense: bool = False  # timm's blocks: every token of every block
    kernels: bool = True  # the CPU kernels, where the machine has them
    processes: int = 1
    environment: tuple[tuple[str, str], ...] = ()  # variables of its processes

    def config(self) -> Config:
        return resolve(self.preset, **{**COMMON, **self.fields})


def random_data(config: Config, images: int = IMAGES) -> Dataset:
    """Random images in ten classes, of the size that `config` asks for."""
    shape = (images, config.channels, config.image_size, config.image_size)
    split = Split(torch.arange(images) % 10, torch.randint(256, shape, dtype=torch.uint8), [])
    mean = torch.full((config.channels,), 0.5)
    names = [str(k) for k in range(10)]
    return Dataset(split, split, names, mean, mean / 2, "random", config.image_size)


class Clock:
    """Collects the seconds of every stage of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        self.last = time.perf_counter()
        self.now: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.now[stage] = now - self.last
        self.last = now
        if stage == STAGES[-1]:
            self.steps.append(self.now)
            self.now = {}


def _plain_batches(side: Side, data: Dataset) -> Iterator[Tensor]:
    """Normalised batches without end."""
    images = data.train.images
    assert images is not None
    size = side.config().batch_size
    while side.loader:
        yield from torch.utils.data.DataLoader(
            PlainImages(images), size, shuffle=True, drop_last=True, num_workers=2
        )
    normalization = data.normalization("dataset")
    while True:
        yield normalization(images[torch.randint(IMAGES, (size,))])


def plain_steps(side: Side, clock: Clock) -> Callable[[int], None]:
    """A function that takes a number of steps of the plain reference."""
    c = side.config()
    mae = MAE(c)
    optimizer = torch.optim.AdamW(
        mae.parameters(), lr=1e-4, weight_decay=c.weight_decay, betas=(0.9, 0.95)
    )
    source = _plain_batches(side, random_data(c))

    def run(count: int) -> None:
        clock.start()
        for _ in range(count):
            images = next(source)
            clock.mark("data")
            loss = plain_loss(mae, images, c)
            clock.mark("forward")
            optimizer.zero_grad()
            loss.backward()
            clock.mark("backward")
            optimizer.step()
            clock.mark("optimizer")

    return run


def _trainer(side: Side) -> Any:
    """The product's trainer, without the parts that this side leaves out."""
    from lib.train import loop

    if not side.heap:
        loop.keep_heap = lambda: False
    if side.dense:
        SparseBlock.forward = dense_forward  # type: ignore
    trainer = loop.Trainer(side.config(), random_data(side.config()))
    for block in trainer.objective.modules():
        if isinstance(block, SparseBlock):
            if not side.kernels:
                block.kernels = None
            if side.fused_attention:
                block.attn.fused_attn = True  # type: ignore
    return trainer


class StepCounter:
    """Stands in for the progress bar: asks the loop to stop after so many steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.left = clock, 0
        self.should_stop: list[int] = []

    def update(self, images: int) -> None:
        self.clock.mark("optimizer")
        self.left -= 1
        if self.left == 0:
            self.should_stop.append(1)


def product_steps(side: Side, clock: Clock) -> Callable[[int], None]:
    """A function that takes a number of steps of the product's own loop, timed through hooks."""
    trainer, counter = _trainer(side), StepCounter(clock)
    trainer.objective.register_forward_pre_hook(lambda *_: clock.mark("data"))
    trainer.objective.register_forward_hook(lambda *_: clock.mark("forward"))
    trainer.optimizer.register_step_pre_hook(lambda *_: clock.mark("backward"))

    def run(count: int) -> None:
        counter.left = count
        clock.start()
        while counter.left > 0:
            counter.should_stop.clear()
            epoch = trainer.step // trainer.steps_per_epoch
            trainer.train_epoch(epoch, counter, counter.should_stop)

    return run


def serve(side: Side, address: str, key: bytes) -> None:
    """One process of a side: takes as many steps as it is told, until it is told 0."""
    import timm  # noqa: F401  before the libraries' memory is measured

    rank, world_size = rank_and_world_size()
    libraries = peak_memory(reset=True)
    connection = Client(address, authkey=key) if rank == 0 else None
    clock = Clock()
    run = (plain_steps if side.plain else product_steps)(side, clock)
    while count := _next_count(connection, world_size):
        clock.steps.clear()
        run(1 + count)
        memory = peak_memory() + children_memory()
        gemm = gemm_peak("bf16", torch.device("cpu"), 1024)
        of_rank = torch.tensor([gemm, memory, memory - libraries], dtype=torch.float64)
        sums = (all_reduce_mean_(of_rank) * world_size).tolist()
        if connection:
            names = ("gemm", "memory", "own_memory")
            answer = {"steps": clock.steps[1:], **dict(zip(names, sums, strict=True))}
            connection.send(answer)


def _next_count(connection: Connection | None, world_size: int) -> int:
    """The steps to take next, which rank 0 is told."""
    count = torch.tensor(connection.recv() if connection else 0)
    if world_size > 1:
        dist.broadcast(count, 0)
    return int(count)


@contextmanager
def running(side: Side) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Starts a side's processes. Gives a function of a number of steps that returns their times."""
    key = secrets.token_bytes(16)
    program = [sys.executable, "-m"]
    env = {**os.environ, **dict(side.environment), "PYTHONPATH": str(REPO)}
    if side.processes > 1:
        program += ["torch.distributed.run", "--nproc-per-node", str(side.processes), "-m"]
        env["OMP_NUM_THREADS"] = str(max(1, cores() // side.processes))
    with Listener(family="AF_UNIX", authkey=key) as listener:
        arguments = [json.dumps(asdict(side)), str(listener.address), key.hex()]
        process = subprocess.Popen([*program, "benchmarks.paired", *arguments], env=env)
        try:
            with listener.accept() as connection:

                def take(count: int) -> dict[str, Any]:
                    connection.send(count)
                    return connection.recv()

                take(2)  # warm
                yield take
                connection.send(0)
            process.wait(60)
        finally:
            process.kill()


def _seconds(part: dict[str, Any]) -> float:
    """The median step of one turn."""
    return statistics.median(sum(step.values()) for step in part["steps"])


def _summary(parts: tuple[dict[str, Any], ...], batch_size: int) -> dict[str, Any]:
    """One side over all of its turns."""
    steps = [step for part in parts for step in part["steps"]]
    stages = {k: 1e3 * statistics.median(step.get(k, 0.0) for step in steps) for k in STAGES}
    return {
        "images_per_s": batch_size / statistics.median(sum(step.values()) for step in steps),
        "ms": stages,
        "memory": max(part["memory"] for part in parts),
        "own_memory": max(part["own_memory"] for part in parts),
        "gemm": statistics.median(part["gemm"] for part in parts),
    }


def compare(a: Side, b: Side, rounds: int, steps: int) -> dict[str, Any]:
    """Images/s of both sides, and for every round their ratio b/a, from median steps."""
    with running(a) as take_a, running(b) as take_b:
        pairs = [(take_a(steps), take_b(steps)) for _ in range(rounds)]
    size_a, size_b = a.config().batch_size, b.config().batch_size
    parts_a, parts_b = zip(*pairs, strict=True)
    out: dict[str, Any] = {"a": _summary(parts_a, size_a), "b": _summary(parts_b, size_b)}
    ratios = [_seconds(x) / _seconds(y) * size_b / size_a for x, y in pairs]
    out["ratio"] = sorted(ratios)
    for key in ("memory", "own_memory"):
        out[f"{key}_ratio"] = out["b"][key] / out["a"][key]
    return out


if __name__ == "__main__":
    with process_group():
        serve(Side(**json.loads(sys.argv[1])), sys.argv[2], bytes.fromhex(sys.argv[3]))
