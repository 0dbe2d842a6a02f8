"""The sets with a name, their normalisation, subsets of classes, and the validation part."""

import gzip

import numpy as np
import pytest
import torch
from support import few, small
from support.idx_files import fashion_files, write_idx
from support.pickle_bomb import BOMB_MARK, PICKLE_BOMB

from lib.data import builtin, load, validation_mask
from lib.data.builtin import read_idx
from lib.errors import InputError


def digits(**fields):
    return load(**small(**fields).data_fields)


def test_digits_are_the_1797_of_scikit_learn_split_by_class():
    from sklearn.datasets import load_digits

    data = digits()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.class_names == [str(d) for d in range(10)]
    assert data.train.images.dtype == torch.uint8 and data.train.images.shape[1:] == (1, 8, 8)
    both = torch.cat([data.train.images, data.test.images])
    original = torch.from_numpy(load_digits().images / 16 * 255).round().to(torch.uint8)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, original.unsqueeze(1).numpy()))
    shares = torch.bincount(data.test.labels) / torch.bincount(data.train.labels)
    assert (shares - 0.25).abs().max() < 0.02


def test_mean_and_std_are_the_training_splits():
    data = digits()
    pixels = data.train.images.double() / 255
    assert data.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert data.std.item() == pytest.approx(pixels.std().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["dataset", "unit"])
def test_normalize_and_back(kind):
    data = digits()
    normalize = data.normalization(kind)
    x = normalize(data.train.images, torch.float64)
    torch.testing.assert_close(normalize.inverse(x), data.train.images.double() / 255)
    if kind == "unit":
        assert x.min() == -1 and x.max() == 1
    else:
        assert x.mean().abs() < 1e-5 and (x.std() - 1).abs() < 1e-4


def test_other_sizes_are_resized():
    mean = digits().train.images.float().mean().item()
    larger = digits(image_size=16, patch_size=4).train.images
    assert larger.shape == (1437, 1, 16, 16)
    assert larger.float().mean().item() == pytest.approx(mean, rel=0.02)


def _listed(path, text):
    path.write_text(text)
    return {"classes_file": str(path)}


def test_a_subset_of_the_classes_by_name_or_by_file(tmp_path):
    data, whole = digits(classes=("3", "7")), digits()
    assert data.class_names == ["3", "7"] and data.train.labels.unique().tolist() == [0, 1]
    sevens = whole.train.images[whole.train.labels == 7]
    assert torch.equal(data.train.images[data.train.labels == 1], sevens)
    listed = digits(**_listed(tmp_path / "two.txt", "\ufeff# two of ten\r\n\n 7 \r\n3"))
    assert listed.class_names == ["3", "7"] and listed.fingerprint == data.fingerprint
    assert digits(classes=tuple(map(str, range(10)))).fingerprint == whole.fingerprint


CLASSES_FILES = {
    "3\n11\n": "digits has no class '11'; its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "# none\n": "{} must name at least 2 different classes, one a line, got 0 lines and 0 classes",
    "3\n7\n3": "{} must name at least 2 different classes, one a line, got 3 lines and 2 classes",
}


@pytest.mark.parametrize("text", CLASSES_FILES)
def test_a_classes_file_that_cannot_be_used(tmp_path, text):
    fields = _listed(tmp_path / "classes.txt", text)
    with pytest.raises(InputError) as caught:
        digits(**fields)
    assert str(caught.value) == CLASSES_FILES[text].format(tmp_path / "classes.txt")


def test_a_classes_file_that_is_no_text_or_not_there(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xff\xfe3\0")
    with pytest.raises(InputError) as caught:
        digits(classes_file=str(path))
    assert str(caught.value) == f"{path} is no text in UTF-8; save it as such"
    path.unlink()
    with pytest.raises(InputError) as caught:
        digits(classes_file=str(path))
    assert str(caught.value) == f"cannot read {path} (No such file or directory)"


# ---- files of torchvision ------------------------------------------------------------------------


def test_idx_files_round_trip(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 4))
    write_idx(tmp_path / "a.gz", array)
    assert torch.equal(read_idx(tmp_path / "a.gz"), torch.from_numpy(array).to(torch.uint8))


def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path):
    data = load("fashion_mnist", 28, data_dir=str(fashion_files(tmp_path)))
    assert data.train.images.shape == (30, 1, 28, 28) and len(data.test) == 10
    assert data.class_names[9] == "Ankle boot"


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[int(len(content) * 0.99)] ^= 1
    path.write_bytes(bytes(content))


