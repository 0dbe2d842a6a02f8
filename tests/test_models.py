"""The masked autoencoder against timm, and what it may and may not see."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from support import small
from support.models import images_for, seeded
from timm.models.vision_transformer import VisionTransformer

from lib.losses import reconstruction_loss, uniformity_loss
from lib.masking import patchify, random_masks, take, unpatchify
from lib.models import MAE, build_encoder, pool_tokens, sincos_positions
from lib.presets import PRESETS, resolve

# Preset: timm's model of that size, and its published parameter count at 224 px, patch 16, no head.
TWINS = {
    "cifar10-vit-tiny": ("vit_tiny_patch16_224", 5_524_416),
    "cifar10-vit-base": ("vit_base_patch16_224", 85_798_656),
    "imagenet100-vit-base": ("vit_base_patch16_224", 85_798_656),
    "imagenet100-vit-large": ("vit_large_patch16_224", 303_301_632),
}


@pytest.mark.parametrize("preset", ["digits-vit-nano", "fashion-vit-micro", "cifar10-vit-micro"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_with_nothing_masked_the_encoder_is_timms_forward_features(preset, dtype, tolerance):
    config = resolve(preset)
    model, images = seeded(config, dtype=dtype), images_for(config, dtype=dtype)
    masks = random_masks(3, config.num_patches, 0.0)
    with torch.no_grad():
        got, expected = model.encode(images, masks), model.encoder.forward_features(images)
    torch.testing.assert_close(got[:, :1], expected[:, :1], rtol=0, atol=tolerance)
    torch.testing.assert_close(
        got[:, 1:], take(expected[:, 1:], masks.ids_keep), rtol=0, atol=tolerance
    )


def test_a_visible_subset_equals_timms_blocks_on_the_gathered_tokens():
    config = resolve("cifar10-vit-micro")
    model, images, masks = seeded(config), images_for(config), random_masks(3, 64, 0.75)
    enc = model.encoder
    with torch.no_grad():
        tokens = (
            enc.patch_embed(images) + enc.pos_embed[:, 1:]
        )  # timm's convolution over all patches
        cls = (enc.cls_token + enc.pos_embed[:, :1]).expand(3, -1, -1)
        expected = enc.norm(enc.blocks(torch.cat([cls, take(tokens, masks.ids_keep)], 1)))
        torch.testing.assert_close(model.encode(images, masks), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_parameters_of_its_timm_twin(preset):
    config = dataclasses.replace(
        PRESETS[preset], data=PRESETS[preset].data.replace("folder:", "folder:/x")
    )
    name, published = TWINS.get(preset, (None, None))
    with torch.device("meta"):
        model = MAE(config)
        size = dict(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.channels,
            num_classes=0,
        )
        if name:
            twin = timm.create_model(name, **size)
            assert (
                sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
                == published
            )
        else:
            own = dict(embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads)
            twin = VisionTransformer(**size, **own)
        assert {k: v.shape for k, v in model.encoder.state_dict().items()} == {
            k: v.shape for k, v in twin.state_dict().items()
        }
        assert sum(p.numel() for p in model.encoder.parameters()) == sum(
            p.numel() for p in twin.parameters()
        )


def test_decoder_has_the_width_and_depth_asked_for():
    for dim, depth, heads in ((16, 1, 2), (24, 3, 3), (192, 4, 3)):
        model = MAE(small(decoder_dim=dim, decoder_depth=depth, decoder_heads=heads))
        assert len(model.decoder_blocks) == depth and model.decoder_pred.in_features == dim


def test_the_state_dict_loads_into_timm_strictly():
    config = resolve("digits-vit-nano")
    model, images = seeded(config), images_for(config)
    twin = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=0, embed_dim=64, depth=3, num_heads=4
    )
    twin.load_state_dict(model.encoder.state_dict(), strict=True)
    with torch.no_grad():
        expected = model.encode(images, random_masks(3, 16, 0.0))[:, 0]
        torch.testing.assert_close(
            twin.eval().forward_features(images)[:, 0], expected, rtol=0, atol=2e-5
        )


def test_positions_are_maes():
    """Against the numpy code of He et al. (util/pos_embed.py), column frequencies first."""

    def one(dim, pos):
        omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=float) / (dim / 2.0))
        out = np.einsum("m,d->md", pos.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    for dim, grid in ((16, 4), (64, 7)):
        w, h = np.meshgrid(np.arange(grid, dtype=np.float32), np.arange(grid, dtype=np.float32))
        expected = np.concatenate(
            [np.zeros((1, dim)), np.concatenate([one(dim // 2, w), one(dim // 2, h)], axis=1)]
        )
        np.testing.assert_allclose(sincos_positions(dim, grid)[0].numpy(), expected, atol=1e-6)


def test_fixed_positions_do_not_train():
    model = MAE(small())
    assert not model.encoder.pos_embed.requires_grad and not model.decoder_pos_embed.requires_grad


def test_the_encoder_does_not_see_removed_patches():
    config = small()
    model, images, masks = seeded(config), images_for(config), random_masks(3, 16, 0.75)
    patches = patchify(images, 2)
    changed = unpatchify(patches + 9 * masks.mask[..., None], 2, (8, 8))
    with torch.no_grad():
        for a, b in zip(model(images, masks), model(changed, masks), strict=True):
            assert torch.equal(a, b)
        visible = unpatchify(patches + 9 * (1 - masks.mask[..., None]), 2, (8, 8))
        assert not torch.allclose(model.encode(images, masks), model.encode(visible, masks))


def test_identity_2_the_targets_are_the_removed_patches_alone():
    config = small()
    model, images, masks = MAE(config), images_for(config), random_masks(3, 16, 0.75)
    patches = patchify(images, 2)
    visible = unpatchify(patches + 9 * (1 - masks.mask[..., None]), 2, (8, 8))
    pred = torch.randn(3, 12, 4)
    losses = [reconstruction_loss(pred, model.targets(x, masks)).item() for x in (images, visible)]
    assert losses[0] == losses[1]
    full = torch.zeros_like(patches).scatter_(
        1, masks.ids_remove[..., None].expand(-1, -1, 4), pred
    )
    released = (
        (full - patches).square().mean(-1) * masks.mask
    ).sum() / masks.mask.sum()  # MAE's masked mean
    assert losses[0] == pytest.approx(released.item(), rel=1e-5)


def test_predictions_come_in_the_order_of_the_removed_patches():
    config = small()
    model, images, masks = (
        seeded(config, dtype=torch.float64),
        images_for(config, dtype=torch.float64),
        random_masks(3, 16, 0.5),
    )
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = masks._replace(ids_remove=masks.ids_remove[:, order])
    with torch.no_grad():
        torch.testing.assert_close(model(images, shuffled)[1], model(images, masks)[1][:, order])


def test_with_nothing_removed_every_patch_is_predicted():
    config = small(mask_ratio=0)
    model, images, masks = MAE(config), images_for(config), random_masks(3, 16, 0.0)
    latent, pred = model(images, masks)
    assert latent.shape == (3, 17, 16) and pred.shape == (3, 16, 4)
    assert torch.equal(model.targets(images, masks), take(patchify(images, 2), masks.ids_keep))


@pytest.mark.parametrize("ratio,removed", [(0.5, 8), (0.75, 12), (0.93, 15)])
def test_only_what_is_removed_is_predicted(ratio, removed):
    config = small()
    latent, pred = MAE(config)(images_for(config), random_masks(3, 16, ratio))
    assert latent.shape == (3, 17 - removed, 16) and pred.shape == (3, removed, 4)


def test_pooling():
    latent = torch.randn(2, 5, 3)
    assert torch.equal(pool_tokens(latent, "token"), latent[:, 0])
    torch.testing.assert_close(
        pool_tokens(latent, "avg"), sum(latent[:, i] for i in range(1, 5)) / 4
    )


def test_every_weight_that_trains_gets_a_gradient():
    config = small()
    model = MAE(config)
    latent, pred = model(images_for(config), random_masks(3, 16, 0.75))
    (pred.square().mean() + latent.square().mean()).backward()
    idle = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    # The bias of the keys cancels in the softmax up to rounding; no gradient is exactly 0.
    assert idle == []


def test_initialisation_is_maes():
    torch.manual_seed(0)
    model = MAE(resolve("cifar10-vit-micro"))
    assert model.encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.encoder.blocks[0].attn.qkv.bias.abs().max() == 0
    bound = (6 / (96 + 48)) ** 0.5  # Xavier of the patch embedding as a 48 -> 96 linear map
    assert bound * 0.95 < model.encoder.patch_embed.proj.weight.abs().max() <= bound


def test_extra_arguments_reach_timm():
    encoder = build_encoder(small(depth=2), drop_path_rate=0.1, num_classes=10)
    assert encoder.num_classes == 10 and encoder.blocks[1].drop_path1.drop_prob == pytest.approx(
        0.1
    )


def released_slowly(latent, norm):
    """The authors' regulariser, one pair at a time: norm again, unit length, squared cosines."""
    rows = []
    for row in latent[:, 0]:
        centred = row - row.mean()
        again = centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
        rows.append(again / again.square().sum().sqrt())
    return sum((a * b).sum() ** 2 for a in rows for b in rows) / len(rows) ** 2


def test_the_released_form_is_the_authors_in_value_and_gradient():
    """Their class token passes the encoder's last norm twice, the second time affine as well."""
    config = small(uniformity="released")
    model = seeded(config, dtype=torch.float64)
    images, masks = images_for(config, 5, torch.float64), random_masks(5, 16, 0.75)
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    results = []
    for slow in (False, True):
        latent = model.encode(images, masks)
        features = model.uniformity_features(latent, "token", "released")
        norm = model.encoder.norm
        value = released_slowly(latent, norm) if slow else uniformity_loss(features, "released")
        results.append([value, *torch.autograd.grad(value, weights, allow_unused=True)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    assert results[0][1 + len(weights) - 2].abs().max() > 0  # the norm's own weight is trained


def test_the_other_forms_see_the_latent_as_it_is():
    config = small()
    model = seeded(config)
    latent = model.encode(images_for(config), random_masks(3, 16, 0.75))
    for form in ("spectral", "euclidean"):
        assert torch.equal(model.uniformity_features(latent, "avg", form), latent[:, 1:].mean(1))
