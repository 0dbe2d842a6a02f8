"""Random resized crops streamed from full-size JPEGs, against torchvision's ImageFolder.

All sides decode the same files with the same number of worker processes and cut the same kind of
224-pixel crop (area 0.2 to 1, bicubic). This repository hands over uint8 batches, which the trainer
normalises on its device; ImageFolder is measured with ToTensor, which most programs use, and with
PILToTensor, which also gives uint8. They take turns, so that other work on the machine slows all,
and the ratio of a turn is what counts. The files are made here: 500 x 375 pixels, about 90 kB.

The second table says how far the pixels are from those of Pillow's full decoding and resampling of
the same box, in grey levels.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lib.data import Dataset, load
from lib.data.decoding import open_crop, open_image

SIZE, BATCH = 224, 32


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(root, args.images)
        with contextlib.redirect_stdout(io.StringIO()):  # the lines about what was read
            data = load(f"folder:{root}", SIZE, stream="always")
        sides: dict[str, Callable[[int], float]] = {
            "this repository": lambda turn: rate(ours(data, turn, args.workers)),
            "ImageFolder, ToTensor": lambda _: rate(
                torchvisions(root, args.workers, transforms.ToTensor())
            ),
            "ImageFolder, PILToTensor": lambda _: rate(
                torchvisions(root, args.workers, transforms.PILToTensor())
            ),
        }
        rates = turns(list(sides.values()), args.turns)
        print(f"{SIZE}-pixel crops, {args.workers} workers, {args.turns} turns")
        for name, values in zip(sides, rates, strict=True):
            ratios = sorted(own / value for own, value in zip(rates[0], values, strict=True))
            print(
                f"{name:25}  {statistics.median(values):5.0f} images/s  we are "
                f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
        print("size of the file   box   mean and largest difference from Pillow in grey levels")
        for size in ((496, 376), (2000, 1504), (4000, 3000)):
            write_photo(root / "photo.jpg", size, seed=0)
            for box in ((0.1, 0.1, 0.6, 0.7), (0.0, 0.0, 1.0, 1.0)):
                off = difference(root / "photo.jpg", box)
                print(f"{size[0]} x {size[1]}  {box}  {off.mean():.3f}  {off.max():.0f}")


if __name__ == "__main__":
    main()
