"""Section 4, computed: the augmentation graph of an enumerable population, its factorisation, and its bounds.

A population is a set of images whose patches are replaced by k-means tokens. Every view under every mask of a size
is then enumerated, and nothing below is sampled. Symbols: N distinct images xbar of probability P_d, n patches, s of
them visible, C = C(n, s) masks, X1 and X2 the views x1 (s patches) and x2 (n - s patches), Y classes y.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np
from scipy.sparse import block_array, csr_array, diags_array, hstack
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import svds
from sklearn.cluster import KMeans

from lib.errors import InputError

FORMS = ("product", "joint", "same")


LIMIT_BYTES, DENSE_CELLS = 10**9, 10**6


Array = np.ndarray


def _check_memory(size: float, what: str, advice: str) -> None:
    if size > LIMIT_BYTES:
        raise InputError(
            f"{what} would take {size / 1e9:.3g} GB, the limit is {LIMIT_BYTES / 1e9:.3g} GB; {advice}"
        )


@dataclass(frozen=True)
class Population:
    """tokens (N, n), mass (N,) = P_d, labels (N, Y) = p(y | xbar), codebook (K, ab), rows: each given image's row."""

    tokens: Array
    mass: Array
    labels: Array
    rows: Array
    codebook: Array


def quantise(
    images: Array, y: Array, patch: tuple[int, int], vocabulary: int, seed: int = 0
) -> Population:
    """images (B, H, W), classes y (B,) -> Population: an a x b patch becomes the nearest of `vocabulary` k-means means.

    Equal token images are merged and keep the mixture of their labels, so N <= B. The paper's pixels are continuous,
    where no two views ever coincide. Raises InputError for patches that do not cut the image, or under 2 tokens.
    """
    (a, b), (count, h, w) = patch, images.shape
    if a < 1 or b < 1 or h % a or w % b or a * b == h * w or vocabulary < 2:
        what = f"patches of {a}x{b} in images of {h}x{w}, {vocabulary} tokens"
        raise InputError(
            f"{what}: choose a divisor of each side, not the whole image, and at least 2 tokens"
        )
    patches = (
        images.reshape(count, h // a, a, w // b, b)
        .swapaxes(2, 3)
        .reshape(-1, a * b)
        .astype(np.float64)
    )
    clusters = KMeans(vocabulary, n_init=3, random_state=seed).fit(patches)  # pyright: ignore[reportArgumentType]
    words = np.asarray(clusters.labels_).astype(np.int32).reshape(count, -1)
    tokens, rows, copies = np.unique(words, axis=0, return_inverse=True, return_counts=True)
    classes, column = np.unique(y, return_inverse=True)
    labels = np.zeros((len(tokens), len(classes)))
    np.add.at(labels, (rows.ravel(), column), 1)
    return Population(
        tokens, copies / count, labels / copies[:, None], rows.ravel(), clusters.cluster_centers_
    )


def masks_of_size(patches: int, size: int) -> Array:
    """All C(n, s) sets of positions (C, s), in the graph's order; backwards, it is the order of the complements."""
    return np.array(list(combinations(range(patches), size)))


def _view_ids(tokens: Array, size: int, positions: bool) -> Array:
    """tokens (N, n) -> (N, C): which view image i shows under mask j; equal views have equal numbers, 0, 1, 2, ..."""
    masks = masks_of_size(tokens.shape[1], size)
    content = tokens[:, masks] if positions else np.sort(tokens[:, masks], axis=-1)
    ids = np.broadcast_to(np.arange(len(masks)) * positions, content.shape[:2])
    for place in range(size):
        ids = np.unique(ids * (tokens.max() + 1) + content[..., place], return_inverse=True)[
            1
        ].reshape(ids.shape)
    return ids


@dataclass(frozen=True)
class Graph:
    """The directed graph of weights W (|X1|, |X2|), kept as sparse factors; shared: X1 and X2 are one set of views.

    m1 = M1(x1 | xbar) (N, |X1|) and m2 (N, |X2|), rows sum to 1; w1 = w_x. and w2 = w_.x', the view probabilities.
    """

    form: str
    mass: Array
    ids1: Array
    ids2: Array
    shared: bool
    m1: csr_array
    m2: csr_array
    w1: Array
    w2: Array

    def weights(self) -> csr_array:
        """W (|X1|, |X2|): Eq. 10, or the joint form of Eq. 1. Raises InputError if the matrix is too large."""
        if self.form == "joint":
            pairs = np.repeat(self.mass / self.ids1.shape[1], self.ids1.shape[1])
            return csr_array(
                (pairs, (self.ids1.ravel(), self.ids2.ravel())), shape=(len(self.w1), len(self.w2))
            )
        edges = min(
            len(self.w1) * len(self.w2), int(np.diff(self.m1.indptr) @ np.diff(self.m2.indptr))
        )
        _check_memory(
            36.0 * edges,
            "the explicit weight matrix",
            "use fewer patches, or svd(), which does not need it",
        )
        return csr_array(self.m1.T @ diags_array(self.mass) @ self.m2)

    def adjacency(self) -> csr_array:
        """A over all views: W itself where X1 and X2 are one set of views, otherwise [[0, W], [0, 0]]."""
        w, zero = self.weights(), csr_array((len(self.w2), len(self.w1)))
        return w if self.shared else csr_array(block_array([[None, w], [zero, None]]))

    @cached_property
    def normalised(self) -> csr_array:
        """Abar = D_row^-1/2 A D_col^-1/2 on the views where it is defined: rows X1, columns X2."""
        return csr_array(diags_array(self.w1**-0.5) @ self.weights() @ diags_array(self.w2**-0.5))

    def components(self) -> int:
        """Connected components, direction ignored; by way of the images in the product forms."""
        links = self.weights() if self.form == "joint" else hstack([self.m1, self.m2])
        return int(
            connected_components(block_array([[None, links], [links.T, None]]), directed=False)[0]
        )

    @cached_property
    def _spectrum(self) -> tuple[csr_array, csr_array, Array, Array, Array]:
        """R_1, R_2, P, sigma, Q: in the product forms Abar = R_1^T R_2, with singular vectors R_1^T P and R_2^T Q.

        R_i = P_d^1/2 M_i D_i^-1/2 (N, |Xi|); the eigenpairs of the N x N matrices K_i = R_i R_i^T give all the rest.
        """

        def factor(m: csr_array, w: Array) -> tuple[csr_array, Array, Array]:
            r = csr_array(diags_array(self.mass**0.5) @ m @ diags_array(w**-0.5))
            values, vectors = np.linalg.eigh((r @ r.T).toarray())
            return r, values[values > 1e-12] ** 0.5, vectors[:, values > 1e-12]

        r1, root1, v1 = factor(self.m1, self.w1)
        r2, root2, v2 = (r1, root1, v1) if self.form == "same" else factor(self.m2, self.w2)
        p, sigma, qt = np.linalg.svd(root1[:, None] * (v1.T @ v2) * root2, full_matrices=False)
        return r1, r2, (v1 / root1) @ p, sigma, (v2 / root2) @ qt.T

    def times(self, x: Array, transpose: bool = False) -> Array:
        """Abar x, or Abar^T x, without forming Abar in the product forms."""
        if self.form == "joint":
            return (self.normalised.T if transpose else self.normalised) @ x
        first, second, *_ = self._spectrum
        return second.T @ (first @ x) if transpose else first.T @ (second @ x)

    def svd(self, k: int) -> tuple[Array, Array, Array]:
        """The top singular triplets of Abar: U (|X1|, k'), sigma (k',) falling, V (|X2|, k'), with k' = min(k, rank).

        Product forms: exact, from the N x N Gram matrices. Joint form: a sparse solver (ARPACK), or for a small graph
        a dense one. Raises InputError for k < 1 or if U and V would be too large.
        """
        rows, cols = len(self.w1), len(self.w2)
        if k < 1:
            raise InputError(f"the number of singular values must be at least 1, got {k}")
        _check_memory(
            24.0 * (rows + cols) * min(k, rows, cols), f"{k} singular vectors", "ask for fewer"
        )
        if self.form != "joint":
            r1, r2, p, sigma, q = self._spectrum
            return r1.T @ p[:, :k], sigma[:k], r2.T @ q[:, :k]
        if rows * cols <= DENSE_CELLS or k >= min(rows, cols):
            u, sigma, vt = np.linalg.svd(self.normalised.toarray(), full_matrices=False)
            return u[:, :k], sigma[:k], vt[:k].T
        u, sigma, vt = svds(
            self.normalised, k, v0=np.random.default_rng(0).normal(size=min(rows, cols))
        )
        order = sigma.argsort()[::-1]
        return np.asarray(u)[:, order], sigma[order], np.asarray(vt)[order].T

    def image_features(self, k: int) -> Array:
        """(N, k): per image, the mean over its views x1 of the spectral features f = D_row^-1/2 U_k S_k^1/2."""
        u, sigma, _ = self.svd(k)
        return self.m1 @ (u * sigma**0.5 / self.w1[:, None] ** 0.5)


def graph_of_views(form: str, mass: Array, ids1: Array, ids2: Array, shared: bool = False) -> Graph:
    """The graph of given views: x1 = ids1[i, j] and x2 = ids2[i, j] of image i under mask j, numbered from 0."""
    rows, data = (
        np.repeat(np.arange(len(mass)), ids1.shape[1]),
        np.full(ids1.size, 1 / ids1.shape[1]),
    )
    m1, m2 = (
        csr_array((data, (rows, ids.ravel())), shape=(len(mass), ids.max() + 1))
        for ids in (ids1, ids2)
    )
    return Graph(form, mass, ids1, ids2, shared, m1, m2, mass @ m1, mass @ m2)


def build_graph(
    population: Population, visible: int, form: str = "product", positions: bool = True
) -> Graph:
    """The graph of all masks with `visible` = s of n patches kept.

    - "product": w_xx' = E_xbar M1(x | xbar) M2(x' | xbar), Eq. 10 as printed: the two masks are independent.
    - "joint":   w_xx' = E_xbar M(x, x' | xbar): x' is the complement of x, Eq. 1 and what MAE trains on.
    - "same":    w_xx' = E_xbar M1(x | xbar) M1(x' | xbar): two independent visible views, contrastive learning.
    positions=False drops the position information: a view is then a bag of patches.
    Raises InputError, before anything is allocated, for a graph above 1 GB, a wrong s or an unknown form.
    """
    images, patches = population.tokens.shape
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if not 1 <= visible < patches:
        raise InputError(
            f"visible must be between 1 and {patches - 1} of {patches} patches, got {visible}"
        )
    masks = comb(patches, visible)
    size = images * masks * (110.0 + 4 * max(visible, patches - visible)) + 64.0 * images**2
    what = f"the graph of {images} images x {masks:.6g} masks ({visible} of {patches} patches)"
    _check_memory(size, what, "use larger patches, a mask ratio further from 0.5, or fewer images")
    ids1 = _view_ids(population.tokens, visible, positions)
    ids2 = (
        ids1
        if form == "same"
        else _view_ids(population.tokens, patches - visible, positions)[:, ::-1]
    )
    return graph_of_views(
        form, population.mass, ids1, ids2, form == "same" or 2 * visible == patches
    )
