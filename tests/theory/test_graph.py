"""The identities of Section 4, on the exact graph of the digits; numbers in brackets are those of theory.md's list."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from lib.errors import InputError
from lib.losses import uniformity_loss
from lib.theory.bounds import bayes_errors, bounds
from lib.theory.graph import FORMS, Population, build_graph, graph_of_views, quantise

RATIOS = range(7, 0, -1)  # visible patches of 8, in the order of a growing mask ratio


@pytest.fixture(scope="module")
def digits():
    """1,797 digits as 8 patches of 4x2, 8 tokens: the notebook's default."""
    data = load_digits()
    return quantise(data.images, data.target, (4, 2), 8)


@pytest.fixture(scope="module")
def small():
    """The digits as 4 patches of 4x4, 8 tokens: small enough for dense linear algebra."""
    data = load_digits()
    return quantise(data.images, data.target, (4, 4), 8)


@pytest.fixture(scope="module")
def two_classes():
    data = load_digits(n_class=2)
    return quantise(data.images, data.target, (4, 4), 8)


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
    population = Population(
        tokens, np.array([0.4, 0.3, 0.2, 0.1]), np.eye(4), np.arange(4), np.zeros((3, 1))
    )
    reference = reference_weights(population, visible, form, positions)
    w = build_graph(population, visible, form, positions).weights()
    assert w.nnz == len(reference)
    np.testing.assert_allclose(sorted(w.data), sorted(reference.values()), atol=1e-15)
    firsts, seconds = ({e[side] for e in reference} for side in (0, 1))
    assert (
        w.shape == (len(firsts), len(seconds))
        if visible == 1
        else w.shape[0] == w.shape[1] == len(firsts | seconds)
    )
    expected = sorted(sum(v for e, v in reference.items() if e[0] == x) for x in firsts)
    np.testing.assert_allclose(sorted(w.sum(axis=1)), expected, atol=1e-15)


def test_quantise_merges_equal_images_and_keeps_their_labels(small):
    data = load_digits()
    assert len(np.unique(small.tokens, axis=0)) == len(small.tokens)
    np.testing.assert_allclose(small.mass.sum(), 1)
    classes = np.eye(10)[data.target]
    means = np.stack([classes[small.rows == i].mean(0) for i in range(len(small.tokens))])
    np.testing.assert_allclose(small.labels, means)
    patches = data.images.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
    nearest = ((patches[:, None] - small.codebook) ** 2).sum(-1).argmin(1).reshape(-1, 4)
    np.testing.assert_array_equal(small.tokens[small.rows], nearest)


def test_reference_values_of_theory_md(digits, small):
    """theory.md (a), to its three decimals: (alpha_1, lambda_2, _11, _21 of product and same, components)."""
    assert len(digits.tokens) == 666
    rows = {
        6: (0.167, 0.303, 0.479, 0.545, 0.032, 0.065, 0.098, 35),
        2: (0.596, 0.303, 0.479, 0.545, 0.488, 0.691, 0.749, 35),
    }
    for visible, expected in rows.items():
        graph, same = build_graph(digits, visible), build_graph(digits, visible, "same")
        values = [1 - g.svd(21)[1][i] for g in (graph, same) for i in (1, 10, 20)]
        found = [
            bayes_errors(graph, digits.labels)[0],
            *values,
            build_graph(digits, visible, "joint").components(),
        ]
        np.testing.assert_allclose(found, expected, atol=6e-4)
    for visible, alpha, lam in ((3, 0.331, 0.331), (2, 0.493, 0.235), (1, 0.693, 0.331)):
        graph = build_graph(small, visible)
        np.testing.assert_allclose(
            [bayes_errors(graph, small.labels)[0], 1 - graph.svd(2)[1][1]], [alpha, lam], atol=6e-4
        )


