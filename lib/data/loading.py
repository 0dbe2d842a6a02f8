"""`load`: the images that a run names, in memory or streamed, with their fingerprint and moments.

The fingerprint says whether two sets are the same. For the built-in sets it covers all pixels,
labels and class names. For a folder it covers, of every image file, its path below the split, its
size in bytes and its class: reading 130,000 files would take minutes. Files of formats without
compression, whose size says nothing of their content, are read. It is the same in memory and
streamed, and wherever the folder lies. It does not see a compressed file whose content changed in
place without changing its size. image_size is no part of it: a run's own settings hold it.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data import builtin
from lib.data.datasets import Dataset, Split
from lib.data.decoding import Decoder, open_image, show_path
from lib.data.folders import FolderSplit, find_images, read_lines
from lib.data.notes import say_once
from lib.errors import InputError
from lib.presets import REPO

IN_MEMORY_BYTES = 4 * 2**30  # larger folders are streamed
MOMENTS_SAMPLE = 4096  # images of a streamed folder from which mean and std are taken
UNCOMPRESSED = {".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".tif", ".tiff"}
FOLDER_RULES = b"1"  # counts up when other rules read other files or pixels of the same folder


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

    The arguments are those fields of `lib.presets.Config`: `load(**config.data_fields)`. Of a
    folder, one line per split is printed: what was read, what was left out, and why. With
    "cifar10" a `data_dir` that holds train/ is read as such a folder.
    Raises InputError, before anything else starts, if they cannot be used.
    """
    root = _path(data_dir) if data_dir else REPO / "data"
    kind, _, path = data.partition(":")
    try:
        if kind == "folder" and classes_file:
            _check_comments(_path(classes_file), _path(path))
        chosen = _read_classes(_path(classes_file)) if classes_file else classes
        if kind == "folder":
            return _load_folder(_path(path), image_size, chosen, stream)
        if kind == "cifar10" and (root / "train").is_dir():
            return _load_cifar10_folder(root, image_size, chosen, stream, download)
        return _load_builtin(kind, root, image_size, chosen, download)
    except OSError as error:
        where = show_path(Path(error.filename or data))
        raise InputError(f"cannot read {where} ({error.strerror})") from None


def _path(text: str) -> Path:
    """The path with ~ put in full; a ~name whom this machine does not know stays as it is."""
    return Path(os.path.expanduser(text))


def _read_classes(path: Path) -> list[str]:
    """The class names in a text file, one a line; lines that begin with # are comments."""
    names = read_lines(path)
    if len(set(names)) < max(2, len(names)):
        raise InputError(
            f"{show_path(path)} must name at least 2 different classes, one a line, got "
            f"{len(names)} lines and {len(set(names))} classes"
        )
    return names


def _check_comments(file: Path, root: Path) -> None:
    """A class whose name begins with # cannot be named in a file of classes: InputError."""
    for line in file.read_text("utf-8-sig", errors="replace").splitlines():
        name = line.strip()
        if name.startswith("#") and (root / "train" / name).is_dir():
            raise InputError(
                f"{name!r} in {show_path(file)} is a comment, and a class in {show_path(root)}; "
                "rename the class, or take the line out"
            )


# ---- built-in sets -------------------------------------------------------------------------------


def _load_builtin(
    kind: str, root: Path, image_size: int, classes: Sequence[str], download: bool
) -> Dataset:
    if kind == "digits":
        train, test, names = builtin.digits()
    else:
        read = builtin.fashion_mnist if kind == "fashion_mnist" else builtin.cifar10
        train, test, names = read(root, download)
    if odd := sorted(set(classes) - set(names)):
        raise InputError(f"{kind} has no class {odd[0]!r}; its classes: {', '.join(names)}")
    if classes:
        train, test = (_select(split, names, classes) for split in (train, test))
        names = [name for name in names if name in classes]
    _check_counts(train, names)
    absent = torch.bincount(test.labels, minlength=len(names)) == 0
    if absent.any():
        raise InputError(
            f"the test split of {kind} has no image of {names[int(absent.int().argmax())]!r}"
        )
    fingerprint = _digest(_pixel_content(train, test, names))
    train, test = (_resized(split, image_size) for split in (train, test))
    mean, std = _pixel_moments(_in_memory(train))
    return Dataset(train, test, names, mean, std, fingerprint, image_size)


def _in_memory(split: Split) -> Tensor:
    assert split.images is not None
    return split.images


def _select(split: Split, names: Sequence[str], subset: Sequence[str]) -> Split:
    """The images of the classes in `subset`, labelled in the order of `names`."""
    chosen = [name for name in names if name in subset]
    new = torch.tensor([chosen.index(name) if name in subset else -1 for name in names])
    labels = new[split.labels]
    return Split(labels[labels >= 0], _in_memory(split)[labels >= 0], [])


