"""Eq. 1: patches, masks and complementary views."""

import itertools

import pytest
import torch

from lib.errors import InputError
from lib.masking import (
    complementary_views,
    masks_from_noise,
    num_visible,
    patchify,
    random_masks,
    take,
    unpatchify,
)

SHAPES = [(1, 8, 8, 2), (3, 32, 32, 4), (2, 6, 12, 3), (5, 4, 4, 4), (3, 7, 7, 1)]  # C, H, W, P


@pytest.mark.parametrize("c,h,w,p", SHAPES)
def test_patchify_equals_cutting_one_patch_at_a_time(c, h, w, p):
    images = torch.rand(2, c, h, w)
    slow = [
        [
            image[:, y : y + p, x : x + p].permute(1, 2, 0).flatten()
            for y in range(0, h, p)
            for x in range(0, w, p)
        ]
        for image in images
    ]
    assert torch.equal(patchify(images, p), torch.stack([torch.stack(rows) for rows in slow]))


@pytest.mark.parametrize("c,h,w,p", SHAPES)
def test_unpatchify_is_the_exact_inverse(c, h, w, p):
    images = torch.rand(2, c, h, w)
    assert torch.equal(unpatchify(patchify(images, p), p, (h, w)), images)


@pytest.mark.parametrize("p", [0, 3, 5, 16])
def test_a_patch_that_does_not_divide_is_refused(p):
    with pytest.raises(InputError, match=f"patch_size {p} does not divide an image of 8x8 pixels"):
        patchify(torch.zeros(1, 1, 8, 8), p)


@pytest.mark.parametrize(
    "patches,ratio,visible",
    [(64, 0.75, 16), (196, 0.75, 49), (49, 0.75, 12), (16, 0.75, 4), (100, 0.9, 10),
     (10, 0.7, 3), (64, 0.95, 3), (7, 0.5, 3), (64, 0, 64), (1, 0, 1), (64, 0.984375, 1),
     (16, 0.93, 1)],
)  # fmt: skip
def test_number_of_visible_patches_is_the_floor(patches, ratio, visible):
    assert num_visible(patches, ratio) == visible


def test_number_of_visible_patches_is_maes_except_for_its_rounding_losses():
    for patches, percent in itertools.product((16, 49, 64, 100, 196), range(100)):
        exact = patches * (100 - percent) // 100  # integers: no rounding
        if exact:
            assert num_visible(patches, percent / 100) == exact
            assert int(patches * (1 - percent / 100)) in (exact, exact - 1)  # MAE's expression


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(InputError, match=r"mask_ratio must be in \[0, 1\), got"):
        num_visible(64, ratio)


def test_a_ratio_that_leaves_nothing_visible_is_refused_with_the_highest_that_works():
    with pytest.raises(InputError, match=r"leaves none of 16 patches visible; use at most 0\.9375"):
        num_visible(16, 0.95)
    assert num_visible(16, 0.9375) == 1
    for patches in (2, 3, 7, 49, 1023):
        with pytest.raises(InputError) as caught:
            num_visible(patches, 1 - 1e-9)
        assert num_visible(patches, float(str(caught.value).split()[-1])) == 1


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 0.95])
def test_identity_1_views_are_disjoint_complete_and_scatter_back_exactly(ratio):
    patches = torch.rand(5, 64, 12)
    masks = random_masks(5, 64, ratio, torch.Generator().manual_seed(1))
    x1, x2 = complementary_views(patches, masks)
    assert x1.shape == (5, num_visible(64, ratio), 12) and x2.shape == (
        5,
        64 - num_visible(64, ratio),
        12,
    )
    both = torch.cat([masks.ids_keep, masks.ids_remove], 1)
    assert torch.equal(both.sort(1).values, torch.arange(64).expand(5, -1))
    assert torch.equal(take(torch.cat([x1, x2], 1), masks.ids_restore), patches)
    scattered = torch.full_like(patches, -1)
    for view, ids in ((x1, masks.ids_keep), (x2, masks.ids_remove)):
        scattered.scatter_(1, ids[..., None].expand(-1, -1, 12), view)
    assert torch.equal(scattered, patches)


def test_mask_is_one_exactly_where_a_patch_is_removed():
    masks = random_masks(7, 16, 0.75)
    assert torch.equal(masks.mask.gather(1, masks.ids_keep), torch.zeros(7, 4))
    assert torch.equal(masks.mask.gather(1, masks.ids_remove), torch.ones(7, 12))


def test_the_smallest_noise_is_kept():
    masks = masks_from_noise(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert masks.ids_keep.tolist() == [[1, 3]] and masks.ids_remove.tolist() == [[2, 0]]
    assert masks.mask.tolist() == [[1, 0, 1, 0]]


def test_every_mask_of_the_size_is_equally_likely():
    n = 20_000
    masks = random_masks(n, 5, 0.6, torch.Generator().manual_seed(0))
    codes = (masks.mask.long() * 2 ** torch.arange(5)).sum(1)
    counts = torch.bincount(codes, minlength=32)
    counts = counts[counts > 0].double()
    assert len(counts) == 10  # C(5, 2)
    chi2 = ((counts - n / 10) ** 2 / (n / 10)).sum().item()
    assert chi2 < 27.9  # the 99.9 % point of chi^2 with 9 degrees of freedom


def test_the_generator_decides_the_masks_and_images_get_different_ones():
    a, b, c = (random_masks(8, 64, 0.75, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(a.ids_keep, b.ids_keep) and not torch.equal(a.ids_keep, c.ids_keep)
    assert len({tuple(row) for row in a.mask.tolist()}) == 8
