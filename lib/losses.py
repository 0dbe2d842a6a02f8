"""U-MAE minimises reconstruction (Eq. 2) + lam * uniformity, a term in the place of Eq. 9.

Every form of uniformity sees features of one fixed length: without it Eq. 9 has no minimum
(docs/theory.md). All forms are computed from sums over the batch, O(B D^2) at most, never from the
B x B matrix of pairs. With several processes only the sums travel, with their gradient, so value
and gradient are those of the global batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lib.errors import InputError, check_choice

UNIFORMITY_FORMS = ("spectral", "released", "euclidean")


def normalise_patches(patches: Tensor) -> Tensor:
    """norm_pix_loss: each patch (..., P*P*C) to mean 0 and variance 1 (unbiased, eps 1e-6)."""
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def reconstruction_loss(pred: Tensor, target: Tensor, norm_pix_loss: bool = False) -> Tensor:
    """Eq. 2 on the removed patches: pred, target (B, L-S, P*P*C) -> scalar.

    A mean over patches and pixels, as in MAE; the paper prints a sum, (L-S)*P*P*C times this.
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
    packed: Any = _GlobalSum.apply(torch.cat([s.reshape(-1) for s in sums]))
    parts = packed.split([s.numel() for s in sums])
    return [part.view_as(s) for part, s in zip(parts, sums, strict=True)]


def uniformity_loss(features: Tensor, form: str = "spectral", local: bool = False) -> Tensor:
    """The uniformity term of U-MAE: features (B, D) of B independent visible views -> scalar.

    With f = LayerNorm(features) without affine parameters, so that |f|^2 = D, and
    cos_ij = f_i.f_j / D for two views i != j:

    - "spectral" (default): D * mean_{i!=j} cos_ij^2, an unbiased estimate of tr(C^2)/D for the
      second moment C = E[f f^T]: near 1 when all directions are used alike, D when the features
      lie on one line. `lam` then means the same at every width.
    - "euclidean": -mean_{i!=j} |f_i - f_j|^2, Eq. 9 behind the LayerNorm; in [-4D, 0], and only
      about the mean of f.
    - "released": mean_{i,j} cos_ij^2 with the diagonal and f = features / |features|, as in the
      authors' code, whose default lambda is 0.01. There the feature passes the encoder's last norm
      a second time before: see `MAE.uniformity_features`.

    In a distributed run the views are those of all processes, unless `local`. The authors' gather
    passes the gradient to the local slice only, which DDP then averages, so their lambda acts as
    lambda / world_size; ours does not depend on it.
    Raises InputError for an unknown form or fewer than 2 views.
    """
    check_choice("uniformity", form, UNIFORMITY_FORMS)
    if features.ndim != 2 or len(features) < 2:
        shape = tuple(features.shape)
        raise InputError(f"uniformity needs features of shape (B >= 2, D), got {shape}")
    dim = features.shape[-1]
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):
        if form == "released":
            f = F.normalize(features)
            moment, count = _global_sums(local, f.T @ f, f.new_full((), len(f)))
            return moment.square().sum() / count.square()
        f = F.layer_norm(features, (dim,))
        views = f.new_full((), len(f))
        if form == "euclidean":
            total, count = _global_sums(local, f.sum(0), views)
            (spread,) = _global_sums(local, (f - total / count).square().sum())
            return -2 * spread / (count - 1)
        squares = f.square().sum(-1).square().sum()
        moment, diagonal, count = _global_sums(local, f.T @ f, squares, views)
        together = moment.square().sum() / dim**2
        return dim * (together - diagonal / dim**2) / (count * (count - 1))


def cosine_weight(lam: float, form: str, dim: int) -> float | None:
    """`lam` as a weight on mean cos^2, the one unit in which coefficients can be compared.

    D * lam for "spectral", lam for "released", None for "euclidean", which is no multiple of it.
    """
    return {"spectral": dim * lam, "released": lam}.get(form)


def equivalent_coefficients(weight: float, dim: int, world_size: int = 1) -> dict[str, float]:
    """What to set for a weight on mean cos^2 at width D.

    "spectral" and "released" are our `lam`; "authors" is the lambda of the authors' code on
    `world_size` devices, which their gather divides by that number.
    """
    return {"spectral": weight / dim, "released": weight, "authors": weight * world_size}


def spectrum(features: Tensor, centred: bool = True) -> Tensor:
    """Eigenvalues (D,) of the covariance (or uncentred second moment) of (N, D), falling."""
    x = features.double()
    if centred:
        x = x - x.mean(0)
    return torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0).clamp_min(0)


def effective_rank(features: Tensor) -> float:
    """What the uniformity term raises: exp(entropy) of the spectrum of features (N, D), in [1, D].

    The entropy effective rank (Roy & Vetterli 2007) on the eigenvalues of the uncentred second
    moment of the LayerNormed features. It is at least the participation ratio, which the spectral
    form maximises (docs/theory.md).
    """
    p = spectrum(F.layer_norm(features.double(), features.shape[-1:]), centred=False)
    p = p / p.sum()
    return torch.exp(-(p * p.clamp_min(1e-300).log()).sum()).item()
