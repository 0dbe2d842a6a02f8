"""How a step is computed on this machine, never what: allocator, precision, passes, compiler; and what it will cost.

Every choice falls back by itself where the machine lacks something, and says so in one line.
"""

import ctypes
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import kernels
from lib.machine import pick_device
from lib.masking import masks_from_noise, num_visible
from lib.models import MAE
from lib.presets import Config


def keep_heap() -> bool:
    """Makes glibc keep freed memory for the next step instead of giving it back to the system page by page.

    A step allocates and frees the same activations every time; by default blocks over 32 MiB are mapped and unmapped,
    and every page of them is zeroed by the kernel again. mallopt(3): no mmap, no trimming, 64 MiB more at a time.
    False, and no harm, where the C library is another.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 * 2**20)))


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def settle_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """(the precision to compute in, a line to print or ""): bf16 becomes fp32 where it is not in hardware."""
    if precision == "bf16" and not has_bf16(device):
        return "fp32", f"precision bf16: this {device.type} has no bfloat16 arithmetic, float32 is used instead"
    return precision, ""


def choose_passes(model: nn.Module, device: torch.device, precision: str, compiled: bool = False) -> str:
    """How the blocks of `model` compute what lies between their matrix products; returns a line to print, or "".

    In bf16 on a CPU by our own passes (lib.fused), each over memory once; without them attention as plain batched
    products, since the backward of torch's fused kernel takes 5 to 9 times as long on sequences of 17 to 65 tokens
    (bench ladder). Everywhere else, and in `compiled` blocks, by torch's operations.
    """
    low, why = device.type == "cpu" and precision == "bf16", ""
    blocks: list[Any] = [module for module in model.modules() if hasattr(module, "drop_path1")]
    if low and not compiled:
        narrow = [block.norm1.weight.shape[0] for block in blocks if block.norm1.weight.shape[0] % kernels.COLUMNS]
        why = f"width {narrow[0]} is not a multiple of {kernels.COLUMNS}" if narrow else kernels.load()[1]
    for block in blocks:
        block.fused = low and not compiled and not why
        block.attn.fused_attn = not low
    return f"passes: torch's operations instead of our own, slower by a third ({why})" if why else ""


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, without waiting for what the device is doing: a copy from pageable memory would."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def compile_blocks(mae: Any, device: torch.device) -> str:
    """torch.compile for every transformer block: all encoder blocks share one program, all decoder blocks another.

    Returns a line to print if the compiler does not work here ("" if it does); the blocks then stay as they are.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:100]
        return f"compile: torch.compile does not work here ({type(error).__name__}: {reason}), running without it"
    for block in (*mae.encoder.blocks, *mae.decoder_blocks):
        block.compile()
    return ""


def gemm_peak(precision: str, device: torch.device, size: int = 2048, repeats: int = 8) -> float:
    """FLOP/s of the best of `repeats` square matrix products in this precision, on all threads of this process."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[precision]
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


@dataclass(frozen=True)
class Cost:
    """What a run needs: counted on tensors without data, so for any preset on any machine, in seconds."""

    parameters: int
    flops: float  # of matrix products and attention, per image: forward and backward
    activation_bytes: float  # kept for the backward pass, per image
    images: int  # per epoch
    epochs: int
    micro_batch: int  # images in memory at once, per process

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments in float32."""
        return 16 * self.parameters

    @property
    def memory(self) -> float:
        """Bytes on one device, without the library itself."""
        return self.state_bytes + self.activation_bytes * self.micro_batch

    def seconds(self, flops_per_second: float) -> float:
        """Of the whole run at this rate of useful work."""
        return self.flops * self.images * self.epochs / flops_per_second

    def describe(self, flops_per_second: float) -> str:
        total = self.flops * self.images * self.epochs
        return (
            f"{self.parameters / 1e6:.1f} M parameters; {self.flops / 1e9:.3g} GFLOP an image, {total / 1e15:.3g} "
            f"PFLOP in {self.epochs} epochs of {self.images:,} images; memory at least {self.memory / 2**30:.2g} GiB "
            f"for {self.micro_batch} images at once; at {flops_per_second / 1e12:.3g} TFLOP/s "
            f"{duration(self.seconds(flops_per_second))}"
        )


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h or 5.1 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def estimate(config: Config, images: int, processes: int = 1) -> Cost:
    """The cost of a run on `images` training images, from one step on fake tensors (shapes only, nothing computed)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        mae = MAE(config)
    parameters = sum(p.numel() for p in mae.parameters() if p.requires_grad)
    counted, device = [], pick_device(config.device)
    own = device.type == "cpu" and settle_precision(config.precision, device)[0] == "bf16" and not config.compile
    with FakeTensorMode(allow_non_fake_inputs=True), kernels.shapes_only():
        mae.to_empty(device="cpu")
        choose_passes(mae, torch.device("cpu"), "bf16", compiled=not own)  # in products: every one is counted
        for batch in (2, 4):
            kept: dict[int, int] = {}

            def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
                return x

            x = torch.empty(batch, config.channels, config.image_size, config.image_size)
            noise = torch.empty(batch, config.num_patches)
            masks = masks_from_noise(noise, num_visible(config.num_patches, config.mask_ratio))
            precision = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
            with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                with precision:
                    latent, pred = mae(x, masks)
                (latent.float().sum() + pred.float().sum()).backward()
            counted.append((counter.get_total_flops(), sum(kept.values())))
    flops, activations = ((b - a) / 2 for a, b in zip(*counted, strict=True))  # what grows with the batch
    per_epoch = images // config.batch_size * config.batch_size
    micro = config.batch_size // config.accum_steps // processes
    return Cost(parameters, flops, activations, per_epoch, config.epochs, micro)
