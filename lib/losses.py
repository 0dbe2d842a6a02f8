"""Eq. 2 (reconstruction) and Eq. 8/9 (uniformity): what U-MAE minimises is reconstruction + lam * uniformity.

Every uniformity form sees the features through a LayerNorm without affine parameters, so |f|^2 = D: without it
Eq. 9 has no minimum (theory.md, b), and `lam` means the same at every width. All are computed from sums over the
batch, O(B D^2) at most, never from the B x B matrix of pairs; with several processes only the sums travel, with
their gradient, so value and gradient are those of the global batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lib.errors import InputError

UNIFORMITY_FORMS = ("spectral", "released", "euclidean")


def normalise_patches(patches: Tensor) -> Tensor:
    """`norm_pix_loss`: each patch (..., P*P*C) to mean 0 and variance 1 (unbiased, eps 1e-6, as MAE)."""
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def reconstruction_loss(pred: Tensor, target: Tensor, norm_pix_loss: bool = False) -> Tensor:
    """Eq. 2 on the removed patches: pred, target (B, L-S, P*P*C) -> scalar.

    A mean over patches and pixels, as in MAE; the paper prints a sum, which is (L-S)*P*P*C times this.
    """
    target = target.to(torch.promote_types(pred.dtype, torch.float32))
    if norm_pix_loss:
        target = normalise_patches(target)
    return F.mse_loss(pred.to(target.dtype), target)


class _GlobalSum(torch.autograd.Function):
    """Sum over processes; the gradient of every process's value reaches every process's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _global_sums(local: bool, *sums: Tensor) -> list[Tensor]:
    """Each tensor summed over all processes, in one message."""
    if local or not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(sums)
    packed: Tensor = _GlobalSum.apply(torch.cat([s.reshape(-1) for s in sums]))  # type: ignore[assignment]
    return [part.view_as(s) for part, s in zip(packed.split([s.numel() for s in sums]), sums, strict=True)]


def uniformity_loss(features: Tensor, form: str = "spectral", local: bool = False) -> Tensor:
    """The uniformity term of U-MAE: features (B, D) of B independent visible views -> scalar, to be minimised.

    With f = LayerNorm(features), cos_ij = f_i.f_j / D and i != j ranging over the pairs of different views:

    - "spectral" (default): D * mean_{i!=j} cos_ij^2, an unbiased estimate of tr(C^2)/D for the second moment
      C = E[f f^T]: 1 when all directions are used alike, D when the features lie on one line.
    - "released": mean_{i,j} cos_ij^2 with the diagonal, the form of the authors' code (whose lambda is 0.01).
    - "euclidean": -mean_{i!=j} |f_i - f_j|^2, Eq. 9 as printed; in [-4D, 0], and only about the mean of f.

    In a distributed run the views are those of all processes, unless `local`. The authors' gather passes the gradient
    to the local slice only, which DDP then averages, so their lambda acts as lambda / processes; ours does not depend
    on the number.
    Raises InputError for an unknown form or fewer than 2 views.
    """
    if form not in UNIFORMITY_FORMS:
        raise InputError(f"uniformity must be one of {', '.join(UNIFORMITY_FORMS)}, got {form!r}")
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"uniformity needs features of shape (B >= 2, D), got {tuple(features.shape)}")
    dim = features.shape[-1]
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        f = F.layer_norm(features.to(dtype), (dim,))
        views = f.new_full((), len(f))
        if form == "euclidean":
            total, count = _global_sums(local, f.sum(0), views)
            (spread,) = _global_sums(local, (f - total / count).square().sum())
            return -2 * spread / (count - 1)
        squares = f.square().sum(-1).square().sum()
        moment, diagonal, count = _global_sums(local, f.T @ f, squares, views)
        together = moment.square().sum() / dim**2
        if form == "released":
            return together / count.square()
        return dim * (together - diagonal / dim**2) / (count * (count - 1))
