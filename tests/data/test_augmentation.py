"""Whole-batch augmentation against a reference that does one image, and one pixel, at a time."""

import math

import pytest
import torch

from lib.data.augmentation import augment, crop_boxes


def batch(b=6, c=2, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (b, c, size, size), generator=g, dtype=torch.uint8)
    return images, torch.rand(b, 4, generator=g)


def slow_flip(image):
    return torch.stack([torch.stack([row.flip(0) for row in channel]) for channel in image])


def slow_crop(image, flip, top, left, pad):
    size = image.shape[-1]
    wide = torch.zeros(image.shape[0], size + 2 * pad, size + 2 * pad, dtype=image.dtype)
    wide[:, pad : pad + size, pad : pad + size] = image
    out = wide[:, top : top + size, left : left + size]
    return out, (slow_flip(out) if flip else out)


def cubic(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def slow_resized_crop(image, flip, box):
    """Bicubic sampling of a box (fractions left, top, width, height), edges reflected."""
    size = image.shape[-1]
    left, top, width, height = box

    def reflect(i):
        i = i % (2 * size)
        return i if i < size else 2 * size - 1 - i

    out = torch.zeros(image.shape, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            u = (size - 1 - column if flip else column) + 0.5
            x = (left + u / size * width) * size - 0.5
            y = (top + (row + 0.5) / size * height) * size - 0.5
            x0, y0 = math.floor(x), math.floor(y)
            for j in range(-1, 3):
                for i in range(-1, 3):
                    weight = cubic(x - (x0 + i)) * cubic(y - (y0 + j))
                    out[:, row, column] += (
                        weight * image[:, reflect(y0 + j), reflect(x0 + i)].double()
                    )
    return out.clamp(0, 255)


def test_none_changes_nothing():
    images, noise = batch()
    assert torch.equal(augment(images, "none", noise), images)


def test_flip_equals_one_image_at_a_time():
    images, noise = batch(40)
    expected = torch.stack(
        [slow_flip(x) if n[0] < 0.5 else x for x, n in zip(images, noise, strict=True)]
    )
    assert torch.equal(augment(images, "flip", noise), expected)
    assert 0 < int((noise[:, 0] < 0.5).sum()) < 40


@pytest.mark.parametrize("size", [8, 32])
def test_padded_crop_equals_one_image_at_a_time(size):
    images, noise = batch(30, size=size)
    pad = size // 8
    got = augment(images, "crop", noise)
    for image, n, out in zip(images, noise.tolist(), got, strict=True):
        top, left = int(n[1] * (2 * pad + 1)), int(n[2] * (2 * pad + 1))
        assert 0 <= top <= 2 * pad and 0 <= left <= 2 * pad
        plain, flipped = slow_crop(image, True, top, left, pad)
        assert torch.equal(out, flipped if n[0] < 0.5 else plain)


def test_padded_crop_reaches_every_offset_and_no_other():
    image = torch.full((1, 1, 8, 8), 9, dtype=torch.uint8)
    noise = torch.cartesian_prod(*(torch.linspace(0, 0.999, 7),) * 2)
    noise = torch.cat([torch.full((49, 1), 0.7), noise, torch.zeros(49, 1)], 1)
    blank = (augment(image.expand(49, -1, -1, -1), "crop", noise) == 0).sum((1, 2, 3))
    assert blank.max() == 15 and blank.min() == 0  # at most one row and one column of padding


def test_resized_crop_equals_one_pixel_at_a_time():
    images, noise = batch(5, 1, 8, seed=3)
    noise[:2, 0] = torch.tensor([0.1, 0.9])  # one of each side of the coin
    left_over = noise.clone()
    left_over[:, 0] = (noise[:, 0] * 2) % 1
    boxes = crop_boxes(left_over).tolist()
    got = augment(images, "resized_crop", noise)
    for image, n, box, out in zip(images, noise.tolist(), boxes, got, strict=True):
        expected = slow_resized_crop(image, n[0] < 0.5, box)
        assert (out.double() - expected).abs().max() <= 0.51  # rounding to 8 bits


def test_crop_boxes_lie_in_the_image_with_the_areas_and_ratios_of_mae():
    noise = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0))
    left, top, width, height = crop_boxes(noise).unbind(1)
    assert left.min() >= 0 and (left + width).max() <= 1 + 1e-6
    assert top.min() >= 0 and (top + height).max() <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() > 0.19 and area.max() <= 1 + 1e-6
    assert area.mean().item() == pytest.approx(0.58, abs=0.03)
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5


@pytest.mark.parametrize("kind", ["flip", "crop", "resized_crop"])
def test_an_image_depends_on_its_own_noise_alone(kind):
    images, noise = batch()
    whole = augment(images, kind, noise)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    single = [augment(images[i : i + 1], kind, noise[i : i + 1]) for i in range(6)]
    assert torch.equal(whole, torch.cat(single))
    assert torch.equal(whole, augment(images, kind, noise))
