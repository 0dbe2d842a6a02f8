"""Compiles kernels.c for this machine, once, and calls it on tensors: bf16 activations on a CPU.

Every function takes contiguous tensors, of rows whose length D is a multiple of COLUMNS, and returns new ones.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu_kernels.c")


FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"]


if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")


BF16 = torch.bfloat16


COLUMNS = 32


def _processor() -> str:
    """What decides the instructions that -march=native chooses."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return "".join(
        sorted(
            {
                line
                for line in text.splitlines()
                if line.startswith(("flags", "Features", "model name"))
            }
        )
    )


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled kernels, "") or (None, why there are none).

    Compiled by $CC, else cc, and kept in the user's cache folder under a digest of all that decides the result, or for
    this process alone where that folder cannot be written. The threads are those of torch's own OpenMP: its symbols are
    in the process already, and the library names no other to load.
    """
    compiler = os.environ.get("CC", "cc")
    key = hashlib.sha256(
        "\n".join([SOURCE.read_text(), *FLAGS, compiler, _processor()]).encode()
    ).hexdigest()[:16]
    kept = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "umae-notebooks"
        / f"kernels-{key}.so"
    )
    try:
        if kept.is_file():
            return ctypes.CDLL(str(kept)), ""
        with tempfile.TemporaryDirectory() as scratch:
            part, made = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
            for arguments in (
                [*FLAGS, "-c", str(SOURCE), "-o", str(part)],
                ["-shared", str(part), "-o", str(made)],
            ):
                subprocess.run(
                    [compiler, *arguments], check=True, capture_output=True, text=True, timeout=120
                )
            library = ctypes.CDLL(str(made))
            _keep(made, kept)
        return library, ""
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or str(error)).strip().split("\n")
        return None, next((line for line in lines if "error" in line), lines[0])
    except (
        OSError,
        RuntimeError,
        subprocess.SubprocessError,
    ) as error:  # Path.home() may know none
        return None, str(error).split("\n")[0]


def _keep(made: Path, kept: Path) -> None:
    """Copies under a name of its own and renames: several processes may do so at once."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        own = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, own)
        own.replace(kept)
    except OSError:
        pass


_computing = True


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, every function returns tensors of the right shape and computes nothing: for tensors without data."""
    global _computing
    _computing = False
    try:
        yield
    finally:
        _computing = True


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    if not _computing:
        return
    values: list[Any] = []
    for a in arguments:
        if a is None or isinstance(a, Tensor):
            assert a is None or (a.is_contiguous() and a.device.type == "cpu")
            values.append(ctypes.c_void_p(None if a is None else a.data_ptr()))
        else:
            values.append(ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a))
    getattr(load()[0], name)(*values, ctypes.c_int(torch.get_num_threads()))


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _sums(*shape: int) -> Tensor:
    return torch.empty(torch.get_num_threads(), *shape)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of x (..., D) float32 -> (bf16 of the same shape, mean (R,), 1 / deviation (R,) of its R rows)."""
    rows, dim = _rows(x)
    out, mean, rstd = torch.empty_like(x, dtype=BF16), torch.empty(rows), torch.empty(rows)
    _call("norm_forward", x, weight, bias, eps, rows, dim, out, mean, rstd)
    return out, mean, rstd


def norm_backward(
    d_out: Tensor, past: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the gradient of x plus `past`, the output of norm_forward again, the gradients of weight and bias)."""
    rows, dim = _rows(x)
    d_x, out, sums = torch.empty_like(x), torch.empty_like(d_out), _sums(2, dim)
    _call("norm_backward", d_out, past, x, mean, rstd, weight, bias, rows, dim, d_x, out, sums)
    d_weight, d_bias = sums.sum(0)
    return d_x, out, d_weight, d_bias


def gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x (R, D) + bias (D,)."""
    out = torch.empty_like(x)
    _call("gelu_forward", x, bias, *_rows(x), out)
    return out


def gelu_backward(d_out: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the gradient of x, the output of gelu_forward again, the gradient of bias)."""
    d_x, out, sums = torch.empty_like(x), torch.empty_like(x), _sums(x.shape[-1])
    _call("gelu_backward", d_out, x, bias, *_rows(x), d_x, out, sums)
    return d_x, out, sums.sum(0)


def add_forward(x: Tensor, y: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    """x (B, N, D) float32 + scale (B,) * (y (B * N, D) + bias)."""
    out = torch.empty_like(x)
    rows, dim = _rows(x)
    _call("add_forward", x, y, bias, scale, rows, x.shape[1], dim, out)
    return out


def add_backward(d_out: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """d_out (B, N, D) -> (the gradient of y (B * N, D), that of bias)."""
    rows, dim = _rows(d_out)
    d_y, sums = torch.empty(rows, dim, dtype=BF16), _sums(dim)
    _call("add_backward", d_out, scale, rows, d_out.shape[1], dim, d_y, sums)
    return d_y, sums.sum(0)


def split_heads(
    x: Tensor, bias: Tensor, ids: Tensor | None, images: int, own: int, heads: int
) -> Tensor:
    """x (B * own + L, 3D) + bias -> q, k, v (3, B, heads, own + R, D / heads); ids (B, R) are rows of the last L."""
    tokens, dim = own + (0 if ids is None else ids.shape[1]), x.shape[1] // 3 // heads
    out = torch.empty(3, images, heads, tokens, dim, dtype=BF16)
    _call("split_heads", x, bias, ids, images, tokens, own, heads, dim, out)
    return out


def merge_heads(
    d_q: Tensor, d_kv: Tensor, ids: Tensor | None, own: int, table: int
) -> tuple[Tensor, Tensor]:
    """d_q (B, heads, wanted, d), d_kv (2, B, heads, N, d) -> the gradients of split_heads' x and bias."""
    _, images, heads, tokens, dim = d_kv.shape
    d_x, sums = (
        torch.empty(images * own + table, 3 * heads * dim, dtype=BF16),
        _sums(1 + table, 3 * heads * dim),
    )
    _call(
        "merge_heads",
        d_q,
        d_kv,
        ids,
        images,
        tokens,
        own,
        d_q.shape[2],
        table,
        heads,
        dim,
        d_x,
        sums,
    )
    total = sums.sum(0)
    d_x[images * own :] = total[1:]
    return d_x, total[0]


def swap_heads(x: Tensor) -> Tensor:
    """x (B, h, N, d) bf16 -> (B, N, h, d)."""
    out = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=BF16)
    _call("swap_heads", x, *x.shape, out)
    return out


def softmax_(x: Tensor, scale: float) -> Tensor:
    """softmax of scale * x over its last dimension, in place."""
    _call("softmax_forward", x, scale, *_rows(x))
    return x


def softmax_backward_(y: Tensor, d_y: Tensor, scale: float) -> Tensor:
    """The gradient of softmax_'s x from its result and the gradient of that, in the place of the latter."""
    _call("softmax_backward", y, d_y, scale, *_rows(y))
    return d_y
