"""The sets with a name: digits of scikit-learn; Fashion-MNIST and CIFAR-10 of torchvision."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.datasets import Split
from lib.data.decoding import show_path
from lib.errors import InputError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def digits() -> tuple[Split, Split, list[str]]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; a fifth of every class is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.from_numpy(found.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=found.target
    )
    train_part, test_part = (Split(labels[ids], images[ids], []) for ids in (train, test))
    return train_part, test_part, [str(d) for d in range(10)]


def fashion_mnist(root: Path, download: bool) -> tuple[Split, Split, list[str]]:
    """Fashion-MNIST from torchvision's files under `root`, or else from Debian's package."""
    from torchvision.datasets import FashionMNIST

    raw = root / "FashionMNIST" / "raw"
    if download:
        _fetch("Fashion-MNIST", root, lambda: FashionMNIST(str(root), download=True))
    places = (raw, DEBIAN_FASHION_MNIST)
    folder = next((f for f in places if (f / "train-images-idx3-ubyte.gz").is_file()), None)
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is neither under {show_path(raw)} nor {DEBIAN_FASHION_MNIST}; set "
            "download=True, or apt-get install dataset-fashion-mnist"
        )
    return _idx_split(folder, "train"), _idx_split(folder, "t10k"), list(FashionMNIST.classes)


def _idx_split(folder: Path, name: str) -> Split:
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").long()
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz").unsqueeze(1)
    square = images.ndim == 4 and images.shape[2] == images.shape[3]
    if not square or labels.ndim != 1 or (labels > 9).any():
        raise InputError(
            f"{show_path(folder)} is not Fashion-MNIST: it needs grey square images and labels 0 "
            "to 9; give other images as data folder:/path"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{show_path(folder)} has {len(images)} images but {len(labels)} labels in a split; "
            "fetch it again"
        )
    return Split(labels, images, [])


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in a gzipped IDX file (MNIST's format); InputError if it is damaged."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            f"cannot read the IDX file {show_path(path)} ({kind}); fetch it again"
        ) from None
    return torch.from_numpy(values.copy())


def cifar10(root: Path, download: bool) -> tuple[Split, Split, list[str]]:
    """CIFAR-10 from torchvision's files under `root`, whose digests torchvision checks."""
    from torchvision.datasets import CIFAR10

    if download:
        _fetch("CIFAR-10", root, lambda: CIFAR10(str(root), download=True))
    try:
        train, test = (CIFAR10(str(root), train=t) for t in (True, False))
    except RuntimeError:
        raise InputError(
            f"CIFAR-10 is not under {show_path(root)}; set download=True once, or "
            "data=folder:/path/to/cifar10"
        ) from None
    train_part, test_part = (
        Split(torch.tensor(s.targets), torch.from_numpy(s.data.transpose(0, 3, 1, 2).copy()), [])
        for s in (train, test)
    )
    return train_part, test_part, list(train.classes)


def _fetch(name: str, root: Path, download: Callable[[], object]) -> None:
    """torchvision's download, which checks its digests."""
    try:
        download()
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot download {name} to {show_path(root)} ({reason}); check the network, or set "
            "data_dir to a folder that can be written"
        ) from None
