"""Section 4: a population of images that is small enough to list every masked view.

The views of real images are continuous, so no two of them are ever equal. Here every patch is
replaced by the nearest of K k-means means, a token. Then two images can share a view, and all
views under all masks can be enumerated.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from lib.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class Population:
    """N distinct token images of n patches each.

    tokens (N, n): integers in [0, K). mass (N,): the probabilities P_d of the images, sum 1.
    labels (N, Y): p(y | image), rows sum to 1. rows (B,): for each of the B images that were
    quantised, its row in tokens. codebook (K, a*b): the pixels of each token.
    """

    tokens: Array
    mass: Array
    labels: Array
    rows: Array
    codebook: Array


def quantise(
    images: Array, y: Array, patch: tuple[int, int], vocabulary: int, seed: int = 0
) -> Population:
    """The population of images (B, H, W) of classes y (B,), with K = `vocabulary` tokens.

    A patch has a x b = `patch` pixels. Equal token images are merged and keep the mixture of
    their labels, so N <= B.
    Raises InputError for patches that do not cut the image, or fewer than 2 tokens.
    """
    patches = _patches(images, patch, vocabulary)
    means = KMeans(vocabulary, n_init=3, random_state=seed).fit(
        patches.reshape(-1, patches.shape[-1])
    )
    words = np.asarray(means.labels_).astype(np.int32).reshape(len(images), -1)
    tokens, rows, copies = np.unique(words, axis=0, return_inverse=True, return_counts=True)
    classes, column = np.unique(y, return_inverse=True)
    labels = np.zeros((len(tokens), len(classes)))
    np.add.at(labels, (rows.ravel(), column), 1)
    labels /= copies[:, None]
    return Population(tokens, copies / len(images), labels, rows.ravel(), means.cluster_centers_)


def _patches(images: Array, patch: tuple[int, int], vocabulary: int) -> Array:
    """images (B, H, W) -> (B, n, a*b) in float64."""
    (a, b), (count, h, w) = patch, images.shape
    cuts = a >= 1 and b >= 1 and h % a == 0 and w % b == 0 and (a, b) != (h, w)
    if not cuts or vocabulary < 2:
        raise InputError(
            f"patches of {a}x{b} in images of {h}x{w}, {vocabulary} tokens: choose a divisor of "
            "each side, not the whole image, and at least 2 tokens"
        )
    grid = images.reshape(count, h // a, a, w // b, b).swapaxes(2, 3)
    return grid.reshape(count, -1, a * b).astype(np.float64)
