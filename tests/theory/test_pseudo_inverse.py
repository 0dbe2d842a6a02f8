"""Eq. 5 and Theorem 3.4 on tiny networks: docs/theory.md, section 2.

The chain holds for any f, g and f_g, so it is tested on random ones too.
"""

import pytest
import torch
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.errors import InputError
from lib.masking import Masks, random_masks
from lib.models import MAE
from lib.presets import resolve
from lib.theory.pseudo_inverse import (
    Chain,
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
    weights, parts = (torch.randn(shape, generator=generator) for shape in ((64, 3), (3, 64)))
    return (weights @ parts).view(64, 1, 8, 8)


@pytest.fixture(scope="module")
def masks() -> Masks:
    return random_masks(64, PATCHES, 0.75, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fitted(images):
    """A model, an f_g that never saw f, and one that was pulled towards it."""
    model = random_model(0)
    blind = fit_pseudo_inverse(model, images, 0.75, 30)
    pulled = fit_pseudo_inverse(model, images, 0.75, 60, pull=0.3)
    return model, blind, pulled


def all_links_hold(chain: Chain, slack: float = 1e-5) -> bool:
    return all(left <= right * (1 + slack) for left, right in chain.sides().values())


def test_folding_keeps_the_predictions_and_changes_the_tokens(images, masks):
    model = random_model(0).eval()
    folded = fold_norm(model)
    predictions = folded(images, masks)[1], model(images, masks)[1]
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(folded.encode(images, masks), model.encode(images, masks), atol=0.1)


def test_folded_tokens_have_constant_norms_and_are_frozen(images, masks):
    model = random_model(0).eval()
    folded = fold_norm(model)
    norms = folded.encode(images, masks).double().square().sum(-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 16.0), rtol=1e-3, atol=0)
    assert all(p.requires_grad for n, p in model.named_parameters() if "pos_embed" not in n)
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_chain_holds_for_any_networks(seed, images, masks):
    """f, g and f_g untrained. (ii) has more slack: there the eps of the LayerNorm enters."""
    model = random_model(seed)
    chain = measure_chain(model, PseudoInverse(model).eval(), images, masks)
    for name, (left, right) in chain.sides().items():
        slack = 1e-3 * chain.radius_sq if name.startswith("(ii)") else 0
        assert left <= right * (1 + 1e-5) + slack, name
    assert chain.aligned == pytest.approx(2 * chain.radius_sq - 2 * chain.inner, rel=1e-3)
    assert chain.radius_sq == (1 + VISIBLE) * 16


def view_by_view(model: MAE, inverse: PseudoInverse, images: torch.Tensor, masks: Masks) -> dict:
    """The parts of the chain (B,), one view at a time and from the model that is not folded."""
    norm, rows = model.encoder.norm, []
    for i in range(len(images)):
        x, m = images[i : i + 1], Masks(*(part[i : i + 1] for part in masks))
        x2, tokens = model.targets(x, m), model.encode(x, m)
        f, f_g = (tokens - norm.bias) / norm.weight, inverse(x2, m)
        g_f, g_fg = model.decode(tokens, m), model.decode(f_g * norm.weight + norm.bias, m)
        pairs = {
            "reconstruction": (g_f, x2),
            "eps": (g_fg, x2),
            "decoded": (g_f, g_fg),
            "aligned": (f, f_g),
        }
        row = {name: (a - b).square().sum().item() for name, (a, b) in pairs.items()}
        row["inner"] = (f * f_g).sum().item()
        row["ratio"] = row["decoded"] / row["aligned"]
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}


def test_chain_is_what_its_docstring_says(fitted, images, masks):
    model, inverse, _ = fitted
    chain = measure_chain(model, inverse, images, masks)
    with torch.no_grad():
        slow = view_by_view(model.eval(), inverse, images, masks)
    for name in ("reconstruction", "eps", "decoded", "aligned", "inner"):
        assert getattr(chain, name) == pytest.approx(slow[name].mean().item(), rel=1e-3), name
    assert chain.inner_sq == pytest.approx(slow["inner"].square().mean().item(), rel=1e-3)
    assert chain.eps_max == pytest.approx(slow["eps"].max().item(), rel=1e-3)
    for kind in ("min", "mean", "max"):
        expected = getattr(slow["ratio"], kind)().item()
        assert getattr(chain, f"ratio_{kind}") == pytest.approx(expected, rel=1e-3), kind


def test_eq7_with_its_square_holds_where_no_cosine_is_negative(fitted, images, masks):
    model, _, pulled = fitted
    chain = measure_chain(model, pulled, images, masks)
    assert chain.cos_min >= 0
    assert sum("(iii)" in name for name in chain.sides()) == 2
    assert all_links_hold(chain)


def test_eq7_is_left_out_where_a_cosine_is_negative(fitted, images, masks):
    model, blind, pulled = fitted
    turned = measure_chain(model, lambda x2, m: -pulled(x2, m), images, masks)
    assert turned.cos_min < 0
    assert not any("(iii)" in name for name in turned.sides())
    assert all_links_hold(measure_chain(model, lambda x2, m: -blind(x2, m), images, masks))


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
        with sdpa_kernel(SDPBackend.MATH):  # jacrev has no rule for the fused attention
            jacobian = jacrev(lambda t, one=one: folded.decode(t, one).flatten())(z).flatten(1)
        largest = torch.linalg.matrix_norm(jacobian, 2).item()
        assert found[i].item() == pytest.approx(largest**2, rel=1e-2)


def test_mask_ratio_zero_is_refused(images):
    with pytest.raises(InputError, match="mask_ratio 0 removes nothing"):
        fit_pseudo_inverse(random_model(0), images, 0.0, 1)
