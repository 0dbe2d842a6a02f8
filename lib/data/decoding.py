"""One image file to 8-bit RGB pixels, as a person sees it, or an error that names the file."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.data.augmentation import crop_boxes
from lib.errors import InputError

# About odd metadata. Said once for the whole process: a filter that a thread sets and takes back
# is seen by all threads, and may stay.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below


class Decoder(torch.utils.data.Dataset):
    """Decodes single images of a folder to uint8 (3, S, S).

    With a seed, to a random resized crop that depends on (seed, index) alone; without, to the
    largest square in the middle.
    """

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
    """The image as 8-bit RGB, as a person sees it.

    It is turned as its EXIF orientation says; transparent pixels lie on white; palettes, grey and
    CMYK are converted; of an animation the first frame is taken. Without `decode` only the header
    is read. Raises InputError with the path for a file that is no image, is damaged, is a
    decompression bomb, or has grey levels of 16 or 32 bits, whose black and white nobody knows.
    """
    shown = show_path(path)
    try:
        with Image.open(path) as image:
            _check_header(image, shown)
            return _as_seen(image) if decode else image
    except InputError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"cannot read the image {shown} ({kind}); replace or remove it") from None


def _check_header(image: Image.Image, shown: str) -> None:
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{shown} has {image.mode} pixels; expected 8 bits per channel: convert it to 8-bit RGB"
        )
    most = Image.MAX_IMAGE_PIXELS
    if most and image.width * image.height > most:
        raise InputError(
            f"{shown} has {image.width}x{image.height} pixels, more than {most}; shrink or remove "
            "it"
        )


def _as_seen(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        seen = Image.new("RGBA", layer.size, "white")
        seen.alpha_composite(layer)
        return seen.convert("RGB")
    return image.convert("RGB")
