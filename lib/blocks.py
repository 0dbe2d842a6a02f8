"""timm's transformer block, computing only what is asked for: same parameters, same function, fewer products."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lib import fused


class SparseBlock(Block):
    """A timm Block (pre-norm, no dropout but stochastic depth) that can skip work whose result is known or unused.

    forward(x (B, N, D)) is timm's. `shared` = (table (L, D), ids (B, R)) appends the tokens table[ids] to x: those
    depend on their position alone, so their norm and q, k, v are computed once a position instead of once a token.
    `wanted` returns only the last so many tokens (B, wanted, D): the others give keys and values, no more.
    """

    fused = False  # float32 tokens under autocast go through lib.fused: speed.choose_passes decides

    def forward(self, x: Tensor, shared: tuple[Tensor, Tensor] | None = None, wanted: int | None = None) -> Tensor:  # type: ignore[override]
        own: Any = self  # whose parts are modules
        if self.fused and x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            tokens = x.shape[1] + (shared[1].shape[1] if shared else 0)
            x = fused.attention(x, own, _kept(own.drop_path1, x), shared, wanted or tokens)
            return fused.mlp(x, own, _kept(own.drop_path2, x))
        attn = own.attn
        qkv = attn.qkv(own.norm1(x))
        if shared:
            table, ids = shared
            qkv = torch.cat([qkv, _rows(attn.qkv(own.norm1(table)), ids)], 1)
            x = torch.cat([x, _rows(table, ids).to(x.dtype)], 1)
        qkv = qkv.unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D/heads)
        if wanted:
            x = x[:, -wanted:]
        out = _attention(qkv, wanted, attn.fused_attn).transpose(1, 2).flatten(2)
        x = x + own.drop_path1(own.ls1(attn.proj(out)))
        return x + own.drop_path2(own.ls2(own.mlp(own.norm2(x))))


def _kept(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies the images of x (B, N, D) by (B,); None without it."""
    if isinstance(drop_path, nn.Identity):
        return None
    return drop_path(x.new_ones(len(x), 1, 1)).flatten()


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """table (L, D) at ids (B, R) -> (B, R, D); its backward is the fastest of torch's ways to gather on a CPU."""
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)


def _attention(qkv: Tensor, wanted: int | None, fused: bool) -> Tensor:
    """qkv (3, B, heads, N, d) -> attention of the last `wanted` queries (B, heads, wanted or N, d)."""
    if not fused:
        qkv = qkv.contiguous()  # one copy here instead of one in each of the six batched products
    q, k, v = qkv.unbind(0)
    if wanted:
        q = q[:, :, -wanted:]
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
