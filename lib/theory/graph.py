"""Section 4: the directed augmentation graph of a population, with its spectrum, exactly.

Every view under every mask of a size is enumerated; nothing is sampled. Symbols: N images of
probability P_d, n patches, s of them visible, C = C(n, s) masks, X1 and X2 the sets of views x1
(s patches) and x2 (n - s patches), W the weights, Abar the normalised weights, sigma its singular
values. docs/theory.md, section 3, says what they mean and what holds for them.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.sparse import block_array, csr_array, diags_array, hstack
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import svds

from lib.errors import InputError, check_choice
from lib.theory.population import Array, Population

FORMS = ("product", "joint", "same")

LIMIT_BYTES = 10**9  # a larger graph is refused before anything is allocated
DENSE_CELLS = 10**6  # a smaller matrix goes to the dense solver


def masks_of_size(patches: int, size: int) -> Array:
    """All C(n, s) sets of visible positions (C, s), in the graph's order of masks.

    Read backwards, it is the order of the complements.
    """
    return np.array(list(combinations(range(patches), size)))


class _Factors(NamedTuple):
    """The product forms, factored: Abar = R_1^T R_2 = (R_1^T P) diag(sigma) (R_2^T Q)^T."""

    r1: csr_array  # (N, |X1|)
    r2: csr_array  # (N, |X2|)
    p: Array  # (N, rank)
    sigma: Array  # (rank,)
    q: Array  # (N, rank)


@dataclass(frozen=True)
class Graph:
    """The graph of weights W (|X1|, |X2|), kept as sparse factors.

    form: one of FORMS. mass (N,): P_d. ids1, ids2 (N, C): the number of the view that an image
    shows under a mask. shared: X1 and X2 are one set of views. m1 (N, |X1|): M1(x1 | image), rows
    sum to 1; m2 (N, |X2|) likewise. w1 (|X1|,), w2 (|X2|,): the probabilities of the views, the
    paper's w_x. and w_.x'.
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
        """W (|X1|, |X2|), sum 1. Raises InputError if the matrix would be above 1 GB."""
        rows, cols = len(self.w1), len(self.w2)
        if self.form == "joint":
            masks = self.ids1.shape[1]
            pairs = (self.ids1.ravel(), self.ids2.ravel())
            return csr_array((np.repeat(self.mass / masks, masks), pairs), shape=(rows, cols))
        edges = int(np.diff(self.m1.indptr) @ np.diff(self.m2.indptr))
        advice = "use fewer patches, or svd(), which does not need it"
        _check_memory(36.0 * min(rows * cols, edges), "the explicit weight matrix", advice)
        return csr_array(self.m1.T @ diags_array(self.mass) @ self.m2)

    def adjacency(self) -> csr_array:
        """A over all views: W where X1 and X2 are one set of views, else [[0, W], [0, 0]]."""
        w, zero = self.weights(), csr_array((len(self.w2), len(self.w1)))
        return w if self.shared else csr_array(block_array([[None, w], [zero, None]]))

    @cached_property
    def normalised(self) -> csr_array:
        """Abar = D_row^-1/2 W D_col^-1/2 (|X1|, |X2|), on the views where it is defined."""
        return csr_array(diags_array(self.w1**-0.5) @ self.weights() @ diags_array(self.w2**-0.5))

    @property
    def energy(self) -> float:
        """||Abar||_F^2, the sum of sigma^2; at least 1."""
        values = self.normalised.data if self.form == "joint" else self._factors.sigma
        return float((values**2).sum())

    def components(self) -> int:
        """Connected components, direction ignored."""
        links = self.weights() if self.form == "joint" else hstack([self.m1, self.m2])
        both = block_array([[None, links], [links.T, None]])
        return int(connected_components(both, directed=False)[0])

    @cached_property
    def _factors(self) -> _Factors:
        """From the eigenpairs of the N x N matrices R_i R_i^T, R_i = P_d^1/2 M_i D_i^-1/2."""

        def factor(m: csr_array, w: Array) -> tuple[csr_array, Array, Array]:
            r = csr_array(diags_array(self.mass**0.5) @ m @ diags_array(w**-0.5))
            values, vectors = np.linalg.eigh((r @ r.T).toarray())
            kept = values > 1e-12
            return r, values[kept] ** 0.5, vectors[:, kept]

        r1, root1, v1 = factor(self.m1, self.w1)
        if self.form == "same":
            vectors = (v1 / root1)[:, ::-1]
            return _Factors(r1, r1, vectors, root1[::-1] ** 2, vectors)
        r2, root2, v2 = factor(self.m2, self.w2)
        p, sigma, qt = np.linalg.svd(root1[:, None] * (v1.T @ v2) * root2, full_matrices=False)
        return _Factors(r1, r2, (v1 / root1) @ p, sigma, (v2 / root2) @ qt.T)

    def times(self, x: Array) -> Array:
        """Abar x for x (|X2|, k), without forming Abar in the product forms."""
        if self.form == "joint":
            return self.normalised @ x
        return self._factors.r1.T @ (self._factors.r2 @ x)

    def times_transposed(self, x: Array) -> Array:
        """Abar^T x for x (|X1|, k), without forming Abar in the product forms."""
        if self.form == "joint":
            return self.normalised.T @ x
        return self._factors.r2.T @ (self._factors.r1 @ x)

    def svd(self, k: int) -> tuple[Array, Array, Array]:
        """The top singular triplets of Abar, k' = min(k, rank) of them.

        Returns U (|X1|, k'), sigma (k',) falling, V (|X2|, k'). Product forms: exact, from N x N
        Gram matrices. Joint form: a sparse solver (ARPACK), or a dense one for a small graph.
        Raises InputError for k < 1 or if U and V would be above 1 GB.
        """
        rows, cols = len(self.w1), len(self.w2)
        if k < 1:
            raise InputError(f"the number of singular values must be at least 1, got {k}")
        size = 24.0 * (rows + cols) * min(k, rows, cols)
        _check_memory(size, f"{k} singular vectors", "ask for fewer")
        if self.form != "joint":
            r1, r2, p, sigma, q = self._factors
            return r1.T @ p[:, :k], sigma[:k], r2.T @ q[:, :k]
        if rows * cols <= DENSE_CELLS or k >= min(rows, cols):
            u, sigma, vt = np.linalg.svd(self.normalised.toarray(), full_matrices=False)
            return u[:, :k], sigma[:k], vt[:k].T
        start = np.random.default_rng(0).normal(size=min(rows, cols))
        u, sigma, vt = svds(self.normalised, k, v0=start)
        falling = sigma.argsort()[::-1]
        return np.asarray(u)[:, falling], sigma[falling], np.asarray(vt)[falling].T

    def image_features(self, k: int) -> Array:
        """(N, k'): per image, the mean over its views x1 of f = D_row^-1/2 U_k S_k^1/2."""
        u, sigma, _ = self.svd(k)
        return self.m1 @ (u * sigma**0.5 / self.w1[:, None] ** 0.5)


