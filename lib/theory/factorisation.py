"""Theorem 4.1: the U-MAE loss and the asymmetric matrix factorisation of the augmentation graph.

The statement, its correction and the proof are in docs/theory.md, section 4.
"""

import numpy as np

from lib.theory.graph import Graph
from lib.theory.population import Array

Sides = tuple[float, float]


def mf_terms(graph: Graph, f: Array, h: Array) -> tuple[float, float, float]:
    """L_mf in three parts, for features f (|X1|, k) of x1 and h (|X2|, k) of x2; h is f_g.

    With F = D_row^1/2 f and G = D_col^1/2 h, and x2^- a view independent of x1,

        ||Abar - F G^T||_F^2 = ||Abar||_F^2 - 2 E[f(x1).h(x2)] + E[(f(x1).h(x2^-))^2].

    Returns the constant, the alignment part and the uniformity part.
    """
    big_f, big_g = _scaled(graph, f, h)
    alignment = -2 * (big_f * graph.times(big_g)).sum()
    uniformity = ((big_f.T @ big_f) * (big_g.T @ big_g)).sum()
    return graph.energy, float(alignment), float(uniformity)


def _scaled(graph: Graph, f: Array, h: Array) -> tuple[Array, Array]:
    """F = D_row^1/2 f and G = D_col^1/2 h."""
    return graph.w1[:, None] ** 0.5 * f, graph.w2[:, None] ** 0.5 * h


def factorise(abar: Array, k: int, seed: int = 0) -> tuple[Array, Array, list[float]]:
    """Minimises ||Abar - F G^T||_F^2: 2,000 steps of gradient descent (1/4), a small random start.

    abar (|X1|, |X2|), dense. Returns F (|X1|, k), G (|X2|, k) and the loss before each step. A
    small start keeps F and G balanced; a large one leaves directions in which F grows while G
    vanishes, and the descent stalls.
    """
    rng = np.random.default_rng(seed)
    f, g = (0.1 * rng.normal(size=(n, k)) / n**0.5 for n in abar.shape)
    history = []
    for _ in range(2000):
        rest = f @ g.T - abar
        history.append(float((rest**2).sum()))
        f, g = f - 0.5 * rest @ g, g - 0.5 * rest.T @ f
    return f, g, history


def theorem_41(
    graph: Graph, f: Array, h: Array, decoder: Array, x2: Array, lam: float
) -> dict[str, Sides]:
    """The two sides, left <= right, of each corrected form of Theorem 4.1 that applies.

    For a linear decoder g(z) = W z, so that L = ||W||_2^2. f (|X1|, k), h (|X2|, k), decoder
    W (p, k), pixels x2 (|X2|, p). The factor of L_mf is 2 L; the paper prints 2. The forms:

    - "Eq. 8, norm 1" and "squared form, norm 1" (with +lam E[(f.h^-)^2] for -lam E|f - h^-|^2):
      features of norm 1 and 0 <= lam <= 2 L;
    - "Eq. 8, any norm, lam >= 2L".
    """
    smooth = float(np.linalg.norm(decoder, 2) ** 2)
    norm_f, norm_h = (f**2).sum(1), (h**2).sum(1)
    reconstruction = _reconstruction(graph, f @ decoder.T, x2)
    inversion = graph.w2 @ ((h @ decoder.T - x2) ** 2).sum(1)
    far_apart = graph.w1 @ norm_f + graph.w2 @ norm_h - 2 * (graph.w1 @ f) @ (graph.w2 @ h)
    eq8 = reconstruction - lam * far_apart
    _, alignment, uniformity = mf_terms(graph, f, h)
    common = 2 * smooth * (alignment + uniformity) + 2 * inversion
    sides = {}
    if lam >= 2 * smooth:
        sides["Eq. 8, any norm, lam >= 2L"] = (eq8, common + 2 * smooth)
    if lam <= 2 * smooth and np.allclose(norm_f, 1) and np.allclose(norm_h, 1):
        sides["Eq. 8, norm 1"] = (eq8, common + 4 * smooth - lam)
        squared = reconstruction + lam * uniformity
        sides["squared form, norm 1"] = (squared, common + 4 * smooth)
    return sides


def _reconstruction(graph: Graph, out: Array, x2: Array) -> float:
    """L_rec of Eq. 2 over the edges: predictions out (|X1|, p), pixels x2 (|X2|, p)."""
    squares = graph.w1 @ (out**2).sum(1) + graph.w2 @ (x2**2).sum(1)
    return float(squares - 2 * (out * (graph.weights() @ x2)).sum())
