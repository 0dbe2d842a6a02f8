"""Datasets as tensors in memory or as streams from disk."""

import gzip
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lib.data.decoding import Decoder, open_image, show_path
from lib.data.folders import scan
from lib.errors import InputError
from lib.presets import REPO

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


IN_MEMORY_BYTES = 4 * 2**30


@dataclass
class Split:
    """Labelled images: `images` uint8 (N, C, S, S) in memory, or `paths` to be decoded when they are needed."""

    labels: Tensor  # (N,) int64
    images: Tensor | None
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Normalization:
    """uint8 pixels -> the model's input: (pixels / 255 - mean) / std per channel, mean, std (C,)."""

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """images (B, C, H, W) uint8 -> (B, C, H, W) of `dtype`."""
        x = images.to(dtype) / 255
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def inverse(self, x: Tensor) -> Tensor:
        """The model's input (B, C, H, W) -> pixels in [0, 1] (not clamped)."""
        return x * self._like(self.std, x) + self._like(self.mean, x)

    @staticmethod
    def _like(value: Tensor, x: Tensor) -> Tensor:
        return value.to(x).view(1, -1, 1, 1)


@dataclass
class Dataset:
    """A training and a test split with one list of classes.

    mean, std (C,): of the training pixels in [0, 1]. fingerprint: of the content; runs and results
    on other content are other runs and results.
    """

    train: Split
    test: Split
    class_names: list[str]
    mean: Tensor
    std: Tensor
    fingerprint: str
    image_size: int

    def batches(
        self,
        split: Split,
        order: Sequence[Tensor],
        crop_seed: tuple[int, int] | None = None,
        workers: int = 0,
    ) -> Iterator[Tensor]:
        """uint8 (B, C, S, S) for every index tensor of `order`.

        A streamed split is decoded by `workers` processes (0: by this one); with `crop_seed` =
        (seed, epoch) every image is a random resized crop. Images in memory know neither.
        """
        if split.images is not None:
            yield from (split.images[ids] for ids in order)
            return
        decoder = Decoder(split.paths, self.image_size, crop_seed)
        batches = [ids.tolist() for ids in order]
        loader = DataLoader(
            decoder,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=_heed_parent_only,
        )
        try:
            yield from loader
        except InputError as error:  # a worker's arrives inside its traceback
            line = str(error).strip().split("\n")[-1]
            raise InputError(line.removeprefix("lib.errors.InputError: ")) from None

    def images(self, split: Split, ids: Tensor | Sequence[int]) -> Tensor:
        """uint8 (N, C, S, S) of these images of a split, in memory or streamed."""
        return next(self.batches(split, [torch.as_tensor(ids)]))

    def normalization(self, kind: str) -> Normalization:
        """ "dataset": by mean and std of the training pixels; "unit": pixels to [-1, 1]."""
        if kind == "unit":
            half = torch.full_like(self.mean, 0.5)
            return Normalization(half, half)
        return Normalization(self.mean, self.std)


def _folder(root: Path, source: "Source") -> tuple[Split, Split, list[str]]:
    if not root.is_dir():
        raise InputError(
            f"no folder {show_path(root)}; data=folder:PATH needs PATH/train/<class>/* and PATH/val or test"
        )
    held_out = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        raise InputError(
            f"{show_path(root)} needs the subfolders train and val (or test), one folder per class in each"
        )
    names, train_paths, train_labels = scan(root / "train", None, source.classes)
    _, test_paths, test_labels = scan(held_out, names, source.classes)
    names = [show_path(Path(n)) for n in names]
    size = (len(train_paths) + len(test_paths)) * source.image_size**2 * 3
    if source.stream == "always" or (source.stream == "auto" and size > IN_MEMORY_BYTES):
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: open_image(path, decode=False), train_paths + test_paths))
        return Split(train_labels, None, train_paths), Split(test_labels, None, test_paths), names
    decode = Decoder(train_paths + test_paths, source.image_size, None).__getitem__
    n, total = len(train_paths), len(train_paths) + len(test_paths)
    with (
        ThreadPoolExecutor() as pool
    ):  # threads pay off only where decoding one image takes longer than a hand-over
        decoded = (
            pool.map(decode, range(total)) if source.image_size > 64 else map(decode, range(total))
        )
        images = torch.stack(list(decoded))
    return (
        Split(train_labels, images[:n], train_paths),
        Split(test_labels, images[n:], test_paths),
        names,
    )


def _digits(source: "Source", _: Path) -> tuple[Split, Split, list[str]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=digits.target
    )
    parts = [Split(labels[ids], images[ids], []) for ids in (train, test)]
    return parts[0], parts[1], [str(d) for d in range(10)]


