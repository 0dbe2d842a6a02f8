"""`python -m lib.bench [part ...]`: what a training step costs here, as ratios to a plain one, and why.

Parts: steps (each preset against the plain reference), ladder (every trick's own gain), uniformity (sums against the
matrix of pairs), accumulation (what splitting a batch costs the estimate), scaling. On two cores all take
about 11 minutes, of which ladder takes 8 and steps one.

The two sides of a ratio run in processes of their own, a few steps of one after a few of the other, so that a machine
with other work on it slows both. Prints tables and writes outputs/bench.json.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.paired import IMAGES, STAGES, Side, compare, peak_memory
from benchmarks.plain import pairwise
from lib.compute.cost import estimate
from lib.errors import InputError
from lib.losses import uniformity_loss
from lib.runs.files import write_json
from lib.runs.folder import outputs
from lib.runs.provenance import provenance

PARTS = ("steps", "ladder", "uniformity", "accumulation", "scaling")


MICRO: dict[str, Any] = {}


TINY: dict[str, Any] = {"patch_size": 4}  # the 64 patches of an image that CPU codes use


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of dicts with the same keys."""
    print(f"\n{title}")
    cells = [
        list(rows[0]),
        *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print(
            "  "
            + "  ".join(
                text.ljust(width) for text, width in zip(line, widths, strict=True)
            ).rstrip(),
            flush=True,
        )


def measured(name: str, a: Side, b: Side, rounds: int, steps: int) -> dict[str, Any]:
    """`compare`, announced and timed on stderr, for a part takes minutes."""
    print(f"  {name} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = compare(a, b, rounds, steps)
    print(f" {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return result


def row(name: str, result: dict[str, Any], b: Side) -> dict[str, Any]:
    """One comparison in a line: the second side, and min, median and max of its ratio to the first."""
    own, ratio = result["b"], result["ratio"]
    work = estimate(b.config(), IMAGES).flops * own["images_per_s"]
    spread = f"{ratio[0]:.2f} {statistics.median(ratio):.2f} {ratio[-1]:.2f}"
    stages = "/".join(f"{own['ms'][k]:.0f}" for k in STAGES)
    return {
        "": name, "images/s": round(own["images_per_s"]), "ratio min med max": spread, "ms " + "/".join(STAGES): stages,
        "MiB": round(own["memory"] / 2**20), "ratio": result["memory_ratio"],
        "without libraries": round(own["own_memory"] / 2**20), "its ratio": result["own_memory_ratio"],
        "of GEMM peak": work / own["gemm"],
    }  # fmt: skip


def sides(preset: str, fields: dict[str, Any]) -> dict[str, Side]:
    """From the plain reference to the product, one trick at a time."""
    fp32, bf16 = {**fields, "precision": "fp32"}, {**fields, "precision": "bf16"}
    timms: dict[str, Any] = {"dense": True, "passes": False}
    return {
        "plain": Side(preset, fp32, plain=True, loader=True),
        "+ data in memory, whole-batch augmentation": Side(preset, fp32, plain=True),
        "+ visible patches only, one argsort, sums": Side(preset, fp32, heap=False, **timms),
        "+ heap kept": Side(preset, fp32, **timms),
        "+ bf16 autocast": Side(preset, bf16, fused_attention=True, **timms),
        "+ attention as batched products": Side(preset, bf16, **timms),
        "+ decoder: nothing known or unused": Side(preset, bf16, passes=False),
        "+ own passes between products": Side(preset, bf16),
        "torch.compile instead": Side(preset, {**bf16, "compile": True}),
        "own passes, libgomp's own spinning": Side(
            preset, bf16, environment=(("GOMP_SPINCOUNT", "300000"),)
        ),
        "own passes, two processes of one thread": Side(preset, bf16, processes=2),
    }


def steps(rounds: int) -> list[dict[str, Any]]:
    """The product with its defaults against the plain reference."""
    rows = []
    for name, preset, fields in (
        ("micro", "cifar10-vit-micro", MICRO),
        ("tiny, patch 4", "cifar10-vit-tiny", TINY),
    ):
        plain, product = sides(preset, fields)["plain"], Side(preset, fields)
        result = measured(name, plain, product, rounds, 8 if name == "micro" else 4)
        same = {"ratio": [1.0], "memory_ratio": 1.0, "own_memory_ratio": 1.0}
        rows.append(row(f"{name}: plain", {**result, "b": result["a"], **same}, plain))
        rows.append(row(f"{name}: lib.train", result, product))
    return rows


def ladder(rounds: int) -> list[dict[str, Any]]:
    """Every trick against what came before it."""
    rows = []
    for name, preset, fields, count in (
        ("micro", "cifar10-vit-micro", MICRO, 3), ("tiny", "cifar10-vit-tiny", TINY, 1)
    ):  # fmt: skip
        own = sides(preset, fields)
        names = list(own)
        branches = [(names[-4], last) for last in names[-3:]]
        for before, after in [*itertools.pairwise(names[:-3]), *branches]:
            title = f"{name} {after}"
            rows.append(
                row(title, measured(title, own[before], own[after], rounds, count), own[after])
            )
    return rows


def uniformity(rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of the spectral form from sums, and of the pairwise form where it is affordable."""
    rows = []
    for dim in (96, 192, 1024):
        for batch in (256, 1024, 4096, 16_384, 65_536):
            features = torch.randn(batch, dim, requires_grad=True)
            line: dict[str, Any] = {"B": batch, "D": dim}
            for name, form in (("sums", uniformity_loss), ("pairs", pairwise)):
                if name == "pairs" and batch**2 * dim > 3e10:
                    line |= {"pairs ms": "-", "pairs MiB": "-"}
                    continue
                before, times = peak_memory(reset=True), []
                for _ in range(rounds):
                    start = time.perf_counter()
                    form(features).backward()
                    times.append(time.perf_counter() - start)
                line |= {
                    f"{name} ms": 1e3 * min(times),
                    f"{name} MiB": round((peak_memory() - before) / 2**20),
                }
            rows.append(line)
    return rows


def accumulation(rounds: int) -> list[dict[str, Any]]:
    """A batch of 4,096 collapsed features (rank about 15 of 96) in k parts: mean and spread of value and gradient."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, 96, dtype=torch.float64)
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
        rows.append({
            "parts": parts, "value / exact": statistics.mean(values) / value.item(),
            "spread of value": statistics.pstdev(values) / value.item(),
            "gradient error of one split": statistics.mean(errors),
            "of the mean gradient": ((mean - grad).norm() / grad.norm()).item(),
        })  # fmt: skip
    return rows


def scaling(rounds: int) -> list[dict[str, Any]]:
    """Images/s of `cifar10-vit-micro` as one thing grows, each against the preset."""
    base = Side("cifar10-vit-micro", {})
    changes: dict[str, Side] = {
        f"{field} {value}": replace(base, fields={field: value})
        for field, value in (
            ("batch_size", 64),
            ("batch_size", 1024),
            ("image_size", 64),
            ("depth", 8),
            ("depth", 16),
        )
    }
    changes["processes 2"] = replace(base, processes=2)
    return [
        row(name, measured(name, base, side, rounds, 2), side) for name, side in changes.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of every comparison")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        raise InputError(f"unknown part {min(unknown)!r}; known: {', '.join(PARTS)}")
    report: dict[str, Any] = {
        "machine": {**provenance(), "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT")}
    }
    for part in options.parts or PARTS:
        report[part] = globals()[part](options.rounds)
        show(f"{part}: {(globals()[part].__doc__ or '').strip()}", report[part])
        write_json(outputs() / "bench.json", report)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