@pytest.mark.parametrize("visible", [1, 2, 3])
def test_graph_is_a_probability_with_unit_top_singular_value(small, visible):
    """[10]"""
    graphs = [build_graph(small, visible, form) for form in FORMS]
    for graph in graphs:
        w = graph.weights()
        assert w.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(w.sum(axis=1), graph.w1, atol=1e-12)
        np.testing.assert_allclose(w.sum(axis=0), graph.w2, atol=1e-12)
        sigma = graph.svd(400)[1]
        assert (
            sigma[0] == pytest.approx(1, abs=1e-10)
            and sigma.min() > -1e-10
            and sigma.max() < 1 + 1e-10
        )
        np.testing.assert_allclose(graph.normalised @ graph.w2**0.5, graph.w1**0.5, atol=1e-12)
        dense = np.linalg.svd(graph.normalised.toarray(), compute_uv=False)
        np.testing.assert_allclose(np.pad(sigma, (0, len(dense) - len(sigma))), dense, atol=1e-8)
    np.testing.assert_allclose(graphs[0].w1, graphs[1].w1, atol=1e-12)
    np.testing.assert_allclose(graphs[0].w2, graphs[1].w2, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_singular_triplets_and_products(small, form):
    graph = build_graph(small, 3, form)
    u, sigma, v = graph.svd(12)
    abar = graph.normalised.toarray()
    np.testing.assert_allclose(u.T @ u, np.eye(12), atol=1e-8)
    np.testing.assert_allclose(abar @ v, u * sigma, atol=1e-8)
    np.testing.assert_allclose(graph.times(v), abar @ v, atol=1e-12)
    np.testing.assert_allclose(graph.times(u, transpose=True), abar.T @ u, atol=1e-12)


def test_sparse_solver_agrees_with_the_dense_one(small, monkeypatch):
    graph = build_graph(small, 3, "joint", positions=False)
    dense = graph.svd(8)[1]
    monkeypatch.setattr(theory, "DENSE_CELLS", 0)
    u, sparse, v = graph.svd(8)
    np.testing.assert_allclose(sparse, dense, atol=1e-9)
    np.testing.assert_allclose(graph.normalised @ v, u * sparse, atol=1e-8)


def test_direction_of_the_graph(small):
    """[11] Eq. 11: no edge has a way back away from 1/2; at 1/2 the graph is undirected."""
    for form in ("product", "joint"):
        for visible in (1, 3):
            a = build_graph(small, visible, form).adjacency()
            assert (a @ a).nnz == 0 and ((a > 0) * (a.T > 0)).nnz == 0 and a.nnz > 0
        w = build_graph(small, 2, form).adjacency()
        assert abs(w - w.T).max() < 1e-12


@pytest.mark.parametrize("form", ["product", "joint"])
def test_laplacian_and_mirror_symmetry(small, form):
    """[12]"""
    graph, mirror = build_graph(small, 3, form), build_graph(small, 1, form)
    abar = graph.normalised.toarray()
    rows, cols = abar.shape
    lsym = np.eye(rows + cols) - np.block(
        [[np.zeros((rows, rows)), abar], [abar.T, np.zeros((cols, cols))]]
    )
    sigma = np.linalg.svd(abar, compute_uv=False)
    expected = np.sort(np.concatenate([1 - sigma, 1 + sigma, np.ones(abs(rows - cols))]))
    np.testing.assert_allclose(np.linalg.eigvalsh(lsym), expected, atol=1e-10)
    np.testing.assert_allclose(graph.svd(30)[1], mirror.svd(30)[1], atol=1e-8)
    np.testing.assert_allclose(
        bayes_errors(graph, small.labels), bayes_errors(mirror, small.labels)[::-1], atol=1e-12
    )


def test_data_processing_along_the_mask_ratio(digits, small):
    """[13] The spectrum of the same-ratio graph falls in every place, the labelling error rises."""
    for population, ratios, count in ((digits, RATIOS, 150), (small, (3, 2, 1), 187)):
        spectra = [build_graph(population, visible, "same").svd(count)[1] for visible in ratios]
        spectra = [np.pad(s, (0, count - len(s))) for s in spectra]
        alphas = [
            bayes_errors(build_graph(population, visible), population.labels)[0]
            for visible in ratios
        ]
        assert (np.diff(spectra, axis=0) <= 1e-10).all() and (np.diff(alphas) >= -1e-10).all()
        assert alphas[-1] - alphas[0] > 0.3 and (spectra[0] - spectra[-1]).max() > 0.3
    middle = build_graph(small, 2).svd(187)[1]
    np.testing.assert_allclose(np.pad(middle, (0, 187 - len(middle))), spectra[1], atol=1e-8)
    assert len(small.tokens) == 187 >= len(middle)


@pytest.mark.parametrize("visible", [1, 2, 3])
def test_joint_graph_falls_apart_by_mask(small, visible):
    """[14]"""
    graph = build_graph(small, visible, "joint")
    sigma = np.linalg.svd(graph.normalised.toarray(), compute_uv=False)
    assert (sigma > 1 - 1e-9).sum() == graph.components() >= len(theory.masks_of_size(4, visible))
    assert build_graph(small, visible).components() == 1


@pytest.mark.parametrize("form", FORMS)
def test_factorisation_splits_into_alignment_and_uniformity(small, form):
    """[15]"""
    graph = build_graph(small, 3, form)
    rng = np.random.default_rng(0)
    f, h = rng.normal(size=(len(graph.w1), 5)), rng.normal(size=(len(graph.w2), 5))
    constant, alignment, uniformity = theory.mf_terms(graph, f, h)
    w, abar = graph.weights().toarray(), graph.normalised.toarray()
    direct = ((abar - (graph.w1[:, None] ** 0.5 * f) @ (graph.w2[:, None] ** 0.5 * h).T) ** 2).sum()
    assert constant + alignment + uniformity == pytest.approx(direct, rel=1e-10)
    assert alignment == pytest.approx(-2 * (w * (f @ h.T)).sum(), rel=1e-10)
    assert uniformity == pytest.approx(graph.w1 @ (f @ h.T) ** 2 @ graph.w2, rel=1e-10)
    assert constant >= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_trained_factors_reach_the_truncated_svd(small, seed):
    """[15] Eckart-Young."""
    abar = build_graph(small, 3).normalised.toarray()
    sigma = np.linalg.svd(abar, compute_uv=False)
    f, g, history = theory.factorise(abar, 6, seed)
    best = (sigma[6:] ** 2).sum()
    assert best == pytest.approx((abar**2).sum() - (sigma[:6] ** 2).sum(), abs=1e-10)
    assert best - 1e-10 <= ((abar - f @ g.T) ** 2).sum() <= best + 1e-6
    assert history[0] > best + 0.5 and history[-1] == pytest.approx(best)
    u = np.linalg.svd(abar)[0][:, :6]
    assert np.linalg.svd(u.T @ np.linalg.qr(f)[0], compute_uv=False).min() > 1 - 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_corrected_theorem_41(small, form):
    """[16] For random features, decoders and targets."""
    graph = build_graph(small, 3, form)
    seen = set()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        f, h = rng.normal(size=(len(graph.w1), 4)), rng.normal(size=(len(graph.w2), 4))
        decoder = rng.normal(size=(6, 4))
        x2 = h @ decoder.T + rng.normal(size=(len(graph.w2), 6))
        smooth = np.linalg.norm(decoder, 2) ** 2
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, h)]
        cases = [(unit, share * smooth) for share in (0, 0.5, 1.99)] + [
            ((f, h), 2 * smooth),
            ((3 * f, h), 5 * smooth),
        ]
        for (a, b), lam in cases:
            for name, (lhs, rhs) in theory.theorem_41(graph, a, b, decoder, x2, lam).items():
                assert lhs <= rhs + 1e-8 * abs(rhs), name
                seen.add(name)
    assert len(seen) == 3
    assert theory.theorem_41(graph, f, h, decoder, x2, 0.0) == {}


