"""Files in the layout of the MAE code and of the authors' release, made here from known weights."""

import argparse
import pathlib
from types import SimpleNamespace

import pytest
import timm
import torch
from support.checkpoints import config_of, mae_names, their_forward, written
from support.models import images_for, seeded
from torch import nn

from lib.errors import InputError
from lib.evaluate.checkpoints import load_checkpoint
from lib.masking import keep_all, patchify, random_masks

HEADS = dict(num_heads=2, decoder_heads=4)


@pytest.fixture
def model():
    return seeded(config_of())


@pytest.mark.parametrize("release", [True, False])
def test_a_full_checkpoint_gives_the_latent_and_the_prediction_of_its_weights(
    model, tmp_path, release
):
    path = written(tmp_path / "checkpoint-199.pth", model, release=release)
    found = load_checkpoint(path, **HEADS)
    images, masks = images_for(config_of()), random_masks(3, 16, 0.75)
    with torch.no_grad():
        latent, pred = found.model(images, masks)
        expected = model(images, masks)
        slow, everything = their_forward(mae_names(model), images, masks, 2, 4, 4)
    assert torch.equal(latent, expected[0]) and torch.equal(pred, expected[1])
    torch.testing.assert_close(latent, slow, rtol=1e-4, atol=1e-5)
    removed = torch.stack([t[i] for t, i in zip(everything, masks.ids_remove, strict=True)])
    torch.testing.assert_close(pred, removed, rtol=1e-4, atol=1e-5)
    assert (found.config.mask_ratio, found.config.norm_pix_loss) == (0.6, True)
    assert found.reads == ("token" if release else None)
    assert "optimizer, scaler, epoch, args" in found.notes[0]
    assert ("fc.weight" in found.notes[0]) == release


def test_patches_are_flattened_by_row_column_and_channel():
    """As the MAE code's prediction layer expects them: einsum "nchpwq->nhwpqc"."""
    images = torch.randn(2, 3, 8, 8)
    for i, patch in enumerate(patchify(images, 4)[1]):
        top, left = 4 * (i // 2), 4 * (i % 2)
        expected = [images[1, c, top + p, left + q] for p in range(4) for q in range(4)
                    for c in range(3)]  # fmt: skip
        assert torch.equal(patch, torch.stack(expected))


def test_an_encoder_only_file_becomes_a_timm_model(model, tmp_path):
    path = tmp_path / "mae_pretrain_vit_base.pth"
    names = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")
    own = {k: v for k, v in mae_names(model).items() if k.split(".")[0] in names}
    torch.save({"model": own}, path)
    found = load_checkpoint(path, num_heads=2)
    assert isinstance(found.model, timm.models.VisionTransformer) and found.notes == ()
    images = images_for(config_of())
    with torch.no_grad():
        expected = model.encode(images, keep_all(3, 16))
        torch.testing.assert_close(found.model.forward_features(images), expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_file_of_a_wrapped_model_is_read_by_its_own_names(model, tmp_path, prefix):
    """DistributedDataParallel and torch.compile put a prefix before every name."""
    wrapped = {prefix + name: value for name, value in mae_names(model).items()}
    torch.save({"model": wrapped}, tmp_path / "wrapped.pth")
    found = load_checkpoint(tmp_path / "wrapped.pth", **HEADS)
    assert found.notes == (f"read without {prefix!r} before every name",)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_prefix_of_some_names_only_is_refused(model, tmp_path):
    names = mae_names(model)
    mixed = {("module." + n if "blocks" in n else n): v for n, v in names.items()}
    torch.save({"model": mixed}, tmp_path / "mixed.pth")
    with pytest.raises(InputError, match="blocks"):
        load_checkpoint(tmp_path / "mixed.pth", **HEADS)


def test_the_heads_of_maes_models_are_known_by_their_width(tmp_path):
    fields = dict(embed_dim=768, num_heads=12, decoder_dim=512, decoder_heads=16, depth=1)
    model = seeded(config_of(**fields))
    tensors = {k: v.half() for k, v in mae_names(model).items()}
    torch.save({"model": tensors}, tmp_path / "half.pth")
    found = load_checkpoint(tmp_path / "half.pth")
    assert (found.config.num_heads, found.config.decoder_heads) == (12, 16)
    assert found.model.state_dict()["mask_token"].dtype == torch.float32


def test_layer_norms_have_the_eps_of_the_mae_code(model):
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 8 and {m.eps for m in norms} == {1e-6}


def test_positions_are_interpolated_only_if_asked(model, tmp_path):
    path = written(tmp_path / "c.pth", model)
    with pytest.raises(InputError, match="positions of 16x16 pixels, image_size is 24"):
        load_checkpoint(path, image_size=24, **HEADS)
    with pytest.raises(InputError, match="no multiple of the patch size 4"):
        load_checkpoint(path, image_size=18, interpolate=True, **HEADS)
    found = load_checkpoint(path, image_size=24, interpolate=True, **HEADS)
    images = torch.randn(2, 3, 24, 24)
    latent, pred = found.model(images, random_masks(2, 36, 0.75))
    assert latent.shape == (2, 10, 16) and pred.shape == (2, 27, 48)
    own, grown = model.encoder.pos_embed, found.model.encoder.pos_embed
    assert torch.equal(own[:, :1], grown[:, :1])
    torch.testing.assert_close(own[:, 1:].mean(1), grown[:, 1:].mean(1), rtol=0, atol=0.05)
    assert "positions interpolated to 24x24 pixels" in found.notes
    same = load_checkpoint(path, image_size=16, **HEADS)
    assert torch.equal(same.model.encoder.pos_embed, own)


def test_other_positions_than_the_fixed_ones_are_kept_and_said(model, tmp_path):
    tensors = mae_names(model)
    swapped = tensors["pos_embed"][:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    tensors["pos_embed"][:, 1:] = swapped.clone()
    found = load_checkpoint(written(tmp_path / "c.pth", model, tensors), **HEADS)
    assert any("pos_embed is not MAE's fixed" in line for line in found.notes)
    assert torch.equal(found.model.encoder.pos_embed, tensors["pos_embed"])


def lacking(tensors):
    del tensors["blocks.1.mlp.fc1.bias"]


def exceeding(tensors):
    tensors["blocks.1.extra"] = torch.zeros(3)


def foreign(tensors):
    tensors["teacher.weight"] = torch.zeros(3)


def misshapen(tensors):
    tensors["norm.weight"] = torch.zeros(3)


def without_class_token(tensors):
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]


def two_grids(tensors):
    tensors["decoder_pos_embed"] = tensors["decoder_pos_embed"][:, :10]


def diverged(tensors):
    tensors["norm.weight"][3] = torch.nan


def not_a_tensor(tensors):
    tensors["norm.weight"] = [1.0]


def no_patches(tensors):
    del tensors["patch_embed.proj.weight"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lacking, r"encoder.blocks.1.mlp.fc1.bias is nothing, expected \(64,\)"),
        (exceeding, r"encoder.blocks.1.extra is \(3,\), expected nothing"),
        (foreign, r"teacher.weight is \(3,\), expected nothing"),
        (misshapen, r"encoder.norm.weight is \(3,\), expected \(16,\)"),
        (without_class_token, "pos_embed has 16 positions; expected a class token and a square"),
        (two_grids, "encoder and decoder have positions of different images"),
        (not_a_tensor, "'norm.weight' of its model is a list; expected a tensor"),
        (diverged, "norm.weight is not finite; the training diverged"),
        (no_patches, "lacks the tensor patch_embed.proj.weight"),
    ],
)
def test_a_file_of_another_architecture_is_one_line(model, tmp_path, change, message):
    tensors = mae_names(model)
    change(tensors)
    refused(written(tmp_path / "c.pth", model, tensors), message, **HEADS)


