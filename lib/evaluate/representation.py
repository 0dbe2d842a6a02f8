"""How features (N, D) use their dimensions: ranks, condition, cosines, classes among neighbours."""

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from lib.errors import InputError
from lib.losses import spectrum


def participation_ratio(features: Tensor) -> float:
    """(sum l)^2 / sum l^2, in [1, D], of the eigenvalues l that `effective_rank` uses.

    D over it is the spectral uniformity of infinitely many views (docs/theory.md).
    """
    values = spectrum(F.layer_norm(features.double(), features.shape[-1:]), centred=False)
    return (values.sum() ** 2 / values.square().sum()).item()


def condition_number(features: Tensor) -> float:
    """Largest over smallest eigenvalue of the covariance of features (N, D).

    Directions below 1e-9 of the largest are not in use and do not count.
    """
    values = spectrum(features)
    if not values[0] > 0:
        raise InputError(
            "all features are the same: the encoder has collapsed, or all images agree"
        )
    values = values[values > 1e-9 * values[0]]
    return (values[0] / values[-1]).item()


def class_cosines(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cosine similarity of different images "within" a class and "between" classes.

    From class sums, in O(N D). features (N, D), labels (N,).
    """
    z = F.normalize(features.double(), dim=-1)
    onehot = F.one_hot(labels).double()
    sums, counts = onehot.T @ z, onehot.sum(0)
    same = sums.square().sum()
    within = (same - len(z)) / (counts * (counts - 1)).sum()
    between = (z.sum(0).square().sum() - same) / (len(z) ** 2 - counts.square().sum())
    return {"within": within.item(), "between": between.item()}


def variance_ratio(features: Tensor, labels: Tensor) -> float:
    """Between-class over total variance of features (N, D) with labels (N,), in [0, 1]."""
    x = features.double() - features.double().mean(0)
    onehot = F.one_hot(labels).double()
    counts = onehot.sum(0)
    means = (onehot.T @ x) / counts[:, None].clamp_min(1)
    return ((means.square().sum(1) * counts).sum() / x.square().sum()).item()


def knn_purity(features: Tensor, labels: Tensor, k: int = 20) -> float:
    """Mean share, in [0, 1], of an image's k nearest that have its class.

    Nearest by cosine, the image itself left out; all others where there are fewer than k.
    """
    z = F.normalize(features.float(), dim=-1).numpy()
    search = NearestNeighbors(n_neighbors=min(k, len(z) - 1), algorithm="brute").fit(z)
    nearest = torch.from_numpy(search.kneighbors(return_distance=False))
    return (labels[nearest] == labels[:, None]).double().mean().item()