def test_theorem_41_terms_by_brute_force(small):
    """L_rec and the uniformity term against sums over all pairs, so that the inequality is about the right numbers."""
    graph = build_graph(small, 3)
    rng = np.random.default_rng(0)
    f, h = rng.normal(size=(len(graph.w1), 4)), rng.normal(size=(len(graph.w2), 4))
    decoder, lam = rng.normal(size=(3, 4)), 1e3
    x2 = rng.normal(size=(len(graph.w2), 3))
    rec = (graph.weights().toarray() * (((f @ decoder.T)[:, None] - x2) ** 2).sum(-1)).sum()
    far = graph.w1 @ ((f[:, None] - h) ** 2).sum(-1) @ graph.w2
    smooth, abar = np.linalg.norm(decoder, 2) ** 2, graph.normalised.toarray()

    def right(a, b, constant):
        """2L L_mf + 2 eps + C, with L_mf as a matrix norm."""
        l_mf = (
            (abar - (graph.w1[:, None] ** 0.5 * a) @ (graph.w2[:, None] ** 0.5 * b).T) ** 2
        ).sum()
        return 2 * smooth * l_mf + 2 * graph.w2 @ ((b @ decoder.T - x2) ** 2).sum(1) + constant

    norm = (abar**2).sum()
    lhs, rhs = theory.theorem_41(graph, f, h, decoder, x2, lam)["Eq. 8, any norm, lam >= 2L"]
    assert lhs == pytest.approx(rec - lam * far, rel=1e-10)
    assert rhs == pytest.approx(right(f, h, 2 * smooth * (1 - norm)), rel=1e-10)
    f, h = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, h))
    sides = theory.theorem_41(graph, f, h, decoder, x2, smooth)
    assert sides["Eq. 8, norm 1"][1] == pytest.approx(
        right(f, h, 3 * smooth - 2 * smooth * norm), rel=1e-10
    )
    assert sides["squared form, norm 1"][1] == pytest.approx(
        right(f, h, 4 * smooth - 2 * smooth * norm), rel=1e-10
    )
    rec = (graph.weights().toarray() * (((f @ decoder.T)[:, None] - x2) ** 2).sum(-1)).sum()
    squared = graph.w1 @ (f @ h.T) ** 2 @ graph.w2
    assert sides["squared form, norm 1"][0] == pytest.approx(rec + smooth * squared, rel=1e-10)


