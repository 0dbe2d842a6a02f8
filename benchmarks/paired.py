"""Two ways of training, each in processes of its own, a few steps of one after a few of the other.

So a machine with other work on it slows both, and their ratio holds. The first step of a turn is not counted: threads
and loader have just been woken (the ratios were the same with it). `lib.bench` makes its tables from this.
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
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.plain import PlainImages, dense_forward, plain_loss
from lib.compute.cost import gemm_peak
from lib.compute.device import cores, has_bf16
from lib.data import Dataset, Split
from lib.distributed import collectives as parallel
from lib.distributed import launch
from lib.models import MAE
from lib.presets import REPO, Config, resolve

STAGES = ("data", "forward", "backward", "optimizer")


IMAGES = 10_240


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a preset with changed fields, and how much of the product runs in it."""

    preset: str
    fields: dict[str, Any]
    plain: bool = False  # the reference of lib.plain instead of the product
    loader: bool = False  # with plain: a DataLoader of PIL transforms
    heap: bool = True
    fused_attention: bool = False  # torch's fused kernel whatever the precision
    dense: bool = False  # timm's blocks, every token of every one
    passes: bool = True  # our own passes between the products, where the machine has them
    processes: int = 1
    environment: tuple[
        tuple[str, str], ...
    ] = ()  # variables of its processes, such as GOMP_SPINCOUNT

    def config(self) -> Config:
        common: dict[str, Any] = dict(
            batch_size=256, accum_steps=1, augment="crop", epochs=1000, snapshots=0, device="cpu"
        )
        return resolve(self.preset, **{**common, **self.fields})


def random_data(config: Config) -> Dataset:
    images = torch.randint(
        256, (IMAGES, config.channels, config.image_size, config.image_size), dtype=torch.uint8
    )
    split, mean = Split(torch.arange(IMAGES) % 10, images, []), torch.full((config.channels,), 0.5)
    return Dataset(split, split, [str(k) for k in range(10)], mean, mean / 2, "random", config)


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


def plain_steps(side: Side, clock: Clock) -> Callable[[int], None]:
    c = side.config()
    data, mae = random_data(c), MAE(c)
    optimizer = torch.optim.AdamW(
        mae.parameters(), lr=1e-4, weight_decay=c.weight_decay, betas=(0.9, 0.95)
    )

    def batches() -> Iterator[Tensor]:
        images = data.train.images
        assert images is not None
        while side.loader:
            plain = PlainImages(images)
            yield from torch.utils.data.DataLoader(
                plain, c.batch_size, shuffle=True, drop_last=True, num_workers=2
            )
        while True:
            yield data.normalize(images[torch.randint(IMAGES, (c.batch_size,))])

    source = batches()

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


