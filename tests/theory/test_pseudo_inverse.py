"""Eq. 5 and Theorem 3.4 on tiny networks: the chain holds for any f, g, f_g, so it is tested on random ones too."""

import pytest
import torch
from torch.func import jacrev

from lib.errors import InputError
from lib.masking import Masks, random_masks
from lib.models import MAE
from lib.presets import resolve
from lib.theory.pseudo_inverse import (
    PseudoInverse,
    fit_pseudo_inverse,
    fold_norm,
    inversion_floor,
    local_lipschitz,
    measure_chain,
)

TINY = resolve(embed_dim=16, num_heads=2, depth=1, decoder_dim=16, decoder_heads=2)
VISIBLE, PATCHES = 4, 16


def random_model(seed: int) -> MAE:
    """An untrained MAE whose last encoder norm has an affine part that matters."""
    torch.manual_seed(seed)
    model = MAE(TINY)
    with torch.no_grad():
        model.encoder.norm.weight.normal_(1, 0.5)
        model.encoder.norm.bias.normal_(0, 0.5)
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Low-rank images, so that the removed patches can be learned."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(64, 3, generator=generator) @ torch.randn(3, 64, generator=generator)).view(
        64, 1, 8, 8
    )


@pytest.fixture(scope="module")
def masks() -> Masks:
    return random_masks(64, PATCHES, 0.75, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fitted(images):
    model = random_model(0)
    return (
        model,
        fit_pseudo_inverse(model, images, 0.75, 30),
        fit_pseudo_inverse(model, images, 0.75, 60, pull=0.3),
    )


def test_folding_keeps_predictions_and_gives_constant_norms(images, masks):
    model = random_model(0).eval()
    folded = fold_norm(model)
    torch.testing.assert_close(
        folded(images, masks)[1], model(images, masks)[1], rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(folded.encode(images, masks), model.encode(images, masks), atol=0.1)
    norms = folded.encode(images, masks).double().square().sum(-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 16.0), rtol=1e-3, atol=0)
    assert all(p.requires_grad for n, p in model.named_parameters() if "pos_embed" not in n)
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_chain_holds_for_any_networks(seed, images, masks):
    """Identity 9 of theory.md, with f, g and f_g untrained: slack 1e-5, 1e-4 where the LayerNorm's eps enters."""
    model = random_model(seed)
    chain = measure_chain(model, PseudoInverse(model).eval(), images, masks)
    for name, (lhs, rhs) in chain.sides().items():
        assert lhs <= rhs * (1 + 1e-5) + (
            1e-3 * chain.radius_sq if name.startswith("(ii)") else 0
        ), name
    assert chain.aligned == pytest.approx(2 * chain.radius_sq - 2 * chain.inner, rel=1e-3)
    assert chain.radius_sq == (1 + VISIBLE) * 16


def test_chain_is_what_its_docstring_says(fitted, images, masks):
    """Every quantity again, view by view, from the unfolded model."""
    model, inverse, _ = fitted
    model.eval()
    chain, rows = measure_chain(model, inverse, images, masks), []
    with torch.no_grad():
        for i in range(len(images)):
            x, m = images[i : i + 1], Masks(*(part[i : i + 1] for part in masks))
            norm = model.encoder.norm
            x2, f = model.targets(x, m), (model.encode(x, m) - norm.bias) / norm.weight
            f_g = inverse(x2, m)
            g_f, g_fg = (
                model.decode(model.encode(x, m), m),
                model.decode(f_g * norm.weight + norm.bias, m),
            )
            values = [
                ((a - b) ** 2).sum() for a, b in ((g_f, x2), (g_fg, x2), (g_f, g_fg), (f, f_g))
            ]
            rows.append(torch.stack([*values, (f * f_g).sum(), values[2] / values[3]]))
    table = torch.stack(rows).double()
    found = (
        chain.reconstruction,
        chain.eps,
        chain.decoded,
        chain.aligned,
        chain.inner,
        chain.ratio_mean,
    )
    torch.testing.assert_close(torch.tensor(found).double(), table.mean(0), rtol=1e-3, atol=1e-3)
    extremes = (table[:, 1].max(), table[:, 5].min(), table[:, 5].max(), (table[:, 4] ** 2).mean())
    found = (chain.eps_max, chain.ratio_min, chain.ratio_max, chain.inner_sq)
    torch.testing.assert_close(
        torch.tensor(found).double(), torch.stack(extremes), rtol=1e-3, atol=1e-3
    )


def test_squared_form_needs_nonnegative_cosines(fitted, images, masks):
    """(iii) and the printed Eq. 7 appear only where their condition holds, and hold there."""
    model, blind, pulled = fitted
    chain = measure_chain(model, pulled, images, masks)
    assert chain.cos_min >= 0 and sum("(iii)" in name for name in chain.sides()) == 2
    assert all(lhs <= rhs * (1 + 1e-5) for lhs, rhs in chain.sides().values())
    opposite = lambda x2, m: -blind(x2, m)  # noqa: E731
    turned = measure_chain(model, lambda x2, m: -pulled(x2, m), images, masks)
    assert turned.cos_min < 0 and not any("(iii)" in name for name in turned.sides())
    assert all(
        lhs <= rhs * (1 + 1e-5)
        for lhs, rhs in measure_chain(model, opposite, images, masks).sides().values()
    )


def test_fitting_lowers_the_inversion_error_and_pulling_aligns(fitted, images, masks):
    model, blind, pulled = fitted
    torch.manual_seed(0)
    start = measure_chain(model, PseudoInverse(model).eval(), images, masks)
    chains = [measure_chain(model, inverse, images, masks) for inverse in (blind, pulled)]
    assert chains[0].eps < 0.97 * start.eps
    assert chains[1].cos_mean > chains[0].cos_mean + 0.2
    again = fit_pseudo_inverse(model, images, 0.75, 30)
    torch.testing.assert_close(again.state_dict(), blind.state_dict(), rtol=0, atol=0)


def test_no_encoder_beats_the_floor_and_steps_lower_it(fitted, images, masks):
    model, blind, _ = fitted
    few, many = (inversion_floor(model, images, masks, steps) for steps in (1, 150))
    assert few.shape == (64,) and many.mean() < few.mean()
    assert many.mean() < measure_chain(model, blind, images, masks).eps


def test_local_lipschitz_is_the_largest_singular_value_squared(images):
    """Against the full Jacobian of the decoder by automatic differentiation."""
    model, m = random_model(3), random_masks(3, PATCHES, 0.75, torch.Generator().manual_seed(2))
    found = local_lipschitz(model, images[:3], m, steps=200)
    folded = fold_norm(model)
    for i in range(3):
        one = Masks(*(part[i : i + 1] for part in m))
        z = folded.encode(images[i : i + 1], one)
        jacobian = jacrev(lambda t, one=one: folded.decode(t, one).flatten())(z).flatten(1)
        assert found[i].item() == pytest.approx(
            torch.linalg.matrix_norm(jacobian, 2).item() ** 2, rel=1e-2
        )


def test_mask_ratio_zero_is_refused(images):
    with pytest.raises(InputError, match="mask_ratio 0 removes nothing"):
        fit_pseudo_inverse(random_model(0), images, 0.0, 1)
