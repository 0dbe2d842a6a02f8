"""Every kind of image file: the pixels a person sees, or one line that names the file."""

import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from simplejpeg import decode_jpeg
from support import environment, folder_config, image_folder
from timm.data import create_transform

from lib.data import load
from lib.data.decoding import MARGIN, Decoder, open_crop, open_image
from lib.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL", "ignore:Image size")
RED, BLUE, WHITE = (200, 30, 40), (0, 0, 255), (255, 255, 255)


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def palette(image):
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


def clear(image, mode="RGBA"):
    """The image with every pixel transparent: its colours are hidden."""
    image = image.convert(mode)
    image.putalpha(0)
    return image


RED_IMAGE = Image.new("RGB", (6, 5), RED)
GREY = Image.new("L", (6, 5), 90)
FRAMES = dict(save_all=True, append_images=[Image.new("RGB", (6, 5), BLUE)])
KINDS = {  # name: image, options, the colour seen
    "rgb.png": (RED_IMAGE, {}, RED),
    "palette.png": (palette(RED_IMAGE), {}, RED),
    "animated.gif": (RED_IMAGE, FRAMES, RED),
    "animated.webp": (RED_IMAGE, dict(lossless=True, **FRAMES), RED),
    "cmyk.jpg": (RED_IMAGE.convert("CMYK"), dict(quality=95), RED),
    "cmyk.tif": (RED_IMAGE.convert("CMYK"), {}, RED),
    "ycbcr.tif": (RED_IMAGE.convert("YCbCr"), {}, RED),
    "grey.jpg": (GREY, {}, (90, 90, 90)),
    "grey.pgm": (GREY, {}, (90, 90, 90)),
    "white.pbm": (Image.new("1", (6, 5), 1), {}, WHITE),
    "opaque.png": (RED_IMAGE.convert("RGBA"), {}, RED),
    "transparent.png": (clear(RED_IMAGE), {}, WHITE),
    "transparent.webp": (clear(RED_IMAGE), dict(lossless=True), WHITE),
    "grey_alpha.png": (clear(GREY, "LA"), {}, WHITE),
    "palette_transparent.png": (palette(RED_IMAGE), dict(transparency=0), WHITE),
    "palette_transparent.gif": (palette(RED_IMAGE), dict(transparency=0), WHITE),
    "grey_transparent.png": (GREY, dict(transparency=90), WHITE),
    "rgb_transparent.png": (RED_IMAGE, dict(transparency=RED), WHITE),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_the_rgb_a_person_sees(tmp_path, name):
    image, options, colour = KINDS[name]
    seen = open_image(saved(tmp_path, name, image, **options))
    assert (seen.mode, seen.size) == ("RGB", (6, 5))
    assert np.abs(np.array(seen).astype(int) - colour).max() <= 6


def test_half_transparent_lies_on_white(tmp_path):
    image = RED_IMAGE.convert("RGBA")
    image.putalpha(128)
    seen = np.array(open_image(saved(tmp_path, "half.png", image))).astype(int)
    assert np.abs(seen - (np.array(RED) * 128 + 255 * 127) / 255).max() <= 1


def test_16_bits_a_channel_keep_their_upper_8(tmp_path):
    """Pillow has no 16-bit RGB: what is left are the upper halves, as viewers show them."""
    row = b"\0" + struct.pack(">3H", 200 * 256 + 7, 30 * 256, 40 * 256 + 255) * 6
    path = tmp_path / "rgb16.png"
    path.write_bytes(png(6, 5, 16, 2, row * 5))
    assert np.array(open_image(path)).reshape(-1, 3).tolist() == [list(RED)] * 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """EXIF 2.3: 2-8 are the mirrored and turned ways to store what a person sees as the same."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # upper left quarter
    mirrored = upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: mirrored,
        6: np.rot90(upright),
        7: np.rot90(mirrored, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    for name, options in (("a.jpg", dict(quality=95)), ("a.png", {})):
        path = saved(tmp_path, name, image, exif=exif, **options)
        seen = np.array(open_image(path)).astype(int)
        assert seen.shape == upright.shape and np.abs(seen - upright).max() < 20
        crop = Decoder([path], 16, None)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(crop - upright[:, 8:24]).max() < 20


@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path, exif):
    path = saved(tmp_path, "a.jpg", RED_IMAGE, quality=95, exif=b"Exif\0\0" + exif)
    assert open_image(path).size == (6, 5)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3, 2)])
def test_very_thin_and_small_images(tmp_path, size):
    path = saved(tmp_path, "thin.png", Image.new("RGB", size, RED))
    for seed in (None, (0, 1)):
        pixels = Decoder([path], 8, seed)[0]
        assert pixels.shape == (3, 8, 8) and (pixels == torch.tensor(RED)[:, None, None]).all()


def test_any_sizes_are_cropped_to_the_centre_square(tmp_path):
    wide = Image.new("RGB", (30, 10), (255, 0, 0))
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    pixels = Decoder([saved(tmp_path, "wide.png", wide)], 8, None)[0].float()
    assert pixels[1].mean() > 240 and pixels[0].mean() < 15  # the green centre


# ---- crops ---------------------------------------------------------------------------------------


def photo(path, size, **options):
    """A smooth picture with grain, as a photograph has."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 8, (*smooth.shape[:2], 1))
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


BOXES = [(0.0, 0.0, 1.0, 1.0), (0.13, 0.21, 0.67, 0.83)]


def by_pillow(path, box, size, unit=1):
    """The box, rounded to whole units of pixels, of the image decoded at its full size."""
    image = open_image(path)
    whole = tuple(round(f * n / unit) * unit for f, n in zip(box, image.size * 2, strict=True))
    plain = image.resize((size, size), Image.Resampling.BICUBIC, box=whole)
    return torch.from_numpy(np.array(plain)).permute(2, 0, 1).float()


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "turned.jpg"])
def test_crops_of_larger_images_are_pillows_within_rounding(tmp_path, name, box):
    exif = Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    path = photo(tmp_path / name, (150, 110), exif=exif)
    off = (open_crop(path, box, 64).float() - by_pillow(path, box, 64)).abs()
    assert off.mean() < 0.05 and off.max() <= 3


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_crops_of_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path, box, shrink):
    """On average half a grey level of 255 away, with a grain that has a deviation of 8."""
    width = box[2] - box[0]
    shorter = round(1.05 * MARGIN * 32 / width) * shrink
    size = (shorter * 4 // 3, shorter)
    path = photo(tmp_path / "a.jpg", size, quality=92)
    seen = []
    draft = JpegImageFile.draft

    def spy(image, mode, least):
        seen.append(draft(image, mode, least))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JpegImageFile, "draft", spy)
        off = (open_crop(path, box, 32).float() - by_pillow(path, box, 32, shrink)).abs()
    assert len(seen) == 1 and seen[0] is not None
    assert off.mean() < 0.6 and off.max() <= 4


