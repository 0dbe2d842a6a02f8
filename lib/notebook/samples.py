"""Which images a notebook looks at: balanced over classes, and no more than memory can hold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.compute.generator import generator
from lib.data import Dataset, Split

PIXELS = 2**28  # float32 pixels at once, at most: 1 GiB


def balanced_ids(
    labels: Tensor, per_class: int, seed: int, classes: Sequence[int] | None = None
) -> Tensor:
    """Indices of `per_class` random images of each class, or of all where a class has fewer.

    labels (N,); classes: all if None.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "sample"))
    chosen = labels.unique().tolist() if classes is None else classes
    return torch.cat([order[labels[order] == c][:per_class] for c in chosen])


def some_classes(data: Dataset) -> list[int]:
    """At most ten classes, drawn at random where there are more, in order."""
    order = torch.randperm(len(data.class_names), generator=generator(0, "classes"))
    return sorted(order[:10].tolist())


def pixels_of(data: Dataset, split: Split, ids: Tensor) -> Tensor:
    """These images as float32 (N, C, S, S) in [0, 1], from memory or from a folder."""
    return data.images(split, ids).float() / 255


def affordable(per_class: int, classes: int, values: int, limit: int = PIXELS) -> int:
    """`per_class`, or as many as fit: images a class so that classes * that * values <= limit."""
    return max(1, min(per_class, limit // (classes * values)))