def product_steps(side: Side, clock: Clock) -> Callable[[int], None]:
    """The product's own loop, timed from outside through hooks."""
    from lib.models import SparseBlock
    from lib.train.loop import Trainer

    if not side.heap:
        keep_heap = lambda: False
    if side.dense:
        SparseBlock.forward = dense_forward  # type: ignore
    trainer = Trainer(side.config(), random_data(side.config()), None)  # type: ignore[arg-type]
    blocks: list[Any] = [
        module for module in trainer.objective.modules() if isinstance(module, SparseBlock)
    ]
    for block in blocks:
        block.fused = block.fused and side.passes
        block.attn.fused_attn = block.attn.fused_attn or side.fused_attention
    trainer.objective.register_forward_pre_hook(lambda *_: clock.mark("data"))
    trainer.objective.register_forward_hook(lambda *_: clock.mark("forward"))
    trainer.optimizer.register_step_pre_hook(lambda *_: clock.mark("backward"))

    class Bar:
        left = 0

        def update(self, _: int) -> None:
            clock.mark("optimizer")
            self.left -= 1
            stop.extend([1] * (self.left == 0))

    bar = Bar()
    stop: list[int] = []

    def run(count: int) -> None:
        bar.left = count
        clock.start()
        while bar.left > 0:
            stop.clear()
            trainer.train_epoch(trainer.step // trainer.steps_per_epoch, bar, stop)  # type: ignore[arg-type]

    return run


def peak_memory(reset: bool = False) -> int:
    """Bytes of this process's largest resident set, since its start or the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _kib("/proc/self/status", "VmHWM:")


def children_memory() -> int:
    """Bytes that the child processes (a DataLoader's workers) do not share with this one."""
    pids = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return sum(
        _kib(f"/proc/{pid}/smaps_rollup", "Private_Clean:", "Private_Dirty:") for pid in pids
    )


def _kib(path: str, *names: str) -> int:
    return sum(
        1024 * int(line.split()[1])
        for line in Path(path).read_text().splitlines()
        if line.startswith(names)
    )


def serve(side: Side, address: str, key: bytes) -> None:
    """One process of a side: does as many steps as it is told, until it is told 0."""
    import timm  # noqa: F401  before the libraries' memory is measured

    rank, world = parallel.place()
    idle = peak_memory(reset=True)  # what the libraries take, on both sides alike
    connection = Client(address, authkey=key) if rank == 0 else None
    clock = Clock()
    run = (plain_steps if side.plain else product_steps)(side, clock)
    while True:
        command = torch.tensor(connection.recv() if connection else 0)
        if world > 1:
            dist.broadcast(command, 0)
        if int(command) == 0:
            return
        clock.steps.clear()
        run(1 + int(command))
        steps = clock.steps[1:]
        precision = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
        memory = peak_memory() + children_memory()
        gemm = gemm_peak(precision, torch.device("cpu"), 1024)
        sums = (
            parallel.average_(torch.tensor([gemm, memory, memory - idle], dtype=torch.float64))
            * world
        )
        if connection:
            connection.send(
                {
                    "steps": steps,
                    **dict(zip(("gemm", "memory", "own_memory"), sums.tolist(), strict=True)),
                }
            )


@contextmanager
def running(side: Side) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Starts a side in processes of its own; what is given takes a number of steps and returns their times."""
    key = secrets.token_bytes(16)
    with Listener(family="AF_UNIX", authkey=key) as listener:
        program = [sys.executable, "-m"]
        if side.processes > 1:
            program += ["torch.distributed.run", "--nproc-per-node", str(side.processes), "-m"]
        arguments = [json.dumps(asdict(side)), str(listener.address), key.hex()]
        env = {**os.environ, **dict(side.environment), "PYTHONPATH": str(REPO)}
        if side.processes > 1:
            env["OMP_NUM_THREADS"] = str(max(1, cores() // side.processes))
        process = subprocess.Popen([*program, "lib.paired", *arguments], env=env)
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


def compare(a: Side, b: Side, rounds: int, steps: int) -> dict[str, Any]:
    """Images/s of both sides, and for every round their ratio b/a, from median steps."""
    with running(a) as take_a, running(b) as take_b:
        pairs = [(take_a(steps), take_b(steps)) for _ in range(rounds)]
    sizes = a.config().batch_size, b.config().batch_size
    out: dict[str, Any] = {}
    for name, batch, of in zip("ab", sizes, zip(*pairs, strict=True), strict=True):
        flat = [s for part in of for s in part["steps"]]
        out[name] = {
            "images_per_s": batch / statistics.median(sum(s.values()) for s in flat),
            "ms": {k: 1e3 * statistics.median(s.get(k, 0.0) for s in flat) for k in STAGES},
            "memory": max(part["memory"] for part in of),
            "own_memory": max(part["own_memory"] for part in of),
            "gemm": statistics.median(part["gemm"] for part in of),
        }
    middle = [
        [statistics.median(sum(s.values()) for s in part["steps"]) for part in pair]
        for pair in pairs
    ]
    out["ratio"] = sorted(x / y * sizes[1] / sizes[0] for x, y in middle)
    for key in ("memory", "own_memory"):
        out[f"{key}_ratio"] = out["b"][key] / out["a"][key]
    return out


if __name__ == "__main__":
    with launch.process_group():
        serve(Side(**json.loads(sys.argv[1])), sys.argv[2], bytes.fromhex(sys.argv[3]))
