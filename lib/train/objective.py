"""What is minimised and how: the U-MAE loss of a batch, the schedule, the optimiser."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from lib.compute.generator import generator
from lib.losses import effective_rank, reconstruction_loss, uniformity_loss
from lib.masking import Masks, masks_from_noise, num_visible
from lib.models import MAE, pool_tokens
from lib.presets import POOLS, Config

TERMS = ("loss", "reconstruction", "uniformity")


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to zero, per step (He et al. 2021)."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.peak_lr * min(1.0, (step + 1) / warmup)
    done = (step - warmup) / max(1.0, total - warmup)
    return config.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


class Objective(nn.Module):
    """The U-MAE loss of a batch, and an online linear layer on the detached features.

    The online layers, one for the class token and one for the mean of the patch tokens, are
    trained along with the encoder and send it no gradient.
    """

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.config = config
        self.mae = MAE(config)
        self.heads = nn.ModuleDict({pool: nn.Linear(config.embed_dim, classes) for pool in POOLS})

    def forward(self, images: Tensor, masks: Masks, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W), labels (B,), -1 if held out -> (total loss, TERMS (3,) detached)."""
        c = self.config
        latent, pred = self.mae(images, masks)
        target = self.mae.targets(images, masks)
        reconstruction = reconstruction_loss(pred, target, c.norm_pix_loss)
        uniformity = self.uniformity(latent if c.lam else latent.detach())
        loss = reconstruction + c.lam * uniformity if c.lam else reconstruction
        terms = torch.stack([loss, reconstruction, uniformity]).detach()
        return loss + self._online_loss(latent, labels), terms

    def uniformity(self, latent: Tensor) -> Tensor:
        """The uniformity term of latent (B, 1+S, D), without its coefficient."""
        c = self.config
        features = self.mae.uniformity_features(latent, c.pool, c.uniformity)
        return uniformity_loss(features, c.uniformity)

    def _online_loss(self, latent: Tensor, labels: Tensor) -> Tensor:
        losses = []
        for pool, head in self.heads.items():
            logits = head(pool_tokens(latent, pool).detach()).float()
            losses.append(F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"))
        return torch.stack(losses).sum() / len(labels)


def build_optimizer(objective: Objective, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the online heads have their own constant rate.

    betas (0.9, 0.95) as in MAE (He et al. 2021, Table 8).
    """
    decay = objective.config.weight_decay
    no_decay = ("mask_token", "encoder.cls_token")
    groups = param_groups_weight_decay(objective.mae, decay, no_weight_decay_list=no_decay)
    groups = [{**group, "scheduled": True} for group in groups]
    heads = list(objective.heads.parameters())
    groups.append({"params": heads, "weight_decay": 0.0, "lr": 1e-3, "scheduled": False})
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=fused)


@torch.no_grad()
def measure(
    objective: Objective, batches: Iterable[Tensor], labels: Tensor, autocast: Callable[[], Any]
) -> dict[str, float]:
    """Reconstruction, uniformity, effective rank and the online layers' accuracy in percent.

    batches of images (B, C, H, W), normalised, in the order of labels (N,). The class token and
    the mean of the patch tokens are seen on masked and on full images, with the same masks every
    time.
    """
    c = objective.config
    dtype, visible = objective.mae.mask_token.dtype, num_visible(c.num_patches, c.mask_ratio)
    noise = torch.rand(len(labels), c.num_patches, generator=generator(0, "measure"))
    noise = noise.to(labels.device)
    found: dict[str, list[Tensor]] = {f"{p}_{v}": [] for p in POOLS for v in ("masked", "full")}
    reconstruction, first = 0.0, 0
    for images in batches:
        own = noise[first : first + len(images)]
        first += len(images)
        masks = masks_from_noise(own, visible)
        with autocast():
            latent, pred = objective.mae(images, masks)
            full = objective.mae.encode(images, masks_from_noise(own, c.num_patches))
        target = objective.mae.targets(images, masks)
        loss = reconstruction_loss(pred, target, c.norm_pix_loss)
        reconstruction += loss.item() * len(images) / len(labels)
        for pool in POOLS:
            found[f"{pool}_masked"].append(pool_tokens(latent, pool).to(dtype))
            found[f"{pool}_full"].append(pool_tokens(full, pool).to(dtype))
    features = {name: torch.cat(parts) for name, parts in found.items()}
    return {"reconstruction": reconstruction, **_feature_measures(objective, features, labels)}


def _feature_measures(
    objective: Objective, features: dict[str, Tensor], labels: Tensor
) -> dict[str, float]:
    out = {}
    for name, f in features.items():
        head = objective.heads[name.split("_")[0]]
        out[f"online_{name}"] = 100 * (head(f).argmax(1) == labels).double().mean().item()
    for pool in POOLS:
        masked = features[f"{pool}_masked"]
        out[f"rank_{pool}"] = effective_rank(masked)
        out[f"spectral_{pool}"] = uniformity_loss(masked.double(), local=True).item()
    return out