def test_theorem_41_fails_for_free_norms_and_small_lambda():
    """theory.md (b): g(z) = z, f_g(x2) = x2 = t e2, f = c e1: the left side grows without limit, L_mf stays."""
    graph = graph_of_views("joint", np.ones(1), np.zeros((1, 1), int), np.zeros((1, 1), int))
    lam, sides = 0.5, []
    for scale in (1.0, 10.0, 100.0):
        f, h = np.array([[scale, 0.0]]), np.array([[0.0, scale]])
        assert theory.theorem_41(graph, f, h, np.eye(2), h, lam) == {} or scale == 1
        sides.append(((1 - lam) * 2 * scale**2, 2 * sum(theory.mf_terms(graph, f, h))))
    assert [s[1] for s in sides] == pytest.approx([2, 2, 2]) and sides[-1][0] > 1000 * sides[0][1]


CONFIGURATIONS = [("two_classes", v, f, p) for v in (1, 2, 3) for f in FORMS for p in (True, False)]
CONFIGURATIONS += [("digits", v, f, True) for v in (7, 6, 2) for f in ("product", "same")] + [
    ("digits", 6, "joint", False)
]


@pytest.mark.parametrize(("name", "visible", "form", "positions"), CONFIGURATIONS)
def test_corrected_theorem_44(name, visible, form, positions, request):
    """[17] Every step of the corrected bound, slack 1e-9."""
    population = request.getfixturevalue(name)
    graph = build_graph(population, visible, form, positions)
    rank = len(graph.svd(60)[1])
    for b in bounds(graph, population.labels, [k for k in (2, 5, 10, 20, 50) if k <= rank]):
        a1, a2 = b["alpha1"], b["alpha2"]
        assert b["residual"] * b["gap"] <= b["phi"] + 1e-9
        assert b["disagreement"] <= 2 * b["residual"] + 1e-9
        assert b["error"] <= b["disagreement"] + a1 + 1e-9
        assert b["phi"] <= 2 * (a1 if form == "same" else a1 + a2) + 1e-9
        assert a1 - 1e-9 <= b["error"] <= b["b1"] + 1e-9 <= b["b3"] + 2e-9
        assert b["brier_error"] <= b["b2"] + 1e-9
        assert b["vote_error"] <= 2 * b["error"] + 1e-9


