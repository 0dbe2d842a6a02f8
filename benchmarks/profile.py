"""Where the CPU time of a training step goes, on one thread."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.paired import Clock, StepCounter, random_data
from benchmarks.training import TINY
from lib.compute import cpu_kernels
from lib.compute.cost import estimate
from lib.presets import Config, resolve
from lib.train.loop import Trainer

Amounts = dict[str, float]


def profile(rounds: int) -> list[dict[str, Any]]:
    """CPU time of a ViT-Tiny step on one thread, by kind of operation."""
    config = resolve("cifar10-vit-tiny", batch_size=256, epochs=1000, device="cpu", **TINY)
    return profile_steps(config, rounds)


def profile_steps(config: Config, steps: int) -> list[dict[str, Any]]:
    """A line for each kind of operation; the last one is the whole step, without instruments.

    The clock is the thread's CPU time: it does not count what other processes take. The peak is the
    fastest product of two square matrices of 1,024 rows, seen meanwhile, in the format of the run.
    """
    with _one_thread():
        trainer = Trainer(config, random_data(config, 4 * config.batch_size))
        _take(trainer, 2)  # warm
        start = time.thread_time()
        _take(trainer, steps)
        whole = (time.thread_time() - start) / steps
        seconds, flops = _instrumented(trainer, steps)
        low = trainer.precision == "bf16"
        peak = _peak(30, torch.bfloat16 if low else torch.float32)
    rows = []
    for kind, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        work = flops[kind] / spent / peak if flops.get(kind) else float("nan")
        rows.append(_row(kind, spent / steps, whole, work))
    useful = estimate(config, config.batch_size).flops * config.batch_size
    return [*rows, _row("the whole step", whole, whole, useful / whole / peak)]


def _row(kind: str, seconds: float, whole: float, work: float) -> dict[str, Any]:
    return {"": kind, "ms": 1e3 * seconds, "share": seconds / whole, "of GEMM peak": work}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _take(trainer: Trainer, steps: int) -> None:
    counter = StepCounter(Clock())
    counter.left = steps
    while counter.left > 0:
        epoch = trainer.step // trainer.steps_per_epoch
        trainer.train_epoch(epoch, counter, counter.should_stop)  # type: ignore[arg-type]


def _instrumented(trainer: Trainer, steps: int) -> tuple[Amounts, Amounts]:
    """(seconds, FLOP of products) by kind of operation."""
    mode, real = _Timed(), cpu_kernels._call

    def timed_kernel(name: str, *arguments: Any) -> None:
        start = time.thread_time()
        real(name, *arguments)
        mode.seconds[f"kernel {name}"] += time.thread_time() - start

    with patch.object(cpu_kernels, "_call", timed_kernel), mode:
        _take(trainer, steps)
    return mode.seconds, mode.flops


class _Timed(TorchDispatchMode):
    """Times every operation of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Amounts = defaultdict(float)
        self.flops: Amounts = defaultdict(float)

    def __torch_dispatch__(self, fn: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        out = fn(*args, **(kwargs or {}))
        spent = time.thread_time() - start
        kind, flops = "other operations of torch", 0
        if fn._schema.name in ("aten::mm", "aten::bmm"):
            kind, flops = _product(args[0], args[1])
        self.seconds[kind] += spent
        self.flops[kind] += flops
        return out


def _product(a: Tensor, b: Tensor) -> tuple[str, int]:
    """(kind, FLOP) of a @ b. A gradient of weights sums over rows, in four parts where small."""
    batch = a.shape[0] if a.ndim == 3 else 1
    flops = 2 * batch * a.shape[-2] * a.shape[-1] * b.shape[-1]
    transposed = a.stride(-1) != 1
    if transposed and (a.ndim == 2 or batch == 4):
        return "weight gradients", flops
    return ("linear products" if a.ndim == 2 else "attention products"), flops


def _peak(repeats: int, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest product in CPU time."""
    a, times = torch.randn(1024, 1024, dtype=dtype), []
    for _ in range(repeats):
        start = time.thread_time()
        torch.mm(a, a)
        times.append(time.thread_time() - start)
    return 2 * 1024**3 / min(times)
