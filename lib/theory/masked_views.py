"""Figure 3: how far apart masked views of different images are, exact over all masks of a size.

The paper does not define its distance. `nearest_view` is the criterion of an edge in the
augmentation graph with positions: the smallest distance of two views with the same visible
positions, over all masks and over the images of a class. Averages of squared distances over masks
cannot show an optimum; two are here to show why (docs/theory.md, section 7).
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

    queries (N, L, D), references (M, L, D), ratios in [0, 1) -> (N, len(mask_ratios)). For one pair
    the best mask of S visible patches takes the S smallest patch distances, so a sort (numpy's: its
    vector instructions make it many times faster than torch's on the CPU) and a running sum give
    every ratio at once. `chunk` queries at a time are in memory.
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
    """`nearest_view` of every query to each class, summed up: four arrays (N, R).

    "intra": to its own class; "inter": the mean over the other classes; "overall": the mean over
    all; "pooled": the minimum over the other classes. Figure 3 takes "inter", a mean of minima over
    equally many references; "pooled" is a minimum over more of them, and smaller for that alone.
    queries (N, L, D), references (M, L, D), labels (N,) and (M,), R ratios. Every class must have
    the same number of references.
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
    """Paired bootstrap over queries of mean(intra) / mean(inter): (N, R) each -> (draws, R)."""
    count, rng = len(intra), np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    return (weights @ intra) / (weights @ inter)


def inner_minimum(
    intra: np.ndarray, inter: np.ndarray, draws: int = 1000
) -> tuple[int, tuple[float, float], tuple[float, float]]:
    """Is the curve mean(intra) / mean(inter) lower at an inner ratio than at both ends?

    intra and inter (N, R) of R rising mask ratios. Returns the inner index that is lowest on every
    other query, and on the rest of them, which chose nothing, the 95 % bootstrap intervals of how
    much higher the curve is at the first ratio (the fall) and at the last one (the rise). Without
    an inner ratio, R < 3, both are (-inf, inf).
    """
    if intra.shape[1] < 3:
        return 0, (-np.inf, np.inf), (-np.inf, np.inf)
    chosen = intra[::2].mean(0) / inter[::2].mean(0)
    place = 1 + int(chosen[1:-1].argmin())
    curves = bootstrap_ratio(intra[1::2], inter[1::2], draws, seed=1)
    higher = curves[:, [0, -1]] - curves[:, [place]]
    (fall, rise) = np.quantile(higher, [0.025, 0.975], axis=0).T.tolist()
    return place, tuple(fall), tuple(rise)


def same_mask_mean(a: Tensor, b: Tensor, mask_ratio: float) -> Tensor:
    """E |a[m] - b[m]|^2 over masks m shared by both: a (N, L, D), b (M, L, D) -> (N, M).

    It is (S/L) |a - b|^2, so intra over inter is the same at every mask ratio.
    """
    n = a.shape[1]
    return num_visible(n, mask_ratio) / n * patch_distances(a, b).sum(-1)


def independent_masks_mean(a: Tensor, b: Tensor, mask_ratio: float) -> Tensor:
    """E |a*m - b*m'|^2 over independent masks m, m' that set removed patches to zero.

    a (N, L, D), b (M, L, D) -> (N, M). With k = S/L it is
    k^2 |a - b|^2 + k (1 - k) (|a|^2 + |b|^2): the second part has no class.
    """
    k = num_visible(a.shape[1], mask_ratio) / a.shape[1]
    norms = a.square().sum((1, 2))[:, None] + b.square().sum((1, 2))[None]
    return k**2 * patch_distances(a, b).sum(-1) + k * (1 - k) * norms
