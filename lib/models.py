"""The masked autoencoder: a timm VisionTransformer on visible patches, and a light decoder."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lib.masking import Masks, patchify, take, unpatchify
from lib.presets import Config


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, 1 + grid*grid, dim), zeros for the class token.

    dim/4 frequencies 10000^(-4i/dim) each for sine and cosine, of the column first and of the row
    second (He et al. 2021).
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    wave = torch.cat([angles.sin(), angles.cos()], 1)  # (grid, dim/2)
    rows = wave[:, None].expand(-1, grid, -1)
    columns = wave[None].expand(grid, -1, -1)
    positions = torch.cat([columns, rows], -1).reshape(grid * grid, dim)
    return torch.cat([torch.zeros(1, dim), positions.float()])[None]


def encoder_args(config: Config) -> dict[str, Any]:
    """The arguments that make timm's `vit_base_patch16_224` the encoder of `config`."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": 0,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "fc_norm": False,
    }


def model_args(config: Config) -> dict[str, Any]:
    """What decides the first weights of the encoder, with the seed; those of the decoder too.

    The decoder is drawn from the same generator.
    """
    decoder = {"decoder_dim": config.decoder_dim, "decoder_depth": config.decoder_depth}
    return {**encoder_args(config), **decoder}


def build_encoder(config: Config, **extra: Any) -> VisionTransformer:
    """A timm VisionTransformer with class token and fixed sin-cos positions.

    `extra` goes to timm: drop_path_rate, num_classes, ...
    """
    arguments = {**encoder_args(config), "block_fn": SparseBlock, **extra}
    encoder = timm.create_model("vit_base_patch16_224", pretrained=False, **arguments)
    assert isinstance(encoder, VisionTransformer)
    positions = sincos_positions(config.embed_dim, config.image_size // config.patch_size)
    encoder.pos_embed = nn.Parameter(positions, requires_grad=False)
    return encoder


class SparseBlock(Block):
    """timm's Block (pre-norm), computing only what is asked for: same parameters, same function.

    forward(x (B, N, D)) is timm's. `shared` = (table (L, D), ids (B, R)) appends the tokens
    table[ids] to x: they depend on their position alone, so their norm and q, k, v are computed
    once a position instead of once a token. `wanted` returns the last so many tokens only,
    (B, wanted, D): the others give keys and values, no more.

    `kernels` is the one seam to faster code: where `lib.compute.acceleration` has set it, it
    computes forward(block, x, shared, wanted) for float32 tokens under autocast on a CPU.
    """

    kernels: Any = None

    def forward(  # type: ignore[override]
        self, x: Tensor, shared: tuple[Tensor, Tensor] | None = None, wanted: int | None = None
    ) -> Tensor:
        if self.kernels and x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            return self.kernels(self, x, shared, wanted)
        own: Any = self  # whose parts are modules
        attn = own.attn
        qkv = attn.qkv(own.norm1(x))
        if shared:
            table, ids = shared
            qkv = torch.cat([qkv, _rows(attn.qkv(own.norm1(table)), ids)], 1)
            x = torch.cat([x, _rows(table, ids).to(x.dtype)], 1)
        qkv = qkv.unflatten(2, (3, attn.num_heads, attn.head_dim))
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D/heads)
        if wanted:
            x = x[:, -wanted:]
        out = _attention(qkv, wanted, attn.fused_attn).transpose(1, 2).flatten(2)
        x = x + own.drop_path1(own.ls1(attn.proj(out)))
        return x + own.drop_path2(own.ls2(own.mlp(own.norm2(x))))


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """table (L, D) at ids (B, R) -> (B, R, D); torch's fastest backward of a gather on a CPU."""
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)


def _attention(qkv: Tensor, wanted: int | None, scaled_dot_product: bool) -> Tensor:
    """qkv (3, B, heads, N, d) -> attention of the last `wanted` queries (B, heads, wanted or N, d).

    By torch's scaled_dot_product_attention, or else as plain batched products.
    """
    if not scaled_dot_product:
        qkv = qkv.contiguous()  # one copy here instead of one in each of the six batched products
    q, k, v = qkv.unbind(0)
    if wanted:
        q = q[:, :, -wanted:]
    if scaled_dot_product:
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


