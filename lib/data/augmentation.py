"""Augmentation of whole batches, on the device that holds them, from given random numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 4  # uniform numbers that `augment` takes per image


def crop_boxes(noise: Tensor) -> Tensor:
    """noise (B, 4) in [0, 1) -> (left, top, width, height) as fractions of the image: scale (0.2, 1), ratio (3/4, 4/3).

    A side longer than the image is cut to it, where torchvision's RandomResizedCrop draws again.
    """
    area = 0.2 + 0.8 * noise[:, 0]
    ratio = torch.exp((noise[:, 1] * 2 - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    return torch.stack([noise[:, 2] * (1 - width), noise[:, 3] * (1 - height), width, height], 1)


def augment(images: Tensor, kind: str, noise: Tensor) -> Tensor:
    """A whole batch at once, decided by uniform `noise` (B, 4) alone: uint8 (B, C, H, W) -> the same shape.

    "flip": left-right with probability 1/2; "crop": flip and a crop from the image padded by an eighth of its
    side with zeros; "resized_crop": flip and an area of 0.2-1 resized bicubically (MAE's pretraining recipe).
    """
    if kind == "none":
        return images
    b, c, h, w = images.shape
    flip = noise[:, 0] < 0.5
    noise = torch.cat(
        [(noise[:, :1] * 2) % 1, noise[:, 1:]], 1
    )  # what is left of the first number after the coin
    if kind == "resized_crop":
        left, top, width, height = crop_boxes(noise).float().unbind(1)
        zero = torch.zeros_like(width)
        sign = torch.where(flip, -1.0, 1.0)
        x = torch.stack([sign * width, zero, 2 * left + width - 1], 1)
        y = torch.stack([zero, height, 2 * top + height - 1], 1)
        grid = F.affine_grid(torch.stack([x, y], 1), [b, c, h, w], align_corners=False)
        crop = F.grid_sample(
            images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        return crop.round().clamp(0, 255).to(images.dtype)
    columns = torch.arange(w, device=images.device).expand(b, w)
    columns = torch.where(flip[:, None], w - 1 - columns, columns)
    rows = torch.arange(h, device=images.device).expand(b, h)
    if kind == "crop":
        p = h // 8
        images = F.pad(images, (p, p, p, p))
        rows = rows + (noise[:, 1:2] * (2 * p + 1)).long()
        columns = columns + (noise[:, 2:3] * (2 * p + 1)).long()
    rows = rows[:, None, :, None].expand(b, c, h, images.shape[-1])
    columns = columns[:, None, None, :].expand(b, c, h, w)
    return images.gather(2, rows).gather(3, columns)
