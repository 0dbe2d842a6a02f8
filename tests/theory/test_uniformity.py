"""Why the uniformity term needs a LayerNorm, and its least value: docs/theory.md, section 6."""

import pytest
import torch
import torch.nn.functional as F

from lib.losses import uniformity_loss


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layer_norm_fixes_the_norm():
    """|f|^2 = D v / (v + eps), with v the variance of the coordinates."""
    x, eps = normal(40, 16), 1e-3
    v = x.var(-1, unbiased=False)
    found = F.layer_norm(x, (16,), eps=eps).square().sum(-1)
    torch.testing.assert_close(found, 16 * v / (v + eps), atol=1e-9, rtol=0)


def test_behind_a_layer_norm_distances_are_cosines():
    """|f_i - f_j|^2 = 2 D (1 - cos), so it is at most 4 D."""
    f = F.layer_norm(normal(40, 16), (16,), eps=0.0)
    cosines = F.cosine_similarity(f[:, None], f[None], dim=-1)
    distances = torch.cdist(f, f).square()
    torch.testing.assert_close(distances, 2 * 16 * (1 - cosines), atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_without_it_eq9_has_no_minimum(scale):
    """Features times c, first decoder layer over c: L_rec stays, the distance grows as c^2."""
    x, decoder, target = normal(40, 16), normal(5, 16, seed=1), normal(40, 5, seed=2)
    plain = (x @ decoder.T - target).square().mean()
    scaled = ((scale * x) @ (decoder / scale).T - target).square().mean()
    torch.testing.assert_close(scaled, plain, atol=1e-9, rtol=0)
    spread, wide = 2 * x.var(0).sum(), 2 * (scale * x).var(0).sum()
    torch.testing.assert_close(wide, scale**2 * spread, rtol=1e-12, atol=0)
    behind = uniformity_loss(scale * x, "euclidean"), uniformity_loss(x, "euclidean")
    torch.testing.assert_close(*behind, rtol=1e-3, atol=0)


def evenly_spread(dim: int) -> torch.Tensor:
    """(2 (D-1), D): plus and minus an orthonormal basis of the rows whose coordinates sum to 0."""
    centred = torch.eye(dim, dtype=torch.float64) - 1 / dim
    basis = torch.linalg.svd(centred)[0][:, : dim - 1].T
    return 1e4 * torch.cat([basis, -basis])


@pytest.mark.parametrize("dim", [4, 16, 96])
def test_the_least_value_over_a_distribution_is_d_over_d_minus_1(dim):
    """LayerNorm leaves D - 1 directions. The mean over all pairs, diagonal included, is the value
    for independent draws from these rows; no distribution is below it (Cauchy-Schwarz)."""
    value = dim * uniformity_loss(evenly_spread(dim), "released").item()
    assert value == pytest.approx(dim / (dim - 1), rel=1e-9)
    for seed in range(3):
        other = F.layer_norm(normal(4 * dim, dim, seed=seed), (dim,))
        assert dim * uniformity_loss(other, "released").item() > value


@pytest.mark.parametrize("dim", [96, 768])
def test_the_coefficient_on_mean_cos2_is_lam_times_the_width(dim):
    """spectral = D * mean over pairs of different views of cos^2."""
    x = normal(12, dim)
    f = F.layer_norm(x, (dim,))
    cosines = f @ f.T / dim
    mean = (cosines.square().sum() - cosines.diagonal().square().sum()) / (12 * 11)
    lam = 0.001
    torch.testing.assert_close(lam * uniformity_loss(x), lam * dim * mean, rtol=1e-9, atol=0)
