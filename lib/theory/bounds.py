"""Theorem 4.4: the downstream error on an augmentation graph, and the bounds on it.

The statement, its correction and the proof are in docs/theory.md, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from lib.theory.graph import Graph
from lib.theory.population import Array


def posterior(views: csr_array, mass: Array, labels: Array) -> Array:
    """p(y | x) of every view: views M (N, |X|), mass (N,), labels (N, Y) -> (|X|, Y)."""
    return (views.T @ (mass[:, None] * labels)) / (mass @ views)[:, None]


def bayes_errors(graph: Graph, labels: Array) -> tuple[float, float]:
    """alpha_1, alpha_2 of Assumption 4.2, in [0, 1]; labels (N, Y).

    The least error of any classifier that sees x1, and of any that sees x2.
    """
    best1, best2 = (posterior(m, graph.mass, labels).max(1) for m in (graph.m1, graph.m2))
    return float(1 - graph.w1 @ best1), float(1 - graph.w2 @ best2)


@dataclass(frozen=True)
class Bound:
    """Theorem 4.4, corrected, beside the errors that it bounds, for the top-k spectral features.

    sigma = sigma_{k+1}; gap = 1 - sigma^2 (1 - sigma on the "same" graph, whose views are joined
    directly). phi: the probability that two joined views x1 have other Bayes labels. V: the
    one-hot Bayes labels, scaled by D_row^1/2. residual = ||(I - U_k U_k^T) V||^2. disagreement:
    the head's guess is not the Bayes label. error: over views. vote_error: of the majority over
    an image's views. brier_error: of the head that is fitted to p(y | x). printed: the paper's
    sqrt(2 alpha_1) / lambda_{k+1} with lambda = 1 - sigma, without its L and epsilon. Then

        residual <= phi / gap,  disagreement <= 2 residual,  vote_error <= 2 error,
        error <= b1 = 2 phi / gap + alpha1 <= b3,  brier_error <= b2,
        b3 = 4 (alpha1 + alpha2) / gap + alpha1, on the "same" graph 4 alpha1 / gap + alpha1.
    """

    k: int
    sigma: float
    gap: float
    alpha1: float
    alpha2: float
    phi: float
    residual: float
    disagreement: float
    error: float
    vote_error: float
    brier_error: float
    b1: float
    b2: float
    b3: float
    printed: float


def bounds(graph: Graph, labels: Array, ks: Sequence[int]) -> list[Bound]:
    """One Bound for each number k of features; labels (N, Y) = p(y | image).

    The head is the least-squares fit of the top-k left singular features, weighted by the
    probability of the views, to the one-hot Bayes label of a view, or to p(y | x) for
    `brier_error`. Bounds are infinite where the gap is 0.
    """
    eta = posterior(graph.m1, graph.mass, labels)
    root, one_hot = graph.w1[:, None] ** 0.5, np.eye(labels.shape[1])
    bayes, soft = root * one_hot[eta.argmax(1)], root * eta
    alpha1, alpha2 = bayes_errors(graph, labels)
    alphas = alpha1 if graph.form == "same" else alpha1 + alpha2
    phi, phi_soft, unsure = _cut(graph, bayes), _cut(graph, soft), float(1 - (soft**2).sum())
    u, sigmas, _ = graph.svd(max(ks) + 1)
    found = []
    for k in ks:
        sigma = float(sigmas[k]) if k < len(sigmas) else 0.0
        gap = 1 - sigma if graph.form == "same" else 1 - sigma**2
        fit, fit_soft = (u[:, :k] @ (u[:, :k].T @ target) for target in (bayes, soft))
        guess = fit.argmax(1)
        votes = (graph.m1 @ one_hot[guess]).argmax(1)
        found.append(
            Bound(
                k=k,
                sigma=sigma,
                gap=gap,
                alpha1=alpha1,
                alpha2=alpha2,
                phi=phi,
                residual=float(((bayes - fit) ** 2).sum()),
                disagreement=float(graph.w1 @ (guess != eta.argmax(1))),
                error=_error(eta, graph.w1, guess),
                vote_error=_error(labels, graph.mass, votes),
                brier_error=_error(eta, graph.w1, fit_soft.argmax(1)),
                b1=2 * phi * _inverse(gap) + alpha1,
                b2=2 * (unsure + phi_soft * _inverse(gap)),
                b3=4 * alphas * _inverse(gap) + alpha1,
                printed=(2 * alpha1) ** 0.5 * _inverse(1 - sigma),
            )
        )
    return found


def _cut(graph: Graph, v: Array) -> float:
    """||v||^2 minus its part along the edges, v (|X1|, Y); phi if v are one-hot labels."""
    if graph.form == "same":
        joined = (v * graph.times(v)).sum()
    else:
        joined = (graph.times_transposed(v) ** 2).sum()
    return float((v**2).sum() - joined)


def _error(p: Array, weight: Array, guess: Array) -> float:
    """Probability that the guess (n,) is wrong, for p(y | .) (n, Y) and weights (n,)."""
    return float(1 - weight @ np.take_along_axis(p, guess[:, None], 1)[:, 0])


def _inverse(gap: float) -> float:
    return 1 / gap if gap > 1e-9 else np.inf
