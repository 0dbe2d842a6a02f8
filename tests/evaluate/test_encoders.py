"""Frozen encoders by name, and the pictures that they see."""

import argparse

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import few, image_folder, small
from support.models import save_timm, seeded

from lib.data import Normalization, load, validation_mask
from lib.errors import InputError
from lib.evaluate import encode, features
from lib.evaluate.encoders import (
    CheckpointOptions,
    _plain,
    frozen_encoder,
    is_checkpoint,
    own_encoder,
)
from lib.evaluate.pictures import load_pictures, seen_by
from lib.presets import resolve
from lib.train import train


def of(spec, data, **options):
    encoder = frozen_encoder(spec, "cpu", **options)
    return encoder, encode(encoder, seen_by(encoder, data))


def test_a_run_gives_the_features_of_the_run(tmp_path):
    config = small(epochs=1)
    data = few(config)
    run = train(config, data)
    expected = features(run, data)
    for spec in (f"run:{run.folder.name}", str(run.folder)):
        encoder, found = of(spec, data)
        assert encoder.name == run.folder.name
        for pool in ("token", "avg"):
            for split in ("train", "validation", "test"):
                torch.testing.assert_close(
                    found.x[pool][split], expected.x[pool][split], rtol=1e-4, atol=1e-5
                )
        assert set(found.x) == {"token", "avg"}  # the pooled one is the class token


def test_a_timm_folder_sees_its_own_transform(tmp_path):
    model = save_timm(tmp_path / "model")
    root = image_folder(tmp_path / "pictures", size=(60, 44))
    data = load_pictures(f"folder:{root}")
    encoder, found = of(f"mine=local-dir:{tmp_path / 'model'}", data)
    assert encoder.name == "mine"
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    with torch.no_grad():
        pictures = torch.stack([own(Image.open(p)) for p in data.test.paths])
        tokens = model.forward_features(pictures)
    torch.testing.assert_close(found.x["token"]["test"], tokens[:, 0], rtol=1e-4, atol=1e-5)
    held = validation_mask(data.train.labels)
    assert torch.equal(found.y["validation"], data.train.labels[held])


def test_a_pooled_feature_is_kept_where_it_is_another(tmp_path):
    save_timm(tmp_path, global_pool="avg", fc_norm=True)
    saved = frozen_encoder(f"local-dir:{tmp_path}", "cpu")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert list(saved(images)) == ["token", "avg", "pooled"]
    convolutional = frozen_encoder("untrained:resnet18", "cpu")
    assert list(convolutional(images)) == ["avg"]  # its own pooled feature is the mean


def test_untrained_weights_are_always_the_same_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    one, other = (frozen_encoder("untrained:resnet18", "cpu") for _ in range(2))
    assert one.digest == other.digest and "random" in one.notes[0]
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_digest_depends_on_weights_and_on_the_transform(tmp_path):
    torch.manual_seed(0)
    save_timm(tmp_path / "a")
    save_timm(tmp_path / "b")
    config = (tmp_path / "a" / "config.json").read_text()
    a, b = (frozen_encoder(f"local-dir:{tmp_path / n}", "cpu") for n in "ab")
    assert a.digest != b.digest
    (tmp_path / "a" / "config.json").write_text(config.replace('"bicubic"', '"bilinear"'))
    assert frozen_encoder(f"local-dir:{tmp_path / 'a'}", "cpu").digest != a.digest


def checkpoint(path, release):
    config = resolve("cifar10-vit-micro", num_heads=2, decoder_heads=4)
    model = seeded(config)
    tensors = {k.removeprefix("encoder."): v for k, v in model.state_dict().items()}
    if release:
        tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(10, 96), torch.zeros(10)
    torch.save({"model": tensors, "epoch": 1, "args": argparse.Namespace()}, path)
    return model


@pytest.mark.parametrize("release", [True, False])
def test_a_checkpoint_has_the_feature_that_its_classifier_read(tmp_path, release):
    model = checkpoint(tmp_path / "checkpoint-199.pth", release)
    options = CheckpointOptions(num_heads=2, decoder_heads=4, normalize="unit")
    assert is_checkpoint(f"theirs={tmp_path / 'checkpoint-199.pth'}")
    encoder = frozen_encoder(str(tmp_path / "checkpoint-199.pth"), "cpu", options)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = encoder(images)
    with torch.no_grad():
        tokens = model.encoder.forward_features(images / 127.5 - 1)
        torch.testing.assert_close(found["token"], tokens[:, 0], rtol=1e-4, atol=1e-5)
        if release:  # the class token through the last norm a second time
            again = model.encoder.norm(tokens[:, 0])
            torch.testing.assert_close(found["pooled"], again, rtol=1e-4, atol=1e-5)
    assert ("pooled" in found) == release


def test_any_function_of_images_is_an_encoder():
    data = load_pictures("digits")
    half = Normalization(torch.full((1,), 0.5), torch.full((1,), 0.5))
    encoder = own_encoder("pixels", lambda x: {"avg": x.flatten(1)}, 8, half, "1", "cpu")
    found = encode(encoder, seen_by(encoder, data))
    assert torch.equal(found.x["avg"]["test"], data.test.images.flatten(1) / 255 * 2 - 1)