def test_bounds_by_brute_force(two_classes):
    """phi, the least-squares head and the errors against dense, independent computations."""
    graph = build_graph(two_classes, 2)
    w, joint = graph.weights().toarray(), graph.m1.toarray() * graph.mass[:, None]
    eta = joint.T @ two_classes.labels / graph.w1[:, None]
    label = eta.argmax(1)
    two_step = w @ np.diag(1 / graph.w2) @ w.T
    phi = two_step[label[:, None] != label].sum()
    u, sigma, _ = np.linalg.svd(graph.normalised.toarray())
    features, root = (
        u[:, :4] * sigma[:4] ** 0.5 / graph.w1[:, None] ** 0.5,
        graph.w1[:, None] ** 0.5,
    )
    head = np.linalg.lstsq(root * features, root * np.eye(2)[label], rcond=None)[0]
    guess = (features @ head).argmax(1)
    votes = (graph.m1.toarray() @ np.eye(2)[guess]).argmax(1)
    row = bounds(graph, two_classes.labels, [4])[0]
    assert row["phi"] == pytest.approx(phi, abs=1e-10)
    assert row["error"] == pytest.approx(
        1 - (graph.w1 * eta[np.arange(len(eta)), guess]).sum(), abs=1e-10
    )
    assert row["vote_error"] == pytest.approx(
        (graph.mass * two_classes.labels[np.arange(len(votes)), 1 - votes]).sum()
    )
    assert row["alpha1"] == pytest.approx(1 - joint.T.dot(two_classes.labels).max(1).sum())
    assert row["sigma"] == pytest.approx(sigma[4], abs=1e-8)
    assert row["b1"] == pytest.approx(2 * phi / (1 - sigma[4] ** 2) + row["alpha1"], abs=1e-6)


def test_bounds_of_the_same_graph_use_one_step(two_classes):
    """Two visible views are joined directly: phi over the edges of W, gap 1 - sigma, and no alpha_2."""
    graph = build_graph(two_classes, 3, "same")
    w, row = graph.weights().toarray(), bounds(graph, two_classes.labels, [4])[0]
    label = (graph.m1.T @ (graph.mass[:, None] * two_classes.labels)).argmax(1)
    phi, sigma = (
        w[label[:, None] != label].sum(),
        np.linalg.svd(graph.normalised.toarray(), compute_uv=False)[4],
    )
    assert row["phi"] == pytest.approx(phi, abs=1e-10) and row["gap"] == pytest.approx(
        1 - sigma, abs=1e-8
    )
    assert row["b1"] == pytest.approx(2 * phi / (1 - sigma) + row["alpha1"], abs=1e-6)
    assert row["b3"] == pytest.approx(4 * row["alpha1"] / (1 - sigma) + row["alpha1"], abs=1e-6)


def test_one_bit_counterexample_to_the_printed_theorem():
    """[17] x1 = label bit, x2 = an independent bit: alpha_1 = 0, lambda_2 = 1, printed bound 0, error 1/2."""
    first, second = np.array([[0], [0], [1], [1]]), np.array([[0], [1], [0], [1]])
    graph = graph_of_views("joint", np.full(4, 0.25), first, second)
    row = bounds(graph, np.eye(2)[first[:, 0]], [1])[0]
    np.testing.assert_allclose(graph.normalised.toarray(), np.full((2, 2), 0.5), atol=1e-15)
    assert (
        row["alpha1"] == 0 and row["printed"] == 0 and row["sigma"] == pytest.approx(0, abs=1e-12)
    )
    assert row["error"] == pytest.approx(0.5) and row["alpha2"] == 0.5 and row["b1"] >= 0.5


