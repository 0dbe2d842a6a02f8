"""What a run will cost: operations, memory and time, counted on tensors without data."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.compute import cpu_kernels
from lib.compute.acceleration import choose_kernels
from lib.compute.device import pick_device, settle_precision
from lib.errors import check_number
from lib.masking import masks_from_noise, num_visible
from lib.models import MAE
from lib.presets import Config


def gemm_peak(precision: str, device: torch.device, size: int = 2048, repeats: int = 8) -> float:
    """FLOP/s of the best of `repeats` products of two square matrices, on all threads.

    precision: fp32, bf16 or fp64; fp32 in place of bf16 where a training would take it as well
    (`settle_precision`). size: rows of the matrices.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    dtype = dtypes[settle_precision(precision, device)[0]]
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(repeats):
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Cost:
    """What a run needs."""

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
        """Bytes on one device, without the libraries."""
        return self.state_bytes + self.activation_bytes * self.micro_batch

    def seconds(self, flops_per_second: float) -> float:
        """Of the whole run at this rate of useful work."""
        return self.flops * self.images * self.epochs / flops_per_second

    def describe(self, flops_per_second: float) -> str:
        """One line for a person."""
        total = self.flops * self.images * self.epochs
        parts = (
            f"{self.parameters / 1e6:.1f} M parameters",
            f"{self.flops / 1e9:.3g} GFLOP an image, {total / 1e15:.3g} PFLOP in {self.epochs} "
            f"epochs of {self.images:,} images",
            f"memory at least {self.memory / 2**30:.2g} GiB for {self.micro_batch} images at once",
            f"at {flops_per_second / 1e12:.3g} TFLOP/s {duration(self.seconds(flops_per_second))}",
        )
        return "; ".join(parts)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h or 5.1 days; "less than 1 s" below that."""
    if seconds < 1:
        return "less than 1 s"
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def estimate(config: Config, images: int, processes: int = 1) -> Cost:
    """The cost of a run on `images` training images.

    One step on fake tensors: they have shapes and no data, so nothing is computed, and any preset
    can be estimated on any machine. What grows with the batch is what an image costs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    check_number("processes", processes, 1, whole=True)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        mae = MAE(config)
    parameters = sum(p.numel() for p in mae.parameters() if p.requires_grad)
    with FakeTensorMode(allow_non_fake_inputs=True), cpu_kernels.shapes_only():
        mae.to_empty(device="cpu")
        # Without the kernels attention is written as products, and every product is counted.
        cpu = torch.device("cpu")
        choose_kernels(mae, cpu, "bf16", compiled=not _takes_kernels(config))
        small, large = (_count_step(mae, config, batch) for batch in (2, 4))
    flops, activations = ((b - a) / 2 for a, b in zip(small, large, strict=True))
    per_epoch = images // config.batch_size * config.batch_size
    micro_batch = config.batch_size // config.accum_steps // processes
    return Cost(parameters, flops, activations, per_epoch, config.epochs, micro_batch)


def precision_of(config: Config) -> str:
    """What a training of `config` computes in on this machine: fp32, bf16 or fp64."""
    return settle_precision(config.precision, pick_device(config.device))[0]


def _takes_kernels(config: Config) -> bool:
    """Whether training would ask for the CPU kernels."""
    cpu = pick_device(config.device).type == "cpu"
    return cpu and precision_of(config) == "bf16" and not config.compile


def _count_step(mae: MAE, config: Config, batch: int) -> tuple[int, int]:
    """(FLOP, bytes kept for the backward pass) of one step on `batch` images."""
    from torch.utils.flop_counter import FlopCounterMode

    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return x

    images = torch.empty(batch, config.channels, config.image_size, config.image_size)
    noise = torch.empty(batch, config.num_patches)
    masks = masks_from_noise(noise, num_visible(config.num_patches, config.mask_ratio))
    autocast: Any = torch.autocast("cpu", torch.bfloat16, enabled=precision_of(config) == "bf16")
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with FlopCounterMode(display=False) as counter, saving:
        with autocast:
            latent, pred = mae(images, masks)
        (latent.float().sum() + pred.float().sum()).backward()
    return counter.get_total_flops(), sum(kept.values())
