"""Eq. 2, 8 and 9 against pairwise references, closed forms and identities (docs/theory.md)."""

import math

import pytest
import torch
import torch.nn.functional as F

from lib.errors import InputError
from lib.evaluate.representation import participation_ratio
from lib.losses import (
    UNIFORMITY_FORMS,
    cosine_weight,
    effective_rank,
    equivalent_coefficients,
    normalise_patches,
    reconstruction_loss,
    uniformity_loss,
)

HADAMARD = torch.tensor([[1.0]]).double()
for _ in range(3):
    HADAMARD = torch.cat([torch.cat([HADAMARD, HADAMARD], 1), torch.cat([HADAMARD, -HADAMARD], 1)])
# Seven rows of mean 0 and equal norm: LayerNorm (eps 1e-5) keeps them to 1e-13.
ORTHOGONAL = HADAMARD[1:] * 1e4
D = 8


def features(batch=6, dim=10, seed=0):
    return torch.randn(
        batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def normalised(row, form):
    """One feature as the form sees it: of length 1 for "released", after LayerNorm otherwise."""
    if form == "released":
        return row / row.square().sum().sqrt()
    centred = row - row.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


def pair_value(a, b, form):
    dot, dim = (a * b).sum(), len(a)
    values = {
        "euclidean": -(a - b).square().sum(),
        "spectral": dim * (dot / dim) ** 2,
        "released": dot**2,
    }
    return values[form]


def pairwise(x, form):
    """The definitions, one pair at a time: no sums, no matrices."""
    rows = [normalised(row, form) for row in x]
    total, count = x.new_zeros(()), 0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j or form == "released":
                total, count = total + pair_value(a, b, form), count + 1
    return total / count


@pytest.mark.parametrize("form", UNIFORMITY_FORMS)
@pytest.mark.parametrize("batch,dim", [(2, 4), (6, 10), (9, 3)])
def test_value_and_gradient_equal_the_pairwise_reference(form, batch, dim):
    x = features(batch, dim).requires_grad_()
    value, slow = uniformity_loss(x, form), pairwise(x, form)
    assert value.item() == pytest.approx(slow.item(), rel=1e-10)
    (fast_grad,), (slow_grad,) = torch.autograd.grad(value, x), torch.autograd.grad(slow, x)
    torch.testing.assert_close(fast_grad, slow_grad, rtol=1e-8, atol=1e-10)
    assert slow_grad.abs().max() > 1e-4


@pytest.mark.parametrize("form", UNIFORMITY_FORMS)
def test_gradcheck(form):
    assert torch.autograd.gradcheck(
        lambda x: uniformity_loss(x, form), features(5, 6).requires_grad_()
    )


@pytest.mark.parametrize(
    "form,value", [("spectral", 0), ("released", 1 / 7), ("euclidean", -2 * D)]
)
def test_orthogonal_rows(form, value):
    assert uniformity_loss(ORTHOGONAL, form).item() == pytest.approx(value, abs=1e-11)


@pytest.mark.parametrize("form,value", [("spectral", D), ("released", 1), ("euclidean", 0)])
def test_identical_rows(form, value):
    assert uniformity_loss(ORTHOGONAL[:1].expand(5, -1), form).item() == pytest.approx(
        value, abs=1e-11
    )


@pytest.mark.parametrize(
    "form,value", [("spectral", D), ("released", 1), ("euclidean", -4 * D * 2 / 3)]
)
def test_identity_6_antipodal_rows_fool_eq_9_alone(form, value):
    """+-v: Eq. 9 is at its minimum, both cosine forms are at their maximum.

    Two of the three other views are at squared distance 4D.
    """
    x = torch.cat([ORTHOGONAL[:1], -ORTHOGONAL[:1]]).repeat(2, 1)
    assert uniformity_loss(x, form).item() == pytest.approx(value, abs=1e-11)


def test_identity_6_plus_minus_orthogonal_rows():
    """+-e_i, k directions: mean_{ij} cos^2 = 1/k, Eq. 9 with the diagonal -2D."""
    x = torch.cat([ORTHOGONAL, -ORTHOGONAL])
    assert uniformity_loss(x, "released").item() == pytest.approx(1 / 7, abs=1e-12)
    assert uniformity_loss(x, "euclidean").item() * 13 / 14 == pytest.approx(-2 * D, abs=1e-11)


def test_identity_3_eq_9_is_twice_the_trace_of_the_covariance():
    f = F.layer_norm(features(), (10,))
    assert -uniformity_loss(features(), "euclidean").item() == pytest.approx(
        2 * f.T.cov().trace().item(), rel=1e-10
    )
    plain = torch.cdist(f, f).square().mean().item()
    assert plain == pytest.approx(
        2 * (f.square().sum(1).mean() - f.mean(0).square().sum()).item(), rel=1e-10
    )


def test_identity_4_cosine_forms_are_the_squared_second_moment():
    x = F.layer_norm(features() * 1e4, (10,))
    f = x / math.sqrt(10)
    included = (f.T @ f).square().sum().item() / 36
    assert uniformity_loss(x, "released").item() == pytest.approx(included, rel=1e-8)
    spectral = 10 * (6 * included - 1) / 5
    assert uniformity_loss(x * 1e4, "spectral").item() == pytest.approx(spectral, rel=1e-8)


def test_identity_5_released_is_one_over_the_participation_ratio():
    x = F.layer_norm(features(50, 12) * 1e4, (12,)) * 1e4
    f = F.normalize(x)
    value = uniformity_loss(x, "released").item()
    mean, cov = f.mean(0), f.T.cov(correction=0)
    parts = mean.square().sum() ** 2 + 2 * mean @ cov @ mean + cov.square().sum()
    assert value == pytest.approx(parts.item(), rel=1e-10)
    assert value == pytest.approx(1 / participation_ratio(x), rel=1e-10)
    singular = torch.linalg.svdvals(f)
    p = singular / singular.sum()
    rank_of_singular_values = torch.exp(-(p * p.clamp_min(1e-300).log()).sum()).item()
    assert 1 / 12 <= value <= 1
    assert participation_ratio(x) <= effective_rank(x) <= rank_of_singular_values <= 12


def test_identity_7_gradients_in_closed_form():
    """released: (4/B^2) f_i F^T F, unit rows; Eq. 9: -(4/(B-1)) (f_i - mean), LayerNormed rows."""
    x = features().requires_grad_()
    unit, layered = F.normalize(x), F.layer_norm(x, (10,))
    closed = {
        "released": (unit, 4 / 36 * (unit @ (unit.T @ unit)).detach()),
        "euclidean": (layered, -4 / 5 * (layered - layered.mean(0)).detach()),
    }
    for form, (f, gradient) in closed.items():
        (expected,) = torch.autograd.grad(f, x, gradient, retain_graph=True)
        (got,) = torch.autograd.grad(uniformity_loss(x, form), x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_identity_8_norms_after_the_layer_norm_and_scale():
    x = features()
    f = F.layer_norm(x, (10,))
    v = x.var(1, correction=0)
    torch.testing.assert_close(f.square().sum(1), 10 * v / (v + 1e-5), rtol=1e-9, atol=0)
    g = F.layer_norm(x * 1e6, (10,))
    cosines = F.normalize(g, dim=1) @ F.normalize(g, dim=1).T
    torch.testing.assert_close(
        torch.cdist(g, g).square(), 2 * 10 * (1 - cosines), rtol=1e-9, atol=1e-7
    )
    # Eq. 9 without a norm scales with c^2 and has no minimum: none of ours moves.
    for form in UNIFORMITY_FORMS:
        near, far = uniformity_loss(x * 1e4, form).item(), uniformity_loss(x * 1e6, form).item()
        assert far == pytest.approx(near, rel=1e-8)


@pytest.mark.parametrize("form", ["spectral", "euclidean"])
def test_small_batches_estimate_the_same_value(form):
    """A U-statistic: the mean over all batches of two is the value of the whole batch.

    So gradient accumulation does not change the expected loss.
    """
    x = features()
    pairs = [uniformity_loss(x[[i, j]], form) for i in range(6) for j in range(i)]
    whole = uniformity_loss(x, form).item()
    assert torch.stack(pairs).mean().item() == pytest.approx(whole, rel=1e-10)


def test_released_depends_on_the_batch_size():
    x = features()
    pairs = [uniformity_loss(x[[i, j]], "released") for i in range(6) for j in range(i)]
    assert torch.stack(pairs).mean().item() > uniformity_loss(x, "released").item() + 0.1


def test_the_spectral_form_bounds_are_one_and_d():
    """LayerNorm leaves D - 1 directions, so the least value is D / (D - 1)."""
    isotropic = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert uniformity_loss(isotropic).item() == pytest.approx(16 / 15, rel=0.02)
    one_line = torch.ones(64, 16) * torch.linspace(-1, 1, 16)
    assert uniformity_loss(one_line).item() == pytest.approx(16, rel=1e-4)


def test_coefficients_of_the_forms_in_one_unit():
    """lam times the term is the same number for unit-length, mean-free features in both forms."""
    x = F.layer_norm(features(40, 12) * 1e4, (12,)) * 1e4
    own = equivalent_coefficients(0.01, dim=12, world_size=16)
    assert own == pytest.approx({"spectral": 0.01 / 12, "released": 0.01, "authors": 0.16})
    for form in ("spectral", "released"):
        assert cosine_weight(own[form], form, 12) == pytest.approx(0.01)
    assert cosine_weight(0.001, "euclidean", 12) is None
    off_diagonal = (40 * uniformity_loss(x, "released").item() - 1) / 39
    spectral = own["spectral"] * uniformity_loss(x, "spectral").item()
    assert spectral == pytest.approx(own["released"] * off_diagonal, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = features(64, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = uniformity_loss(x)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(uniformity_loss(x.double()).item(), rel=1e-5)


def test_bad_uniformity_input():
    with pytest.raises(
        InputError, match="uniformity must be one of spectral, released, euclidean, got 'entropy'"
    ):
        uniformity_loss(features(), "entropy")
    for shape in ((1, 8), (8,), (2, 3, 4)):
        with pytest.raises(InputError, match=r"features of shape \(B >= 2, D\)"):
            uniformity_loss(torch.zeros(shape))


@pytest.mark.parametrize("norm", [False, True])
def test_reconstruction_is_the_mean_over_patches_and_pixels(norm):
    """The paper prints a sum over the removed patches: (L - S) * P * P * C times this."""
    pred, target = torch.randn(3, 5, 12).double(), torch.randn(3, 5, 12).double()
    total = 0.0
    for image_pred, image in zip(pred, target, strict=True):
        for patch_pred, patch in zip(image_pred, image, strict=True):
            if norm:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6) ** 0.5
            total += (patch_pred - patch).square().sum().item()
    mean = reconstruction_loss(pred, target, norm).item()
    assert mean * 3 * 5 * 12 == pytest.approx(total, rel=1e-12)


def test_reconstruction_gradcheck_and_constant_patches():
    target = torch.randn(2, 3, 4).double()
    assert torch.autograd.gradcheck(
        lambda p: reconstruction_loss(p, target), torch.randn(2, 3, 4).double().requires_grad_()
    )
    flat = torch.full((2, 3, 4), 7.0)
    assert torch.equal(normalise_patches(flat), torch.zeros(2, 3, 4))  # no division by zero