def refused(path, message, **options):
    with pytest.raises(InputError, match=message) as raised:
        load_checkpoint(path, **options)
    assert "\n" not in str(raised.value)


class Ran(Exception):
    pass


class Runs:
    """Would raise Ran while it is unpickled."""

    def __reduce__(self):
        return exec, ("raise __import__('support').Ran",)


@pytest.mark.parametrize(
    "foreign, message",
    [
        (Runs(), "holds exec, which could run code"),
        (SimpleNamespace(a=1), "holds types.SimpleNamespace, which could run code"),
        (pathlib.PurePosixPath("a"), "holds pathlib.*PurePosixPath, which could run code"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_class_in_the_pickle_is_refused_by_name(tmp_path, foreign, message, zipped):
    path = tmp_path / "c.pth"
    saved = {"model": {}, "args": argparse.Namespace(where=foreign)}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    refused(path, message)


def test_what_is_no_checkpoint_is_one_line(model, tmp_path):
    refused(tmp_path / "none.pth", "no checkpoint at")
    (tmp_path / "text.pth").write_text("hello")
    refused(tmp_path / "text.pth", "holds|cannot be read as a torch checkpoint")
    torch.save({"state_dict": {}, "teacher": {}}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "has no 'model' .it has state_dict, teacher")
    written(tmp_path / "more.pth", model, model_ema={})
    refused(tmp_path / "more.pth", "holds 'model_ema' beside the model")
    path = written(tmp_path / "c.pth", model)
    refused(path, "num_heads of width 16 cannot be read from it; give num_heads")
    refused(path, "decoder_heads of width 24 cannot be read", num_heads=2)
    refused(path, "num_heads 3 does not divide the width 16", num_heads=3)
    refused(path, "num_heads 0 does not divide the width 16", num_heads=0)
    refused(path, "give image_size", **HEADS, interpolate=True)


def test_heads_of_a_decoder_that_is_not_there_are_refused(model, tmp_path):
    own = {k: v for k, v in mae_names(model).items() if "decoder" not in k and k != "mask_token"}
    torch.save({"model": own}, tmp_path / "e.pth")
    refused(tmp_path / "e.pth", "decoder_heads was given, but .* has no decoder", **HEADS)
