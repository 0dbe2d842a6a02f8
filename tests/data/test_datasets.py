"""Datasets: one in-memory form, streams with the same pixels, every kind of image file."""

import multiprocessing
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from support import few, folder_config, image_folder, small
from support.idx_files import fashion_files, write_idx

from lib.data import load, validation_mask
from lib.data.builtin import read_idx
from lib.data.decoding import open_image


def test_digits_are_the_1797_of_scikit_learn_split_by_class():
    from sklearn.datasets import load_digits

    data = load(small())
    assert (
        len(data.train) == 1437
        and len(data.test) == 360
        and data.class_names == [str(d) for d in range(10)]
    )
    assert data.train.images.dtype == torch.uint8 and data.train.images.shape[1:] == (1, 8, 8)
    both = torch.cat([data.train.images, data.test.images])
    original = torch.from_numpy(load_digits().images / 16 * 255).round()
    assert sorted(map(bytes, both.numpy())) == sorted(
        map(bytes, original.to(torch.uint8).unsqueeze(1).numpy())
    )
    shares = torch.bincount(data.test.labels) / torch.bincount(data.train.labels)
    assert (shares - 0.25).abs().max() < 0.02


def test_mean_and_std_are_the_training_splits():
    data = load(small())
    pixels = data.train.images.double() / 255
    assert data.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert data.std.item() == pytest.approx(pixels.std().item(), rel=1e-4)


@pytest.mark.parametrize("normalize", ["dataset", "unit"])
def test_normalize_and_back(normalize):
    data = load(small(normalize=normalize))
    x = data.normalize(data.train.images, torch.float64)
    torch.testing.assert_close(data.denormalize(x), data.train.images.double() / 255)
    if normalize == "unit":
        assert x.min() == -1 and x.max() == 1
    else:
        assert x.mean().abs() < 1e-5 and (x.std() - 1).abs() < 1e-4


def test_other_sizes_are_resized():
    data = load(small(image_size=16, patch_size=4))
    assert data.train.images.shape == (1437, 1, 16, 16)
    assert data.train.images.float().mean().item() == pytest.approx(
        load(small()).train.images.float().mean().item(), rel=0.02
    )


def test_a_subset_of_the_classes():
    data, whole = load(small(classes=("3", "7"))), load(small())
    assert data.class_names == ["3", "7"] and data.train.labels.unique().tolist() == [0, 1]
    assert torch.equal(
        data.train.images[data.train.labels == 1], whole.train.images[whole.train.labels == 7]
    )


def test_every_image_of_a_folder_arrives_with_its_label(tmp_path):
    root = image_folder(tmp_path, per_class=3, size=(8, 8))
    data = load(folder_config(root))
    assert data.class_names == ["cat", "dog"] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for image, path in zip(data.train.images, data.train.paths, strict=True):
        assert torch.equal(image, torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
    assert (data.train.paths[4].parent.name, data.test.paths[0].parent.parent.name) == (
        "dog",
        "val",
    )


def test_test_is_preferred_to_val_and_hidden_or_other_files_are_left_alone(tmp_path):
    root = image_folder(tmp_path)
    os.rename(root / "val", root / "test")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    assert len(load(folder_config(root)).train) == 12


def test_a_subset_of_a_folders_classes(tmp_path):
    root = image_folder(tmp_path, classes=("ant", "bee", "cow"))
    assert load(folder_config(root, classes=("cow", "ant"))).class_names == ["ant", "cow"]


def test_any_sizes_are_cropped_to_the_centre_square(tmp_path):
    root = image_folder(tmp_path)
    wide = Image.new("RGB", (30, 10), (255, 0, 0))
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    wide.save(root / "train" / "cat" / "0.png")
    images = load(folder_config(root)).train.images
    assert images.shape == (12, 3, 8, 8)
    assert (
        images[0, 1].float().mean() > 240 and images[0, 0].float().mean() < 15
    )  # the green centre


def pixels(data, split, epoch=-1, chunks=5):
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1)).split(chunks)
    return torch.cat(list(data.batches(split, list(order), epoch)))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_streamed_folder_has_the_pixels_of_one_in_memory(tmp_path, suffix):
    root = image_folder(tmp_path, suffix=suffix)
    memory, stream = (
        load(folder_config(root, stream="never")),
        load(folder_config(root, stream="always")),
    )
    assert memory.train.images is not None and stream.train.images is None
    for a, b in ((memory.train, stream.train), (memory.test, stream.test)):
        assert torch.equal(pixels(memory, a), pixels(stream, b)) and torch.equal(a.labels, b.labels)
    assert torch.equal(memory.mean, stream.mean) and torch.equal(memory.std, stream.std)


