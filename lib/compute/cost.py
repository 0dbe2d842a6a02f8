"""How a step is computed on this machine, never what: allocator, precision, passes, compiler; and what it will cost.

Every choice falls back by itself where the machine lacks something, and says so in one line.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.compute import cpu_kernels as kernels
from lib.compute.acceleration import choose_kernels
from lib.compute.device import pick_device, settle_precision
from lib.masking import masks_from_noise, num_visible
from lib.models import MAE
from lib.presets import Config


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
    own = (
        device.type == "cpu"
        and settle_precision(config.precision, device)[0] == "bf16"
        and not config.compile
    )
    with FakeTensorMode(allow_non_fake_inputs=True), kernels.shapes_only():
        mae.to_empty(device="cpu")
        choose_kernels(
            mae, torch.device("cpu"), "bf16", compiled=not own
        )  # in products: every one is counted
        for batch in (2, 4):
            kept: dict[int, int] = {}

            def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
                return x

            x = torch.empty(batch, config.channels, config.image_size, config.image_size)
            noise = torch.empty(batch, config.num_patches)
            masks = masks_from_noise(noise, num_visible(config.num_patches, config.mask_ratio))
            precision = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
            with (
                FlopCounterMode(display=False) as counter,
                torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            ):
                with precision:
                    latent, pred = mae(x, masks)
                (latent.float().sum() + pred.float().sum()).backward()
            counted.append((counter.get_total_flops(), sum(kept.values())))
    flops, activations = (
        (b - a) / 2 for a, b in zip(*counted, strict=True)
    )  # what grows with the batch
    per_epoch = images // config.batch_size * config.batch_size
    micro = config.batch_size // config.accum_steps // processes
    return Cost(parameters, flops, activations, per_epoch, config.epochs, micro)
