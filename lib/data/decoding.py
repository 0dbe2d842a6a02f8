"""Image files of strangers: folders of them, and decoding that says which file is wrong."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.data.augmentation import crop_boxes
from lib.errors import InputError


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
            return (
                image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read the image {shown} ({type(error).__name__}); replace or remove it"
        ) from None