def _resized(split: Split, size: int) -> Split:
    images = _in_memory(split)
    if images.shape[-2:] == (size, size):
        return split
    needed = len(images) * images.shape[1] * size**2 * 4  # bytes: float32 on the way
    _check_memory(len(images), size, needed, "lower image_size")
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return Split(split.labels, resized.round().clamp(0, 255).to(torch.uint8), [])


def _pixel_content(train: Split, test: Split, names: Sequence[str]) -> Iterator[bytes]:
    for split in (train, test):
        yield _in_memory(split).numpy().tobytes()
    for split in (train, test):
        yield split.labels.numpy().tobytes()
    yield "|".join(names).encode()


# ---- folders -------------------------------------------------------------------------------------


def _load_cifar10_folder(
    root: Path, size: int, classes: Sequence[str], stream: str, download: bool
) -> Dataset:
    """CIFAR-10 as a folder of images, in a `data_dir` that holds train/."""
    if download:
        raise InputError(f"download has no effect: {show_path(root)} holds train/; leave it out")
    data = _load_folder(root, size, classes, stream)
    if odd := sorted(set(data.class_names) - set(builtin.CIFAR10_CLASSES)):
        raise InputError(
            f"{show_path(root / 'train')} is not CIFAR-10: it has a class {odd[0]!r}; give other "
            "images as data folder:/path"
        )
    return data


def _load_folder(root: Path, size: int, classes: Sequence[str], stream: str) -> Dataset:
    found_train, found_test, names = find_images(root, classes)
    paths = found_train.paths + found_test.paths
    train, test = (Split(torch.tensor(s.labels), None, s.paths) for s in (found_train, found_test))
    shown = [show_path(Path(name)) for name in names]
    _check_counts(train, shown)
    pixel_bytes = len(paths) * size**2 * 3
    if stream == "always" or (stream == "auto" and pixel_bytes > IN_MEMORY_BYTES):
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: open_image(path, decode=False), paths))
        sample = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        sampled = [train.paths[i] for i in sample[:MOMENTS_SAMPLE].tolist()]
        mean, std = _pixel_moments(_decode(sampled, size))
    else:
        train.images, test.images = _decode(paths, size).split([len(train), len(test)])
        mean, std = _pixel_moments(train.images)
    fingerprint = _digest(_folder_content(found_train, found_test, names))
    say_once(found_train.report("train"))
    say_once(found_test.report("test"))
    return Dataset(train, test, shown, mean, std, fingerprint, size)


def _decode(paths: Sequence[Path], size: int) -> Tensor:
    """uint8 (N, 3, S, S). Threads pay off only where one image takes longer than a hand-over."""
    remedy = "set stream to always, or lower image_size"
    _check_memory(len(paths), size, len(paths) * 3 * size**2, remedy)
    decoder = Decoder(list(paths), size, None)
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        run = pool.map if size > 64 else map
        for i, image in enumerate(run(decoder.__getitem__, range(len(paths)))):
            images[i] = image
    return images


def _check_memory(images: int, size: int, needed: int, remedy: str) -> None:
    """InputError if this many bytes are not free."""
    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"{images} images of {size} x {size} pixels take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; {remedy}"
        )


def _folder_content(train: FolderSplit, test: FolderSplit, names: Sequence[str]) -> Iterator[bytes]:
    yield b"folder " + FOLDER_RULES
    for split in (train, test):
        skip = len(os.fsencode(split.root)) + 1
        for path, size, label in zip(split.paths, split.sizes, split.labels, strict=True):
            name = os.fsencode(path)[skip:]
            yield b"\0%s\0%d\0%d" % (name, size, label)
            if path.suffix.lower() in UNCOMPRESSED:
                yield hashlib.sha256(path.read_bytes()).digest()
        yield b"\0\0"
    yield "|".join(names).encode(errors="surrogateescape")


# ---- both ----------------------------------------------------------------------------------------


def _check_counts(train: Split, names: Sequence[str]) -> None:
    """A part of every class is held out for validation: with a single image none is left."""
    counts = torch.bincount(train.labels, minlength=len(names)).tolist()
    few = [repr(name) for name, n in zip(names, counts, strict=True) if n < 2]
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        raise InputError(
            f"too few training images of {', '.join(few[:3])}{more}: every class needs at least 2, "
            "for one is held out for validation; add images, or choose other `classes`"
        )


def _digest(content: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:16]


def _pixel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of uint8 (N, C, H, W) in [0, 1], by a histogram a channel.

    A deviation is at least 1e-3, for it divides.
    """
    counts = torch.stack(
        [torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]
    ).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share @ levels.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.float().clamp_min(1e-3)
