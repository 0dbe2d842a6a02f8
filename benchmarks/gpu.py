"""The paper's four presets on one GPU, against a plain reference in the same process."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.paired import Clock, StepCounter, random_data
from benchmarks.plain import plain_loss
from lib.compute.cost import duration, estimate, gemm_peak
from lib.data import Dataset
from lib.models import MAE
from lib.presets import Config, resolve
from lib.train.loop import Trainer

# Training images of the data sets of Table 1.
PAPER = {
    "cifar10-vit-tiny": 50_000,
    "cifar10-vit-base": 50_000,
    "imagenet100-vit-base": 126_689,
    "imagenet100-vit-large": 126_689,
}
STEPS = 10  # of one turn
Steps = Callable[[int], None]


def gpu(rounds: int) -> list[dict[str, Any]]:
    """The paper's four presets on one GPU; the cost of an epoch and of Table 1 that follows."""
    if not torch.cuda.is_available():
        print("gpu: skipped, there is no GPU here")
        return []
    peak = gemm_peak("bf16", torch.device("cuda"), 8192)
    rows = []
    for preset, images in PAPER.items():
        large = preset.startswith("imagenet")
        data = "folder:random" if large else None  # never read: the images are random
        config = resolve(preset, compile=True, device="cuda", data=data)
        count = 2048 if large else 10_240
        rows += compare_on_device(config, images, peak, rounds, STEPS, count)
        torch.cuda.empty_cache()
    return rows


@dataclass
class Measured:
    """One way of training: images/s, images in memory at once, and the peak of GPU memory."""

    speed: float
    at_once: int
    memory: int


def compare_on_device(
    config: Config, images: int, peak: float, rounds: int, steps: int, count: int
) -> list[dict[str, Any]]:
    """The plain reference and the product in turn on `count` random images in memory.

    Each computes the batch in as few parts as fit the memory; reading and decoding files is not
    part of it. `images` is what an epoch holds, `peak` the FLOP/s of a large product.
    """
    data = random_data(config, max(count, config.batch_size))
    flops = estimate(config, images).flops
    rows: list[dict[str, Any]] = []
    for name, build in (("plain", plain_training), ("lib.train", product_training)):
        found = _measure(build, config, data, rounds, steps)
        epoch = images / found.speed
        line = {
            "": f"{config.preset}: {name}",
            "images/s": round(found.speed),
            "of bf16 peak": flops * found.speed / peak,
            "at once": found.at_once,
            "GiB": found.memory / 2**30,
            "epoch": duration(epoch),
            "MAE and U-MAE": duration(2 * config.epochs * epoch),
        }
        rows.append(line)
    rows[1]["ratio"] = rows[1]["images/s"] / max(1, rows[0]["images/s"])
    rows[0]["ratio"] = 1.0
    return rows


def _measure(
    build: Callable[[Config, Dataset], Steps],
    config: Config,
    data: Dataset,
    rounds: int,
    steps: int,
) -> Measured:
    """The fastest of `rounds` turns, with the batch halved until it fits."""
    on_gpu = config.device.startswith("cuda")
    parts = 1
    while True:
        split = replace(config, accum_steps=parts)
        try:
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            take = build(split, data)
            take(2)  # warm: compiles
            seconds = min(_timed(take, steps, on_gpu) for _ in range(rounds))
            break
        except torch.OutOfMemoryError:
            take = None  # type: ignore[assignment]
            parts *= 2
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Measured(steps * config.batch_size / seconds, config.batch_size // parts, memory)


def _timed(take: Steps, steps: int, on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    take(steps)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_training(config: Config, data: Dataset) -> Steps:
    """Steps of the product's own loop."""
    trainer, counter = Trainer(config, data), StepCounter(Clock())

    def take(count: int) -> None:
        counter.left = count
        while counter.left > 0:
            counter.should_stop.clear()
            epoch = trainer.step // trainer.steps_per_epoch
            trainer.train_epoch(epoch, counter, counter.should_stop)  # type: ignore[arg-type]

    return take


def plain_training(config: Config, data: Dataset) -> Steps:
    """Steps of the plain reference under bf16 autocast, as public codes use mixed precision."""
    device = torch.device(config.device)
    mae: nn.Module = MAE(config).to(device)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-4, betas=(0.9, 0.95))
    images, normalization = data.train.images, data.normalization(config.normalize)
    assert images is not None
    at_once = config.batch_size // config.accum_steps

    def take(count: int) -> None:
        for _ in range(count):
            for _ in range(config.accum_steps):
                batch = images[torch.randint(len(images), (at_once,))].to(device)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = plain_loss(mae, normalization(batch), config)  # type: ignore[arg-type]
                (loss / config.accum_steps).backward()
            optimizer.step()
            optimizer.zero_grad()

    return take
