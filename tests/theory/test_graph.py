"""The augmentation graph and its spectrum: the identities of docs/theory.md, section 3."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from lib.errors import InputError
from lib.theory.bounds import bayes_errors
from lib.theory.graph import FORMS, build_graph
from lib.theory.population import Population

RATIOS = range(7, 0, -1)  # visible patches of 8, in the order of a growing mask ratio


def population_of(tokens: np.ndarray, mass: np.ndarray | None = None) -> Population:
    count = len(tokens)
    mass = np.full(count, 1 / count) if mass is None else mass
    return Population(tokens, mass, np.eye(count), np.arange(count), np.zeros((1, 1)))


def singular_values(graph) -> np.ndarray:
    return np.linalg.svd(graph.normalised.toarray(), compute_uv=False)


# --- the weights ---


def reference_weights(population: Population, visible: int, form: str, positions: bool) -> dict:
    """W by the definition: a loop over images and pairs of masks, views as plain tuples."""
    n = population.tokens.shape[1]

    def view(image, mask):
        content = [image[p] for p in mask]
        return (mask, tuple(content)) if positions else tuple(sorted(content))

    masks = list(combinations(range(n), visible))
    others = {m: tuple(p for p in range(n) if p not in m) for m in masks}
    weights: dict = {}
    for image, mass in zip(population.tokens.tolist(), population.mass, strict=True):
        for m in masks:
            seconds = {"joint": [others[m]], "product": list(others.values()), "same": masks}[form]
            for m2 in seconds:
                edge = (view(image, m), view(image, m2))
                weights[edge] = weights.get(edge, 0) + mass / len(masks) / len(seconds)
    return weights


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("visible", [1, 2])
def test_weights_are_those_of_the_definition(visible, form, positions):
    tokens = np.array([[0, 1, 2, 0], [0, 1, 1, 0], [2, 2, 2, 2], [1, 0, 2, 0]])
    population = population_of(tokens, np.array([0.4, 0.3, 0.2, 0.1]))
    reference = reference_weights(population, visible, form, positions)
    graph = build_graph(population, visible, form, positions)
    w = graph.weights()
    assert w.nnz == len(reference)
    np.testing.assert_allclose(sorted(w.data), sorted(reference.values()), atol=1e-15)
    firsts, seconds = ({edge[side] for edge in reference} for side in (0, 1))
    if visible == 1:
        assert w.shape == (len(firsts), len(seconds))
    else:
        assert w.shape == (len(firsts | seconds), len(firsts | seconds))
    row_sums = [sum(v for edge, v in reference.items() if edge[0] == x) for x in firsts]
    np.testing.assert_allclose(sorted(w.sum(axis=1)), sorted(row_sums), atol=1e-15)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("visible", [1, 2, 3])
def test_weights_are_a_probability_with_the_views_as_marginals(small, visible, form):
    graph = build_graph(small, visible, form)
    w = graph.weights()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(w.sum(axis=1), graph.w1, atol=1e-12)
    np.testing.assert_allclose(w.sum(axis=0), graph.w2, atol=1e-12)


@pytest.mark.parametrize("visible", [1, 2, 3])
def test_product_and_joint_have_the_same_marginals(small, visible):
    product, joint = (build_graph(small, visible, form) for form in ("product", "joint"))
    np.testing.assert_allclose(product.w1, joint.w1, atol=1e-12)
    np.testing.assert_allclose(product.w2, joint.w2, atol=1e-12)


# --- singular values ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("visible", [1, 2, 3])
def test_singular_values_lie_in_the_unit_interval_and_the_first_is_1(small, visible, form):
    graph = build_graph(small, visible, form)
    sigma = graph.svd(400)[1]
    assert sigma[0] == pytest.approx(1, abs=1e-10)
    assert sigma.min() > -1e-10 and sigma.max() < 1 + 1e-10
    np.testing.assert_allclose(graph.normalised @ graph.w2**0.5, graph.w1**0.5, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("visible", [1, 2, 3])
def test_svd_agrees_with_the_dense_one(small, visible, form):
    graph = build_graph(small, visible, form)
    sigma, dense = graph.svd(400)[1], singular_values(graph)
    np.testing.assert_allclose(np.pad(sigma, (0, len(dense) - len(sigma))), dense, atol=1e-8)
    assert graph.energy == pytest.approx((dense**2).sum(), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_singular_vectors_and_products(small, form):
    graph = build_graph(small, 3, form)
    u, sigma, v = graph.svd(12)
    abar = graph.normalised.toarray()
    np.testing.assert_allclose(u.T @ u, np.eye(12), atol=1e-8)
    np.testing.assert_allclose(abar @ v, u * sigma, atol=1e-8)
    np.testing.assert_allclose(graph.times(v), abar @ v, atol=1e-12)
    np.testing.assert_allclose(graph.times_transposed(u), abar.T @ u, atol=1e-12)


def test_image_features_are_means_over_the_views_of_an_image(small):
    graph = build_graph(small, 3)
    u, sigma, _ = graph.svd(5)
    f = u * sigma**0.5 / graph.w1[:, None] ** 0.5
    means = [f[graph.ids1[image]].mean(0) for image in range(len(small.tokens))]
    np.testing.assert_allclose(graph.image_features(5), means, atol=1e-10)


def test_sparse_solver_agrees_with_the_dense_one(small, monkeypatch):
    graph = build_graph(small, 3, "joint", positions=False)
    dense = graph.svd(8)[1]
    monkeypatch.setattr("lib.theory.graph.DENSE_CELLS", 0)
    u, sparse, v = graph.svd(8)
    np.testing.assert_allclose(sparse, dense, atol=1e-9)
    np.testing.assert_allclose(graph.normalised @ v, u * sparse, atol=1e-8)


# --- direction, mirror, pieces ---


@pytest.mark.parametrize("form", ["product", "joint"])
@pytest.mark.parametrize("visible", [1, 3])
def test_away_from_one_half_no_edge_has_a_way_back_or_onward(small, visible, form):
    """Eq. 11, and more: A^2 = 0, so every eigenvalue of A is 0."""
    a = build_graph(small, visible, form).adjacency()
    assert a.nnz > 0
    assert ((a > 0) * (a.T > 0)).nnz == 0
    assert (a @ a).nnz == 0


@pytest.mark.parametrize("form", ["product", "joint"])
def test_at_one_half_the_graph_is_undirected(small, form):
    w = build_graph(small, 2, form).adjacency()
    assert abs(w - w.T).max() < 1e-12


def test_at_one_half_the_product_graph_is_the_same_ratio_graph(small):
    product, same = (build_graph(small, 2, form) for form in ("product", "same"))
    assert abs(product.weights() - same.weights()).max() < 1e-12


@pytest.mark.parametrize("form", ["product", "joint"])
def test_laplacian_eigenvalues_are_1_minus_and_1_plus_sigma(small, form):
    abar = build_graph(small, 3, form).normalised.toarray()
    rows, cols = abar.shape
    both = np.block([[np.zeros((rows, rows)), abar], [abar.T, np.zeros((cols, cols))]])
    sigma = np.linalg.svd(abar, compute_uv=False)
    expected = np.sort(np.concatenate([1 - sigma, 1 + sigma, np.ones(abs(rows - cols))]))
    np.testing.assert_allclose(np.linalg.eigvalsh(np.eye(rows + cols) - both), expected, atol=1e-10)


@pytest.mark.parametrize("form", ["product", "joint"])
def test_the_graph_of_1_minus_rho_is_the_mirror_image(small, form):
    graph, mirror = build_graph(small, 3, form), build_graph(small, 1, form)
    np.testing.assert_allclose(graph.svd(30)[1], mirror.svd(30)[1], atol=1e-8)
    alphas, mirrored = bayes_errors(graph, small.labels), bayes_errors(mirror, small.labels)
    np.testing.assert_allclose(alphas, mirrored[::-1], atol=1e-12)


@pytest.mark.parametrize("visible", [1, 2, 3])
def test_the_joint_graph_falls_apart_by_mask(small, visible):
    graph = build_graph(small, visible, "joint")
    assert graph.components() == (singular_values(graph) > 1 - 1e-9).sum()
    assert graph.components() >= comb(4, visible)
    assert build_graph(small, visible).components() == 1


# --- along the mask ratio ---


@pytest.mark.parametrize(
    ("name", "ratios", "count"), [("digits", RATIOS, 150), ("small", (3, 2, 1), 187)]
)
def test_the_same_ratio_spectrum_falls_in_every_place(name, ratios, count, request):
    population = request.getfixturevalue(name)
    spectra = []
    for visible in ratios:
        sigma = build_graph(population, visible, "same").svd(count)[1]
        spectra.append(np.pad(sigma, (0, count - len(sigma))))
    assert (np.diff(spectra, axis=0) <= 1e-10).all()
    assert (spectra[0] - spectra[-1]).max() > 0.3


@pytest.mark.parametrize(("name", "ratios"), [("digits", RATIOS), ("small", (3, 2, 1))])
def test_the_labelling_error_rises(name, ratios, request):
    population = request.getfixturevalue(name)
    alphas = [bayes_errors(build_graph(population, s), population.labels)[0] for s in ratios]
    assert (np.diff(alphas) >= -1e-10).all()
    assert alphas[-1] - alphas[0] > 0.3


def test_the_rank_is_at_most_the_number_of_images(small):
    assert len(build_graph(small, 2).svd(400)[1]) <= len(small.tokens) == 187


@pytest.mark.parametrize(
    ("visible", "alpha1", "product", "same"),
    [
        (6, 0.167, (0.303, 0.479, 0.545), (0.032, 0.065, 0.098)),
        (2, 0.596, (0.303, 0.479, 0.545), (0.488, 0.691, 0.749)),
    ],
)
def test_reference_values_of_8_patches(digits, visible, alpha1, product, same):
    """The table of docs/theory.md, section 3: lambda_2, lambda_11 and lambda_21."""
    assert len(digits.tokens) == 666
    for form, expected in (("product", product), ("same", same)):
        sigma = build_graph(digits, visible, form).svd(21)[1]
        np.testing.assert_allclose(1 - sigma[[1, 10, 20]], expected, atol=6e-4)
    found = bayes_errors(build_graph(digits, visible), digits.labels)[0]
    assert found == pytest.approx(alpha1, abs=6e-4)
    assert build_graph(digits, visible, "joint").components() == 35


@pytest.mark.parametrize(
    ("visible", "alpha1", "lambda2"), [(3, 0.331, 0.331), (2, 0.493, 0.235), (1, 0.693, 0.331)]
)
def test_reference_values_of_4_patches(small, visible, alpha1, lambda2):
    graph = build_graph(small, visible)
    assert bayes_errors(graph, small.labels)[0] == pytest.approx(alpha1, abs=6e-4)
    assert 1 - graph.svd(2)[1][1] == pytest.approx(lambda2, abs=6e-4)


# --- what is refused ---


def test_a_graph_above_the_limit_is_refused_with_its_size():
    big = population_of(np.zeros((1797, 64), np.int32))
    message = r"1797 images x 4\.8\w+e\+14 masks .* would take .* GB, the limit is 1 GB; use larger"
    with pytest.raises(InputError, match=message):
        build_graph(big, 16)


def test_a_matrix_above_the_limit_is_refused_and_the_spectrum_is_not():
    tokens = np.random.default_rng(0).integers(0, 4, (400, 12)).astype(np.int32)
    graph = build_graph(population_of(tokens), 6)
    with pytest.raises(InputError, match="explicit weight matrix would take"):
        graph.weights()
    with pytest.raises(InputError, match="singular vectors would take"):
        graph.svd(10**5)
    assert graph.svd(2)[1][0] == pytest.approx(1)


@pytest.mark.parametrize("visible", [0, 4])
def test_a_view_must_be_a_part_of_the_image(small, visible):
    with pytest.raises(InputError, match=f"between 1 and 3 of 4 patches, got {visible}"):
        build_graph(small, visible)


def test_unknown_forms_and_empty_spectra_are_refused(small):
    with pytest.raises(InputError, match="one of product, joint, same, got 'both'"):
        build_graph(small, 2, "both")
    with pytest.raises(InputError, match="at least 1, got 0"):
        build_graph(small, 2).svd(0)