def _heed_parent_only(_: int) -> None:
    """In a worker: a signal to the whole group (Ctrl-C, a scheduler's SIGTERM) is for the process that saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in a gzipped IDX file (MNIST's format); InputError if it is damaged."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return torch.from_numpy(
            np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()
        )
    except Exception as error:
        raise InputError(
            f"cannot read the IDX file {show_path(path)} ({type(error).__name__}); fetch it again"
        ) from None


def _fashion_mnist(source: "Source", root: Path) -> tuple[Split, Split, list[str]]:
    from torchvision.datasets import FashionMNIST

    raw = root / "FashionMNIST" / "raw"
    if source.download:
        _fetch("Fashion-MNIST", root, lambda: FashionMNIST(str(root), download=True))
    folder = next(
        (f for f in (raw, DEBIAN_FASHION_MNIST) if (f / "train-images-idx3-ubyte.gz").is_file()),
        None,
    )
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is neither under {show_path(raw)} nor {DEBIAN_FASHION_MNIST}; set download=True, "
            "or apt-get install dataset-fashion-mnist"
        )
    splits = [
        Split(read_idx(folder / f"{s}-labels-idx1-ubyte.gz").long(),
              read_idx(folder / f"{s}-images-idx3-ubyte.gz").unsqueeze(1), [])
        for s in ("train", "t10k")
    ]  # fmt: skip
    for split in splits:
        if split.images is not None and len(split) != len(split.images):
            raise InputError(
                f"{folder} has {len(split.images)} images but {len(split)} labels in a split; fetch it again"
            )
    return splits[0], splits[1], list(FashionMNIST.classes)


def _cifar10(source: "Source", root: Path) -> tuple[Split, Split, list[str]]:
    from torchvision.datasets import CIFAR10

    if (root / "train").is_dir():
        return _folder(root, source)
    if source.download:
        _fetch("CIFAR-10", root, lambda: CIFAR10(str(root), download=True))
    try:
        sets = [CIFAR10(str(root), train=t) for t in (True, False)]
    except RuntimeError:
        raise InputError(
            f"CIFAR-10 is not under {show_path(root)}; set download=True once, or data=folder:/path/to/cifar10"
        ) from None
    parts = [
        Split(
            torch.tensor(s.targets), torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), []
        )
        for s in sets
    ]
    return parts[0], parts[1], list(sets[0].classes)


def _fetch(name: str, root: Path, download: Callable[[], object]) -> None:
    """torchvision's download, which checks its digests."""
    try:
        download()
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot download {name} to {show_path(root)} ({reason}); check the network, or set data_dir to a folder "
            "that can be written"
        ) from None


def _select(split: Split, names: Sequence[str], subset: Sequence[str]) -> Split:
    keep = torch.tensor([i for i, y in enumerate(split.labels.tolist()) if names[y] in subset])
    chosen = [n for n in names if n in subset]
    new = torch.tensor([chosen.index(n) if n in subset else -1 for n in names])
    assert split.images is not None
    return Split(new[split.labels[keep]], split.images[keep], [])


@dataclass(frozen=True)
class Source:
    """What `load` was asked for."""

    data: str
    image_size: int
    classes: tuple[str, ...]
    download: bool
    stream: str


def load(
    data: str,
    image_size: int,
    classes: Sequence[str] = (),
    classes_file: str = "",
    data_dir: str = "",
    download: bool = False,
    stream: str = "auto",
) -> Dataset:
    """The images that `data` names: digits, fashion_mnist, cifar10 or folder:/path.

    The arguments are those fields of `lib.presets.Config`: `load(**config.data_fields)`.
    Raises InputError, before anything else starts, if they cannot be used.
    """
    source = Source(data, image_size, tuple(classes), download, stream)
    root = Path(data_dir).expanduser() if data_dir else REPO / "data"
    try:
        return _load(source, root)
    except OSError as error:
        where = show_path(Path(error.filename or data))
        raise InputError(f"cannot read {where} ({error.strerror})") from None


def _load(source: Source, root: Path) -> Dataset:
    kind, _, path = source.data.partition(":")
    if kind == "folder":
        train, test, names = _folder(Path(path).expanduser(), source)
    else:
        read = {"digits": _digits, "fashion_mnist": _fashion_mnist, "cifar10": _cifar10}[kind]
        train, test, names = read(source, root)
        if source.classes and set(names) != set(source.classes):
            if odd := sorted(set(source.classes) - set(names)):
                raise InputError(f"{kind} has no class {odd[0]!r}; its classes: {', '.join(names)}")
            train, test = (_select(split, names, source.classes) for split in (train, test))
            names = [n for n in names if n in source.classes]
    for split in (train, test):
        if split.images is not None and split.images.shape[-1] != source.image_size:
            size = (source.image_size, source.image_size)
            resized = F.interpolate(split.images.float(), size, mode="bilinear", antialias=True)
            split.images = resized.round().clamp(0, 255).to(torch.uint8)
    if train.images is not None and test.images is not None:
        pixels = train.images
        parts = [train.images.numpy().tobytes(), test.images.numpy().tobytes()]
    else:
        sample = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:4096]
        decoder = Decoder(train.paths, source.image_size, None)
        pixels = torch.stack([decoder[i] for i in sample.tolist()])
        parts = [
            os.fsencode(p.name) + str(p.stat().st_size).encode() for p in train.paths + test.paths
        ]
    digest = hashlib.sha256()
    for part in [
        *parts,
        train.labels.numpy().tobytes(),
        test.labels.numpy().tobytes(),
        "|".join(names).encode(),
    ]:
        digest.update(part)
    mean, std = _pixel_moments(pixels)
    std = std.clamp_min(1e-3)
    fingerprint = digest.hexdigest()[:16]
    return Dataset(train, test, names, mean, std, fingerprint, source.image_size)


def _pixel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of uint8 (N, C, H, W) in [0, 1], exact, from a histogram per channel."""
    counts = torch.stack(
        [torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]
    ).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    return mean.float(), (share @ levels.square() - mean.square()).clamp_min(0).sqrt().float()


def validation_mask(labels: Tensor, fraction: float = 0.1) -> Tensor:
    """(N,) bool: a fixed, class-balanced part of the training labels that no probe trains on, for every choice."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        members = order[labels[order] == c]
        held[members[: max(1, round(fraction * len(members)))]] = True
    return held
