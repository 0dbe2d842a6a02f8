"""Training steps against a plain reference, and what each trick gives: tables of comparisons."""

import itertools
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

from benchmarks.paired import IMAGES, STAGES, Side, compare
from lib.compute.cost import estimate

MICRO: dict[str, Any] = {}
TINY: dict[str, Any] = {"patch_size": 4}  # the 64 patches of an image that CPU codes use
Row = dict[str, Any]


def measured(name: str, a: Side, b: Side, rounds: int, steps: int) -> dict[str, Any]:
    """`compare`, announced and timed on stderr: a table takes minutes."""
    print(f"  {name} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = compare(a, b, rounds, steps)
    print(f" {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return result


def row(name: str, result: dict[str, Any], b: Side) -> Row:
    """One comparison in a line: the second side, and its ratio to the first."""
    own, ratio = result["b"], result["ratio"]
    work = estimate(b.config(), IMAGES).flops * own["images_per_s"]
    return {
        "": name,
        "images/s": round(own["images_per_s"]),
        "ratio min med max": f"{ratio[0]:.2f} {statistics.median(ratio):.2f} {ratio[-1]:.2f}",
        "ms " + "/".join(STAGES): "/".join(f"{own['ms'][k]:.0f}" for k in STAGES),
        "MiB": round(own["memory"] / 2**20),
        "ratio": result["memory_ratio"],
        "without libraries": round(own["own_memory"] / 2**20),
        "its ratio": result["own_memory_ratio"],
        "of GEMM peak": work / own["gemm"],
    }


def sides(preset: str, fields: dict[str, Any]) -> dict[str, Side]:
    """From the plain reference to the product, one trick at a time; then variants of it."""
    fp32, bf16 = {**fields, "precision": "fp32"}, {**fields, "precision": "bf16"}
    timms: dict[str, Any] = {"dense": True, "kernels": False}
    spinning = (("GOMP_SPINCOUNT", "10000"),)
    return {
        "plain": Side(preset, fp32, plain=True, loader=True),
        "+ data in memory, whole-batch augmentation": Side(preset, fp32, plain=True),
        "+ visible patches only, one argsort, sums": Side(preset, fp32, heap=False, **timms),
        "+ heap kept": Side(preset, fp32, **timms),
        "+ bf16 autocast": Side(preset, bf16, fused_attention=True, **timms),
        "+ attention as batched products": Side(preset, bf16, **timms),
        "+ decoder: nothing known or unused": Side(preset, bf16, kernels=False),
        "+ CPU kernels": Side(preset, bf16),
        "torch.compile instead of CPU kernels": Side(preset, {**bf16, "compile": True}),
        "CPU kernels, GOMP_SPINCOUNT 10000": Side(preset, bf16, environment=spinning),
        "CPU kernels, two processes of one thread": Side(preset, bf16, processes=2),
    }


def steps(rounds: int) -> list[Row]:
    """Training steps of `lib.train` against the plain reference."""
    rows = []
    for name, preset, fields, count in (
        ("micro", "cifar10-vit-micro", MICRO, 8),
        ("tiny, patch 4", "cifar10-vit-tiny", TINY, 4),
    ):
        plain, product = sides(preset, fields)["plain"], Side(preset, fields)
        result = measured(name, plain, product, rounds, count)
        same = {"ratio": [1.0], "memory_ratio": 1.0, "own_memory_ratio": 1.0}
        rows.append(row(f"{name}: plain", {**result, "b": result["a"], **same}, plain))
        rows.append(row(f"{name}: lib.train", result, product))
    return rows


def ladder(rounds: int) -> list[Row]:
    """What each trick gives over the one before it, from the plain reference to the product."""
    rows = []
    for name, preset, fields, count in (
        ("micro", "cifar10-vit-micro", MICRO, 3),
        ("tiny", "cifar10-vit-tiny", TINY, 1),
    ):
        own = sides(preset, fields)
        names = list(own)
        variants = [(names[-4], last) for last in names[-3:]]
        for before, after in [*itertools.pairwise(names[:-3]), *variants]:
            title = f"{name} {after}"
            result = measured(title, own[before], own[after], rounds, count)
            rows.append(row(title, result, own[after]))
    return rows


def scaling(rounds: int) -> list[Row]:
    """`cifar10-vit-micro` as batch, image, depth or processes grow, against the preset."""
    base = Side("cifar10-vit-micro", {})
    changes = {
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
