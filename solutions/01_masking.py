"""Exercises of notebooks/01_masking.ipynb."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lib.data import Dataset, load
from lib.masking import num_visible, patchify, random_masks
from lib.notebook.samples import balanced_ids, pixels_of
from lib.presets import resolve
from lib.theory.masked_views import patch_distances


def _digits() -> Dataset:
    return load(**resolve().data_fields)


def exercise_1(patches: int = 4) -> dict[str, Any]:
    """At mask_ratio 0.5, which of the two views could take the place of the other?

    Answer: either. A mask keeps any half of the patches with the same probability, and the
    complement of a half is a half. So the visible and the removed views are the same set, each with
    the same probability, and every edge of the graph can be walked both ways. At 0.75 the views
    have different sizes: no visible view is ever a removed one. The function lists all masks of an
    image of 4 patches.
    """
    found = {}
    for ratio in (0.5, 0.75):
        kept = {frozenset(c) for c in combinations(range(patches), num_visible(patches, ratio))}
        removed = {frozenset(range(patches)) - view for view in kept}
        found[f"views that are both, ratio {ratio}"] = (len(kept & removed), len(kept))
    return found


def exercise_2(images: int = 100) -> dict[str, Any]:
    """At which ratio does a linear classifier fall below half of its accuracy without a mask?

    Answer: the first ratio in the list below with less than half. Compare it with the ratio at
    which you could no longer name the digit. A person usually fails later: you use what you know
    about digits, and the classifier only sees the pixels. `images` are taken of each class.
    """
    data, random = _digits(), torch.Generator().manual_seed(0)

    def masked(split: Any, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        ids = balanced_ids(split.labels, images, 0)
        patches = patchify(pixels_of(data, split, ids), 2)
        mask = random_masks(len(ids), patches.shape[1], ratio, random).mask
        visible = (patches * (1 - mask[..., None])).flatten(1)
        return torch.cat([visible, mask], 1).numpy(), split.labels[ids].numpy()

    found = {}
    for ratio in (0.0, 0.25, 0.5, 0.75, 0.9375):
        probe = LogisticRegression(max_iter=300, C=0.1).fit(*masked(data.train, ratio))
        found[ratio] = round(100 * float(probe.score(*masked(data.test, ratio))), 1)
    return {
        "accuracy": found,
        "first below half": next((r for r, a in found.items() if a < found[0.0] / 2), None),
    }


def exercise_3(images: int = 20) -> dict[str, Any]:
    """Let whole blocks stay visible instead of single patches. What happens to the nearest view?

    Answer: the nearest views are further apart, for images of the same class and of other classes.
    The best mask of single patches picks the 4 patches in which two images agree most. Of blocks of
    2x2 patches there are only 9, and each of them is one of the masks of single patches: a minimum
    over fewer masks cannot be smaller. So random single patches make views more alike.
    """
    data = _digits()
    ids = balanced_ids(data.train.labels, images, 0)
    labels, x = data.train.labels[ids], patchify(pixels_of(data, data.train, ids), 2)
    distances = patch_distances(x, x)  # (N, N, 16)
    single = distances.sort(-1).values[..., :4].sum(-1)
    grid = distances.unflatten(-1, (4, 4))
    blocks = grid.unfold(2, 2, 1).unfold(3, 2, 1).sum((-1, -2)).flatten(2).amin(-1)
    same = (labels[:, None] == labels) & ~torch.eye(len(x), dtype=torch.bool)
    other = labels[:, None] != labels

    def nearest(found: Tensor, allowed: Tensor) -> float:
        return round(found.masked_fill(~allowed, torch.inf).amin(1).sqrt().mean().item(), 3)

    kinds = {"single patches": single, "blocks": blocks}
    return {
        name: {"same class": nearest(found, same), "other class": nearest(found, other)}
        for name, found in kinds.items()
    }