def graph_of_views(form: str, mass: Array, ids1: Array, ids2: Array, shared: bool = False) -> Graph:
    """The graph of given views: image i under mask j shows x1 = ids1[i, j] and x2 = ids2[i, j].

    mass (N,); ids1, ids2 (N, C), numbered from 0 without gaps.
    """

    def given_image(ids: Array) -> csr_array:
        rows, share = (
            np.repeat(np.arange(len(mass)), ids.shape[1]),
            np.full(ids.size, 1 / ids.shape[1]),
        )
        return csr_array((share, (rows, ids.ravel())), shape=(len(mass), ids.max() + 1))

    m1, m2 = given_image(ids1), given_image(ids2)
    return Graph(form, mass, ids1, ids2, shared, m1, m2, mass @ m1, mass @ m2)


def build_graph(
    population: Population, visible: int, form: str = "product", positions: bool = True
) -> Graph:
    """The graph of all masks that keep `visible` = s of n patches.

    - "product": w_xx' = E[M1(x | image) M2(x' | image)], Eq. 10 as printed: the two masks are
      independent.
    - "joint": w_xx' = E[M(x, x' | image)]: x' is the complement of x, Eq. 1; MAE trains on it.
    - "same": w_xx' = E[M1(x | image) M1(x' | image)]: two independent visible views, as in
      contrastive learning.

    positions=False drops the position information: a view is then a bag of patches.
    Raises InputError, before anything is allocated, for a graph above 1 GB, an s outside
    [1, n - 1] or an unknown form.
    """
    check_choice("form", form, FORMS)
    images, patches = population.tokens.shape
    if not 1 <= visible < patches:
        raise InputError(
            f"visible must be between 1 and {patches - 1} of {patches} patches, got {visible}"
        )
    masks = comb(patches, visible)
    size = images * masks * (110.0 + 4 * max(visible, patches - visible)) + 64.0 * images**2
    what = f"the graph of {images} images x {masks:.6g} masks ({visible} of {patches} patches)"
    _check_memory(size, what, "use larger patches, a mask ratio further from 0.5, or fewer images")
    ids1 = ids2 = _view_ids(population.tokens, visible, positions)
    if form != "same":
        ids2 = _view_ids(population.tokens, patches - visible, positions)[:, ::-1]
    shared = form == "same" or 2 * visible == patches
    return graph_of_views(form, population.mass, ids1, ids2, shared)


def _view_ids(tokens: Array, size: int, positions: bool) -> Array:
    """tokens (N, n) -> (N, C): the view that an image shows under a mask; equal views, equal ids.

    Place by place, the pair (id so far, next token) is renumbered 0, 1, 2, ...
    """
    masks = masks_of_size(tokens.shape[1], size)
    content = tokens[:, masks] if positions else np.sort(tokens[:, masks], axis=-1)
    ids = np.broadcast_to(np.arange(len(masks)) * positions, content.shape[:2])
    for place in range(size):
        pairs = ids * (tokens.max() + 1) + content[..., place]
        ids = np.unique(pairs, return_inverse=True)[1].reshape(pairs.shape)
    return ids


def _check_memory(size: float, what: str, advice: str) -> None:
    if size > LIMIT_BYTES:
        limit = f"the limit is {LIMIT_BYTES / 1e9:.3g} GB"
        raise InputError(f"{what} would take {size / 1e9:.3g} GB, {limit}; {advice}")