def test_a_crop_of_a_small_image_is_cut_between_its_pixels(tmp_path):
    """Rounding the box would leave a few dozen different crops of 8 x 8 pixels."""
    path = photo(tmp_path / "a.png", (8, 8))
    box = (0.11, 0.06, 0.93, 0.71)
    exact = tuple(8 * f for f in box)
    expected = Image.open(path).resize((8, 8), Image.Resampling.BICUBIC, box=exact)
    assert np.array_equal(open_crop(path, box, 8).permute(1, 2, 0).numpy(), np.array(expected))


def test_a_crop_of_a_damaged_jpeg_names_the_file(tmp_path):
    path = photo(tmp_path / "a.jpg", (150, 110))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError) as caught:
        open_crop(path, BOXES[1], 64)
    assert str(caught.value) == UNREADABLE.format(path) % "OSError"


def test_a_jpeg_with_a_flaw_that_pillow_reads_is_read_as_pillow_reads_it(tmp_path):
    path = photo(tmp_path / "a.jpg", (150, 110))
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"extraneous bytes" + content[-2:])
    with pytest.raises(ValueError, match="extraneous"):
        decode_jpeg(path.read_bytes(), "RGB")
    off = (open_crop(path, BOXES[1], 64).float() - by_pillow(path, BOXES[1], 64)).abs()
    assert off.mean() < 0.05


@pytest.mark.parametrize("size", [(75, 50), (50, 75), (301, 200), (32, 32), (20, 24)])
def test_the_centre_is_that_of_timms_transform_for_evaluation(tmp_path, size):
    path = photo(tmp_path / "a.png", size)
    options = dict(interpolation="bicubic", crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    transform = create_transform((3, 32, 32), **options)
    expected = (transform(Image.open(path)) * 255).round().to(torch.uint8)
    assert torch.equal(Decoder([path], 32, None)[0], expected)


# ---- what is refused -----------------------------------------------------------------------------


def png(width, height, bits, colours, raw):
    """A PNG file of these pixels, or one that claims them."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _as(dtype, kind):
    return lambda path: Image.fromarray(np.zeros((9, 9), dtype)).save(path, kind)


UNREADABLE = "cannot read the image {} (%s); replace or remove it"
NO_IMAGE = UNREADABLE % "UnidentifiedImageError"
DEEP = "{} has %s pixels; expected 8 bits per channel: convert it to 8-bit RGB"
REFUSED = {
    "truncated JPEG": (lambda p: p.write_bytes(p.read_bytes()[:900]), UNREADABLE % "OSError"),
    "noise": (lambda p: p.write_bytes(os.urandom(500)), NO_IMAGE),
    "text": (lambda p: p.write_text("not an image, but long enough\n" * 20), NO_IMAGE),
    "empty file": (lambda p: p.write_bytes(b""), NO_IMAGE),
    "bomb": (
        lambda p: p.write_bytes(png(60_000, 60_000, 8, 2, b"0")),
        UNREADABLE % "DecompressionBombError",
    ),
    "large": (
        lambda p: p.write_bytes(png(10_000, 10_000, 8, 2, b"0")),
        "{} has 10000x10000 pixels, more than 89478485; shrink or remove it",
    ),
    "16-bit grey": (_as(np.uint16, "PNG"), DEEP % "I;16"),
    "32-bit grey": (_as(np.int32, "TIFF"), DEEP % "I"),
    "float": (_as(np.float32, "TIFF"), DEEP % "F"),
}


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("kind", REFUSED)
def test_images_that_cannot_be_used(tmp_path, kind, stream):
    damage, line = REFUSED[kind]
    root = image_folder(tmp_path / "images", suffix=".jpg", size=(64, 64))
    path = root / "train/cat/3.jpg"
    damage(path)
    with pytest.raises(InputError) as caught:
        load(**folder_config(root, stream=stream).data_fields)
    assert str(caught.value) == line.format(path)


def test_what_pillow_warns_about_odd_files_is_not_printed(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    path = saved(tmp_path, "a.jpg", RED_IMAGE, exif=exif)
    code = f"from lib.data.decoding import open_image; open_image({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_decoding_in_threads_leaves_the_filters_of_warnings_alone(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    path = saved(tmp_path, "a.jpg", RED_IMAGE, exif=exif)
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_image, [path] * 200))
    assert warnings.filters == before
