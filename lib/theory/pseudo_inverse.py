"""Section 3 on a trained model: the pseudo-inverse encoder f_g, the Lipschitz ratio, Theorem 3.4.

f are the 1+S tokens that the decoder receives, g is the decoder. The affine part of the encoder's
last LayerNorm is counted as a part of g (`fold_norm`: the predictions stay the same). Then
|f|^2 = |f_g|^2 = R^2 = (1+S) D for every view, as Theorem 3.4 needs. Losses are sums over the
removed pixels, squared norms are sums over tokens and channels, as in Eq. 2. The statements are in
docs/theory.md, section 2.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.errors import InputError
from lib.masking import Masks, random_masks
from lib.models import MAE

LN_EPS = 1e-6


def fold_norm(model: MAE) -> MAE:
    """A frozen copy with the same predictions, whose encoder ends in a LayerNorm without affine.

    W (gamma z + beta) + b = (W gamma) z + (b + W beta): gamma and beta move into the decoder's
    first layer.
    """
    folded = deepcopy(model).eval().requires_grad_(False)
    norm, embed = cast(nn.LayerNorm, folded.encoder.norm), folded.decoder_embed
    embed.bias.add_(embed.weight @ norm.bias)
    embed.weight.mul_(norm.weight)
    norm.weight.fill_(1)
    norm.bias.fill_(0)
    return folded


class PseudoInverse(nn.Module):
    """f_g of Assumption 3.2: the removed patches and their positions -> the decoder's 1+S tokens.

    It also knows the positions of the tokens that it has to fill.
    """

    def __init__(self, model: MAE) -> None:
        super().__init__()
        encoder = cast(Any, model.encoder)
        dim, heads = encoder.embed_dim, encoder.blocks[0].attn.num_heads
        self.positions = nn.Buffer(encoder.pos_embed.detach().clone())
        self.embed = nn.Linear(model.decoder_pred.out_features, dim)
        self.queries = nn.Parameter(0.02 * torch.randn(2, dim))
        self.block = Block(dim, heads, qkv_bias=True)

    def forward(self, x2: Tensor, masks: Masks) -> Tensor:
        """x2 (B, L-S, P*P*C) -> (B, 1+S, D), each token of mean 0 and squared norm D."""
        pos, slots = self.positions[0], 1 + masks.ids_keep.shape[1]
        cls = (self.queries[0] + pos[0]).expand(len(x2), 1, -1)
        wanted = self.queries[1] + pos[1:][masks.ids_keep]
        seen = self.embed(x2) + pos[1:][masks.ids_remove]
        x = self.block(torch.cat([cls, wanted, seen], 1))
        return F.layer_norm(x[:, :slots], x.shape[-1:], eps=LN_EPS)


def _sum_squares(x: Tensor) -> Tensor:
    """(B, T, D) -> (B,), in float64."""
    return x.double().square().sum((1, 2))


def fit_pseudo_inverse(
    model: MAE,
    images: Tensor,
    mask_ratio: float,
    steps: int,
    pull: float = 0.0,
    seed: int = 0,
) -> PseudoInverse:
    """Trains f_g to minimise E|g(f_g(x2), p2) - x2|^2 + pull * E|f_g(x2) - f(x1)|^2.

    f and g are frozen; images (N, C, H, W) are normalised. AdamW, 64 images a step, peak rate 2e-3,
    one cycle.
    With pull = 0, f_g never sees f: any alignment is implicit. With pull > 0 it is still an f_g of
    Assumption 3.2, since Theorem 3.4 holds for all of them.
    Raises InputError at mask_ratio 0, where x2 is empty.
    """
    if mask_ratio == 0:
        raise InputError(
            "mask_ratio 0 removes nothing, so f_g has no input; use a run with a mask_ratio above 0"
        )
    folded, patches = fold_norm(model), model.encoder.patch_embed.num_patches
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverse = PseudoInverse(folded)
    optimizer = torch.optim.AdamW(inverse.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1
    )
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,), generator=generator)]
        masks = random_masks(len(batch), patches, mask_ratio, generator)
        x2 = folded.targets(batch, masks)
        z = inverse(x2, masks)
        loss = (folded.decode(z, masks) - x2).square().sum((1, 2)).mean()
        if pull:
            loss = loss + pull * (z - folded.encode(batch, masks)).square().sum((1, 2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return inverse.eval().requires_grad_(False)


@dataclass(frozen=True)
class Chain:
    """The quantities of Eq. 5 and Theorem 3.4 on a sample of views; E is the mean over it.

    reconstruction: L_rec. eps, eps_max: mean and largest inversion error of f_g. decoded:
    E|g f - g f_g|^2. aligned: E|f - f_g|^2. inner, inner_sq: E<f, f_g> and E<f, f_g>^2. radius_sq:
    R^2. cos_mean, cos_min: of <f, f_g> / R^2. ratio_*: of |g f - g f_g|^2 / |f - f_g|^2, whose
    maximum is the L of Assumption 3.3 on this sample. Pixels squared for the losses, features
    squared for aligned, inner and radius_sq.
    """

    reconstruction: float
    eps: float
    eps_max: float
    decoded: float
    aligned: float
    inner: float
    inner_sq: float
    radius_sq: float
    cos_mean: float
    cos_min: float
    ratio_min: float
    ratio_mean: float
    ratio_max: float

    def sides(self) -> dict[str, tuple[float, float]]:
        """(left, right) with left <= right for each link, numbered as in docs/theory.md, section 2.

        (iii), Eq. 7 with its square, is there only if <f, f_g> >= 0 for every view. Its printed
        form, with features divided by R, has L R^2 for L and needs C = 4 L R^2.
        """
        smooth, tail, r2 = self.ratio_max, 2 * self.eps, self.radius_sq
        minkowski = (self.decoded**0.5 + self.eps**0.5) ** 2
        eq5, lipschitz = 2 * self.decoded + tail, 2 * smooth * self.aligned + tail
        linear = 4 * smooth * (r2 - self.inner) + tail
        links = {
            "(i) L_rec <= Minkowski": (self.reconstruction, minkowski),
            "(i) Minkowski <= Eq. 5": (minkowski, eq5),
            "(i) Eq. 5 <= 2L|f-f_g|^2+2eps": (eq5, lipschitz),
            "(ii) L_rec <= 4LR^2-4L<f,f_g>+2eps": (self.reconstruction, linear),
        }
        if self.cos_min >= 0:
            squared = 4 * smooth * (r2 - self.inner_sq / r2) + tail
            printed = 4 * smooth * r2 - 2 * smooth * self.inner_sq / r2 + tail
            links["(iii) L_rec <= 4LR^2-4L<f,f_g>^2/R^2+2eps"] = (self.reconstruction, squared)
            links["(iii) <= Eq. 7 with C = 4LR^2"] = (squared, printed)
        reverse = float("inf")
        if self.ratio_min:
            reverse = 2 / self.ratio_min * (self.reconstruction + self.eps)
        return links | {"(iv) |f-f_g|^2 <= (2/l)(L_rec+eps)": (self.aligned, reverse)}


@torch.no_grad()
def measure_chain(model: MAE, inverse: PseudoInverse, images: Tensor, masks: Masks) -> Chain:
    """The chain on normalised images (B, C, H, W) under `masks`; it holds for any model and f_g."""
    folded = fold_norm(model)
    x2, f = folded.targets(images, masks), folded.encode(images, masks)
    f_g = inverse(x2, masks)
    g_f, g_fg = folded.decode(f, masks), folded.decode(f_g, masks)
    eps, decoded, aligned = _sum_squares(g_fg - x2), _sum_squares(g_f - g_fg), _sum_squares(f - f_g)
    inner, ratio = (f.double() * f_g.double()).sum((1, 2)), decoded / aligned
    cosine = F.cosine_similarity(f.double().flatten(1), f_g.double().flatten(1))
    values = {
        "reconstruction": _sum_squares(g_f - x2).mean(),
        "eps": eps.mean(),
        "eps_max": eps.max(),
        "decoded": decoded.mean(),
        "aligned": aligned.mean(),
        "inner": inner.mean(),
        "inner_sq": inner.square().mean(),
        "radius_sq": f[0].numel(),
        "cos_mean": cosine.mean(),
        "cos_min": cosine.min(),
        "ratio_min": ratio.min(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
    }
    return Chain(**{name: float(value) for name, value in values.items()})


def inversion_floor(model: MAE, images: Tensor, masks: Masks, steps: int = 300) -> Tensor:
    """Inversion errors (B,) after `steps` of Adam on the tokens z themselves, one z per view.

    An upper bound on the least error of any f_g on these views. The result is no f_g: it starts at
    f(x1), which has seen x1. Units: pixels squared, summed over the removed pixels.
    """
    folded = fold_norm(model)
    x2 = folded.targets(images, masks)
    z = folded.encode(images, masks).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.03)
    for _ in range(steps):
        out = folded.decode(F.layer_norm(z, z.shape[-1:], eps=LN_EPS), masks)
        optimizer.zero_grad()
        (out - x2).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        return _sum_squares(folded.decode(F.layer_norm(z, z.shape[-1:], eps=LN_EPS), masks) - x2)


def local_lipschitz(model: MAE, images: Tensor, masks: Masks, steps: int = 20) -> Tensor:
    """|dg/dz|_2^2 at z = f(x1) per view (B,), by power iteration.

    A lower bound on the L of Assumption 3.3, in pixels squared per feature squared. Unlike the
    ratio at f and f_g, it looks along the direction in which g moves fastest.
    """
    folded = fold_norm(model)
    z = folded.encode(images, masks)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    norm = torch.zeros(len(z))
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        for _ in range(steps):
            direction = direction / direction.flatten(1).norm(dim=1)[:, None, None]
            moved = cast(Tensor, jvp(lambda t: folded.decode(t, masks), z, direction)[1])
            norm = _sum_squares(moved)
            direction = cast(Tensor, vjp(lambda t: folded.decode(t, masks), z, moved)[1])
    return norm
