"""What is minimised and how: the U-MAE loss of a batch, the schedule, the optimiser, the random streams."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.compute.generator import stream
from lib.data.datasets import Dataset, Split
from lib.losses import effective_rank, reconstruction_loss, uniformity_loss
from lib.masking import Masks, masks_from_noise, num_visible
from lib.models import MAE, POOLS, pool_tokens
from lib.presets import Config

TERMS = ("loss", "reconstruction", "uniformity")


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to zero, per step (He et al. 2021)."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.peak_lr * min(1.0, (step + 1) / warmup)
    return (
        config.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    )


class Objective(nn.Module):
    """The U-MAE loss of one batch, and an online linear layer on the detached class token and mean token."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.config = config
        self.mae = MAE(config)
        self.heads = nn.ModuleDict({pool: nn.Linear(config.embed_dim, classes) for pool in POOLS})

    def forward(self, images: Tensor, masks: Masks, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W), labels (B,) with -1 for held out -> (total to differentiate, detached TERMS (3,))."""
        c = self.config
        latent, pred = self.mae(images, masks)
        reconstruction = reconstruction_loss(pred, self.mae.targets(images, masks), c.norm_pix_loss)
        features = pool_tokens(latent, c.pool)
        uniformity = uniformity_loss(features if c.lam else features.detach(), c.uniformity)
        loss = reconstruction + c.lam * uniformity if c.lam else reconstruction
        online = sum(
            F.cross_entropy(
                head(pool_tokens(latent, pool).detach()).float(),
                labels,
                ignore_index=-1,
                reduction="sum",
            )
            for pool, head in self.heads.items()
        ) / len(labels)
        return loss + online, torch.stack([loss, reconstruction, uniformity]).detach()


def build_optimizer(objective: Objective, device: torch.device) -> torch.optim.AdamW:
    """Weight decay on matrices only; the online heads have their own constant rate."""
    named = [(n, p) for n, p in objective.mae.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim > 1 and not n.endswith(("_token", "pos_embed"))]
    chosen = {id(p) for p in decayed}
    plain = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": objective.config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": objective.heads.parameters(), "weight_decay": 0.0, "lr": 1e-3},
    ]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, 0.95), fused=device.type in ("cpu", "cuda")
    )


@torch.no_grad()
def measure(
    objective: Objective, data: Dataset, source: Split, ids: Tensor, autocast: Callable[[], Any]
) -> dict[str, float]:
    """Reconstruction, uniformity, effective rank and the online layer's accuracy (percent) on images `ids` of `source`.

    The class token and the mean token are seen on masked and on full images, with the same masks every time.
    """
    c, weight = objective.config, objective.mae.mask_token
    device, dtype, visible = weight.device, weight.dtype, num_visible(c.num_patches, c.mask_ratio)
    noise = torch.rand(len(ids), c.num_patches, generator=stream(0, "measure"))
    feats: dict[str, list[Tensor]] = {
        f"{pool}_{view}": [] for pool in POOLS for view in ("masked", "full")
    }
    reconstruction, chunks = 0.0, list(torch.arange(len(ids)).split(500))
    for chunk, images in zip(chunks, data.batches(source, [ids[k] for k in chunks]), strict=True):
        x = data.normalize(images.to(device), dtype)
        masks = masks_from_noise(noise[chunk].to(device), visible)
        with autocast():
            latent, pred = objective.mae(x, masks)
            full = objective.mae.encode(x, masks_from_noise(noise[chunk].to(device), c.num_patches))
        target = objective.mae.targets(x, masks)
        reconstruction += (
            reconstruction_loss(pred, target, c.norm_pix_loss).item() * len(chunk) / len(ids)
        )
        for pool in POOLS:
            feats[f"{pool}_masked"].append(pool_tokens(latent, pool).to(dtype))
            feats[f"{pool}_full"].append(pool_tokens(full, pool).to(dtype))
    whole = {name: torch.cat(parts) for name, parts in feats.items()}
    labels = source.labels[ids].to(device)
    out = {"reconstruction": reconstruction}
    for name, f in whole.items():
        head = objective.heads[name.split("_")[0]]
        out[f"online_{name}"] = 100 * (head(f).argmax(1) == labels).double().mean().item()
    for pool in POOLS:
        out[f"rank_{pool}"] = effective_rank(whole[f"{pool}_masked"])
        out[f"spectral_{pool}"] = uniformity_loss(
            whole[f"{pool}_masked"].double(), local=True
        ).item()
    return out
