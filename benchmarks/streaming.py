"""Random resized crops streamed from full-size JPEGs, against torchvision's ImageFolder.

All sides decode the same files with the same number of worker processes and cut the same kind of
224-pixel crop (area 0.2 to 1, bicubic). This repository hands over uint8 batches, which the trainer
normalises on its device; ImageFolder is measured with ToTensor, which most programs use, and with
PILToTensor, which also gives uint8. They take turns, so that other work on the machine slows all,
and the ratio of a turn is what counts. The files are made here: 500 x 375 pixels, about 90 kB.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lib.data import Dataset, load
from lib.data.decoding import open_crop, open_image

SIZE, BATCH, WORKERS = 224, 32, 2


def write_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    """A JPEG of `size` (width, height) with large shapes and fine grain, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 12, (*smooth.shape[:2], 1))
    picture = (smooth + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(path, quality=90)


def make_folder(root: Path, images: int) -> None:
    for split, count in (("train", images), ("val", 2)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for i in range(count // 2):
                write_photo(root / split / label / f"{i}.jpg", (500, 375), seed=i)


def rate(batches: Iterable[Tensor]) -> float:
    """Images a second after the first batch, which waits for the workers to start."""
    count, start = 0, 0.0
    for batch in batches:
        if start:
            count += len(batch)
        else:
            start = time.perf_counter()
    return count / (time.perf_counter() - start)


def ours(data: Dataset, turn: int, workers: int) -> Iterable[Tensor]:
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(turn))
    return data.batches(data.train, list(order.split(BATCH)), (0, turn), workers)


def torchvisions(root: Path, workers: int, to_tensor: Callable) -> Iterable[Tensor]:
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(SIZE, (0.2, 1), interpolation=bicubic)
    images = ImageFolder(str(root / "train"), transforms.Compose([crop, to_tensor]))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers)
    return (batch for batch, _ in loader)


def turns(sides: Sequence[Callable[[int], float]], count: int) -> list[list[float]]:
    """Each side's rate at every turn; the one that begins changes from turn to turn."""
    rates: list[list[float]] = [[] for _ in sides]
    for turn in range(count):
        for side in sorted(range(len(sides)), key=lambda s: (s + turn) % len(sides)):
            rates[side].append(sides[side](turn))
    return rates


def difference(path: Path, box: tuple[float, ...], size: int = SIZE) -> Tensor:
    """|pixels of `open_crop` - Pillow's|, of the same box in units of 8 pixels, in grey levels."""
    image = open_image(path)
    whole = tuple(8 * round(f * n / 8) for f, n in zip(box, image.size * 2, strict=True))
    plain = image.resize((size, size), Image.Resampling.BICUBIC, box=whole)  # type: ignore
    expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1)
    box = tuple(f / n for f, n in zip(whole, image.size * 2, strict=True))
    return (open_crop(path, box, size).float() - expected).abs()


@contextlib.contextmanager
def _photos(images: int) -> Iterator[Path]:
    """A folder of so many training images."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), images)
        yield Path(folder)


def streaming(rounds: int, images: int = 512, workers: int = WORKERS) -> list[dict[str, Any]]:
    """Random crops streamed from full-size JPEGs by two workers, against torchvision's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with _photos(images) as root:
        with contextlib.redirect_stdout(io.StringIO()):  # the lines about what was read
            data = load(f"folder:{root}", SIZE, stream="always")
        to_float, to_bytes = transforms.ToTensor(), transforms.PILToTensor()
        sides: dict[str, Callable[[int], float]] = {
            "this repository": lambda turn: rate(ours(data, turn, workers)),
            "ImageFolder, ToTensor": lambda _: rate(torchvisions(root, workers, to_float)),
            "ImageFolder, PILToTensor": lambda _: rate(torchvisions(root, workers, to_bytes)),
        }
        rates = turns(list(sides.values()), rounds)
    torch.set_num_threads(threads)
    return [_rate_row(name, rates[0], values) for name, values in zip(sides, rates, strict=True)]


def _rate_row(name: str, own: list[float], values: list[float]) -> dict[str, Any]:
    ratios = sorted(a / b for a, b in zip(own, values, strict=True))
    spread = f"{ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}"
    return {"": name, "images/s": round(statistics.median(values)), "we are min med max": spread}


def decoding(rounds: int) -> list[dict[str, Any]]:
    """How far our crops are from Pillow's full decoding of the same box, in grey levels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        for size in ((496, 376), (2000, 1504), (4000, 3000)):
            write_photo(photo, size, seed=0)
            for box in ((0.1, 0.1, 0.6, 0.7), (0.0, 0.0, 1.0, 1.0)):
                off = difference(photo, box)
                line = {
                    "pixels of the file": f"{size[0]} x {size[1]}",
                    "box": str(box),
                    "mean difference": off.mean().item(),
                    "largest": off.max().item(),
                }
                rows.append(line)
    return rows
