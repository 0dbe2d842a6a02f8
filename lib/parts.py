"""A loss that is a sum over images, differentiated a few images at a time: the same gradient in less memory.

The reconstruction loss is such a sum, so the decoder never needs to keep the activations of a whole batch; the
uniformity term is not, and the encoder does.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.presets import Config

ELEMENTS = 8192 * 192  # decoder tokens times width at once: smaller parts cost a CPU more time than they save memory


def images_at_once(config: Config, count: int, device: torch.device) -> int:
    """How many of `count` images the decoder takes at once: on a CPU parts of one size, elsewhere and sharded all."""
    if device.type != "cpu" or config.shard:
        return count
    parts = math.ceil(count * config.num_patches * config.decoder_dim / ELEMENTS)
    return math.ceil(count / parts)


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of_part: Callable, size: int, x: Tensor, *parameters: Tensor) -> Tensor:
        total, grads = x.new_zeros((), dtype=parameters[0].dtype), [torch.zeros_like(p) for p in parameters]
        grad_x = torch.empty_like(x)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                own = x[part].detach().requires_grad_()
                value = of_part(own, part)
            grad_x[part], *more = torch.autograd.grad(value, (own, *parameters))
            torch._foreach_add_(grads, more)
            total += value.detach()
        ctx.save_for_backward(grad_x, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        return None, None, *(g * outputs[0] for g in ctx.saved_tensors)


def sum_of_parts(
    of_part: Callable[[Tensor, slice], Tensor], size: int, x: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """The sum of of_part(x[part], part) over x (B, ...) in parts of `size`, a scalar; once differentiable.

    `parameters` are all that of_part depends on besides x. Their gradients and that of x are taken part by part along
    with the value, so what of_part keeps for its backward pass is in memory for one part only.
    """
    return _SumOfParts.apply(of_part, size, x, *parameters)