def test_the_digest_depends_on_heads_strides_and_normalisation(tmp_path):
    save_timm(tmp_path / "a")
    two_heads = frozen_encoder(f"local-dir:{tmp_path / 'a'}", "cpu").digest
    config = (tmp_path / "a" / "config.json").read_text()
    assert '"num_heads": 2' in config
    (tmp_path / "a" / "config.json").write_text(config.replace('"num_heads": 2', '"num_heads": 4'))
    assert frozen_encoder(f"local-dir:{tmp_path / 'a'}", "cpu").digest != two_heads
    strides = [_plain(torch.nn.Conv2d(1, 1, 3, stride=stride)) for stride in (1, 2)]
    assert strides[0] != strides[1]
    one, other = (Normalization(torch.tensor([m]), torch.tensor([0.5])) for m in (0.1, 0.5))
    keys = [own_encoder("e", lambda x: {"avg": x}, 8, n, "1", "cpu").digest for n in (one, other)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("damage", ["missing", "prefixed"])
def test_a_timm_folder_whose_weights_are_not_all_there_is_refused(tmp_path, damage):
    save_timm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["blocks.0.attn.qkv.weight"]
    else:
        weights = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="timm cannot load local-dir:") as raised:
        frozen_encoder(f"local-dir:{tmp_path}", "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["coat_lite_tiny", "crossvit_tiny_240"])
def test_a_model_that_does_not_say_where_its_class_token_is_gives_its_own_feature(name):
    encoder = frozen_encoder(f"untrained:{name}", "cpu")
    size = encoder.image_size
    found = encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert list(found) == ["pooled"] and found["pooled"].ndim == 2


def test_a_run_is_no_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NAME").write_bytes(b"no checkpoint")
    assert not is_checkpoint("run:NAME") and is_checkpoint("NAME")
    with pytest.raises(InputError, match="NAME"):
        frozen_encoder("run:NAME")


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path):
    file = tmp_path / "epoch=9.bin"
    file.touch()
    assert is_checkpoint(str(file)) and is_checkpoint(f"mine={file}")


def test_a_part_of_the_pictures_is_balanced_and_always_the_same(tmp_path):
    whole, part, again = (load_pictures("digits", n) for n in (None, 100, 100))
    assert torch.equal(part.train.images, again.train.images)
    assert len(part.train) == len(part.test) == 100
    assert set(part.train.labels.bincount().tolist()) == {10}
    assert part.fingerprint not in (whole.fingerprint, load_pictures("digits", 60).fingerprint)
    root = image_folder(tmp_path)
    few_pictures = load_pictures(f"folder:{root}", 4)
    assert few_pictures.train.labels.tolist() == [0, 0, 1, 1]
    assert [p.parent.name for p in few_pictures.train.paths] == ["cat", "cat", "dog", "dog"]
    assert load_pictures(f"folder:{root}", 50).fingerprint == load(f"folder:{root}", 8).fingerprint


def test_grey_pictures_are_repeated_and_colours_are_never_lost(tmp_path):
    encoder = frozen_encoder("untrained:resnet18", "cpu")
    (batch,) = seen_by(encoder, load_pictures("digits")).batches(
        load_pictures("digits").test, [torch.arange(2)]
    )
    assert batch.shape == (2, 3, 224, 224) and torch.equal(batch[:, 0], batch[:, 2])
    half = Normalization(torch.full((1,), 0.5), torch.full((1,), 0.5))
    grey = own_encoder("grey", lambda x: {"avg": x.flatten(1)}, 8, half, "1", "cpu")
    data = load_pictures(f"folder:{image_folder(tmp_path)}")
    with pytest.raises(InputError, match="grey takes grey pictures, these have colours"):
        seen_by(grey, data)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("untrained:resnet", "neither a file, nor a run .run:NAME., nor a model that timm knows"),
        ("run:nothing", "is no finished run; give run:NAME"),
        ("local-dir:/nowhere", "no config.json in /nowhere"),
        ("/nowhere/checkpoint-199.pth", "no checkpoint at /nowhere/checkpoint-199.pth"),
        ("s3:bucket", "timm cannot load s3:bucket"),
    ],
)
def test_what_is_no_encoder_is_one_line(spec, message):
    with pytest.raises(InputError, match=message) as raised:
        frozen_encoder(spec, "cpu")
    assert "\n" not in str(raised.value)


def test_options_of_a_checkpoint_are_refused_for_other_encoders():
    with pytest.raises(InputError, match="resnet18 is no checkpoint file"):
        frozen_encoder("untrained:resnet18", "cpu", CheckpointOptions(num_heads=2))


@pytest.mark.parametrize(
    "data, images, message",
    [
        ("imagenet", None, "data must be one of digits, fashion_mnist, cifar10, folder"),
        ("folder:", None, "data is digits, .* or folder:/path, .* got 'folder:'"),
        ("digits:/path", None, "data is digits, .* or folder:/path, .* got 'digits:/path'"),
        ("digits", 5, "images must be at least 2 for each of 10 classes, got 5"),
    ],
)
def test_pictures_that_cannot_be_had_are_one_line(data, images, message):
    with pytest.raises(InputError, match=message):
        load_pictures(data, images)