def test_printed_bound_is_below_the_error_on_real_images():
    """theory.md (d), 64 tokens, rho = 1/8, k = 10: the error is 3.6 times sqrt(2 alpha_1)/lambda."""
    data = load_digits()
    population = quantise(data.images, data.target, (4, 2), 64)
    row = bounds(build_graph(population, 7), population.labels, [10])[0]
    found = [row[name] for name in ("alpha1", "alpha2", "error", "b1", "b2", "b3", "printed")]
    np.testing.assert_allclose(found, [0.0004, 0.564, 0.217, 1.84, 1.84, 3.11, 0.061], atol=6e-3)


def test_layer_norm_fixes_the_scale_and_eq9_alone_does_not():
    """[8]"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    f, eps = F.layer_norm(x, (16,), eps=1e-3), 1e-3
    v = x.var(-1, unbiased=False)
    torch.testing.assert_close(f.square().sum(-1), 16 * v / (v + eps), atol=1e-9, rtol=0)
    exact = F.layer_norm(x, (16,), eps=0.0)
    cos = F.cosine_similarity(exact[:, None], exact[None], dim=-1)
    torch.testing.assert_close(
        torch.cdist(exact, exact).square(), 2 * 16 * (1 - cos), atol=1e-9, rtol=0
    )
    decoder, target = (
        torch.randn(5, 16, dtype=torch.float64),
        torch.randn(40, 5, dtype=torch.float64),
    )
    for c in (10.0, 100.0):
        loss = [((s * x) @ (decoder / s).T - target).square().mean() for s in (1.0, c)]
        torch.testing.assert_close(*loss, atol=1e-9, rtol=0)
        spread = [2 * (s * x).var(0).sum() for s in (1.0, c)]
        torch.testing.assert_close(spread[1], c**2 * spread[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(
            uniformity_loss(c * x, "euclidean"), uniformity_loss(x, "euclidean"), rtol=1e-3, atol=0
        )


def test_too_large_settings_are_refused_with_their_size():
    big = Population(
        np.zeros((1797, 64), np.int32),
        np.full(1797, 1 / 1797),
        np.ones((1797, 1)),
        np.arange(1797),
        np.eye(1),
    )
    with pytest.raises(
        InputError,
        match=r"1797 images x 4\.8\w+e\+14 masks .* would take .* GB, the limit is 1 GB; use larger",
    ):
        build_graph(big, 16)
    tokens = np.random.default_rng(0).integers(0, 4, (400, 12)).astype(np.int32)
    population = big.__class__(
        tokens, np.full(400, 1 / 400), np.ones((400, 1)), np.arange(400), np.eye(1)
    )
    graph = build_graph(population, 6)
    with pytest.raises(InputError, match="explicit weight matrix would take"):
        graph.weights()
    with pytest.raises(InputError, match="singular vectors would take"):
        graph.svd(10**5)
    assert graph.svd(2)[1][0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: build_graph(p, 2, "both"),
            "form must be one of product, joint, same, got 'both'",
        ),
        (lambda p: build_graph(p, 4), "visible must be between 1 and 3 of 4 patches, got 4"),
        (lambda p: build_graph(p, 0), "visible must be between 1 and 3"),
        (lambda p: build_graph(p, 2).svd(0), "at least 1, got 0"),
        (
            lambda p: quantise(np.zeros((5, 8, 8)), np.zeros(5), (3, 4), 8),
            "choose a divisor of each side",
        ),
        (lambda p: quantise(np.zeros((5, 8, 8)), np.zeros(5), (8, 8), 8), "not the whole image"),
        (lambda p: quantise(np.zeros((5, 8, 8)), np.zeros(5), (4, 4), 1), "at least 2 tokens"),
    ],
)
def test_bad_input_is_named(small, call, message):
    with pytest.raises(InputError, match=message):
        call(small)
