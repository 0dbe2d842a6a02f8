"""Section 4, computed: the augmentation graph of an enumerable population, its factorisation, and its bounds.

A population is a set of images whose patches are replaced by k-means tokens. Every view under every mask of a size
is then enumerated, and nothing below is sampled. Symbols: N distinct images xbar of probability P_d, n patches, s of
them visible, C = C(n, s) masks, X1 and X2 the views x1 (s patches) and x2 (n - s patches), Y classes y.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from lib.theory.graph import Array, Graph

Sides = tuple[float, float]


def mf_terms(graph: Graph, f: Array, h: Array) -> tuple[float, float, float]:
    """L_mf of Theorem 4.1 in three parts, for F = D_row^1/2 f and G = D_col^1/2 h; f (|X1|, k), h (|X2|, k).

    ||Abar - F G^T||_F^2 = ||Abar||_F^2 - 2 E_W[f(x1).h(x2)] + E[(f(x1).h(x2^-))^2]: a constant, an alignment part
    and a uniformity part, tr(C_f C_h), over independent views x1, x2^-.
    """
    big_f, big_g = graph.w1[:, None] ** 0.5 * f, graph.w2[:, None] ** 0.5 * h
    values = graph.normalised.data if graph.form == "joint" else graph._spectrum[3]
    uniformity = ((big_f.T @ big_f) * (big_g.T @ big_g)).sum()
    return (
        float((values**2).sum()),
        float(-2 * (big_f * graph.times(big_g)).sum()),
        float(uniformity),
    )


def factorise(
    abar: Array, k: int, seed: int = 0, steps: int = 2000
) -> tuple[Array, Array, list[float]]:
    """Minimise ||Abar - F G^T||_F^2 by plain gradient descent (step 1/4) from a small random start; abar dense.

    Returns F (|X1|, k), G (|X2|, k) and the loss before each step. A small start keeps F and G balanced; a large one
    leaves directions in which F grows while G vanishes, and the descent stalls.
    """
    rng = np.random.default_rng(seed)
    f, g = (0.1 * rng.normal(size=(n, k)) / n**0.5 for n in abar.shape)
    history = []
    for _ in range(steps):
        rest = f @ g.T - abar
        history.append(float((rest**2).sum()))
        f, g = f - 0.5 * rest @ g, g - 0.5 * rest.T @ f
    return f, g, history


def theorem_41(
    graph: Graph, f: Array, h: Array, decoder: Array, x2: Array, lam: float
) -> dict[str, Sides]:
    """Corrected Theorem 4.1 (theory.md, b) for a linear decoder g(z) = W z, so L = ||W||_2^2, and f_g = h.

    f (|X1|, k), h (|X2|, k), decoder W (p, k), patches x2 (|X2|, p). The factor of L_mf is 2L; the paper prints 2.
    Returns the two sides, left <= right, of each form that applies: features of norm 1 and 0 <= lam <= 2L, with Eq. 8
    and with its squared form E(f.h^-)^2; any norms and lam >= 2L, with Eq. 8.
    """
    w, w1, w2, smooth = graph.weights(), graph.w1, graph.w2, float(np.linalg.norm(decoder, 2) ** 2)
    out, norm_f, norm_h = f @ decoder.T, (f**2).sum(1), (h**2).sum(1)
    eps = w2 @ ((h @ decoder.T - x2) ** 2).sum(1)
    rec = w1 @ (out**2).sum(1) + w2 @ (x2**2).sum(1) - 2 * (out * (w @ x2)).sum()
    pushed = rec - lam * (w1 @ norm_f + w2 @ norm_h - 2 * (w1 @ f) @ (w2 @ h))
    _, alignment, uniformity = mf_terms(graph, f, h)
    common = 2 * smooth * (alignment + uniformity) + 2 * eps
    sides = (
        {"Eq. 8, any norm, lam >= 2L": (pushed, common + 2 * smooth)} if lam >= 2 * smooth else {}
    )
    if lam <= 2 * smooth and np.allclose(norm_f, 1) and np.allclose(norm_h, 1):
        sides["Eq. 8, norm 1"] = (pushed, common + 4 * smooth - lam)
        sides["squared form, norm 1"] = (rec + lam * uniformity, common + 4 * smooth)
    return sides


def posterior(views: csr_array, mass: Array, labels: Array) -> Array:
    """p(y | x) of every view: views M (N, |X|), mass (N,), labels (N, Y) -> (|X|, Y)."""
    return (views.T @ (mass[:, None] * labels)) / (mass @ views)[:, None]


def bayes_errors(graph: Graph, labels: Array) -> tuple[float, float]:
    """alpha_1, alpha_2 (Assumption 4.2): the least error of any classifier that sees x1, and of any that sees x2."""
    best = [posterior(m, graph.mass, labels).max(1) for m in (graph.m1, graph.m2)]
    return float(1 - graph.w1 @ best[0]), float(1 - graph.w2 @ best[1])


def bounds(graph: Graph, labels: Array, ks: Sequence[int]) -> list[dict[str, float]]:
    """Theorem 4.4, corrected (theory.md, d), beside the errors it bounds, for each k; labels (N, Y) = p(y | xbar).

    The head is the w-weighted least-squares fit of the top-k left singular features to the one-hot Bayes label of a
    view (`error` over views, `vote_error` of the majority over an image's views, `disagreement` with the Bayes label)
    or to p(y | x) (`brier_error`). With gap = 1 - sigma_{k+1}^2, phi = Pr[two views joined through an x2 have other
    Bayes labels] and residual = ||(I - U_k U_k^T) V||^2: residual <= phi / gap, disagreement <= 2 residual,
    error <= b1 = 2 phi / gap + alpha_1 <= b3 = 4 (alpha_1 + alpha_2) / gap + alpha_1, brier_error <= b2. For the
    "same" graph the joint is direct: gap = 1 - sigma_{k+1}, and b3 needs alpha_1 only. `printed` is the paper's
    sqrt(2 alpha_1) / lambda_{k+1}, lambda = 1 - sigma, without its L and epsilon.
    """
    eta, root = posterior(graph.m1, graph.mass, labels), graph.w1[:, None] ** 0.5
    (alpha1, alpha2), same, classes = (
        bayes_errors(graph, labels),
        graph.form == "same",
        np.eye(labels.shape[1]),
    )
    bayes, soft = root * classes[eta.argmax(1)], root * eta
    u, sigmas, _ = graph.svd(max(ks) + 1)

    def energy(v: Array) -> float:
        joined = (v * graph.times(v)).sum() if same else (graph.times(v, transpose=True) ** 2).sum()
        return float((v**2).sum() - joined)

    def error(p: Array, weight: Array, guess: Array) -> float:
        return float(1 - weight @ np.take_along_axis(p, guess[:, None], 1)[:, 0])

    phi, phi_soft, unsure = energy(bayes), energy(soft), float(1 - (soft**2).sum())
    rows = []
    for k in ks:
        sigma = float(sigmas[k]) if k < len(sigmas) else 0.0
        gap = 1 - sigma if same else 1 - sigma**2
        inverse, inverse_lambda = (1 / x if x > 1e-9 else np.inf for x in (gap, 1 - sigma))
        fit, fit_soft = (u[:, :k] @ (u[:, :k].T @ v) for v in (bayes, soft))
        guess = fit.argmax(1)
        row = {"k": k, "sigma": sigma, "gap": gap, "alpha1": alpha1, "alpha2": alpha2, "phi": phi}
        row["residual"] = float(((bayes - fit) ** 2).sum())
        row["disagreement"] = float(graph.w1 @ (guess != eta.argmax(1)))
        row["error"], row["brier_error"] = (
            error(eta, graph.w1, g) for g in (guess, fit_soft.argmax(1))
        )
        row["vote_error"] = error(labels, graph.mass, (graph.m1 @ classes[guess]).argmax(1))
        row["b1"], row["b2"] = 2 * phi * inverse + alpha1, 2 * (unsure + phi_soft * inverse)
        row["b3"] = 4 * (alpha1 if same else alpha1 + alpha2) * inverse + alpha1
        rows.append(row | {"printed": (2 * alpha1) ** 0.5 * inverse_lambda})
    return rows
