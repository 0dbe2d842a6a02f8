"""Figure 3: how far apart masked views of different images are, exact over all masks of a size.

The paper does not define its distance. `nearest_view` is the criterion of an edge in the augmentation graph with
positions: the smallest distance of two views with the same visible positions, over all masks and over the images of
a class (theory.md, e, estimator E6). Averages over masks cannot show an optimum; two are here to show why.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.masking import num_visible


def patch_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distance per patch: a (N, L, D), b (M, L, D) -> (N, M, L)."""
    cross = (a.transpose(0, 1) @ b.permute(1, 2, 0)).permute(1, 2, 0)  # (L, N, M) -> (N, M, L)
    return (a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * cross).clamp_min(0)


def nearest_view(
    queries: Tensor, references: Tensor, mask_ratios: Sequence[float], chunk: int = 16
) -> Tensor:
    """D(q, T) for every ratio: min over x in T and over all masks m of |q[m] - x[m]|_2.

    queries (N, L, D), references (M, L, D) -> (N, len(mask_ratios)). For one pair the best mask of S visible
    patches takes the S smallest patch distances, so a sort (numpy's: its vector instructions make it many times
    faster than torch's on the CPU) and a running sum give every ratio at once.
    """
    last = [num_visible(queries.shape[1], r) - 1 for r in mask_ratios]
    out = []
    for part in queries.split(chunk):
        ordered = np.sort(patch_distances(part, references).numpy(), axis=-1)
        out.append(torch.from_numpy(ordered).cumsum(-1)[..., last].amin(1).sqrt())
    return torch.cat(out)


def class_distances(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    mask_ratios: Sequence[float],
) -> dict[str, np.ndarray]:
    """Per query and ratio, (N, R): "intra" to its own class, "inter" the mean over the other classes, "overall" over
    all, and "pooled" the minimum over the other classes.

    The figure's `inter` is a mean of per-class minima: `pooled` compares unlike numbers of candidates. Every class must
    have the same number of references.
    """
    classes = reference_labels.unique()
    per_class = torch.stack(
        [nearest_view(queries, references[reference_labels == c], mask_ratios) for c in classes], 1
    )
    own = (query_labels[:, None] == classes[None]).double()[..., None]
    per_class = per_class.double()
    return {
        "intra": (per_class * own).sum(1).numpy(),
        "inter": ((per_class * (1 - own)).sum(1) / (len(classes) - 1)).numpy(),
        "overall": per_class.mean(1).numpy(),
        "pooled": per_class.masked_fill(own.bool(), torch.inf).amin(1).numpy(),
    }


def bootstrap_ratio(
    intra: np.ndarray, inter: np.ndarray, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """Paired bootstrap over queries of mean(intra)/mean(inter): (N, R) each -> (draws, R)."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(intra), np.full(len(intra), 1 / len(intra)), size=draws) / len(
        intra
    )
    return (weights @ intra) / (weights @ inter)


def same_mask_mean(a: Tensor, b: Tensor, mask_ratio: float) -> Tensor:
    """E_m |a[m] - b[m]|^2 over masks shared by both = (S/L) |a - b|^2: the ratio of classes does not see rho."""
    n = a.shape[1]
    return num_visible(n, mask_ratio) / n * patch_distances(a, b).sum(-1)


def independent_masks_mean(a: Tensor, b: Tensor, mask_ratio: float) -> Tensor:
    """E |a*m - b*m'|^2 for independent masks, removed patches zero: k^2 |a-b|^2 + k(1-k)(|a|^2 + |b|^2), k = S/L."""
    k = num_visible(a.shape[1], mask_ratio) / a.shape[1]
    norms = a.square().sum((1, 2))[:, None] + b.square().sum((1, 2))[None]
    return k**2 * patch_distances(a, b).sum(-1) + k * (1 - k) * norms
