"""How a step is computed on this machine, never what: allocator, CPU kernels, compiler.

Every choice falls back by itself where the machine lacks something, and returns why.
"""

import ctypes

import torch
from torch import nn

from lib.compute import cpu_block, cpu_kernels
from lib.models import MAE, SparseBlock


def keep_heap() -> bool:
    """Makes glibc keep freed memory for the next step.

    A step allocates and frees the same activations every time. By default blocks over 32 MiB are
    mapped and unmapped, and the system zeroes every page of them again. mallopt(3): no mmap, no
    trimming, 64 MiB more at a time. False, and no harm, where the C library is another.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20))
    return all([mallopt(name, value) for name, value in settings])


def choose_kernels(
    model: nn.Module, device: torch.device, precision: str, compiled: bool = False
) -> str:
    """How the blocks of `model` compute what lies between their matrix products.

    In bf16 on a CPU by the CPU kernels of this package. Without them attention is plain batched
    products, since the backward of torch's fused kernel takes 5 to 9 times as long on sequences of
    17 to 65 tokens (docs/speed.md). Everywhere else, and in `compiled` blocks, by torch.
    Returns why the kernels are missing where they would help, or "".
    """
    bf16_on_cpu = device.type == "cpu" and precision == "bf16"
    blocks = [module for module in model.modules() if isinstance(module, SparseBlock)]
    missing = ""
    if bf16_on_cpu and not compiled:
        missing = _why_no_kernels(blocks)
    usable = bf16_on_cpu and not compiled and not missing
    for block in blocks:
        block.kernels = cpu_block.forward if usable else None
        block.attn.fused_attn = not bf16_on_cpu  # type: ignore[assignment]  # timm's flag
    return missing


def _why_no_kernels(blocks: list[SparseBlock]) -> str:
    """ "" if the CPU kernels can compute these blocks on this machine."""
    for block in blocks:
        (width,) = block.norm1.normalized_shape  # type: ignore[misc]
        if width % cpu_kernels.COLUMNS:
            return f"width {width} is not a multiple of {cpu_kernels.COLUMNS}"
    return cpu_kernels.load()[1]


def compile_blocks(mae: MAE, device: torch.device) -> str:
    """torch.compile for every transformer block.

    The blocks of the encoder share one program, those of the decoder another. Returns why the
    compiler does not work here (the blocks then stay as they are), or "".
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:100]
        return f"{type(error).__name__}: {reason}"
    for block in (*mae.encoder.blocks, *mae.decoder_blocks):
        block.compile()
    return ""
