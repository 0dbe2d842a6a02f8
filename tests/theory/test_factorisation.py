"""Theorem 4.1, corrected, on exact graphs: docs/theory.md, section 4."""

import numpy as np
import pytest

from lib.theory.factorisation import factorise, mf_terms, theorem_41
from lib.theory.graph import FORMS, Graph, build_graph, graph_of_views

ANY_NORM = "Eq. 8, any norm, lam >= 2L"


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_problem(graph: Graph, seed: int):
    """Features f (|X1|, 4), h (|X2|, 4), decoder (6, 4), pixels x2 (|X2|, 6), and L."""
    rng = np.random.default_rng(seed)
    f, h = rng.normal(size=(len(graph.w1), 4)), rng.normal(size=(len(graph.w2), 4))
    decoder = rng.normal(size=(6, 4))
    x2 = h @ decoder.T + rng.normal(size=(len(graph.w2), 6))
    return f, h, decoder, x2, np.linalg.norm(decoder, 2) ** 2


def matrix_loss(graph: Graph, f: np.ndarray, h: np.ndarray) -> float:
    """L_mf as a matrix norm."""
    big_f, big_g = graph.w1[:, None] ** 0.5 * f, graph.w2[:, None] ** 0.5 * h
    return ((graph.normalised.toarray() - big_f @ big_g.T) ** 2).sum()


# --- the factorisation loss ---


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_splits_into_constant_alignment_and_uniformity(small, form):
    graph = build_graph(small, 3, form)
    f, h, *_ = random_problem(graph, 0)
    constant, alignment, uniformity = mf_terms(graph, f, h)
    assert constant + alignment + uniformity == pytest.approx(matrix_loss(graph, f, h), rel=1e-10)
    pairs = (graph.weights().toarray() * (f @ h.T)).sum()
    assert alignment == pytest.approx(-2 * pairs, rel=1e-10)
    assert uniformity == pytest.approx(graph.w1 @ (f @ h.T) ** 2 @ graph.w2, rel=1e-10)
    assert constant >= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_descent_reaches_the_truncated_svd(small, seed):
    """Eckart-Young: the least loss at rank k is the sum of the other sigma^2."""
    abar = build_graph(small, 3).normalised.toarray()
    u, sigma, _ = np.linalg.svd(abar)
    best = (sigma[6:] ** 2).sum()
    f, g, history = factorise(abar, 6, seed)
    assert best - 1e-10 <= ((abar - f @ g.T) ** 2).sum() <= best + 1e-6
    assert history[0] > best + 0.5 and history[-1] == pytest.approx(best)
    angles = np.linalg.svd(u[:, :6].T @ np.linalg.qr(f)[0], compute_uv=False)
    assert angles.min() > 1 - 1e-6


# --- the theorem ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_corrected_forms_hold_for_features_of_norm_1(small, form, seed):
    graph = build_graph(small, 3, form)
    f, h, decoder, x2, smooth = random_problem(graph, seed)
    for lam in (0, 0.5 * smooth, 1.99 * smooth):
        sides = theorem_41(graph, unit(f), unit(h), decoder, x2, lam)
        assert set(sides) == {"Eq. 8, norm 1", "squared form, norm 1"}
        for left, right in sides.values():
            assert left <= right + 1e-8 * abs(right)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_corrected_form_holds_for_any_norm_if_lam_is_at_least_2L(small, form, seed):
    graph = build_graph(small, 3, form)
    f, h, decoder, x2, smooth = random_problem(graph, seed)
    for scale, lam in ((1, 2 * smooth), (3, 5 * smooth)):
        sides = theorem_41(graph, scale * f, h, decoder, x2, lam)
        assert set(sides) == {ANY_NORM}
        left, right = sides[ANY_NORM]
        assert left <= right + 1e-8 * abs(right)


def test_no_form_applies_to_free_norms_and_small_lam(small):
    graph = build_graph(small, 3)
    f, h, decoder, x2, _ = random_problem(graph, 0)
    assert theorem_41(graph, f, h, decoder, x2, 0.0) == {}


def test_the_sides_are_those_of_the_definitions(small):
    """L_rec, uniformity and L_mf by sums over all pairs: the inequality is about these numbers."""
    graph = build_graph(small, 3)
    f, h, decoder, x2, smooth = random_problem(graph, 0)
    w, norm = graph.weights().toarray(), (graph.normalised.toarray() ** 2).sum()

    def reconstruction(a):
        return (w * (((a @ decoder.T)[:, None] - x2) ** 2).sum(-1)).sum()

    def right(a, b, constant):
        inversion = graph.w2 @ ((b @ decoder.T - x2) ** 2).sum(1)
        return 2 * smooth * matrix_loss(graph, a, b) + 2 * inversion + constant

    far = graph.w1 @ ((f[:, None] - h) ** 2).sum(-1) @ graph.w2
    found = theorem_41(graph, f, h, decoder, x2, 1e3)[ANY_NORM]
    expected = reconstruction(f) - 1e3 * far, right(f, h, 2 * smooth * (1 - norm))
    assert found == pytest.approx(expected, rel=1e-10)

    f, h = unit(f), unit(h)
    sides = theorem_41(graph, f, h, decoder, x2, smooth)
    eq8 = right(f, h, 3 * smooth - 2 * smooth * norm)
    assert sides["Eq. 8, norm 1"][1] == pytest.approx(eq8, rel=1e-10)
    uniformity = graph.w1 @ (f @ h.T) ** 2 @ graph.w2
    expected = (
        reconstruction(f) + smooth * uniformity,
        right(f, h, 4 * smooth - 2 * smooth * norm),
    )
    assert sides["squared form, norm 1"] == pytest.approx(expected, rel=1e-10)


def test_counterexample_with_free_norms_and_small_lam():
    """One view each, g(z) = z, f_g(x2) = x2 = t e2, f = t e1: the left side grows as t^2."""
    one = np.zeros((1, 1), int)
    graph = graph_of_views("joint", np.ones(1), one, one)
    lam, left, right = 0.5, [], []
    for t in (1.0, 10.0, 100.0):
        f, h = np.array([[t, 0.0]]), np.array([[0.0, t]])
        left.append(((f - h) ** 2).sum() * (1 - lam))  # L_rec - lam |f - f_g|^2, eps = 0
        right.append(2 * sum(mf_terms(graph, f, h)))
    assert right == pytest.approx([2, 2, 2])
    assert left[-1] > 1000 * left[0]
