"""The two halves of a transformer block in bf16 on a CPU, each one differentiable step.

A half keeps its input and what its products gave. Normalised tokens and activations are computed
again together with the gradients that need them. It is the function of timm's block under
autocast, up to the order of bf16 roundings.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.compute import cpu_kernels as kernels


def _weight_gradient(d_out: Tensor, x: Tensor) -> Tensor:
    """d_out (R, M), x (R, K) -> d_out.T @ x (M, K) float32, in oneDNN's fastest order of products.

    oneDNN shares the result among threads, not the sum over rows. So a small result comes faster
    as four sums, and a large one where the wider matrix is the second.
    """
    if d_out.shape[1] * x.shape[1] <= 2**17 and len(x) % 4 == 0:
        quarters = torch.bmm(d_out.unflatten(0, (4, -1)).transpose(1, 2), x.unflatten(0, (4, -1)))
        return quarters.sum(0, dtype=torch.float32)
    product = (x.t() @ d_out).t() if d_out.shape[1] > x.shape[1] else d_out.t() @ x
    return product.to(torch.float32, memory_format=torch.contiguous_format)


class _Attention(torch.autograd.Function):
    """x (B, N, D) -> the last `wanted` tokens of x + scale * proj(attention(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        table: Tensor | None,
        ids: Tensor | None,
        wanted: int,
        heads: int,
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
    ) -> Tensor:
        images, own, dim = x.shape
        rows, residual = x.reshape(-1, dim), x
        if table is not None and ids is not None:
            rows = torch.cat([rows, table])
            of_table = table.index_select(0, ids.flatten()).view(images, -1, dim)
            residual = torch.cat([x, of_table], 1)
        residual = residual[:, -wanted:].contiguous()
        qkv_weight, proj_weight = qkv_weight.bfloat16(), proj_weight.bfloat16()
        norm, mean, rstd = kernels.norm_forward(rows, norm_weight, norm_bias, eps)
        qkv = kernels.split_heads(norm @ qkv_weight.t(), qkv_bias, ids, images, own, heads)
        q, k, v = (part.flatten(0, 1) for part in qkv)
        weights = kernels.softmax_(q[:, -wanted:] @ k.transpose(1, 2), qkv.shape[-1] ** -0.5)
        out = kernels.swap_heads((weights @ v).unflatten(0, (images, heads))).view(-1, dim)
        ctx.save_for_backward(rows, mean, rstd, qkv, weights, out, scale, ids, norm_weight,
                              norm_bias, qkv_weight, proj_weight)  # fmt: skip
        ctx.own = own
        return kernels.add_forward(residual, out @ proj_weight.t(), proj_bias, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (rows, mean, rstd, qkv, weights, out, scale, ids, norm_weight, norm_bias, qkv_weight,
         proj_weight) = ctx.saved_tensors  # fmt: skip
        d_out, (_, images, heads, tokens, size) = outputs[0].contiguous(), qkv.shape
        wanted, own = weights.shape[1], ctx.own
        d_y, d_proj_bias = kernels.add_backward(d_out, scale)
        d_proj_weight = _weight_gradient(d_y, out)
        d_heads = kernels.swap_heads((d_y @ proj_weight).view(images, wanted, heads, size))
        d_heads = d_heads.flatten(0, 1)
        q, k, v = (part.flatten(0, 1) for part in qkv)
        d_kv = torch.empty_like(qkv[:2])
        torch.bmm(weights.transpose(1, 2), d_heads, out=d_kv[1].flatten(0, 1))
        d_scores = kernels.softmax_backward_(weights, d_heads @ v.transpose(1, 2), size**-0.5)
        torch.bmm(d_scores.transpose(1, 2), q[:, -wanted:], out=d_kv[0].flatten(0, 1))
        d_q = (d_scores @ k).unflatten(0, (images, heads))
        d_qkv, d_qkv_bias = kernels.merge_heads(d_q, d_kv, ids, own, len(rows) - images * own)
        residual = _residual_gradient(d_out, rows, ids, own, tokens)
        d_rows, norm, d_weight, d_bias = kernels.norm_backward(
            d_qkv @ qkv_weight, residual, rows, mean, rstd, norm_weight, norm_bias
        )
        d_x = d_rows[: images * own].view(images, own, -1)
        d_table = None if ids is None else d_rows[images * own :]
        d_qkv_weight = _weight_gradient(d_qkv, norm)
        return (d_x, None, d_table, None, None, None, None, d_weight, d_bias, d_qkv_weight,
                d_qkv_bias, d_proj_weight, d_proj_bias)  # fmt: skip


def _residual_gradient(
    d_out: Tensor, rows: Tensor, ids: Tensor | None, own: int, tokens: int
) -> Tensor:
    """The gradient that reaches `rows` past the attention: d_out (B, wanted, D) where it belongs.

    Tokens that are not wanted get none; rows of the table get the sum over their images.
    """
    images, wanted = d_out.shape[:2]
    if ids is None and own == wanted:
        return d_out
    residual = torch.zeros_like(rows)
    straight = min(own, wanted + own - tokens)
    if straight > 0:
        residual[: images * own].view(images, own, -1)[:, -straight:] = d_out[:, :straight]
    if ids is not None:
        removed = d_out[:, max(0, straight) :].flatten(0, 1)
        residual[images * own :].index_add_(0, ids[:, -wanted:].flatten(), removed)
    return residual


class _Mlp(torch.autograd.Function):
    """x (B, N, D) -> x + scale * fc2(gelu(fc1(norm(x))))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        weight1, weight2 = weight1.bfloat16(), weight2.bfloat16()
        norm, mean, rstd = kernels.norm_forward(x, norm_weight, norm_bias, eps)
        hidden = norm.view(-1, x.shape[-1]) @ weight1.t()
        out = kernels.gelu_forward(hidden, bias1) @ weight2.t()
        ctx.save_for_backward(
            x, mean, rstd, hidden, scale, norm_weight, norm_bias, weight1, bias1, weight2
        )
        return kernels.add_forward(x, out, bias2, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (x, mean, rstd, hidden, scale, norm_weight, norm_bias, weight1, bias1,
         weight2) = ctx.saved_tensors  # fmt: skip
        d_out = outputs[0].contiguous()
        d_y, d_bias2 = kernels.add_backward(d_out, scale)
        d_hidden, active, d_bias1 = kernels.gelu_backward(d_y @ weight2, hidden, bias1)
        d_weight2 = _weight_gradient(d_y, active)
        d_x, norm, d_weight, d_bias = kernels.norm_backward(
            d_hidden @ weight1, d_out, x, mean, rstd, norm_weight, norm_bias
        )
        d_weight1 = _weight_gradient(d_hidden, norm)
        return d_x, None, None, d_weight, d_bias, d_weight1, d_bias1, d_weight2, d_bias2


def forward(
    block: Any, x: Tensor, shared: tuple[Tensor, Tensor] | None = None, wanted: int | None = None
) -> Tensor:
    """What `lib.models.SparseBlock.forward` computes, for float32 x (B, N, D) under autocast."""
    tokens = x.shape[1] + (shared[1].shape[1] if shared else 0)
    x = attention(x, block, _drop_path_scale(block.drop_path1, x), shared, wanted or tokens)
    return mlp(x, block, _drop_path_scale(block.drop_path2, x))


def _drop_path_scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies the images of x (B, N, D) by, (B,); None without it."""
    if isinstance(drop_path, nn.Identity):
        return None
    return drop_path(x.new_ones(len(x), 1, 1)).flatten()


def attention(
    x: Tensor, block: Any, scale: Tensor | None, shared: tuple[Tensor, Tensor] | None, wanted: int
) -> Tensor:
    """The first half: x (B, N, D) -> (B, wanted, D), see `lib.models.SparseBlock`."""
    norm, attn = block.norm1, block.attn
    table, ids = shared or (None, None)
    return _Attention.apply(
        x.contiguous(),
        scale,
        table,
        None if ids is None else ids.contiguous(),
        wanted,
        attn.num_heads,
        norm.eps,
        norm.weight,
        norm.bias,
        attn.qkv.weight,
        attn.qkv.bias,
        attn.proj.weight,
        attn.proj.bias,
    )


def mlp(x: Tensor, block: Any, scale: Tensor | None) -> Tensor:
    """The second half: x (B, N, D) -> x + scale * fc2(gelu(fc1(norm(x))))."""
    norm, fc1, fc2 = block.norm2, block.mlp.fc1, block.mlp.fc2
    return _Mlp.apply(
        x.contiguous(),
        scale,
        norm.eps,
        norm.weight,
        norm.bias,
        fc1.weight,
        fc1.bias,
        fc2.weight,
        fc2.bias,
    )
