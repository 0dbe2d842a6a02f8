"""What makes two sets the same: one definition, in memory or streamed, here or elsewhere."""

import os
import shutil

import pytest
import torch
from PIL import Image
from support import folder_config, image_folder, small

from lib.data import load
from lib.errors import InputError


def of_folder(root, **fields):
    return load(**folder_config(root, **fields).data_fields)


def test_a_folder_is_the_same_in_memory_streamed_moved_and_called_cifar10(tmp_path):
    root = image_folder(tmp_path / "here")
    memory, stream = of_folder(root, stream="never"), of_folder(root, stream="always")
    shutil.copytree(root, tmp_path / "there")
    elsewhere = of_folder(tmp_path / "there")
    named = load("cifar10", 8, data_dir=str(root))
    assert (memory.streamed, stream.streamed) == (False, True)
    prints = {d.fingerprint for d in (memory, stream, elsewhere, named)}
    assert len(prints) == 1 and len(prints.pop()) == 16


def test_the_image_size_and_the_name_of_the_test_folder_are_no_part_of_it(tmp_path):
    root = image_folder(tmp_path)
    before = of_folder(root).fingerprint
    assert of_folder(root, image_size=16).fingerprint == before
    os.rename(root / "val", root / "test")
    assert of_folder(root).fingerprint == before
    digits = [load(**small(image_size=size).data_fields) for size in (8, 16)]
    assert digits[0].fingerprint == digits[1].fingerprint


def _longer(root):
    with open(root / "val/dog/5.png", "ab") as file:
        file.write(b"\0")


def _rename_class(root):
    for split in ("train", "val"):
        os.rename(root / split / "dog", root / split / "dogs")


CHANGES = {
    "size": _longer,
    "class name": _rename_class,
    "label": lambda r: os.rename(r / "train/cat/5.png", r / "train/dog/6.png"),
    "added": lambda r: shutil.copy(r / "train/cat/5.png", r / "train/cat/6.png"),
    "removed": lambda r: os.remove(r / "val/cat/5.png"),
    "file name": lambda r: os.rename(r / "train/cat/5.png", r / "train/cat/7.png"),
    "split": lambda r: os.rename(r / "train/cat/5.png", r / "val/cat/7.png"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stream", ["never", "always"])
def test_the_fingerprint_of_a_folder_sees(tmp_path, change, stream):
    root = image_folder(tmp_path)
    before = of_folder(root, stream=stream).fingerprint
    CHANGES[change](root)
    assert of_folder(root, stream=stream).fingerprint != before


def test_a_subset_of_the_classes_is_other_data_and_equals_a_folder_of_these_alone(tmp_path):
    whole = image_folder(tmp_path / "whole", classes=("ant", "bee", "cow"))
    part = of_folder(whole, classes=("ant", "cow")).fingerprint
    assert part != of_folder(whole).fingerprint
    for split in ("train", "val"):
        shutil.rmtree(whole / split / "bee")
    assert part == of_folder(whole).fingerprint


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tif"])
def test_new_pixels_in_an_uncompressed_file_are_seen(tmp_path, suffix):
    """Its size says nothing: the file is read."""
    root = image_folder(tmp_path, suffix=suffix)
    before = of_folder(root)
    path = root / f"train/cat/0{suffix}"
    size = path.stat().st_size
    image = Image.open(path).copy()
    image.paste((1, 2, 3), (0, 0, 20, 16))
    image.save(path)
    assert path.stat().st_size == size
    assert of_folder(root).fingerprint != before.fingerprint
    assert of_folder(root, stream="always").fingerprint == of_folder(root).fingerprint


def test_a_compressed_file_of_the_same_size_is_not_read_again(tmp_path):
    """As the docstring of lib.data.loading says."""
    root = image_folder(tmp_path)
    before = of_folder(root).fingerprint
    path = sorted((root / "train/cat").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert of_folder(root).fingerprint == before


def test_cifar10_as_a_folder_has_its_classes_and_no_download(tmp_path):
    root = image_folder(tmp_path)
    with pytest.raises(InputError, match="download has no effect"):
        load("cifar10", 8, data_dir=str(root), download=True)
    for split in ("train", "val"):
        if (root / split).is_dir():
            (root / split / "cat").rename(root / split / "unicorn")
    with pytest.raises(InputError, match="is not CIFAR-10: it has a class 'unicorn'"):
        load("cifar10", 8, data_dir=str(root))


def test_a_run_can_keep_its_own_moments(tmp_path):
    memory = of_folder(image_folder(tmp_path), stream="never")
    own = memory.with_moments([0.5, 0.25, 0.125], [1, 2, 3])
    assert own.normalization("dataset").mean.tolist() == [0.5, 0.25, 0.125]
    assert own.std.dtype == torch.float32 and own.train is memory.train
    same = memory.with_moments(memory.mean.tolist(), memory.std.tolist())
    assert torch.equal(same.mean, memory.mean) and torch.equal(same.std, memory.std)
