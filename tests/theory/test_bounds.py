"""Theorem 4.4, corrected, on exact graphs: docs/theory.md, section 5."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lib.theory.bounds import bounds
from lib.theory.graph import FORMS, build_graph, graph_of_views
from lib.theory.population import quantise

CONFIGURATIONS = [
    *[("two_classes", s, form, p) for s in (1, 2, 3) for form in FORMS for p in (True, False)],
    *[("digits", s, form, True) for s in (7, 6, 2) for form in ("product", "same")],
    ("digits", 6, "joint", False),
]


@pytest.fixture(scope="module")
def found(request):
    """The bounds of a configuration, at every k up to the rank; computed once."""
    kept = {}

    def of(configuration):
        if configuration not in kept:
            name, visible, form, positions = configuration
            population = request.getfixturevalue(name)
            graph = build_graph(population, visible, form, positions)
            rank = len(graph.svd(60)[1])
            ks = [k for k in (2, 5, 10, 20, 50) if k <= rank]
            kept[configuration] = bounds(graph, population.labels, ks)
        return kept[configuration]

    return of


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_steps_of_the_proof(configuration, found):
    same = configuration[2] == "same"
    for b in found(configuration):
        assert b.residual * b.gap <= b.phi + 1e-9
        assert b.disagreement <= 2 * b.residual + 1e-9
        assert b.error <= b.disagreement + b.alpha1 + 1e-9
        assert b.phi <= 2 * (b.alpha1 if same else b.alpha1 + b.alpha2) + 1e-9


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_errors_are_below_their_bounds(configuration, found):
    for b in found(configuration):
        assert b.alpha1 - 1e-9 <= b.error <= b.b1 + 1e-9
        assert b.b1 <= b.b3 + 1e-9
        assert b.brier_error <= b.b2 + 1e-9
        assert b.vote_error <= 2 * b.error + 1e-9


def dense_posterior(graph, labels):
    """p(y | x1) (|X1|, Y) from the joint probabilities of images and views."""
    joint = graph.m1.toarray() * graph.mass[:, None]
    return joint.T @ labels / graph.w1[:, None]


def test_phi_and_alpha_by_brute_force(two_classes):
    """phi over all pairs of views x1 that are joined through an x2."""
    graph = build_graph(two_classes, 2)
    eta = dense_posterior(graph, two_classes.labels)
    label, w = eta.argmax(1), graph.weights().toarray()
    two_steps = w @ np.diag(1 / graph.w2) @ w.T
    (row,) = bounds(graph, two_classes.labels, [4])
    assert row.phi == pytest.approx(two_steps[label[:, None] != label].sum(), abs=1e-10)
    assert row.alpha1 == pytest.approx(1 - graph.w1 @ eta.max(1))


def test_the_head_is_weighted_least_squares(two_classes):
    graph = build_graph(two_classes, 2)
    eta, root = dense_posterior(graph, two_classes.labels), graph.w1[:, None] ** 0.5
    one_hot = np.eye(2)
    u, sigma, _ = np.linalg.svd(graph.normalised.toarray())
    features = u[:, :4] * sigma[:4] ** 0.5 / root
    head = np.linalg.lstsq(root * features, root * one_hot[eta.argmax(1)], rcond=None)[0]
    guess = (features @ head).argmax(1)
    error = 1 - (graph.w1 * eta[np.arange(len(eta)), guess]).sum()
    votes = (graph.m1.toarray() @ one_hot[guess]).argmax(1)
    vote_error = graph.mass @ two_classes.labels[np.arange(len(votes)), 1 - votes]
    (row,) = bounds(graph, two_classes.labels, [4])
    assert row.error == pytest.approx(error, abs=1e-10)
    assert row.vote_error == pytest.approx(vote_error)
    assert row.sigma == pytest.approx(sigma[4], abs=1e-8)
    assert row.b1 == pytest.approx(2 * row.phi / (1 - sigma[4] ** 2) + row.alpha1, abs=1e-6)


def test_on_the_same_graph_views_are_joined_in_one_step(two_classes):
    """phi over the edges of W, gap 1 - sigma, and no alpha_2."""
    graph = build_graph(two_classes, 3, "same")
    label = dense_posterior(graph, two_classes.labels).argmax(1)
    phi = graph.weights().toarray()[label[:, None] != label].sum()
    gap = 1 - np.linalg.svd(graph.normalised.toarray(), compute_uv=False)[4]
    (row,) = bounds(graph, two_classes.labels, [4])
    assert row.phi == pytest.approx(phi, abs=1e-10)
    assert row.gap == pytest.approx(gap, abs=1e-8)
    assert row.b1 == pytest.approx(2 * phi / gap + row.alpha1, abs=1e-6)
    assert row.b3 == pytest.approx(4 * row.alpha1 / gap + row.alpha1, abs=1e-6)


def test_one_bit_counterexample_to_the_printed_theorem():
    """x1 is the label bit, x2 an independent bit: alpha_1 = 0 and lambda_2 = 1, error 1/2."""
    first, second = np.array([[0], [0], [1], [1]]), np.array([[0], [1], [0], [1]])
    graph = graph_of_views("joint", np.full(4, 0.25), first, second)
    np.testing.assert_allclose(graph.normalised.toarray(), np.full((2, 2), 0.5), atol=1e-15)
    (row,) = bounds(graph, np.eye(2)[first[:, 0]], [1])
    assert row.alpha1 == 0 and row.sigma == pytest.approx(0, abs=1e-12)
    assert row.printed == 0
    assert row.error == pytest.approx(0.5)
    assert row.alpha2 == 0.5 and row.b1 >= 0.5


def test_printed_bound_is_below_the_error_on_real_images():
    """64 tokens, rho = 1/8, k = 10: the error is 3.6 times sqrt(2 alpha_1) / lambda."""
    data = load_digits()
    population = quantise(data.images, data.target, (4, 2), 64)
    (row,) = bounds(build_graph(population, 7), population.labels, [10])
    found = row.alpha1, row.alpha2, row.error, row.b1, row.b2, row.b3, row.printed
    np.testing.assert_allclose(found, [0.0004, 0.564, 0.217, 1.84, 1.84, 3.11, 0.061], atol=6e-3)
