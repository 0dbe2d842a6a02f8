"""Augmentation of whole batches, on the device that holds them, from given random numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 4  # uniform numbers that `augment` takes per image


def crop_boxes(noise: Tensor) -> Tensor:
    """Random crops: noise (B, 4) in [0, 1) -> (left, top, width, height) as fractions of the image.

    The area is 0.2 to 1 of the image, the ratio of the sides 3/4 to 4/3 (He et al. 2021, Table 8).
    A side longer than the image is cut to it, where torchvision's RandomResizedCrop draws again.
    """
    area = 0.2 + 0.8 * noise[:, 0]
    ratio = torch.exp((noise[:, 1] * 2 - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    return torch.stack([noise[:, 2] * (1 - width), noise[:, 3] * (1 - height), width, height], 1)


def augment(images: Tensor, kind: str, noise: Tensor) -> Tensor:
    """A whole batch at once: uint8 (B, C, H, W) -> the same shape.

    Uniform `noise` (B, 4) in [0, 1) decides. kind: "none"; "flip", left-right with probability 1/2;
    "crop", a flip and a crop from the image padded by an eighth of its side with zeros;
    "resized_crop", a flip and a crop by `crop_boxes`, resized bicubically.
    """
    if kind == "none":
        return images
    b, c, h, w = images.shape
    flip = noise[:, 0] < 0.5
    after_coin = (noise[:, :1] * 2) % 1  # what the flip has left of the first number
    noise = torch.cat([after_coin, noise[:, 1:]], 1)
    if kind == "resized_crop":
        return _resized_crop(images, flip, crop_boxes(noise))
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


def _resized_crop(images: Tensor, flip: Tensor, boxes: Tensor) -> Tensor:
    """The box (B, 4) of every image at the image's size, bicubic, edges reflected."""
    left, top, width, height = boxes.float().unbind(1)
    zero = torch.zeros_like(width)
    sign = torch.where(flip, -1.0, 1.0)
    x = torch.stack([sign * width, zero, 2 * left + width - 1], 1)
    y = torch.stack([zero, height, 2 * top + height - 1], 1)
    grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
    crop = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return crop.round().clamp(0, 255).to(images.dtype)
