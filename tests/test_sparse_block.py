"""The block that skips work against timm's that does it all."""

import pytest
import torch
from support import small
from support.models import images_for, seeded
from timm.layers import Mlp
from timm.models.vision_transformer import Block

from benchmarks.plain import dense_forward
from lib.masking import random_masks, take
from lib.models import SparseBlock


def pair(fused: bool) -> tuple[SparseBlock, Block]:
    """The same weights, biases and norms included, in both."""
    torch.manual_seed(0)
    ours, timms = (
        kind(12, 3, qkv_bias=True, mlp_layer=Mlp).double() for kind in (SparseBlock, Block)
    )
    for p in ours.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    timms.load_state_dict(ours.state_dict())
    ours.attn.fused_attn = fused
    return ours, timms


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wanted", [None, 1, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_the_block_equals_timms_in_value_and_gradient(fused, wanted, shared):
    ours, timms = pair(fused)
    x, table = torch.randn(5, 3, 12).double(), torch.randn(8, 12).double()
    ids = torch.rand(5, 8).argsort(1)[:, :6]  # a row of the table in many images, some in few
    results = []
    for block in (ours, timms):
        own, rows = x.clone().requires_grad_(), table.clone().requires_grad_()
        if block is ours:
            out = block(own, (rows, ids) if shared else None, wanted)
        else:
            out = block(torch.cat([own, rows[ids]], 1) if shared else own)[:, -(wanted or 99) :]
        out.square().sum().backward()
        grads = [own.grad, *([rows.grad] if shared else []), *(p.grad for p in block.parameters())]
        results.append([out, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    dense = dense_forward(
        ours, x, (table, ids) if shared else None, wanted
    )  # lib.bench's reference
    torch.testing.assert_close(dense, results[0][0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75])
def test_the_decoder_equals_one_that_computes_every_token_of_every_block(depth, ratio):
    config = small(decoder_depth=depth)
    model = seeded(config, dtype=torch.float64)
    masks = random_masks(3, config.num_patches, ratio)
    latent = model.encode(images_for(config, dtype=torch.float64), masks)
    x, count = model.decoder_embed(latent), masks.ids_remove.shape[1]
    x = torch.cat([x, model.mask_token.expand(3, count, -1)], 1)
    pos = model.decoder_pos_embed.expand(3, -1, -1)
    x = x + torch.cat(
        [pos[:, :1], take(pos[:, 1:], masks.ids_keep), take(pos[:, 1:], masks.ids_remove)], 1
    )
    for block in model.decoder_blocks:
        x = Block.forward(block, x)
    expected = model.decoder_pred(model.decoder_norm(x))[:, -(count or config.num_patches) :]
    torch.testing.assert_close(model.decode(latent, masks), expected, rtol=1e-11, atol=1e-11)