@pytest.mark.parametrize("augment", ["none", "resized_crop"])
def test_the_number_of_workers_does_not_change_the_data(tmp_path, augment):
    root = image_folder(tmp_path)
    got = []
    for workers in (0, 1, 2):
        data = load(folder_config(root, stream="always", workers=workers, augment=augment))
        got.append(torch.cat([pixels(data, data.train, epoch) for epoch in (0, 1)]))
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])
    assert torch.equal(got[0][:12], got[0][12:]) == (
        augment == "none"
    )  # crops differ between epochs


def test_streamed_crops_depend_on_seed_epoch_and_image_not_on_the_batch(tmp_path):
    root = image_folder(tmp_path)
    data = load(folder_config(root, stream="always", augment="resized_crop"))
    assert torch.equal(pixels(data, data.train, 0, chunks=5), pixels(data, data.train, 0, chunks=2))
    other = load(folder_config(root, stream="always", augment="resized_crop", seed=1))
    assert not torch.equal(pixels(data, data.train, 0), pixels(other, other.train, 0))
    assert torch.equal(
        pixels(data, data.train), pixels(other, other.train)
    )  # without augmentation: the same


@pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)
def test_a_worker_ends_when_its_parent_says_so_and_not_when_others_do(tmp_path):
    """Else a scheduler's SIGTERM to all processes would cut a step, or an unfinished stream would hang the exit."""
    data = load(folder_config(image_folder(tmp_path, per_class=40), stream="always", workers=1))
    stream = data.batches(data.train, list(torch.arange(80).split(4)))
    next(stream)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(stream)) == 19  # it went on to the end
    stream = data.batches(data.train, list(torch.arange(80).split(4)))
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def _save(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_every_kind_of_image_becomes_8_bit_rgb(tmp_path):
    red = Image.new("RGB", (6, 5), (200, 30, 40))
    alpha = red.copy()
    alpha.putalpha(0)
    transparent = red.convert("P", palette=Image.Palette.ADAPTIVE)
    transparent.info["transparency"] = 0
    frames = [red, Image.new("RGB", (6, 5), (0, 0, 255))]
    paths = {
        "rgb.png": _save(tmp_path, "rgb.png", red),
        "alpha.png": _save(tmp_path, "alpha.png", alpha),
        "palette.png": _save(
            tmp_path, "palette.png", red.convert("P", palette=Image.Palette.ADAPTIVE)
        ),
        "palette_alpha.png": _save(tmp_path, "palette_alpha.png", transparent),
        "animated.gif": _save(
            tmp_path, "animated.gif", frames[0], save_all=True, append_images=frames[1:]
        ),
        "cmyk.jpg": _save(tmp_path, "cmyk.jpg", red.convert("CMYK"), quality=95),
    }
    for name, path in paths.items():
        image = open_image(path)
        assert (image.mode, image.size) == ("RGB", (6, 5)), name
        assert np.abs(np.array(image).astype(int) - [200, 30, 40]).max() <= 6, name
    for mode in ("L", "1", "LA"):
        assert open_image(_save(tmp_path, f"{mode}.png", Image.new(mode, (3, 3)))).mode == "RGB"


def test_idx_files_round_trip(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 4))
    write_idx(tmp_path / "a.gz", array)
    assert torch.equal(read_idx(tmp_path / "a.gz"), torch.from_numpy(array).to(torch.uint8))


def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path):
    data = load(
        small(
            data="fashion_mnist", image_size=28, patch_size=4, data_dir=str(fashion_files(tmp_path))
        )
    )
    assert (
        data.train.images.shape == (30, 1, 28, 28)
        and len(data.test) == 10
        and data.class_names[9] == "Ankle boot"
    )


def test_cifar10_is_read_from_a_folder(tmp_path):
    data = load(
        small(
            data="cifar10",
            image_size=32,
            patch_size=4,
            data_dir=str(image_folder(tmp_path, size=(32, 32))),
        )
    )
    assert data.train.images.shape == (12, 3, 32, 32)


def test_the_fingerprint_sees_a_pixel_a_label_and_a_class_name(tmp_path):
    root = image_folder(tmp_path)
    before = load(folder_config(root)).fingerprint
    assert load(folder_config(root)).fingerprint == before
    image = Image.open(root / "val" / "dog" / "5.png")
    image.putpixel((9, 8), (0, 255, 0) if image.getpixel((9, 8)) != (0, 255, 0) else (1, 2, 3))
    image.save(root / "val" / "dog" / "5.png")
    changed = load(folder_config(root)).fingerprint
    for split in ("train", "val"):
        os.rename(root / split / "dog", root / split / "dogs")
    assert len({before, changed, load(folder_config(root)).fingerprint}) == 3


def test_the_validation_part_is_a_fixed_balanced_tenth_of_the_training_labels():
    labels = load(small()).train.labels
    held = validation_mask(labels)
    assert torch.equal(held, validation_mask(labels)) and held.sum().item() == pytest.approx(
        143, abs=5
    )
    assert (torch.bincount(labels[held]) / torch.bincount(labels) - 0.1).abs().max() < 0.01
    assert few(small()).train.images.shape[0] == 200