class MAE(nn.Module):
    """f and g of Eq. 2.

    `encode` maps the visible patches to `latent` (B, 1+S, D), class token first; `decode` predicts
    the removed patches, in the order of `masks.ids_remove`. With no patch removed (mask_ratio 0,
    where Eq. 2 is an empty sum) `decode` predicts every patch, in the order of `masks.ids_keep`:
    plain autoencoding.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        grid = config.image_size // config.patch_size
        positions = sincos_positions(config.decoder_dim, grid)
        self.patch_size = config.patch_size
        self.encoder = build_encoder(config)
        norm = type(self.encoder.norm)
        self.decoder_embed = nn.Linear(config.embed_dim, config.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            SparseBlock(
                config.decoder_dim,
                config.decoder_heads,
                mlp_ratio=4,
                qkv_bias=True,
                mlp_layer=Mlp,
                norm_layer=norm,
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = norm(config.decoder_dim)
        self.decoder_pred = nn.Linear(config.decoder_dim, config.patch_size**2 * config.channels)
        self.apply(_init_linear)
        patch_weight = self.encoder.patch_embed.proj.weight
        # like a Linear, as in MAE
        nn.init.xavier_uniform_(patch_weight.data.view(len(patch_weight), -1))
        assert self.encoder.cls_token is not None
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, images: Tensor, masks: Masks) -> Tensor:
        """f: images (B, C, H, W), visible patches masks.ids_keep (B, S) -> latent (B, 1+S, D)."""
        visible = take(patchify(images, self.patch_size), masks.ids_keep)
        return self.encode_patches(visible, masks.ids_keep)

    def encode_patches(self, patches: Tensor, ids: Tensor) -> Tensor:
        """f on patches (B, S, P*P*C) at positions ids (B, S) -> latent (B, 1+S, D).

        The convolution of timm's patch embedding is applied as a linear map to these patches.
        """
        enc = self.encoder
        assert enc.pos_embed is not None and enc.cls_token is not None
        proj = enc.patch_embed.proj
        weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, C, P, P) -> (D, P*P*C)
        x = F.linear(patches, weight, proj.bias)
        x = x + enc.pos_embed[0, 1:][ids]
        cls = (enc.cls_token + enc.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls.to(x.dtype), x], 1)
        for block in enc.blocks:
            x = block(x)
        return enc.norm(x)

    def decode(self, latent: Tensor, masks: Masks) -> Tensor:
        """g: latent (B, 1+S, D) -> pred (B, L-S, P*P*C) for masks.ids_remove.

        If nothing is removed, pred is (B, L, P*P*C) for masks.ids_keep. Attention does not see the
        order of tokens, so the sequence stays [class, visible, removed] with its positions
        gathered. Before the first block a removed patch is its position plus the mask token, the
        same in every image; after the last one only what is asked for is needed.
        """
        pos = self.decoder_pos_embed[0]
        x = self.decoder_embed(latent)
        x = torch.cat([x[:, :1] + pos[:1], x[:, 1:] + pos[1:][masks.ids_keep]], 1)
        count = masks.ids_remove.shape[1]
        last = len(self.decoder_blocks) - 1
        for k, block in enumerate(self.decoder_blocks):
            shared = (self.mask_token[0] + pos[1:], masks.ids_remove) if k == 0 else None
            x = block(x, shared, (count or len(pos) - 1) if k == last else None)
        return self.decoder_pred(self.decoder_norm(x))

    def forward(self, images: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) -> (latent (B, 1+S, D), pred (B, L-S, P*P*C))."""
        latent = self.encode(images, masks)
        return latent, self.decode(latent, masks)

    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """What `decode` is to predict: x2 of Eq. 1, or all patches if nothing is removed."""
        ids = masks.ids_remove if masks.ids_remove.shape[1] else masks.ids_keep
        return take(patchify(images, self.patch_size), ids)

    def uniformity_features(self, latent: Tensor, pool: str, form: str) -> Tensor:
        """latent (B, 1+S, D) -> the features (B, D) that the uniformity term of this form sees.

        For "released" they pass the encoder's last norm, weight and bias included, a second time:
        the authors' code does so.
        """
        features = pool_tokens(latent, pool)
        return self.encoder.norm(features) if form == "released" else features

    @torch.no_grad()
    def reconstruct(self, images: Tensor, masks: Masks, norm_pix_loss: bool = False) -> Tensor:
        """images (B, C, H, W) with their removed patches replaced by the prediction.

        A prediction of normalised patches is scaled back with the true patches' mean and deviation.
        """
        patches = patchify(images, self.patch_size)
        pred = self(images, masks)[1].to(patches.dtype)
        if norm_pix_loss:
            target = self.targets(images, masks)
            pred = pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(
                -1, keepdim=True
            )
        visible = take(patches, masks.ids_keep)
        filled = torch.cat([visible, pred], 1) if masks.ids_remove.shape[1] else pred
        image_size = (images.shape[-2], images.shape[-1])
        return unpatchify(take(filled, masks.ids_restore), self.patch_size, image_size)


def pool_tokens(latent: Tensor, pool: str) -> Tensor:
    """latent (B, 1+S, D) -> features (B, D): the class token or the mean of the patch tokens."""
    return latent[:, 0] if pool == "token" else latent[:, 1:].mean(1)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
