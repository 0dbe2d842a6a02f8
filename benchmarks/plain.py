"""The plain U-MAE that the benchmarks compare with: what public codes do. Not the product."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models import MAE
from lib.presets import Config


def plain_loss(mae: MAE, images: Tensor, config: Config) -> Tensor:
    """The U-MAE loss of images (B, C, H, W), normalised, one call after the other.

    All patches are embedded, two argsorts make the mask, all tokens are decoded and predicted, and
    the uniformity term is a matrix of pairs.
    """
    patches = _patches(images, config.patch_size)
    enc, pos = mae.encoder, mae.encoder.pos_embed
    assert pos is not None and enc.cls_token is not None
    x = enc.patch_embed(images) + pos[:, 1:]
    b, length, dim = x.shape
    keep = int(length * (1 - config.mask_ratio))
    ids = torch.rand(b, length, device=x.device).argsort(1)
    restore = ids.argsort(1)
    mask = torch.ones(b, length, device=x.device)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    x = x.gather(1, ids[:, :keep, None].expand(-1, -1, dim))
    x = torch.cat([(enc.cls_token + pos[:, :1]).expand(b, -1, -1), x], 1)
    for block in enc.blocks:
        x = block(x)
    latent = enc.norm(x)
    pred = _decode_all(mae, latent, restore)
    reconstruction = ((pred - patches).square().mean(-1) * mask).sum() / mask.sum()
    return reconstruction + config.lam * pairwise(latent[:, 0])


def _patches(images: Tensor, size: int) -> Tensor:
    """images (B, C, H, W) -> (B, L, P*P*C)."""
    b, c, h, w = images.shape
    grid = images.reshape(b, c, h // size, size, w // size, size)
    return torch.einsum("nchpwq->nhwpqc", grid).reshape(b, -1, size * size * c)


def _decode_all(mae: MAE, latent: Tensor, restore: Tensor) -> Tensor:
    """latent (B, 1+S, D), restore (B, L) -> the prediction of every patch, (B, L, P*P*C)."""
    y = mae.decoder_embed(latent)
    b, removed = len(y), restore.shape[1] + 1 - y.shape[1]
    filled = torch.cat([y[:, 1:], mae.mask_token.to(y.dtype).expand(b, removed, -1)], 1)
    filled = filled.gather(1, restore[:, :, None].expand(-1, -1, y.shape[-1]))
    y = torch.cat([y[:, :1], filled], 1) + mae.decoder_pos_embed
    for block in mae.decoder_blocks:
        y = block(y)
    return mae.decoder_pred(mae.decoder_norm(y))[:, 1:]


def dense_forward(
    block: Any, x: Tensor, shared: tuple[Tensor, Tensor] | None = None, wanted: int | None = None
) -> Tensor:
    """SparseBlock.forward as timm's own block does it: everything of every token."""
    if shared:
        table, ids = shared
        rows = table.expand(len(ids), -1, -1)
        x = torch.cat([x, rows.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))], 1)
    x = super(type(block), block).forward(x)
    return x[:, -wanted:] if wanted else x


def pairwise(features: Tensor) -> Tensor:
    """The released uniformity of features (B, D) from the B x B matrix of cosines."""
    z = F.normalize(features, dim=-1)
    return (z @ z.T).square().mean()


class PlainImages(torch.utils.data.Dataset):
    """Images (N, C, S, S) uint8 through PIL and torchvision's transforms, one by one."""

    def __init__(self, images: Tensor) -> None:
        from torchvision import transforms as T

        self.images = images
        mean, std = (0.5,) * images.shape[1], (0.25,) * images.shape[1]
        padding = images.shape[-1] // 8
        crop = T.RandomCrop(images.shape[-1], padding=padding)
        self.transform = T.Compose(
            [T.ToPILImage(), crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images[i])
