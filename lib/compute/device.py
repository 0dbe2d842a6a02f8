"""The device of a run: which one, its precision, its memory, its cores."""

from collections.abc import Iterator
from contextlib import contextmanager

import joblib
import torch
from torch import Tensor

from lib.errors import InputError


def pick_device(name: str) -> torch.device:
    """ "auto": the GPU if there is one, else the CPU. InputError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(
            f"device {name!r} is not available here; use auto, cpu, or a cuda device that exists"
        ) from None


@contextmanager
def clear_memory_errors(advice: str) -> Iterator[None]:
    """Out of memory, on a GPU or not, as one line that ends with `advice` for a person."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            detail = str(error).split(". ")[0].split("\n")[0]
        elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            detail = "CPU"
        else:
            raise
        raise InputError(f"out of memory ({detail}); {advice}") from None


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def settle_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """(the precision to compute in, why it is another than asked for, or "")

    bf16 becomes fp32 where the device has no hardware for it.
    """
    if precision == "bf16" and not has_bf16(device):
        why = f"bf16: this {device.type} has no bfloat16 arithmetic, float32 is used instead"
        return "fp32", why
    return precision, ""


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. Pinned memory does not wait for what a GPU is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def cores() -> int:
    """CPU cores that this process may use."""
    return joblib.cpu_count()
