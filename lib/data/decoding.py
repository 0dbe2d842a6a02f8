"""One image file to 8-bit RGB pixels, as a person sees it, or an error that names the file."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg
from torch import Tensor

from lib.data.augmentation import crop_boxes
from lib.errors import InputError

# About odd metadata. Said once for the whole process: a filter that a thread sets and takes back
# is seen by all threads, and may stay.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below

MARGIN = 2  # a crop is decoded smaller while it keeps this many times the size asked for


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
    with _opened(path) as image:
        return _as_seen(image) if decode else image


def open_crop(path: Path, box: Sequence[float], size: int) -> Tensor:
    """The box (left, top, right, bottom; fractions of the image) at size x size: uint8 (3, S, S).

    Bicubic with antialiasing. On an image larger than `size` the box is rounded to whole pixels, as
    torchvision does, which lets two faster ways in: resampling by torch, with Pillow's pixels
    within rounding, and decoding at 1/2, 1/4 or 1/8 where the crop of a large JPEG keeps at least
    MARGIN times `size` pixels a side. Raises InputError like `open_image`.
    """
    with _opened(path) as image:
        if min(image.size) <= size:
            seen = _as_seen(image)
            left, top, right, bottom = (f * n for f, n in zip(box, seen.size * 2, strict=True))
            exact = (left, top, right, bottom)
            return _to_tensor(seen.resize((size, size), Image.Resampling.BICUBIC, box=exact))
        pixels = _crop_pixels(path, image, box, size)
        shape = (size, size)
        return F.interpolate(pixels[None], shape, mode="bicubic", antialias=True)[0]


def _crop_pixels(path: Path, image: Image.Image, box: Sequence[float], size: int) -> Tensor:
    """The pixels (3, H, W) of the box; H and W may be a fraction of its pixels in the file."""
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    plain = image.format == "JPEG" and image.mode == "RGB" and upright
    sides = [(box[2] - box[0]) * image.width, (box[3] - box[1]) * image.height]
    factors = (8, 4, 2) if plain else ()
    shrink = next((s for s in factors if min(sides) >= MARGIN * size * s), 1)
    if shrink > 1:
        whole = image.size
        image.draft("RGB", (image.width // shrink, image.height // shrink))
        pixels = _to_tensor(_as_seen(image))
    else:
        pixels = _decode_jpeg(path, image) if plain else _to_tensor(_as_seen(image))
        whole = (pixels.shape[2], pixels.shape[1])
    left, top, right, bottom = (round(f * n / shrink) for f, n in zip(box, whole * 2, strict=True))
    return pixels[:, top:bottom, left:right]


def _decode_jpeg(path: Path, image: Image.Image) -> Tensor:
    """The pixels (3, H, W) that Pillow gives, in 3/4 of its time."""
    try:
        return torch.from_numpy(decode_jpeg(path.read_bytes(), "RGB")).permute(2, 0, 1)
    except ValueError:  # damaged: Pillow can read it all the same, or says what is wrong
        return _to_tensor(_as_seen(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image file, its header checked; every error of Pillow in it becomes an InputError."""
    shown = show_path(path)
    try:
        with Image.open(path) as image:
            _check_header(image, shown)
            yield image
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


class Decoder(torch.utils.data.Dataset):
    """Decodes images of a folder to uint8 (3, S, S), those of a batch in one call.

    Without a seed, to the middle of the image, its shorter side resized to S: torchvision's Resize
    and CenterCrop, which timm also applies with crop_pct 1. With a seed (a tuple of ints), to a
    random resized crop that depends on (seed, index) alone.
    """

    def __init__(self, paths: list[Path], size: int, seed: tuple[int, int] | None) -> None:
        self.paths, self.size, self.seed = paths, size, seed

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """What a DataLoader calls with the indices of a batch."""
        if self.seed is None:
            return [self.whole(index) for index in indices]
        # One call for all boxes: for a single image it takes a seventh of the time of a crop.
        drawn = [np.random.default_rng((*self.seed, index)).random(4) for index in indices]
        boxes = crop_boxes(torch.from_numpy(np.stack(drawn))).tolist()
        return [self.crop(index, *box) for index, box in zip(indices, boxes, strict=True)]

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def whole(self, index: int) -> Tensor:
        """The middle of an image."""
        # Seconds to import, and images in memory do without it.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        image = open_image(self.paths[index])
        if image.size != (self.size, self.size):
            image = resize(image, [self.size], InterpolationMode.BICUBIC)
            image = center_crop(image, [self.size])
        return _to_tensor(image)

    def crop(self, index: int, left: float, top: float, width: float, height: float) -> Tensor:
        """A part of an image, in fractions of it."""
        box = (left, top, left + width, top + height)
        return open_crop(self.paths[index], box, self.size)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
