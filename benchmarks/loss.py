"""The uniformity term alone: what its sums save, and what splitting a batch costs its estimate."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_memory
from benchmarks.plain import pairwise
from lib.losses import uniformity_loss

Row = dict[str, Any]
PAIRS_LIMIT = 3e10  # B * B * D: beyond it the matrix of pairs is left out


def uniformity(rounds: int) -> list[Row]:
    """The spectral form from sums against the matrix of pairs, forward and backward."""
    rows = []
    for dim in (96, 192, 1024):
        for batch in (256, 1024, 4096, 16_384, 65_536):
            features = torch.randn(batch, dim, requires_grad=True)
            line = {"B": batch, "D": dim, **_cost("sums", uniformity_loss, features, rounds)}
            if batch**2 * dim > PAIRS_LIMIT:
                line |= {"pairs ms": "-", "pairs MiB": "-"}
            else:
                line |= _cost("pairs", pairwise, features, rounds)
            rows.append(line)
    return rows


def _cost(name: str, form: Callable[[Tensor], Tensor], features: Tensor, rounds: int) -> Row:
    before, times = peak_memory(reset=True), []
    for _ in range(rounds):
        start = time.perf_counter()
        form(features).backward()
        times.append(time.perf_counter() - start)
    grown = round((peak_memory() - before) / 2**20)
    return {f"{name} ms": 1e3 * min(times), f"{name} MiB": grown}


def accumulation(rounds: int) -> list[Row]:
    """Value and gradient of the term on a batch of 4,096 in k parts, against the whole batch."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, 96, dtype=torch.float64)  # collapsed: rank about 15 of 96
    features = torch.randn(4096, 96, dtype=torch.float64, generator=generator) * scales + scales
    exact = features.clone().requires_grad_()
    value = uniformity_loss(exact)
    (grad,) = torch.autograd.grad(value, exact)
    rows = []
    for parts in (1, 2, 4, 16, 64):
        values, errors, mean = [], [], torch.zeros_like(grad)
        for _ in range(8 * rounds):
            order = torch.randperm(4096, generator=generator)
            split = torch.stack([uniformity_loss(exact[ids]) for ids in order.chunk(parts)]).mean()
            (g,) = torch.autograd.grad(split, exact)
            values.append(split.item())
            errors.append(((g - grad).norm() / grad.norm()).item())
            mean += g / (8 * rounds)
        line = {
            "parts": parts,
            "value / exact": statistics.mean(values) / value.item(),
            "spread of value": statistics.pstdev(values) / value.item(),
            "gradient error of one split": statistics.mean(errors),
            "of the mean gradient": ((mean - grad).norm() / grad.norm()).item(),
        }
        rows.append(line)
    return rows