BAD_IDX = "cannot read the IDX file {images} (%s); fetch it again"
IDX = {
    "truncated": (_cut, BAD_IDX % "EOFError"),
    "no gzip": (lambda path: path.write_bytes(b"x" * 99), BAD_IDX % "BadGzipFile"),
    "flipped byte": (_flip, BAD_IDX % "BadGzipFile"),
    "short header": (
        lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03abc")),
        BAD_IDX % "ValueError",
    ),
    "missing": (
        lambda path: (path.parent / "t10k-labels-idx1-ubyte.gz").unlink(),
        "cannot read the IDX file {raw}/t10k-labels-idx1-ubyte.gz (FileNotFoundError); "
        "fetch it again",
    ),
    "other number of labels": (
        lambda path: write_idx(path.parent / "train-labels-idx1-ubyte.gz", np.zeros(7)),
        "{raw} has 30 images but 7 labels in a split; fetch it again",
    ),
}


@pytest.mark.parametrize("kind", IDX)
def test_damaged_idx_files(tmp_path, kind):
    damage, line = IDX[kind]
    raw = fashion_files(tmp_path) / "FashionMNIST" / "raw"
    images = raw / "train-images-idx3-ubyte.gz"
    damage(images)
    with pytest.raises(InputError) as caught:
        load("fashion_mnist", 28, data_dir=str(tmp_path))
    assert str(caught.value) == line.format(raw=raw, images=images)


def test_datasets_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(InputError) as caught:
        load("fashion_mnist", 28, data_dir=str(tmp_path))
    assert str(caught.value) == (
        f"Fashion-MNIST is neither under {tmp_path}/FashionMNIST/raw nor {tmp_path}/debian; set "
        "download=True, or apt-get install dataset-fashion-mnist"
    )
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    for filled in (False, True):
        if filled:  # torchvision refuses them by their digests and never unpickles them
            (tmp_path / "cifar-10-batches-py").mkdir()
            for name in files:
                (tmp_path / "cifar-10-batches-py" / name).write_bytes(PICKLE_BOMB)
        with pytest.raises(InputError) as caught:
            load("cifar10", 32, data_dir=str(tmp_path))
        assert str(caught.value) == (
            f"CIFAR-10 is not under {tmp_path}; set download=True once, or "
            "data=folder:/path/to/cifar10"
        )
    assert not BOMB_MARK.exists()


@pytest.mark.parametrize("data,name", [("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10")])
def test_downloads_that_fail(data, name):
    """Into a folder that nobody can write; no byte leaves the machine."""
    with pytest.raises(InputError) as caught:
        load(data, 28, data_dir="/proc/nowhere", download=True)
    line = str(caught.value)
    assert line.startswith(f"cannot download {name} to /proc/nowhere ([Errno 2] No such file")
    assert line.endswith("); check the network, or set data_dir to a folder that can be written")


# ---- validation part -----------------------------------------------------------------------------


def test_the_validation_part_is_a_fixed_balanced_tenth_of_the_training_labels():
    labels = digits().train.labels
    held = validation_mask(labels)
    assert torch.equal(held, validation_mask(labels))
    assert held.sum().item() == pytest.approx(143, abs=5)
    assert (torch.bincount(labels[held]) / torch.bincount(labels) - 0.1).abs().max() < 0.01
    assert few(small()).train.images.shape[0] == 200


@pytest.mark.parametrize("count", [2, 3, 11])
def test_every_class_is_in_the_validation_part_and_in_what_is_left(count):
    labels = torch.arange(5).repeat(count)
    held = validation_mask(labels)
    assert labels[held].unique().tolist() == labels[~held].unique().tolist() == list(range(5))


@pytest.mark.parametrize(
    "images,labels",
    [
        (np.zeros((30, 56, 28)), np.arange(30) % 10),
        (np.zeros((30, 28, 28, 3)), np.arange(30) % 10),
        (np.zeros(30), np.arange(30) % 10),
        (np.zeros((30, 28, 28)), np.arange(30) % 26),
    ],
    ids=["tall", "colour", "no images", "letters"],
)
def test_idx_files_of_another_data_set_are_refused(tmp_path, images, labels):
    raw = fashion_files(tmp_path) / "FashionMNIST" / "raw"
    write_idx(raw / "train-images-idx3-ubyte.gz", images)
    write_idx(raw / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(InputError, match="is not Fashion-MNIST: it needs grey square images"):
        load("fashion_mnist", 28, data_dir=str(tmp_path))


def test_idx_files_without_an_image_are_refused(tmp_path):
    fashion_files(tmp_path, train=0)
    with pytest.raises(InputError, match="too few training images"):
        load("fashion_mnist", 28, data_dir=str(tmp_path))


def test_every_class_of_a_built_in_set_is_tested(tmp_path):
    raw = fashion_files(tmp_path) / "FashionMNIST" / "raw"
    write_idx(raw / "t10k-labels-idx1-ubyte.gz", np.arange(10) % 3)
    with pytest.raises(InputError, match="the test split of fashion_mnist has no image of 'Dress'"):
        load("fashion_mnist", 28, data_dir=str(tmp_path))


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_resized():
    with pytest.raises(InputError, match="GiB are free; lower image_size"):
        load("digits", 1_000_000)
