"""Compiles cpu_kernels.c for this machine, once, and calls it on tensors.

The kernels compute what lies between the matrix products of a transformer block, for bf16
activations on a CPU. Every function takes contiguous tensors whose rows have a length D that is a
multiple of COLUMNS (softmax: any length), and returns new ones.
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

import platformdirs
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled kernels, "") or (None, why there are none).

    They are compiled by $CC, or by cc, and kept in the user's cache folder under a digest of all
    that decides the result. Where that folder cannot be written they serve this process alone.
    The threads are those of torch's own OpenMP: its symbols are in the process already, and the
    library names no other to load.
    """
    compiler = os.environ.get("CC", "cc")
    decides = "\n".join([SOURCE.read_text(), *FLAGS, compiler, _processor()])
    key = hashlib.sha256(decides.encode()).hexdigest()[:16]
    try:
        kept = platformdirs.user_cache_path("umae-notebooks") / f"kernels-{key}.so"
        if kept.is_file():
            return ctypes.CDLL(str(kept)), ""
        with tempfile.TemporaryDirectory() as scratch:
            made = _compile(compiler, Path(scratch))
            library = ctypes.CDLL(str(made))
            _keep(made, kept)
        return library, ""
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or str(error)).strip().split("\n")
        return None, next((line for line in lines if "error" in line), lines[0])
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, str(error).split("\n")[0]


def _compile(compiler: str, folder: Path) -> Path:
    """The library, made in `folder`."""
    part, made = folder / "kernels.o", folder / "kernels.so"
    for arguments in (
        [*FLAGS, "-c", str(SOURCE), "-o", str(part)],
        ["-shared", str(part), "-o", str(made)],
    ):
        command = [compiler, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return made


def _keep(made: Path, kept: Path) -> None:
    """Copies under another name and renames: several processes may do so at once."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        copy = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, copy)
        copy.replace(kept)
    except OSError:
        pass


_computing = True


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, every function returns tensors of the right shape and computes nothing.

    For tensors without data.
    """
    global _computing
    _computing = False
    try:
        yield
    finally:
        _computing = True


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    if not _computing:
        return
    values = [_c_value(a) for a in arguments]
    getattr(load()[0], name)(*values, ctypes.c_int(torch.get_num_threads()))


def _c_value(value: Tensor | int | float | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        assert value.is_contiguous() and value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def _rows(x: Tensor) -> tuple[int, int]:
    """(R, D) of x (..., D)."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _partial_sums(*shape: int) -> Tensor:
    """Room for the sum of every thread."""
    return torch.empty(torch.get_num_threads(), *shape)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of x (..., D) float32, of R rows.

    Returns (the result in bf16, of the same shape; mean (R,); 1 / deviation (R,)).
    """
    rows, dim = _rows(x)
    out, mean, rstd = torch.empty_like(x, dtype=BF16), torch.empty(rows), torch.empty(rows)
    _call("norm_forward", x, weight, bias, eps, rows, dim, out, mean, rstd)
    return out, mean, rstd


def norm_backward(
    d_out: Tensor,
    residual: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of norm_forward, from that of its output, d_out (..., D) bf16.

    residual (..., D) float32: the gradient that reaches x past the norm, on the residual path.
    Returns (the gradient of x, `residual` included; the output of norm_forward again; the
    gradients of weight and bias).
    """
    rows, dim = _rows(x)
    d_x, out, sums = torch.empty_like(x), torch.empty_like(d_out), _partial_sums(2, dim)
    _call("norm_backward", d_out, residual, x, mean, rstd, weight, bias, rows, dim, d_x, out, sums)
    d_weight, d_bias = sums.sum(0)
    return d_x, out, d_weight, d_bias


def gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x (R, D) bf16 + bias (D,)."""
    out = torch.empty_like(x)
    _call("gelu_forward", x, bias, *_rows(x), out)
    return out


def gelu_backward(d_out: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the gradient of x, the output of gelu_forward again, the gradient of bias)."""
    d_x, out, sums = torch.empty_like(x), torch.empty_like(x), _partial_sums(x.shape[-1])
    _call("gelu_backward", d_out, x, bias, *_rows(x), d_x, out, sums)
    return d_x, out, sums.sum(0)


def add_forward(x: Tensor, y: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    """x (B, N, D) float32 + scale (B,) * (y (B * N, D) bf16 + bias (D,)); None scales by 1."""
    out = torch.empty_like(x)
    rows, dim = _rows(x)
    _call("add_forward", x, y, bias, scale, rows, x.shape[1], dim, out)
    return out


def add_backward(d_out: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """d_out (B, N, D) float32 -> (the gradient of y (B * N, D) bf16, the gradient of bias)."""
    rows, dim = _rows(d_out)
    d_y, sums = torch.empty(rows, dim, dtype=BF16), _partial_sums(dim)
    _call("add_backward", d_out, scale, rows, d_out.shape[1], dim, d_y, sums)
    return d_y, sums.sum(0)


def split_heads(
    x: Tensor, bias: Tensor, ids: Tensor | None, images: int, own: int, heads: int
) -> Tensor:
    """x (B * own + L, 3D) bf16 + bias (3D,) -> q, k, v (3, B, heads, own + R, D / heads).

    Every image has `own` rows of x, and R more among the last L rows, which ids (B, R) name.
    """
    tokens, dim = own + (0 if ids is None else ids.shape[1]), x.shape[1] // 3 // heads
    out = torch.empty(3, images, heads, tokens, dim, dtype=BF16)
    _call("split_heads", x, bias, ids, images, tokens, own, heads, dim, out)
    return out


def merge_heads(
    d_q: Tensor, d_kv: Tensor, ids: Tensor | None, own: int, table: int
) -> tuple[Tensor, Tensor]:
    """The gradients of split_heads' x and bias, with L = `table`.

    d_q (B, heads, wanted, d): of the queries of the last `wanted` tokens. d_kv (2, B, heads, N, d):
    of the keys and values of all tokens.
    """
    _, images, heads, tokens, dim = d_kv.shape
    wanted, width = d_q.shape[2], 3 * heads * dim
    d_x = torch.empty(images * own + table, width, dtype=BF16)
    sums = _partial_sums(1 + table, width)
    sizes = (images, tokens, own, wanted, table, heads, dim)
    _call("merge_heads", d_q, d_kv, ids, *sizes, d_x, sums)
    total = sums.sum(0)
    d_x[images * own :] = total[1:]
    return d_x, total[0]


def swap_heads(x: Tensor) -> Tensor:
    """x (B, h, N, d) bf16 -> (B, N, h, d)."""
    out = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=BF16)
    _call("swap_heads", x, *x.shape, out)
    return out


def softmax_(x: Tensor, scale: float) -> Tensor:
    """softmax of scale * x (..., D) bf16 over its last dimension, in place."""
    _call("softmax_forward", x, scale, *_rows(x))
    return x


def softmax_backward_(y: Tensor, d_y: Tensor, scale: float) -> Tensor:
    """The gradient of softmax_'s x, in the place of d_y, from its result y and that one's d_y."""
    _call("softmax_backward", y, d_y, scale, *_rows(y))
    return d_y
