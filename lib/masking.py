"""Eq. 1: an image as patches, random masks, and the two complementary views that a mask makes.

Throughout, `mask` is 1 where a patch is removed, as in the MAE code base. The paper's m is 1 where
it is kept.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import InputError


class Masks(NamedTuple):
    """One random mask per image, as indices and as a 0/1 tensor.

    ids_keep: (B, S) int64, positions of the visible patches, in random order.
    ids_remove: (B, L-S) int64, positions of the removed patches, in random order.
    ids_restore: (B, L) int64, sends cat(visible, removed) back to image order with `torch.gather`.
    mask: (B, L) float32, 1 where the patch is removed.
    """

    ids_keep: Tensor
    ids_remove: Tensor
    ids_restore: Tensor
    mask: Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """images (B, C, H, W) -> patches (B, L, P*P*C), row by row.

    Inside a patch the order is row, column, channel.
    Raises InputError if P does not divide H and W.
    """
    b, c, h, w = images.shape
    p = patch_size
    if p < 1 or h % p or w % p:
        raise InputError(
            f"patch_size {p} does not divide an image of {h}x{w} pixels; "
            "choose a divisor of both sides"
        )
    grid = images.reshape(b, c, h // p, p, w // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def unpatchify(patches: Tensor, patch_size: int, image_size: tuple[int, int]) -> Tensor:
    """patches (B, L, P*P*C) -> images (B, C, H, W): the inverse of `patchify`."""
    b, _, d = patches.shape
    p, (h, w) = patch_size, image_size
    c = d // (p * p)
    grid = patches.reshape(b, h // p, w // p, p, p, c)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """floor(L (1 - rho)) visible patches, as MAE (He et al. 2021) computes it.

    Differs from their `int(L * (1 - rho))` only in a tolerance of 1e-9, so that rounding error does
    not cost a patch (0.9 of 100 leaves 10, not 9). rho = 0 keeps everything; a ratio that leaves
    nothing visible, and one outside [0, 1), raise InputError.
    """
    if not 0 <= mask_ratio < 1:
        raise InputError(f"mask_ratio must be in [0, 1), got {mask_ratio}; the paper uses 0.75")
    visible = math.floor(num_patches * (1 - mask_ratio) + 1e-9)
    if visible < 1:
        highest = math.floor(1e6 * (1 - 1 / num_patches) + 1e-3) / 1e6  # never rounded up
        raise InputError(
            f"mask_ratio {mask_ratio} leaves none of {num_patches} patches visible; "
            f"use at most {highest:g}"
        )
    return visible


def masks_from_noise(noise: Tensor, visible: int) -> Masks:
    """Masks that keep the `visible` patches of smallest noise (B, L), of which no two are equal.

    Uniform noise makes every mask of that size equally likely: M(x1, x2 | x) of Eq. 1.
    """
    ids_shuffle = noise.argsort(dim=1)
    positions = torch.arange(noise.shape[1], device=noise.device).expand_as(ids_shuffle)
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, positions)
    mask = (ids_restore >= visible).float()
    return Masks(ids_shuffle[:, :visible], ids_shuffle[:, visible:], ids_restore, mask)


def random_masks(
    batch: int, num_patches: int, mask_ratio: float, generator: torch.Generator | None = None
) -> Masks:
    """`batch` independent uniform masks of floor(L (1 - rho)) visible patches, drawn on the CPU."""
    noise = torch.rand(batch, num_patches, generator=generator)
    return masks_from_noise(noise, num_visible(num_patches, mask_ratio))


def keep_all(batch: int, num_patches: int, device: torch.device | str = "cpu") -> Masks:
    """Masks (B, L) that remove nothing, with ids_keep in image order: the whole image is seen."""
    order = torch.arange(num_patches, device=device).expand(batch, -1)
    return masks_from_noise(order, num_patches)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """tokens (B, L, D) at ids (B, S) -> (B, S, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def complementary_views(patches: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Eq. 1: patches (B, L, D) -> visible view x1 (B, S, D), removed view x2 (B, L-S, D)."""
    return take(patches, masks.ids_keep), take(patches, masks.ids_remove)
