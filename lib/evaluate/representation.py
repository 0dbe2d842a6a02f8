"""How features use their dimensions: spectra, ranks, cosines. Pure functions of a feature matrix (N, D)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.losses import spectrum


def participation_ratio(features: Tensor) -> float:
    """(sum l)^2 / sum l^2 of the same eigenvalues: D / the spectral uniformity of many views."""
    values = spectrum(F.layer_norm(features.double(), features.shape[-1:]), centred=False)
    return (values.sum() ** 2 / values.square().sum()).item()


def condition_number(features: Tensor) -> float:
    """Largest over smallest eigenvalue of the covariance; those below 1e-9 of the largest are no directions in use."""
    values = spectrum(features)
    values = values[values > 1e-9 * values[0]]
    return (values[0] / values[-1]).item()


def class_cosines(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cosine similarity of different images "within" a class and "between" classes, from class sums, O(N D)."""
    z = F.normalize(features.double(), dim=-1)
    onehot = F.one_hot(labels).double()
    sums, counts = onehot.T @ z, onehot.sum(0)
    same = sums.square().sum()
    within = (same - len(z)) / (counts * (counts - 1)).sum()
    between = (z.sum(0).square().sum() - same) / (len(z) ** 2 - counts.square().sum())
    return {"within": within.item(), "between": between.item()}


def variance_ratio(features: Tensor, labels: Tensor) -> float:
    """Between-class over total variance of features, in [0, 1]."""
    x = features.double() - features.double().mean(0)
    onehot = F.one_hot(labels).double()
    counts = onehot.sum(0)
    means = (onehot.T @ x) / counts[:, None].clamp_min(1)
    return ((means.square().sum(1) * counts).sum() / x.square().sum()).item()


def knn_purity(features: Tensor, labels: Tensor, k: int = 20) -> float:
    """Mean share, in [0, 1], of an image's k nearest by cosine (itself left out) that have its class."""
    z = F.normalize(features.float(), dim=-1)
    shares = []
    for ids in torch.arange(len(z)).split(1000):
        similarity = z[ids] @ z.T
        similarity[torch.arange(len(ids)), ids] = -torch.inf
        nearest = labels[similarity.topk(min(k, len(z) - 1)).indices]
        shares.append((nearest == labels[ids, None]).float().mean(1))
    return torch.cat(shares).mean().item()
