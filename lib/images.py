"""Image files of strangers: folders of them, and decoding that says which file is wrong."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.augment import crop_boxes
from lib.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}


class Decoder(torch.utils.data.Dataset):
    """Decodes one image of a streamed folder; with a seed, a random resized crop that depends on (seed, index)."""

    def __init__(self, paths: list[Path], size: int, seed: tuple[int, int] | None) -> None:
        self.paths, self.size, self.seed = paths, size, seed

    def __getitem__(self, index: int) -> Tensor:
        image = open_image(self.paths[index])
        if self.seed is None:
            if image.size != (self.size, self.size):
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
            return _to_tensor(image)
        noise = torch.from_numpy(np.random.default_rng((*self.seed, index)).random(4))
        left, top, width, height = (v.item() for v in crop_boxes(noise[None])[0])
        w, h = image.size
        box = (left * w, top * h, (left + width) * w, (top + height) * h)
        return _to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def show_path(path: Path) -> str:
    """A path that can be printed whatever bytes its name holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_image(path: Path, decode: bool = True) -> Image.Image:
    """The image as 8-bit RGB: palettes, grey, CMYK and alpha are converted, the first frame of a GIF is taken.

    Raises InputError with the path for a file that is no image, is damaged, has 16-bit pixels or is a bomb; without
    `decode` for what its header tells.
    """
    shown = show_path(path)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(
                    f"{shown} has {image.mode} pixels; expected 8 bits per channel: convert it to 8-bit RGB"
                )
            size, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most and size > most:
                raise InputError(
                    f"{shown} has {image.width}x{image.height} pixels, more than {most}; shrink or remove it"
                )
            if not decode:
                return image
            return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read the image {shown} ({type(error).__name__}); replace or remove it") from None


def scan(folder: Path, expected: Sequence[str] | None, subset: Sequence[str]) -> tuple[list[str], list[Path], Tensor]:
    """Class names, paths and labels of folder/<class>/<image>, sorted by name."""
    if broken := sorted(d for d in folder.iterdir() if d.is_symlink() and not d.exists()):
        raise InputError(f"{show_path(broken[0])} is a link that leads nowhere; repair or remove it")
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if missing := sorted(set(subset) - set(names)):
        raise InputError(f"{show_path(folder)} has no class {missing[0]!r}; `classes` must name its subfolders")
    names = [n for n in names if not subset or n in subset]
    if expected is not None and names != list(expected):
        odd = sorted(set(names) ^ set(expected))[0]
        where = "train lacks it" if odd in names else f"{folder.name} lacks it"
        raise InputError(f"class {odd!r} is not in both train and {folder.name}: {where}; both need the same classes")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"class folder {show_path(folder / name)} holds no image; add images or remove it")
        paths += files
        labels += [label] * len(files)
    if len(names) < 2:
        raise InputError(f"{show_path(folder)} holds {len(names)} class folders; expected at least 2")
    return names, paths, torch.tensor(labels)
