"""The block that skips work against timm's that does it all; the loss taken in parts against the whole."""

import pytest
import torch
from helpers import small
from test_models import images_for, seeded
from timm.layers import Mlp
from timm.models.vision_transformer import Block

from lib import parts, speed
from lib.blocks import SparseBlock
from lib.masking import random_masks, take
from lib.objective import Objective
from lib.plain import dense_forward
from lib.presets import Config, resolve

CPU = torch.device("cpu")


def pair(fused: bool) -> tuple[SparseBlock, Block]:
    """The same weights, biases and norms included, in both."""
    torch.manual_seed(0)
    ours, timms = (kind(12, 3, qkv_bias=True, mlp_layer=Mlp).double() for kind in (SparseBlock, Block))
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
    dense = dense_forward(ours, x, (table, ids) if shared else None, wanted)  # lib.bench's reference
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
    x = x + torch.cat([pos[:, :1], take(pos[:, 1:], masks.ids_keep), take(pos[:, 1:], masks.ids_remove)], 1)
    for block in model.decoder_blocks:
        x = Block.forward(block, x)
    expected = model.decoder_pred(model.decoder_norm(x))[:, -(count or config.num_patches) :]
    torch.testing.assert_close(model.decode(latent, masks), expected, rtol=1e-11, atol=1e-11)


def in_parts(elements: int, monkeypatch, config: Config) -> tuple[int, dict[str, torch.Tensor]]:
    """How many times the decoder was called, and value and gradients of one batch of 10."""
    monkeypatch.setattr(parts, "ELEMENTS", elements)
    torch.manual_seed(0)
    objective, calls = Objective(config, 10).double(), []
    objective.mae.decoder_norm.register_forward_hook(lambda *_: calls.append(1))
    images, masks = torch.randn(10, 1, 8, 8).double(), random_masks(10, config.num_patches, config.mask_ratio)
    total, terms = objective(images, masks, torch.arange(10))
    (total * 0.5).backward()  # as under accumulation
    grads = {n: p.grad for n, p in objective.named_parameters() if p.requires_grad}
    return len(calls), {**grads, "total": total.detach(), "terms": terms}


@pytest.mark.parametrize("fields", [{}, {"mask_ratio": 0.0}, {"norm_pix_loss": True, "decoder_depth": 2}])
@pytest.mark.parametrize("images,count", [(1, 10), (3, 4), (5, 2)])
def test_the_decoder_in_parts_has_the_value_and_gradient_of_the_whole_batch(monkeypatch, fields, images, count):
    config = small(lam=0.1, **fields)
    once, whole = in_parts(10**9, monkeypatch, config)
    calls, split = in_parts(images * config.num_patches * config.decoder_dim, monkeypatch, config)
    assert (once, calls) == (1, count) and split.keys() == whole.keys()
    for name, value in whole.items():
        assert value is not None, name
        torch.testing.assert_close(split[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_parts_are_equal_and_only_for_a_cpu_that_holds_all_weights():
    tiny, micro = resolve("cifar10-vit-tiny", patch_size=4), resolve("cifar10-vit-micro")
    assert [parts.images_at_once(tiny, count, CPU) for count in (256, 129, 128, 1)] == [128, 65, 128, 1]
    assert parts.images_at_once(micro, 256, CPU) == 256
    assert parts.images_at_once(tiny, 256, torch.device("cuda")) == 256
    assert parts.images_at_once(resolve("cifar10-vit-tiny", patch_size=4, shard=True), 256, CPU) == 256


def test_in_bf16_the_parts_differ_by_rounding_only(monkeypatch):
    config = small(lam=0.1)
    results = []
    for elements in (10**9, 3 * config.num_patches * config.decoder_dim):
        monkeypatch.setattr(parts, "ELEMENTS", elements)
        torch.manual_seed(0)
        objective = Objective(config, 10)
        speed.choose_attention(objective, CPU, "bf16")
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = objective(torch.randn(10, 1, 8, 8), random_masks(10, 16, 0.75), torch.arange(10))
        total.backward()
        results.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.requires_grad]))
    assert 0 < (results[0] - results[1]).norm() < 0.01 * results[0].norm()
