"""The plain U-MAE that lib.bench measures against: what public codes do, one call after the other. Not the product."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models import MAE
from lib.presets import Config


def plain_loss(mae: MAE, images: Tensor, config: Config) -> Tensor:
    """U-MAE as public codes write it: embed all patches, two argsorts, decode and predict all, a matrix of pairs."""
    enc, size, pos = mae.encoder, config.patch_size, mae.encoder.pos_embed
    assert pos is not None and enc.cls_token is not None
    b, c, h, w = images.shape
    patches = images.reshape(b, c, h // size, size, w // size, size)
    target = torch.einsum("nchpwq->nhwpqc", patches).reshape(b, -1, size * size * c)
    x = enc.patch_embed(images) + pos[:, 1:]
    keep = int(x.shape[1] * (1 - config.mask_ratio))
    ids = torch.rand(x.shape[:2]).argsort(1)
    restore = ids.argsort(1)
    mask = torch.ones(x.shape[:2])
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    x = x.gather(1, ids[:, :keep, None].expand(-1, -1, x.shape[-1]))
    x = torch.cat([(enc.cls_token + pos[:, :1]).expand(b, -1, -1), x], 1)
    for block in enc.blocks:
        x = block(x)
    latent = enc.norm(x)
    y = mae.decoder_embed(latent)
    filled = torch.cat([y[:, 1:], mae.mask_token.expand(b, ids.shape[1] - keep, -1)], 1)
    filled = filled.gather(1, restore[:, :, None].expand(-1, -1, y.shape[-1]))
    y = torch.cat([y[:, :1], filled], 1) + mae.decoder_pos_embed
    for block in mae.decoder_blocks:
        y = block(y)
    pred = mae.decoder_pred(mae.decoder_norm(y))[:, 1:]
    return ((pred - target).square().mean(-1) * mask).sum() / mask.sum() + config.lam * pairwise(
        latent[:, 0]
    )


def dense_forward(block: Any, x: Tensor, shared: Any = None, wanted: int | None = None) -> Tensor:
    """SparseBlock.forward as timm's own block does it: q, k, v of every token, and all of every token's output."""
    if shared:
        table, ids = shared
        x = torch.cat(
            [
                x,
                table.expand(len(ids), -1, -1).gather(
                    1, ids[..., None].expand(-1, -1, x.shape[-1])
                ),
            ],
            1,
        )
    x = super(type(block), block).forward(x)
    return x[:, -wanted:] if wanted else x


def pairwise(features: Tensor) -> Tensor:
    """The released uniformity of features (B, D) from the B x B matrix of cosines."""
    z = F.normalize(features, dim=-1)
    return (z @ z.T).square().mean()


class PlainImages(torch.utils.data.Dataset):
    """The same pictures through PIL and torchvision's transforms, one by one."""

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
